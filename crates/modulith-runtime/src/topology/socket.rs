//! Where a Unix socket goes, given that the kernel takes about 100 bytes of path and data folders may be deep.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Linux takes 107 bytes, macOS 103.
pub(crate) const UNIX_PATH_BYTES_MAX: usize = 100;

/// A socket's path. The same data folder gives the same path from any working folder, since all processes of
/// an application have to meet there.
pub(super) fn place(socket: &Path, data: &Path) -> PathBuf {
    if socket.is_absolute() {
        return socket.to_owned();
    }
    let inside = canonical(data).join(super::plain(socket));
    if inside.as_os_str().len() <= UNIX_PATH_BYTES_MAX {
        return inside;
    }
    // The whole relative path is the name: `run/a.sock` and `other/a.sock` stay two sockets.
    let name = super::plain(socket).to_string_lossy().replace('/', "-");
    temporary_folder(data).join(name)
}

/// Makes the folder that a socket is in: for this user only, and never one that somebody else has prepared.
pub(super) fn make_folder(socket: &Path, data: &Path) -> io::Result<()> {
    let Some(folder) = socket.parent().filter(|folder| !folder.as_os_str().is_empty()) else {
        return Ok(());
    };
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    if folder == temporary_folder(data) {
        let found = std::fs::symlink_metadata(folder)?;
        let own = rustix::process::getuid().as_raw();
        if !found.is_dir() || found.uid() != own || found.mode() & 0o077 != 0 {
            let message = format!(
                "{}: not a folder of this user alone; remove it, or use a shorter --data",
                folder.display()
            );
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
    }
    Ok(())
}

fn temporary_folder(data: &Path) -> PathBuf {
    let digest = ring::digest::digest(&ring::digest::SHA256, canonical(data).as_os_str().as_bytes());
    let hash: String = digest.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    std::env::temp_dir().join(format!("modulith-{}-{hash}", rustix::process::getuid().as_raw()))
}

fn canonical(data: &Path) -> PathBuf {
    data.canonicalize().or_else(|_| std::path::absolute(data)).unwrap_or_else(|_| data.to_owned())
}
