//! `backup.toml`: what a backup consists of. It is written last, so a folder without it holds no backup.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use modulith_data::sqlite::backup::Copied;
use serde::{Deserialize, Serialize};

use crate::placement;
use crate::topology::{ServiceSection, Topology};

pub(super) const FILE: &str = "backup.toml";
const FORMAT: u32 = 1;

/// The file as it is stored.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    format: u32,
    pub(super) application: String,
    /// In UTC. What was acknowledged before is in the backup.
    pub(super) begun: String,
    pub(super) placement_sha256: String,
    #[serde(rename = "database")]
    pub(super) databases: Vec<DatabaseCopy>,
}

/// One database, as the topology had it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DatabaseCopy {
    pub(super) service: String,
    /// In alphabetical order.
    pub(super) modules: Vec<String>,
    /// Where it was, relative to the data folder.
    pub(super) database: PathBuf,
    /// The copy, in the backup's folder.
    pub(super) file: String,
    id: uuid::Uuid,
    incarnation: i64,
    pub(super) bytes: u64,
    sha256: String,
}

impl DatabaseCopy {
    pub(super) fn new(service: &ServiceSection, data: &Path, copied: Copied) -> Self {
        Self {
            service: service.name.clone(),
            modules: sorted(&service.modules),
            database: placement::relative(data, service.database_file()),
            file: file(service),
            id: copied.id,
            incarnation: copied.incarnation,
            bytes: copied.bytes,
            sha256: copied.sha256,
        }
    }

    pub(super) fn copied(&self) -> Copied {
        Copied { id: self.id, incarnation: self.incarnation, bytes: self.bytes, sha256: self.sha256.clone() }
    }
}

/// The name of a service's copy. A service has one database, which may be anywhere.
pub(super) fn file(service: &ServiceSection) -> String {
    format!("{}.db", service.name)
}

fn sorted(modules: &[String]) -> Vec<String> {
    let mut modules = modules.to_vec();
    modules.sort();
    modules
}

impl Manifest {
    pub(super) fn new(
        application: &str,
        begun: String,
        placement_sha256: String,
        databases: Vec<DatabaseCopy>,
    ) -> Self {
        Self { format: FORMAT, application: application.to_owned(), begun, placement_sha256, databases }
    }

    /// # Errors
    ///
    /// None is there, so the backup never came to its end; one that cannot be read, or of a newer version.
    pub(super) fn read(folder: &Path) -> anyhow::Result<Self> {
        let file = folder.join(FILE);
        let text = match std::fs::read_to_string(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(
                "{} has no {FILE}: it is no backup, or one that did not come to its end",
                folder.display()
            ),
            text => text.with_context(|| file.display().to_string())?,
        };
        let table: toml::Table = text.parse().with_context(|| file.display().to_string())?;
        // Asked first: a newer format may have other fields.
        let format = table.get("format").and_then(toml::Value::as_integer);
        ensure!(
            format == Some(FORMAT.into()),
            "{}: `format` is {}, this version knows {FORMAT}; restore with the version that wrote it",
            file.display(),
            format.map_or("missing".to_owned(), |format| format.to_string()),
        );
        Self::deserialize(table).with_context(|| file.display().to_string())
    }

    /// Writes it into the backup's folder. After a crash it is there whole or not at all.
    pub(super) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let file = folder.join(FILE);
        let text = toml::to_string(self)?;
        let unfinished = folder.join(format!("{FILE}.new"));
        let written = (|| {
            let mut new = File::options().write(true).create_new(true).mode(0o600).open(&unfinished)?;
            new.write_all(b"# A backup; the guide's chapter on backups says how it is restored.\n")?;
            new.write_all(text.as_bytes())?;
            new.sync_all()?;
            std::fs::rename(&unfinished, &file)?;
            File::open(folder)?.sync_all()
        })();
        written.with_context(|| file.display().to_string())
    }

    /// The copy of each service of a topology, or of the only one that is wanted.
    ///
    /// # Errors
    ///
    /// The topology and the backup do not have the same modules in the same databases; no such service.
    pub(super) fn choose<'a>(
        &'a self,
        topology: &'a Topology,
        data: &Path,
        only: Option<&str>,
    ) -> anyhow::Result<Vec<(&'a ServiceSection, &'a DatabaseCopy)>> {
        if let Some(name) = only {
            ensure!(
                topology.service(name).is_some(),
                "no service `{name}` in {}; it has: {}",
                crate::host::source(topology),
                topology.services.iter().map(|service| &*service.name).collect::<Vec<_>>().join(", ")
            );
        }
        let wanted = topology.services.iter().filter(|service| only.is_none_or(|name| service.name == name));
        let chosen: Vec<_> =
            wanted.map(|service| Ok((service, self.of(service, data)?))).collect::<anyhow::Result<_>>()?;
        let is_chosen = |copy: &DatabaseCopy| chosen.iter().any(|(_, chosen)| std::ptr::eq(*chosen, copy));
        if only.is_none()
            && let Some(left) = self.databases.iter().find(|copy| !is_chosen(copy))
        {
            bail!(
                "the backup has a database {} of service `{}`, which the topology does not name; restore with the \
                 topology that the backup was made with",
                left.database.display(),
                left.service
            );
        }
        Ok(chosen)
    }

    fn of(&self, service: &ServiceSection, data: &Path) -> anyhow::Result<&DatabaseCopy> {
        let database = placement::relative(data, service.database_file());
        let copy = self.databases.iter().find(|copy| copy.database == database).with_context(|| {
            format!(
                "the backup has no database {} of service `{}`; restore with the topology that the backup was made \
                 with",
                database.display(),
                service.name
            )
        })?;
        ensure!(
            copy.modules == sorted(&service.modules),
            "in the backup {} has the modules {}, but service `{}` hosts {}; restore with the topology that the \
             backup was made with",
            database.display(),
            copy.modules.join(", "),
            service.name,
            sorted(&service.modules).join(", ")
        );
        Ok(copy)
    }
}
