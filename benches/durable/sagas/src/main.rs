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

use std::process::ExitCode;

use modulith::App;

/// The store's allocator too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    modulith::main(
        App::new("sagas")
            .module(stock::module)
            .module(payments::module)
            .module(orders::module)
            .module(shipping::module),
    )
}
