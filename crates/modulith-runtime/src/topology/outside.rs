//! Programs that are none of ours: those that may call, and those that are called.
//!
//! Nothing is open to anybody before the file says so: `[expose]` names the contracts, and each `[caller.NAME]` those
//! of them that one program may call, with a token of its own.

use std::path::{Path, PathBuf};

use toml_edit::{Item, TableLike};

use super::read::Reader;

const EXPOSE_KEYS: [&str; 1] = ["contracts"];
const CALLER_KEYS: [&str; 2] = ["contracts", "token_file"];
const EXTERNAL_KEYS: [&str; 4] = ["url", "contracts", "token_file", "unencrypted"];

/// `[caller.NAME]`: a program that calls exposed contracts over HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallerSection {
    pub name: String,
    /// What it may call: contracts, or one method as `products.catalogue`; anything else is refused.
    pub contracts: Vec<String>,
    /// As written; see [`CallerSection::token_file`].
    pub token_file: Option<PathBuf>,
}

/// `[external.NAME]`: a service that is no process of ours and serves contracts over HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalSection {
    pub name: String,
    /// `http://host:port`, perhaps with a path in front of `/call`; as written.
    pub url: String,
    pub contracts: Vec<String>,
    /// A file with the token that it is shown, relative to the data folder; without one it is shown none.
    pub token_file: Option<PathBuf>,
    /// Requests and the token may cross a network in the clear. Default false: the URL has to be on loopback.
    pub unencrypted: bool,
}

impl CallerSection {
    /// The file with its token: what the section says, relative to the data folder, or `None` for the one in the data
    /// folder's `keys` that is made at the first start, [`CallerSection::made_token`].
    pub fn token_file(&self, data: &Path) -> Option<PathBuf> {
        self.token_file.as_ref().map(|file| data.join(file))
    }

    /// The name of the token file in `keys` when the section names none: `caller-NAME.token`.
    pub fn made_token(&self) -> String {
        format!("caller-{}.token", self.name)
    }
}

impl ExternalSection {
    /// Host, port and path: what follows `http://`, without a slash at the end; or why it cannot be used.
    pub(crate) fn place(&self) -> Result<&str, &'static str> {
        let place = match self.url.split_once("://") {
            Some(("http", place)) => place.trim_end_matches('/'),
            Some(("https", _)) => return Err("https is not spoken; put a proxy in front of it that does"),
            _ => return Err("this is no URL that begins with http://"),
        };
        match self.url.parse::<http::Uri>() {
            Ok(uri) if uri.query().is_none() && uri.host().is_some_and(|host| !host.is_empty()) => Ok(place),
            _ => Err("this is no URL of a host, a port and perhaps a path"),
        }
    }

    /// The host of its URL, if that can be used.
    pub(crate) fn host(&self) -> Option<String> {
        self.url.parse::<http::Uri>().ok()?.host().map(str::to_owned)
    }
}

impl Reader<'_> {
    pub(super) fn expose(&mut self, section: &dyn TableLike) {
        self.lines("expose", section);
        for (name, item) in section.iter() {
            match name {
                "contracts" => {
                    self.topology.exposed = self.names("expose.contracts", "contract", item);
                }
                _ => self.unknown("expose", name, &EXPOSE_KEYS),
            }
        }
    }

    pub(super) fn caller(&mut self, name: &str, section: &dyn TableLike) {
        let mut caller = CallerSection { name: name.to_owned(), contracts: Vec::new(), token_file: None };
        let key = |field: &str| format!("caller.{name}.{field}");
        for (field, item) in section.iter() {
            match field {
                "contracts" => caller.contracts = self.names(&key(field), "contract", item),
                "token_file" => caller.token_file = self.file(&key(field), item),
                _ => self.unknown(&format!("caller.{name}"), field, &CALLER_KEYS),
            }
        }
        self.topology.callers.push(caller);
    }

    pub(super) fn external(&mut self, name: &str, section: &dyn TableLike) {
        let mut external = ExternalSection {
            name: name.to_owned(),
            url: String::new(),
            contracts: Vec::new(),
            token_file: None,
            unencrypted: false,
        };
        let key = |field: &str| format!("external.{name}.{field}");
        for (field, item) in section.iter() {
            match field {
                "contracts" => external.contracts = self.names(&key(field), "contract", item),
                "token_file" => external.token_file = self.file(&key(field), item),
                "url" => match item.as_str() {
                    Some(url) => external.url = url.to_owned(),
                    None => self.wrong_type(
                        &key(field),
                        item,
                        "a string",
                        "write `url = \"http://127.0.0.1:9400\"`",
                    ),
                },
                "unencrypted" => match item.as_bool() {
                    Some(unencrypted) => external.unencrypted = unencrypted,
                    None => self.wrong_type(&key(field), item, "a boolean", "write `unencrypted = true`"),
                },
                _ => self.unknown(&format!("external.{name}"), field, &EXTERNAL_KEYS),
            }
        }
        self.topology.externals.push(external);
    }

    fn file(&mut self, key: &str, item: &Item) -> Option<PathBuf> {
        match item.as_str() {
            Some(file) if !file.is_empty() => Some(PathBuf::from(file)),
            _ => {
                self.wrong_type(key, item, "the path of a file", "write `token_file = \"keys/NAME.token\"`");
                None
            }
        }
    }
}
