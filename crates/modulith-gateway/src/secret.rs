//! Secrets of the data folder: made once, agreed on by every process, readable by their owner only.
//!
//! A secret is written whole to a file of its own and then linked to its name, which fails if the name exists:
//! of several processes that start at once one wins, the others read the winner's, and no crash leaves half a
//! secret under the name. A file that others can read is refused, because it may already be known to them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom, SystemRandom};
use subtle::ConstantTimeEq;

/// Why a secret of the data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{0}: others can read it (mode {mode:04o}); replace it, or `chmod 600 {0}` if nobody did", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{}: {why}; remove it to get a new one", path.display())]
    Unreadable { path: PathBuf, why: &'static str },
    #[error("{}: holds no token of one line with 16 to 1,024 visible ASCII characters", path.display())]
    NoToken { path: PathBuf },
    #[error("the system gives no random numbers")]
    NoRandomness,
}

const SECRET_BYTES_MAX: u64 = 4096;

/// The content of `dir/name`, which `make` gives if there is none.
pub(crate) fn load_or_create(
    dir: &Path,
    name: &str,
    make: impl FnOnce() -> Result<Vec<u8>, KeyError>,
) -> Result<Vec<u8>, KeyError> {
    let path = dir.join(name);
    match load(&path) {
        Err(KeyError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
        loaded => return loaded,
    }
    let own = dir.join(format!(".{name}.{}", hex(&random::<8>()?)));
    let linked = write(&own, &make()?).and_then(|()| match fs::hard_link(&own, &path) {
        // Another process was first; its secret counts.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        linked => linked,
    });
    let removed = fs::remove_file(&own);
    let synced = linked.and(removed).and_then(|()| File::open(dir)?.sync_all());
    synced.map_err(|source| KeyError::Io { path: path.clone(), source })?;
    load(&path)
}

fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn load(path: &Path) -> Result<Vec<u8>, KeyError> {
    let io = |source| KeyError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    // Of the open file, not of the name, which could change in between.
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(KeyError::Unreadable { path: path.to_owned(), why: "not a file" });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Exposed { path: path.to_owned(), mode });
    }
    let mut content = Vec::new();
    file.take(SECRET_BYTES_MAX).read_to_end(&mut content).map_err(io)?;
    Ok(content)
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], KeyError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| KeyError::NoRandomness)?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A token that opens a door to whoever can read it from the data folder: 32 random bytes in hexadecimal.
///
/// Files: `admin.token` for operators, `internal.token` between the processes of one installation.
#[derive(Clone)]
pub struct AccessToken(String);

impl AccessToken {
    /// Reads `dir/name`, or makes it with mode 0600. The folder must exist. Blocks.
    ///
    /// # Errors
    ///
    /// [`KeyError`], naming the file: others can read it, or it holds no token.
    pub fn load_or_create(dir: &Path, name: &str) -> Result<Self, KeyError> {
        let content = load_or_create(dir, name, || Ok(format!("{}\n", hex(&random::<32>()?)).into_bytes()))?;
        let text = std::str::from_utf8(&content).unwrap_or_default().trim_end();
        match text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            true => Ok(Self(text.to_owned())),
            false => Err(KeyError::Unreadable { path: dir.join(name), why: "not 64 hexadecimal digits" }),
        }
    }

    /// Reads a token that somebody else made: one line of 16 to 1,024 visible ASCII characters. Blocks.
    ///
    /// # Errors
    ///
    /// [`KeyError`], naming the file: there is none, others can read it, or it holds no token.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let content = load(path)?;
        let text = std::str::from_utf8(&content).unwrap_or_default().trim_end();
        match (16..=1024).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            true => Ok(Self(text.to_owned())),
            false => Err(KeyError::NoToken { path: path.to_owned() }),
        }
    }

    /// A token that is stored nowhere, for processes that are started together and for tests.
    ///
    /// # Errors
    ///
    /// [`KeyError::NoRandomness`].
    pub fn generate() -> Result<Self, KeyError> {
        Ok(Self(hex(&random::<32>()?)))
    }

    /// Compares in a time that does not depend on where the two differ.
    pub fn matches(&self, presented: &str) -> bool {
        self.0.as_bytes().ct_eq(presented.as_bytes()).into()
    }

    /// The token itself, to be shown to a peer. Never log it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AccessToken(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Barrier;

    use super::*;
    use crate::SessionKeys;

    #[test]
    fn processes_that_start_at_once_agree() {
        for _ in 0..20 {
            let dir = tempfile::tempdir().unwrap();
            let start = Barrier::new(8);
            let made: Vec<(String, SessionKeys)> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..8)
                    .map(|_| {
                        scope.spawn(|| {
                            start.wait();
                            let token = AccessToken::load_or_create(dir.path(), "admin.token").unwrap();
                            (token.0, SessionKeys::load_or_create(dir.path()).unwrap())
                        })
                    })
                    .collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let issued = made[0].1.issue("ada", std::time::Duration::from_secs(60)).unwrap();
            for (token, keys) in &made {
                assert_eq!(*token, made[0].0);
                assert_eq!(&*keys.verify(&issued).unwrap().subject, "ada");
            }
            let mut names: Vec<_> =
                fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            assert_eq!(names, ["admin.token", "session.key"], "nothing else is left behind");
            for name in names {
                assert_eq!(fs::metadata(dir.path().join(name)).unwrap().mode() & 0o777, 0o600);
            }
        }
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        SessionKeys::load_or_create(dir.path()).unwrap();
        let path = dir.path().join("session.key");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = SessionKeys::load_or_create(dir.path()).map(drop).unwrap_err().to_string();
        assert!(error.contains("session.key") && error.contains("0640"), "{error}");

        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, b"no key").unwrap();
        let error = SessionKeys::load_or_create(dir.path()).map(drop).unwrap_err().to_string();
        assert!(error.contains("session.key") && error.contains("no Ed25519 key"), "{error}");
    }

    #[test]
    fn a_token_matches_itself_only_and_is_not_printed() {
        let token = AccessToken::generate().unwrap();
        assert!(token.matches(&token.0.clone()));
        for other in ["", &token.0[1..], &format!("{}0", token.0), &token.0.replace(&token.0[..1], "x")] {
            assert!(!token.matches(other));
        }
        assert_eq!(format!("{token:?}"), "AccessToken(..)");
    }
}
