//! The store: a shop, as one process or as one service a module.

mod audit;
mod client;
mod commands;
mod import;
mod order_book;

use std::process::ExitCode;

use modulith::App;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    modulith::main(
        App::new("store")
            .module(store_users::module)
            .module(store_products::module)
            .module(store_cart::module)
            .module(store_payments::module)
            .module(store_orders::module)
            .command(commands::import())
            .command(commands::audit()),
    )
}
