//! The store as its users see it: one body in every topology, over real processes, sockets and files.

mod audits;
mod backups;
mod boundaries;
mod broken_peers;
mod crashes;
mod imports;
mod kills;
mod languages;
mod mounted;
mod operators;
mod processes;
mod provider;
mod seen;
mod shop;
mod shopping;
mod trust;
