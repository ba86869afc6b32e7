//! Reads a topology file into sections, noting the line of every key.
//!
//! Goes on after each mistake, so that all of them are listed at once.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use modulith_gateway::Sampling;
use modulith_transport::Address;
use toml_edit::{Document, Item, TableLike};

use super::{
    DRAIN_S_DEFAULT, DRAIN_S_MAX, GatewaySection, LISTEN_DEFAULT, PLAINTEXT, Problem, Problems,
    ServiceSection, TelemetrySection, Tls, Topology, TrustSection, WORKERS_MAX, nearest,
};

const SECTIONS: [&str; 8] =
    ["gateway", "trust", "telemetry", "service", "module", "expose", "caller", "external"];
const GATEWAY_KEYS: [&str; 3] = ["listen", "drain_s", "workers"];
const TRUST_KEYS: [&str; 6] = ["authority", "certificate", "key", "tls", "plaintext", "unix_uids"];
const TELEMETRY_KEYS: [&str; 3] = ["sample_ratio", "trust_parent", "listen"];
const SERVICE_KEYS: [&str; 6] = ["modules", "listen", "addresses", "database", "replicas", "workers"];

pub(super) fn load(path: &Path) -> Result<Topology, Problems> {
    let refuse = |line, message: String, mend: &str| {
        let file = Some(path.to_owned());
        Err(Problems(vec![Problem { file, line, key: String::new(), message, mend: mend.to_owned() }]))
    };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            return refuse(None, error.to_string(), "name a readable topology file with --topology");
        }
    };
    parse(path, &text).or_else(|error| {
        let line = error.span().map(|span| line_at(&text, span.start));
        refuse(line, error.message().trim().replace('\n', ", "), "write valid TOML there (https://toml.io)")
    })
}

fn parse(path: &Path, text: &str) -> Result<Topology, toml_edit::TomlError> {
    let document = Document::parse(text)?;
    // Read twice: toml_edit knows places, and modules are given ordinary values.
    let values: toml::Table = toml::from_str(text).unwrap_or_default();
    let mut reader = Reader {
        text,
        topology: Topology {
            file: Some(path.to_owned()),
            services: Vec::new(),
            ..Topology::built_in("", &[])
        },
    };
    reader.root(document.as_table());
    let mut topology = reader.topology;
    if let Some(toml::Value::Table(modules)) = values.get("module") {
        topology.modules = modules
            .iter()
            .filter_map(|(name, section)| Some((name.clone(), section.as_table()?.clone())))
            .collect::<BTreeMap<_, _>>();
    }
    Ok(topology)
}

fn line_at(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}

pub(super) struct Reader<'a> {
    text: &'a str,
    pub(super) topology: Topology,
}

impl Reader<'_> {
    fn root(&mut self, root: &dyn TableLike) {
        self.lines("", root);
        for (name, item) in root.iter() {
            match (name, item.as_table_like()) {
                ("gateway", Some(section)) => self.gateway(section),
                ("trust", Some(section)) => self.trust(section),
                ("telemetry", Some(section)) => self.telemetry(section),
                ("service", Some(services)) => self.each_section("service", services, Self::service),
                ("module", Some(modules)) => self.each_section("module", modules, |_, _, _| {}),
                ("expose", Some(section)) => self.expose(section),
                ("caller", Some(callers)) => self.each_section("caller", callers, Self::caller),
                ("external", Some(externals)) => {
                    self.each_section("external", externals, Self::external);
                }
                ("gateway" | "trust" | "telemetry" | "expose", None) => {
                    let mend = format!("write `[{name}]` on a line of its own");
                    self.wrong_type(name, item, "a section", &mend);
                }
                ("service" | "module" | "caller" | "external", None) => {
                    self.wrong_type(
                        name,
                        item,
                        "a section",
                        &format!("write `[{name}.NAME]` on a line of its own"),
                    );
                }
                _ => self.unknown("", name, &SECTIONS),
            }
        }
    }

    fn each_section(
        &mut self,
        kind: &str,
        sections: &dyn TableLike,
        read: impl Fn(&mut Self, &str, &dyn TableLike),
    ) {
        self.lines(kind, sections);
        for (name, item) in sections.iter() {
            let key = format!("{kind}.{name}");
            match item.as_table_like() {
                Some(section) => {
                    self.lines(&key, section);
                    read(self, name, section);
                }
                None => self.wrong_type(
                    &key,
                    item,
                    "a section",
                    &format!("write `[{kind}.NAME]` above `{name}`, with the name of a {kind}"),
                ),
            }
        }
    }

    fn gateway(&mut self, section: &dyn TableLike) {
        self.lines("gateway", section);
        let mut gateway = GatewaySection::default();
        for (name, item) in section.iter() {
            match name {
                "listen" => {
                    gateway.listen =
                        self.address("gateway.listen", item, LISTEN_DEFAULT).unwrap_or(gateway.listen);
                }
                "workers" => gateway.workers = self.workers("gateway.workers", item),
                "drain_s" => {
                    let drain_s = self.count("gateway.drain_s", item, DRAIN_S_DEFAULT);
                    match drain_s {
                        Some(drain_s @ 1..=DRAIN_S_MAX) => gateway.drain_s = drain_s,
                        Some(drain_s) => self.add(
                            "gateway.drain_s",
                            format!("{drain_s} s is not from 1 to {DRAIN_S_MAX}"),
                            format!("write `drain_s = {DRAIN_S_DEFAULT}`"),
                        ),
                        None => {}
                    }
                }
                _ => self.unknown("gateway", name, &GATEWAY_KEYS),
            }
        }
        self.topology.gateway = gateway;
    }

    fn trust(&mut self, section: &dyn TableLike) {
        self.lines("trust", section);
        let mut trust = TrustSection::default();
        for (name, item) in section.iter() {
            let key = format!("trust.{name}");
            let defaults = TrustSection::default();
            match name {
                "authority" => trust.authority = self.path(&key, item, defaults.authority),
                "certificate" => trust.certificate = self.path(&key, item, defaults.certificate),
                "key" => trust.key = self.path(&key, item, defaults.key),
                "tls" => match item.as_str() {
                    // `plaintext` beside it is a problem of its own.
                    Some("always") => trust.tls = Tls::Always,
                    _ => self.add(
                        &key,
                        "addresses beyond loopback are over TLS anyway; `always` is all that can be asked for",
                        "write `tls = \"always\"`, or remove it",
                    ),
                },
                "plaintext" => match item.as_str() {
                    Some(PLAINTEXT) if section.contains_key("tls") => {
                        self.add(&key, "it cannot be together with `tls`", "remove one of the two");
                    }
                    Some(PLAINTEXT) => trust.tls = Tls::Never,
                    _ => self.add(
                        &key,
                        "calls between hosts are encrypted unless this says what it means when they are not",
                        format!("write `plaintext = \"{PLAINTEXT}\"`, or remove it"),
                    ),
                },
                "unix_uids" => trust.unix_uids = self.uids(&key, item),
                _ => self.unknown("trust", name, &TRUST_KEYS),
            }
        }
        self.topology.trust = trust;
    }

    fn path(&mut self, key: &str, item: &Item, default: PathBuf) -> PathBuf {
        match item.as_str() {
            Some(path) if !path.is_empty() => PathBuf::from(path),
            _ => {
                let name = key.rsplit('.').next().unwrap_or(key);
                self.add(key, "a path is expected", format!("write `{name} = \"{}\"`", default.display()));
                default
            }
        }
    }

    fn uids(&mut self, key: &str, item: &Item) -> Vec<u32> {
        let uids: Option<Vec<u32>> = item
            .as_array()
            .and_then(|array| array.iter().map(|value| u32::try_from(value.as_integer()?).ok()).collect());
        uids.unwrap_or_else(|| {
            self.add(key, "a list of user ids is expected", "write `unix_uids = [1000]`");
            Vec::new()
        })
    }

    fn telemetry(&mut self, section: &dyn TableLike) {
        self.lines("telemetry", section);
        let mut telemetry = TelemetrySection::default();
        for (name, item) in section.iter() {
            let key = format!("telemetry.{name}");
            match name {
                "sample_ratio" => {
                    let ratio = item.as_float().or_else(|| item.as_integer().map(|whole| whole as f64));
                    let mend = format!("write `sample_ratio = {}`", Sampling::RATIO_DEFAULT);
                    match ratio {
                        Some(ratio) if (0.0..=1.0).contains(&ratio) => telemetry.sampling.ratio = ratio,
                        Some(ratio) => self.add(&key, format!("{ratio} is not from 0 to 1"), mend),
                        None => self.wrong_type(&key, item, "a number", &mend),
                    }
                }
                "trust_parent" => match item.as_bool() {
                    Some(trust) => telemetry.sampling.trust_parent = trust,
                    None => self.wrong_type(&key, item, "a boolean", "write `trust_parent = false`"),
                },
                "listen" => telemetry.listen = self.address(&key, item, "127.0.0.1:9464"),
                _ => self.unknown("telemetry", name, &TELEMETRY_KEYS),
            }
        }
        self.topology.telemetry = telemetry;
    }

    fn service(&mut self, name: &str, section: &dyn TableLike) {
        let mut service = ServiceSection::named(name);
        let key = |field: &str| format!("service.{name}.{field}");
        for (field, item) in section.iter() {
            match field {
                "modules" => service.modules = self.names(&key("modules"), "module", item),
                "listen" => {
                    service.listen = self.address(&key("listen"), item, &format!("unix:run/{name}.sock"));
                }
                "addresses" => service.addresses = self.addresses(&key("addresses"), item, name),
                "database" => match item.as_str() {
                    Some("") => self.add(
                        &key("database"),
                        "the path is empty",
                        format!("write `database = \"{name}.db\"`"),
                    ),
                    Some(file) => service.database = Some(PathBuf::from(file)),
                    None => {
                        let mend = format!("write `database = \"{name}.db\"`");
                        self.wrong_type(&key("database"), item, "a string", &mend);
                    }
                },
                "replicas" => service.replicas = self.count(&key("replicas"), item, 1).unwrap_or(1),
                "workers" => service.workers = self.workers(&key("workers"), item),
                _ => self.unknown(&format!("service.{name}"), field, &SERVICE_KEYS),
            }
        }
        self.topology.services.push(service);
    }

    pub(super) fn names(&mut self, key: &str, of: &str, item: &Item) -> Vec<String> {
        let mend = format!("write `{of}s = [\"NAME\"]`");
        let Some(array) = item.as_array() else {
            self.wrong_type(key, item, &format!("a list of {of} names"), &mend);
            return Vec::new();
        };
        let mut names = Vec::new();
        for value in array {
            let line = self.line(value.span());
            match value.as_str() {
                Some(name) => {
                    self.note(format!("{key}[{}]", names.len()), line);
                    names.push(name.to_owned());
                }
                None => {
                    // An element that is no name has no number: the numbers are those of the names.
                    let message = format!("{} stands where a {of} name belongs", value.type_name());
                    let mut problem = self.topology.problem(key, message, &*mend);
                    problem.line = line.or(problem.line);
                    self.topology.problems.push(problem);
                }
            }
        }
        names
    }

    fn address(&mut self, key: &str, item: &Item, example: &str) -> Option<Address> {
        let mend = format!("write `listen = \"{example}\"`");
        match item.as_str().map(str::parse::<Address>) {
            Some(Ok(address)) => Some(address),
            Some(Err(error)) => {
                let text = error.to_string();
                let message = text.split("; ").next().unwrap_or(&text).to_owned();
                self.add(key, message, mend);
                None
            }
            None => {
                self.wrong_type(key, item, "a string", &mend);
                None
            }
        }
    }

    fn addresses(&mut self, key: &str, item: &Item, service: &str) -> Vec<Address> {
        let mend = format!("write `addresses = [\"{service}.internal:7001\"]`");
        let texts: Option<Vec<&str>> =
            item.as_array().and_then(|array| array.iter().map(toml_edit::Value::as_str).collect());
        let Some(texts) = texts.filter(|texts| !texts.is_empty()) else {
            self.wrong_type(key, item, "a list of addresses", &mend);
            return Vec::new();
        };
        let mut addresses = Vec::new();
        for text in texts {
            match text.parse::<Address>() {
                Ok(address) => addresses.push(address),
                Err(error) => {
                    let text = error.to_string();
                    self.add(key, text.split("; ").next().unwrap_or(&text), &*mend);
                }
            }
        }
        addresses
    }

    fn count(&mut self, key: &str, item: &Item, example: u64) -> Option<u64> {
        let name = key.rsplit('.').next().unwrap_or(key);
        let mend = format!("write `{name} = {example}`");
        match item.as_integer().map(u64::try_from) {
            Some(Ok(count)) => Some(count),
            Some(Err(_)) => {
                self.add(key, "the number is negative", mend);
                None
            }
            None => {
                self.wrong_type(key, item, "a whole number", &mend);
                None
            }
        }
    }

    fn workers(&mut self, key: &str, item: &Item) -> Option<usize> {
        let workers = usize::try_from(self.count(key, item, 2)?).ok();
        if workers.is_some_and(|workers| (1..=WORKERS_MAX).contains(&workers)) {
            return workers;
        }
        self.add(key, format!("the number is not from 1 to {WORKERS_MAX}"), "write `workers = 2`");
        None
    }

    /// Notes where the keys of a table stand.
    pub(super) fn lines(&mut self, parent: &str, table: &dyn TableLike) {
        for (name, item) in table.iter() {
            let span = table.key(name).and_then(toml_edit::Key::span).or_else(|| item.span());
            let key = if parent.is_empty() { name.to_owned() } else { format!("{parent}.{name}") };
            let line = self.line(span);
            self.note(key, line);
        }
    }

    fn line(&self, span: Option<Range<usize>>) -> Option<usize> {
        span.map(|span| line_at(self.text, span.start))
    }

    fn note(&mut self, key: String, line: Option<usize>) {
        if let Some(line) = line {
            self.topology.lines.insert(key, line);
        }
    }

    pub(super) fn unknown(&mut self, parent: &str, name: &str, known: &[&str]) {
        let key = if parent.is_empty() { name.to_owned() } else { format!("{parent}.{name}") };
        let list = known.iter().map(|known| format!("`{known}`")).collect::<Vec<_>>().join(", ");
        let mend = match nearest(name, known.iter().copied()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("remove it; known here: {list}"),
        };
        self.add(&key, "unknown key", mend);
    }

    pub(super) fn wrong_type(&mut self, key: &str, item: &Item, expected: &str, mend: &str) {
        self.add(key, format!("{expected} is expected, not {}", with_article(item.type_name())), mend);
    }

    fn add(&mut self, key: &str, message: impl Into<String>, mend: impl Into<String>) {
        let problem = self.topology.problem(key, message, mend);
        self.topology.problems.push(problem);
    }
}

fn with_article(type_name: &str) -> String {
    let article = if type_name.starts_with(['a', 'i', 'o']) { "an" } else { "a" };
    format!("{article} {type_name}")
}
