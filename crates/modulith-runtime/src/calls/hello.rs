//! What services say about themselves before the first call, and whether they may talk to each other.

use std::collections::BTreeSet;
use std::sync::Arc;

use modulith_core::{ContractModel, Fault, decode, encode};
use modulith_transport::HelloInfo;
use serde::{Deserialize, Serialize};

/// What a service says about itself in the handshake. MessagePack with field names.
#[derive(Serialize, Deserialize)]
struct About {
    serves: Vec<ContractFacts>,
    needs: Vec<ContractFacts>,
}

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
pub(crate) fn about(serves: &[ContractModel], needs: &[ContractModel]) -> Result<bytes::Bytes, Fault> {
    encode(&About { serves: facts(serves), needs: facts(needs) }).map(Into::into)
}

fn facts(contracts: &[ContractModel]) -> Vec<ContractFacts> {
    let mut seen = BTreeSet::new();
    contracts
        .iter()
        .filter(|contract| seen.insert(contract.name))
        .map(|contract| ContractFacts {
            name: contract.name.to_owned(),
            version: contract.version,
            fingerprint: contract.fingerprint(),
        })
        .collect()
}

/// Refuses a peer that understands a shared contract differently, by the contract's name.
pub(crate) fn admit(own: bytes::Bytes) -> modulith_transport::Admit {
    Arc::new(move |peer: &HelloInfo| {
        let read = |bytes: &[u8]| {
            decode::<About>(bytes).map_err(|fault| format!("unreadable hello: {}", fault.message))
        };
        let (ours, theirs) = (read(&own)?, read(&peer.about)?);
        for (serves, needs) in [(&ours.serves, &theirs.needs), (&theirs.serves, &ours.needs)] {
            for need in needs {
                if let Some(served) = serves.iter().find(|served| served.name == need.name)
                    && served != need
                {
                    return Err(format!(
                        "contract `{}` is served as version {} ({}) and needed as version {} ({})",
                        need.name, served.version, served.fingerprint, need.version, need.fingerprint
                    ));
                }
            }
        }
        peer.note.leave(Neighbour { needs: theirs.needs.into_iter().map(|need| need.name).collect() });
        Ok(())
    })
}
