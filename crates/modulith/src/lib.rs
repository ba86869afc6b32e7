//! Write a modular monolith once; run it as one process on one embedded database, or as many services, each with
//! its own process and database behind a gateway. Only a topology file changes.
pub use modulith_core::*;
pub use modulith_macros::{Column, Refusal, contract};

#[cfg(feature = "runtime")]
pub use modulith_data::{Migration, file_stem, migrations};
#[cfg(feature = "runtime")]
pub use modulith_gateway::{SessionKeys, http};
#[cfg(feature = "runtime")]
pub use modulith_runtime::*;
