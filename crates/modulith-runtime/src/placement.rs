//! Where each module's data lives: `placement.toml` in the data folder.
//!
//! A topology that puts a module elsewhere than its data is refused, never answered with an empty store. The
//! file is written before the first database is made, is only ever added to, and is never made again by guess:
//! one that cannot be read is an error.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::model::AppModel;
use crate::topology::Topology;

pub(crate) const FILE: &str = "placement.toml";
/// Held while the file is read and written, since the services of a topology start at once.
const LOCK: &str = "placement.lock";
const FORMAT: u32 = 1;

/// The file as it is stored.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Placement {
    format: u32,
    /// Module to database file, relative to the data folder.
    modules: BTreeMap<String, PathBuf>,
}

/// Why a topology cannot be started on a data folder.
#[derive(Debug, thiserror::Error)]
pub enum PlacementError {
    #[error("{}", Lines(.0))]
    Moved(Vec<Moved>),
    #[error("{}: {reason}; restore it from a backup, it is not made again by guess", file.display())]
    Unreadable { file: PathBuf, reason: String },
    #[error(
        "{}: written by a newer version (format {format}, this one knows {FORMAT}); start with that version",
        file.display()
    )]
    Newer { file: PathBuf, format: u32 },
    #[error(
        "{}: missing, but there is a database {} that the topology does not name; restore {FILE} from a backup, \
         start with the topology that made the data, or name another folder with --data",
        file.display(), database.display()
    )]
    Lost { file: PathBuf, database: PathBuf },
    #[error("{}: missing; no application was started on this folder", file.display())]
    Missing { file: PathBuf },
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
}

/// A module whose data is not where the topology wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    pub module: String,
    /// Where the data is.
    pub is: PathBuf,
    /// Where the topology would look for it.
    pub wanted: PathBuf,
    pub service: String,
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the data of module `{}` is in {}, but the topology puts the module into service `{}` with {}; start \
             with the topology that made the data, or name another folder with --data (moving data comes in a later \
             version)",
            self.module,
            self.is.display(),
            self.service,
            self.wanted.display(),
        )
    }
}

struct Lines<'a>(&'a [Moved]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, moved) in self.0.iter().enumerate() {
            let line_end = if number == 0 { "" } else { "\n" };
            write!(f, "{line_end}{moved}")?;
        }
        Ok(())
    }
}

/// Compares the topology with the data folder, and notes the modules that are new there. The folder must exist.
/// Modules that the application no longer has are kept: their data is still there.
///
/// Waits while another process of the same folder does this.
///
/// # Errors
///
/// Every module whose data is elsewhere; a file that cannot be read or written.
pub(crate) fn remember(data: &Path, topology: &Topology, model: &AppModel) -> Result<(), PlacementError> {
    let _lock = lock(data)?;
    let file = data.join(FILE);
    let found = read(&file)?;
    if found.is_none() {
        refuse_lost(data, &file, topology)?;
    }
    let is_new = found.is_none();
    let mut placement = found.unwrap_or_else(|| Placement { format: FORMAT, modules: BTreeMap::new() });
    let added = placement.compare(data, topology, model)?;
    if is_new || !added.is_empty() {
        placement.modules.extend(added);
        write(data, &file, &placement)?;
    }
    Ok(())
}

/// Compares the topology with the placement in `folder`, and changes nothing: that of a data folder, or the one that
/// a backup of it has.
///
/// # Errors
///
/// Every module whose data is elsewhere; a file that is missing or cannot be read.
pub(crate) fn verify(
    folder: &Path,
    data: &Path,
    topology: &Topology,
    model: &AppModel,
) -> Result<(), PlacementError> {
    let file = folder.join(FILE);
    let placement = read(&file)?.ok_or(PlacementError::Missing { file })?;
    placement.compare(data, topology, model).map(drop)
}

/// Gives a data folder without a placement the one of a backup.
pub(crate) fn adopt(backup: &Path, data: &Path) -> Result<(), PlacementError> {
    let _lock = lock(data)?;
    let (from, file) = (backup.join(FILE), data.join(FILE));
    if read(&file)?.is_some() {
        return Ok(());
    }
    let placement = read(&from)?.ok_or(PlacementError::Missing { file: from })?;
    write(data, &file, &placement)
}

impl Placement {
    /// The modules that are new, with where they go.
    fn compare(
        &self,
        data: &Path,
        topology: &Topology,
        model: &AppModel,
    ) -> Result<BTreeMap<String, PathBuf>, PlacementError> {
        let (mut moved, mut added) = (Vec::new(), BTreeMap::new());
        for module in &model.modules {
            let Some(service) = topology.service_of(module.name) else {
                continue;
            };
            let wanted = relative(data, service.database_file());
            match self.modules.get(module.name) {
                Some(is) if *is == wanted => {}
                Some(is) => moved.push(Moved {
                    module: module.name.to_owned(),
                    is: is.clone(),
                    wanted,
                    service: service.name.clone(),
                }),
                None => {
                    added.insert(module.name.to_owned(), wanted);
                }
            }
        }
        if moved.is_empty() { Ok(added) } else { Err(PlacementError::Moved(moved)) }
    }
}

/// Let go when it is dropped, also by a crash.
fn lock(data: &Path) -> Result<File, PlacementError> {
    let path = data.join(LOCK);
    let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    lock.and_then(|lock| lock.lock().map(|()| lock)).map_err(|error| at(&path, error))
}

fn read(file: &Path) -> Result<Option<Placement>, PlacementError> {
    let unreadable = |reason: String| PlacementError::Unreadable { file: file.to_owned(), reason };
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error.to_string())),
    };
    let table: toml::Table =
        text.parse().map_err(|error: toml::de::Error| unreadable(one_line(error.message())))?;
    // Asked first: a newer format may have other fields.
    match table.get("format").and_then(toml::Value::as_integer).and_then(|format| u32::try_from(format).ok())
    {
        Some(FORMAT) => {}
        Some(format) if format > FORMAT => {
            return Err(PlacementError::Newer { file: file.to_owned(), format });
        }
        _ => return Err(unreadable(format!("`format` is not {FORMAT}"))),
    }
    Placement::deserialize(table).map(Some).map_err(|error| unreadable(one_line(error.message())))
}

fn one_line(text: &str) -> String {
    text.trim().replace('\n', ", ")
}

/// Without the file, a database that the topology does not name is the data of another topology.
fn refuse_lost(data: &Path, file: &Path, topology: &Topology) -> Result<(), PlacementError> {
    let named: Vec<PathBuf> =
        topology.services.iter().map(|service| relative(data, service.database_file())).collect();
    for entry in std::fs::read_dir(data).map_err(|error| at(data, error))? {
        let name = PathBuf::from(entry.map_err(|error| at(data, error))?.file_name());
        if name.extension().is_some_and(|extension| extension == "db") && !named.contains(&name) {
            return Err(PlacementError::Lost { file: file.to_owned(), database: name });
        }
    }
    Ok(())
}

/// An absolute path into the data folder is a relative one, so that the folder can be renamed.
pub(crate) fn relative(data: &Path, database: PathBuf) -> PathBuf {
    if database.is_relative() {
        return database;
    }
    let inside = data.canonicalize().ok().and_then(|data| Some(database.strip_prefix(data).ok()?.to_owned()));
    inside.unwrap_or(database)
}

/// After a crash there is the old file or the new one, whole.
fn write(data: &Path, file: &Path, placement: &Placement) -> Result<(), PlacementError> {
    let text = toml::to_string(placement).map_err(|error| at(file, io::Error::other(error)))?;
    // The lock is held: nobody else writes this name.
    let temporary = data.join(format!("{FILE}.new"));
    let written = (|| {
        let mut new = File::create(&temporary)?;
        new.write_all(b"# Where the data of each module is. Written by the application; do not edit.\n")?;
        new.write_all(text.as_bytes())?;
        new.sync_all()?;
        std::fs::rename(&temporary, file)?;
        File::open(data)?.sync_all()
    })();
    written.map_err(|error| at(file, error))
}

fn at(path: &Path, error: io::Error) -> PlacementError {
    PlacementError::Io { path: path.to_owned(), error }
}

#[cfg(test)]
mod tests;
