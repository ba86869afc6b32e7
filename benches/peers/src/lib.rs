//! What the two peers share: the HTTP API, users, the catalogue, carts, and how a database is opened.
//!
//! The peers stand for what competent people write today with axum, sqlx and reqwest, so everything
//! here is plain: no framework of ours, no dependency on the library that they are compared with.
//! Only the checkout differs between them, and lives in their binaries.

pub mod api;
pub mod carts;
pub mod catalogue;
pub mod database;
pub mod orders;
pub mod problem;
pub mod serve;
pub mod tokens;
pub mod users;

/// The store's allocator too. The system's keeps the 19 MiB of every password hash, which would have
/// been most of what is measured as the peers' memory.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
