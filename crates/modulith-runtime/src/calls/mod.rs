//! Calls between services: those that leave this process, and those that enter it.
//!
//! `link` is a client's way out, with its repeats, and `external` the one to a service that is none of ours; `peers` has the
//! connections, of which `sole` allows one where something is stored; `answers` is the way in, and `methods` what there is
//! to be called; `hello` decides who may talk to whom, and `wire` has every byte.

mod answers;
mod external;
#[cfg(test)]
mod fixtures;
mod hello;
mod link;
mod methods;
mod peers;
mod sole;
mod wire;

pub(crate) use answers::Answers;
pub(crate) use external::{External, Externals};
pub(crate) use hello::{about, admit};
pub(crate) use link::{RemoteLink, jittered};
pub(crate) use methods::Methods;
pub(crate) use peers::Peers;
pub(crate) use sole::resolver;
pub(crate) use wire::{Ask, Asker, Head, Keyed, Told, put_http};

#[cfg(test)]
mod tests;
