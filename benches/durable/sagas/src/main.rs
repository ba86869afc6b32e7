//! A saga of four steps, each a command of another module: in one process one transaction, split four services that
//! keep each other's promises.
//!
//! The load runs in the process of the coordinator, so that what is measured is sagas and not HTTP:
//! `POST /admin/orders/load` begins it, `GET` tells how far it is.

mod load;
mod orders;
mod payments;
mod shipping;
mod stock;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use modulith::App;
use modulith_test::disk::{Disk, Faults};

/// The store's allocator too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// With this in the environment no sync reaches the real disk: each takes so many microseconds. Children inherit it.
const SYNC_US: &str = "SAGAS_SYNC_US";

fn main() -> anyhow::Result<ExitCode> {
    // Held as long as the process lives, or the disk is the real one again.
    let _disk = std::env::var(SYNC_US).ok().map(|us| disk(&us)).transpose()?;
    Ok(modulith::main(
        App::new("sagas")
            .module(stock::module)
            .module(payments::module)
            .module(orders::module)
            .module(shipping::module),
    ))
}

fn disk(sync_us: &str) -> anyhow::Result<Faults> {
    let sync_us =
        sync_us.parse().with_context(|| format!("{SYNC_US}={sync_us} is no number of microseconds"))?;
    let disk = Disk::install().folder(Path::new("/"));
    disk.sync_takes(Duration::from_micros(sync_us));
    Ok(disk)
}
