//! What the builds of the application have in common: everything but the contract and the code that its types force.
//!
//! `front` is a module that calls, `stock` one that is called. Each build is a program of its own in `bin`.

use modulith::{Fault, Migration, Snapshot, Tx};

/// Pieces of every product before the first is taken.
pub const PIECES: i64 = 1_000_000;

pub const MIGRATIONS: &[Migration] = &[Migration {
    name: "0001_stock",
    sql: "CREATE TABLE stock_level (product text PRIMARY KEY, pieces bigint NOT NULL)",
}];

/// The pieces that are left of a product.
///
/// # Errors
///
/// A statement failed.
pub fn level(db: &Snapshot<'_>, product: &str) -> Result<i64, Fault> {
    let row: Option<(i64,)> = db.row("SELECT pieces FROM stock_level WHERE product = $1", (product,))?;
    Ok(row.map_or(PIECES, |(pieces,)| pieces))
}

/// Takes pieces of a product, and says how many are left.
///
/// # Errors
///
/// A statement failed.
pub fn take(tx: &mut Tx<'_>, product: &str, pieces: i64) -> Result<i64, Fault> {
    tx.execute(
        "INSERT INTO stock_level (product, pieces) VALUES ($1, $2)
         ON CONFLICT (product) DO UPDATE SET pieces = pieces - $3",
        (product, PIECES - pieces, pieces),
    )?;
    let row: Option<(i64,)> = tx.row("SELECT pieces FROM stock_level WHERE product = $1", (product,))?;
    Ok(row.map_or(PIECES, |(pieces,)| pieces))
}

/// The rest of a build, over its own contract: `contract` has `Stock`, its types, and `ask` and `order`, which make
/// requests of them.
#[macro_export]
macro_rules! application {
    () => {
        fn main() -> std::process::ExitCode {
            modulith::main(modulith::App::new("skew").module(front).module(stock))
        }

        fn stock(_: &modulith::Setup<'_>) -> Result<modulith::Module, modulith::SetupError> {
            Ok(modulith::Module::new("stock").migrations($crate::MIGRATIONS).serves(Stock.serve(Code)))
        }

        fn front(_: &modulith::Setup<'_>) -> Result<modulith::Module, modulith::SetupError> {
            Ok(modulith::Module::new("front").needs::<StockClient>().routes(&["/front"], routes))
        }

        fn routes(links: &modulith::Links) -> modulith::http::Router {
            use modulith::http::{Router, get, post};
            Router::new()
                .route("/front/level/{product}", get(show))
                .route("/front/take", post(take))
                .with_state(links.client::<StockClient>())
        }

        async fn show(
            axum::extract::State(stock): axum::extract::State<StockClient>,
            modulith::http::Path(product): modulith::http::Path<String>,
        ) -> Result<modulith::http::Json<Level>, modulith::http::Problem> {
            Ok(modulith::http::Json(stock.level(ask(product)).await?))
        }

        async fn take(
            axum::extract::State(stock): axum::extract::State<StockClient>,
            modulith::http::Keyed { key, body: product }: modulith::http::Keyed<String>,
        ) -> Result<modulith::http::Json<i64>, modulith::http::Problem> {
            Ok(modulith::http::Json(stock.keyed(key).take(order(product)).await?))
        }
    };
}
