//! What is wrong with certificates and who is believed.

use std::path::Path;

use crate::topology::{Problem, Topology};

/// Which certificates of these processes do not exist, and the command that makes them.
///
/// Apart from [`check`](super::check), since it looks at files, and since the process of one service has its own
/// certificate and not those of the others.
pub(crate) fn missing<'a>(
    topology: &Topology,
    program: &str,
    processes: impl IntoIterator<Item = &'a str>,
) -> Vec<Problem> {
    let Some(reached) = topology.services.iter().find(|service| topology.is_over_tls(service)) else {
        return Vec::new();
    };
    let listen = reached.listen.as_ref().map(ToString::to_string).unwrap_or_default();
    let file = topology.file.as_deref().unwrap_or(Path::new("FILE")).display();
    let mend =
        format!("make it with `{program} certs --topology {file}`, or put that of your own authority there");
    let mut problems: Vec<Problem> = Vec::new();
    for process in processes {
        let files = topology.trust_files(process);
        for (key, path) in [
            ("trust.authority", &files.authority),
            ("trust.certificate", &files.certificate),
            ("trust.key", &files.key),
        ] {
            // The authority is the same for all.
            let known = problems.iter().any(|problem| problem.message.starts_with(&*path.to_string_lossy()));
            if !path.exists() && !known {
                let message = format!(
                    "{} does not exist; service `{}` at {listen} is reached over mutual TLS, so every process needs \
                     a certificate",
                    path.display(),
                    reached.name
                );
                problems.push(topology.problem(key, message, &*mend));
            }
        }
    }
    problems
}
