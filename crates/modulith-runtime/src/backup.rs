//! `backup` and `restore`: all databases of a topology into a folder, while the application runs or not, and back.
//!
//! Owns which files a backup has and when it is one. A database's own part, copying it and putting it back, is in
//! `modulith-data`. Secrets are never copied: a backup goes to places where the data may be and keys may not.

mod manifest;

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use modulith_core::crash_point;
use modulith_data::sqlite::OpenError;
use modulith_data::sqlite::backup::{self, BackupError, Copied, Restoration, Stopped, utc_now};

use crate::app::App;
use crate::placement;
use crate::topology::{ServiceSection, Topology};
use manifest::{DatabaseCopy, Manifest};

/// Copies the database of each service of `topology` into `folder`, which is made, or is empty.
///
/// Every database is one consistent snapshot with all that was acknowledged before the call. The copies begin
/// together, so that they are moments apart and not the time that copying takes; but they are not one moment.
///
/// # Errors
///
/// A folder that holds anything; a topology that is not the data's; every database that is missing; what the file
/// system says. What was written then is no backup: its manifest is missing.
pub(crate) fn backup(app: &App, topology: &Topology, data: &Path, folder: &Path) -> anyhow::Result<()> {
    let (_, model) = app.declare(topology)?;
    placement::verify(data, data, topology, &model)?;
    let missing: Vec<_> = (topology.services.iter())
        .filter(|service| !topology.database_path(service, data).exists())
        .map(|service| {
            let path = topology.database_path(service, data);
            format!("the database of service `{}` is missing: {}", service.name, path.display())
        })
        .collect();
    ensure!(missing.is_empty(), "{}", missing.join("\n"));
    claim(folder)?;

    let begun = utc_now();
    let copied = copy_all(topology, data, folder)?;
    let placement_sha256 = copy_placement(data, folder)?;
    crash_point(|| "backup:copied".to_owned());
    let databases = topology.services.iter().zip(copied);
    let databases = databases.map(|(service, copied)| DatabaseCopy::new(service, data, copied)).collect();
    let manifest = Manifest::new(app.name, begun, placement_sha256, databases);
    manifest.write(folder)?;

    for copy in &manifest.databases {
        println!("{}: {}, {} bytes", copy.service, folder.join(&copy.file).display(), copy.bytes);
    }
    println!("What was acknowledged before {} is in this backup.", manifest.begun);
    println!("{} is not: keep your own copy of these secrets, elsewhere.", data.join("keys").display());
    Ok(())
}

/// Makes the backup's folder, or takes an empty one.
fn claim(folder: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    let entries =
        made.and_then(|()| std::fs::read_dir(folder)).with_context(|| folder.display().to_string())?;
    if entries.count() > 0 {
        bail!("{} holds files already; name a new folder, or an empty one", folder.display());
    }
    // So that a folder that was made is still there after a power cut.
    let parent = folder.join("..");
    File::open(&parent).and_then(|parent| parent.sync_all()).with_context(|| parent.display().to_string())
}

fn copy_all(topology: &Topology, data: &Path, folder: &Path) -> Result<Vec<Copied>, BackupError> {
    std::thread::scope(|scope| {
        let copies: Vec<_> = (topology.services.iter())
            .map(|service| {
                let (from, to) =
                    (topology.database_path(service, data), folder.join(manifest::file(service)));
                scope.spawn(move || backup::copy(&from, &to))
            })
            .collect();
        copies.into_iter().map(|copy| copy.join().expect("copying a database does not panic")).collect()
    })
}

/// Returns the copy's SHA-256.
fn copy_placement(data: &Path, folder: &Path) -> anyhow::Result<String> {
    let (from, to) = (data.join(placement::FILE), folder.join(placement::FILE));
    let text = std::fs::read(&from).with_context(|| from.display().to_string())?;
    let written = File::options().write(true).create_new(true).mode(0o600).open(&to).and_then(|mut file| {
        file.write_all(&text)?;
        file.sync_all()
    });
    written.with_context(|| to.display().to_string())?;
    Ok(backup::digest(&to)?.1)
}

/// Puts the databases of the backup in `folder` into the place of those in `data`, or that of the service `only`. No
/// service of the topology may run.
///
/// Everything is checked before anything is changed. Databases from before are set aside, never deleted. After a
/// crash each database is the one from before or the restored one; the same call again restores all of them.
///
/// # Errors
///
/// No whole backup, a damaged one, one of another application or topology; a service that runs.
pub(crate) fn restore(
    app: &App,
    topology: &Topology,
    data: &Path,
    folder: &Path,
    only: Option<&str>,
) -> anyhow::Result<()> {
    let (_, model) = app.declare(topology)?;
    let manifest = Manifest::read(folder)?;
    ensure!(
        manifest.application == app.name,
        "{} is a backup of application `{}`, this is `{}`",
        folder.display(),
        manifest.application,
        app.name
    );
    let placement = folder.join(placement::FILE);
    let (_, sha256) = backup::digest(&placement)?;
    ensure!(
        sha256 == manifest.placement_sha256,
        "{} is damaged: it is not what the backup wrote",
        placement.display()
    );
    crate::host::create_private(data)?;
    placement::verify(folder, data, topology, &model).context("the backup was made with another topology")?;
    if data.join(placement::FILE).exists() {
        placement::verify(data, data, topology, &model)?;
    }
    let chosen = manifest.choose(topology, data, only)?;

    // Also those of services that keep their database: a saga at work would go on with answers that are gone. From
    // here on nothing starts.
    let mut stopped: BTreeMap<&str, Stopped> = (topology.services.iter())
        .map(|service| Ok((&*service.name, stop(topology, service, data)?)))
        .collect::<anyhow::Result<_>>()?;
    let prepared = chosen.iter().map(|(service, copy)| {
        let stopped = stopped.remove(&*service.name).expect("every service of the topology was stopped");
        stopped.prepare(&folder.join(&copy.file), &copy.copied())
    });
    let prepared: Vec<_> = prepared.collect::<Result<_, _>>()?;
    placement::adopt(folder, data)?;
    let restored: Vec<_> = prepared.into_iter().map(Restoration::replace).collect::<Result<_, _>>()?;
    for ((service, copy), restored) in chosen.iter().zip(restored) {
        println!("{}: restored from {}", service.name, folder.join(&copy.file).display());
        println!("  the database was {}; it is now {}", restored.previous, restored.id);
        if let Some(replaced) = restored.replaced {
            println!("  the one from before is {}", replaced.display());
        }
    }
    println!("What was acknowledged after {} may be lost.", manifest.begun);
    if !data.join("keys").exists() {
        println!(
            "{} is missing and in no backup: put your own copy there before the start, or new keys are made and \
             everybody has to sign in again.",
            data.join("keys").display()
        );
    }
    Ok(())
}

fn stop(topology: &Topology, service: &ServiceSection, data: &Path) -> anyhow::Result<Stopped> {
    Stopped::lock(&topology.database_path(service, data)).map_err(|error| match error {
        OpenError::InUse { .. } => anyhow::Error::new(error)
            .context(format!("service `{}` runs; stop the application first", service.name)),
        error => error.into(),
    })
}
