//! What services say about themselves before the first call, and whether they may talk to each other.
//!
//! Contracts with equal fingerprints are equal. Where they differ, both sides compare what they exchange by the rules
//! of [`modulith_core::compat`]: whatever is compatible passes, with a line in the log, and the rest is refused by
//! contract, method and field. So every hello has all contracts in it, compressed, and nobody reads them as long as
//! fingerprints are equal.

use std::collections::BTreeMap;
use std::sync::Arc;

use modulith_core::compat::{Difference, Document, Weight, compare};
use modulith_core::{ContractModel, Fault, FaultKind, byte_string, decode, encode};
use modulith_transport::{HELLO_BYTES_MAX, HelloInfo};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// What a service may say about itself: the hello has the service's name as well.
const ABOUT_BYTES_MAX: usize = HELLO_BYTES_MAX - 1024;
/// The contracts of one service before they are compressed: 4 MiB. It bounds what a peer can make this process hold.
const CONTRACTS_BYTES_MAX: usize = 4 << 20;
/// Differences that a refusal or a line of the log names.
const DIFFERENCES_NAMED_MAX: usize = 8;
/// Of DEFLATE, 0 to 10. A hello is made once a process.
const COMPRESSION: u8 = 9;

/// What a service says about itself in the handshake. MessagePack with field names.
#[derive(Serialize, Deserialize)]
struct About {
    serves: Vec<ContractFacts>,
    needs: Vec<ContractFacts>,
    /// [`Contracts`], compressed: raw DEFLATE, RFC 1951.
    #[serde(default, with = "byte_string")]
    contracts: Vec<u8>,
}

/// Documents by their fingerprints.
type Contracts = BTreeMap<String, Document>;

#[derive(Serialize, Deserialize, PartialEq, Eq, Clone)]
struct ContractFacts {
    name: String,
    version: u32,
    fingerprint: String,
}

/// What is known of the service at the other end of a connection.
pub(crate) struct Neighbour {
    needs: Vec<String>,
}

impl Neighbour {
    /// Whether one of its modules declared that it needs the contract.
    pub(crate) fn needs(&self, contract: &str) -> bool {
        self.needs.iter().any(|need| need == contract)
    }
}

/// What this service says about itself.
///
/// # Errors
///
/// [`FaultKind::Limit`] when that is more than a hello can hold.
pub(crate) fn about(serves: &[ContractModel], needs: &[ContractModel]) -> Result<bytes::Bytes, Fault> {
    let too_large = |bytes: usize, max: usize, of: &str| {
        let count = serves.len() + needs.len();
        let message = format!("its {count} contracts take {bytes} bytes of {of}, {max} are allowed");
        Err(Fault::new(FaultKind::Limit, message))
    };
    let documents: Contracts =
        serves.iter().chain(needs).map(|contract| (contract.fingerprint(), Document::of(contract))).collect();
    let documents = encode(&documents)?;
    if documents.len() > CONTRACTS_BYTES_MAX {
        return too_large(documents.len(), CONTRACTS_BYTES_MAX, "memory");
    }
    let contracts = miniz_oxide::deflate::compress_to_vec(&documents, COMPRESSION);
    let about = encode(&About { serves: facts(serves), needs: facts(needs), contracts })?;
    if about.len() > ABOUT_BYTES_MAX {
        return too_large(about.len(), ABOUT_BYTES_MAX, "a hello");
    }
    Ok(about.into())
}

fn facts(contracts: &[ContractModel]) -> Vec<ContractFacts> {
    let mut facts: Vec<ContractFacts> = Vec::new();
    for contract in contracts {
        let fact = ContractFacts {
            name: contract.name.to_owned(),
            version: contract.version,
            fingerprint: contract.fingerprint(),
        };
        if !facts.contains(&fact) {
            facts.push(fact);
        }
    }
    facts
}

impl About {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        decode(bytes).map_err(|fault| format!("unreadable hello: {}", fault.message))
    }

    fn contracts(&self) -> Result<Contracts, String> {
        if self.contracts.is_empty() {
            return Ok(Contracts::new());
        }
        let documents =
            miniz_oxide::inflate::decompress_to_vec_with_limit(&self.contracts, CONTRACTS_BYTES_MAX)
                .map_err(|error| format!("unreadable contracts in the hello: {error}"))?;
        decode(&documents).map_err(|fault| format!("unreadable contracts in the hello: {}", fault.message))
    }
}

/// Everything in which the two sides' shared contracts differ.
fn differences(ours: &About, theirs: &About) -> Result<Vec<Difference>, String> {
    let mut documents: Option<(Contracts, Contracts)> = None;
    let mut found = Vec::new();
    for (serves, needs, we_serve) in
        [(&ours.serves, &theirs.needs, true), (&theirs.serves, &ours.needs, false)]
    {
        for need in needs {
            let Some(served) = serves.iter().find(|served| served.name == need.name) else {
                continue;
            };
            if served == need {
                continue;
            }
            if documents.is_none() {
                documents = Some((ours.contracts()?, theirs.contracts()?));
            }
            let Some((own, other)) = &documents else { unreachable!("read above") };
            let (callees, callers) = if we_serve { (own, other) } else { (other, own) };
            let (Some(callee), Some(caller)) =
                (callees.get(&served.fingerprint), callers.get(&need.fingerprint))
            else {
                return Err(format!(
                    "contract `{}` is served as version {} ({}) and needed as version {} ({}), and one side does not say \
                     what is in it",
                    need.name, served.version, served.fingerprint, need.version, need.fingerprint
                ));
            };
            found.extend(compare(caller, callee));
        }
    }
    // What weighs most is named first.
    found.sort_by_key(|difference| std::cmp::Reverse(difference.weight));
    Ok(found)
}

/// The first of them, in one line.
fn named<'a>(differences: impl Iterator<Item = &'a Difference>) -> String {
    let all: Vec<String> = differences.map(ToString::to_string).collect();
    match all.len().saturating_sub(DIFFERENCES_NAMED_MAX) {
        0 => all.join("; "),
        more => format!("{}; and {more} more", all[..DIFFERENCES_NAMED_MAX].join("; ")),
    }
}

/// Refuses a peer that understands a shared contract in a way that cannot work, by contract, method and field.
pub(crate) fn admit(own: bytes::Bytes) -> modulith_transport::Admit {
    // What was said last of each service: connections come again, and the same line is not worth repeating.
    let said: Mutex<BTreeMap<String, String>> = Mutex::default();
    Arc::new(move |peer: &HelloInfo| {
        let theirs = About::read(&peer.about)?;
        let differences = differences(&About::read(&own)?, &theirs)?;
        let breaks = || differences.iter().filter(|difference| difference.weight == Weight::Breaks);
        let is_refused = breaks().next().is_some();
        let line = if is_refused { named(breaks()) } else { named(differences.iter()) };
        let is_new =
            said.lock().insert(peer.service.clone(), line.clone()).is_none_or(|before| before != line);
        let service = &peer.service;
        if is_refused {
            if is_new {
                tracing::warn!("refused service {service}, which was built with other contracts: {line}");
            }
            return Err(format!("caller and callee were built with other contracts: {line}"));
        }
        if !line.is_empty() && is_new {
            tracing::info!("service {service} was built with other contracts, which are compatible: {line}");
        }
        peer.note.leave(Neighbour { needs: theirs.needs.into_iter().map(|need| need.name).collect() });
        Ok(())
    })
}

/// Everything that stands in bytes of [`about`], as text.
#[cfg(test)]
pub(super) fn read_whole(bytes: &[u8]) -> Result<String, String> {
    let about = About::read(bytes)?;
    let facts = |facts: &[ContractFacts]| {
        let lines = facts.iter().map(|fact| format!("{} {} {}", fact.name, fact.version, fact.fingerprint));
        lines.collect::<Vec<_>>().join(", ")
    };
    Ok(format!("serves {}; needs {}; {:?}", facts(&about.serves), facts(&about.needs), about.contracts()?))
}

#[cfg(test)]
mod tests {
    use modulith_core::{Kind, MethodModel};
    use serde_json::json;

    use super::*;

    /// With a type of its own for every method, as large as those of the store.
    fn contract(number: usize) -> ContractModel {
        let fields: BTreeMap<String, serde_json::Value> = (0..6)
            .map(|field| (format!("field_{number}_{field}"), json!({"type": "integer", "format": "int64"})))
            .collect();
        let schema = json!({"title": "T", "type": "object", "properties": fields, "required": fields.keys().collect::<Vec<_>>()});
        let methods = (0..8).map(|method| MethodModel {
            name: Box::leak(format!("method_{number}_{method}").into_boxed_str()),
            kind: Kind::Query,
            request: schema.clone(),
            answer: schema.clone(),
            refused: json!(false),
            refusals: &[],
            provider: None,
        });
        ContractModel {
            name: Box::leak(format!("contract{number}").into_boxed_str()),
            version: 1,
            methods: methods.collect(),
        }
    }

    #[test]
    fn fifty_contracts_fit_into_a_hello_and_what_does_not_is_named() {
        let contracts: Vec<_> = (0..50).map(contract).collect();
        let said = about(&contracts[..25], &contracts[25..]).expect("fits");
        assert!(said.len() < ABOUT_BYTES_MAX / 2, "{} bytes", said.len());
        let many: Vec<_> = (0..1000).map(contract).collect();
        let fault = about(&many, &[]).expect_err("too large");
        assert!(fault.message.starts_with("its 1000 contracts take "), "{}", fault.message);
    }

    /// A hello of few bytes must not become gigabytes.
    #[test]
    fn contracts_that_inflate_without_end_are_refused() {
        let bomb = miniz_oxide::deflate::compress_to_vec(&vec![0xc0; CONTRACTS_BYTES_MAX + 1], COMPRESSION);
        let facts = |fingerprint: &str| {
            vec![ContractFacts { name: "c".into(), version: 1, fingerprint: fingerprint.into() }]
        };
        let ours = About { serves: facts("a"), needs: Vec::new(), contracts: Vec::new() };
        let theirs = About { serves: Vec::new(), needs: facts("b"), contracts: bomb };
        let error = differences(&ours, &theirs).expect_err("refused");
        assert!(error.starts_with("unreadable contracts in the hello: "), "{error}");
        // And one that says nothing of what is in it is refused by name.
        let silent = About { contracts: Vec::new(), ..theirs };
        let error = differences(&ours, &silent).expect_err("refused");
        assert!(error.starts_with("contract `c` is served as version 1 (a)"), "{error}");
    }
}
