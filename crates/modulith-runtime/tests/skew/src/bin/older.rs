//! The earlier build.

use modulith::{Answer, Never, Refusal, Snapshot, Tx, contract};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[contract(name = "stock", version = 1)]
pub trait Stock {
    #[query]
    fn level(&self, db: &Snapshot<'_>, ask: Ask) -> Answer<Level, Never>;
    #[command]
    fn take(&self, tx: &mut Tx<'_>, order: Order) -> Answer<i64, TakeRefused>;
}

#[derive(Serialize, Deserialize, JsonSchema)]
pub struct Ask {
    product: String,
}

#[derive(Serialize, Deserialize, JsonSchema)]
pub struct Level {
    pieces: i64,
    state: State,
}

#[derive(Serialize, Deserialize, JsonSchema)]
pub enum State {
    Plenty,
    Few,
}

#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct Order {
    product: String,
    pieces: u32,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, Refusal)]
pub enum TakeRefused {
    #[refused(422, "no such product")]
    Unknown,
}

fn ask(product: String) -> Ask {
    Ask { product }
}

fn order(product: String) -> Order {
    Order { product, pieces: 1 }
}

struct Code;

impl Stock for Code {
    fn level(&self, db: &Snapshot<'_>, ask: Ask) -> Answer<Level, Never> {
        let pieces = modulith_skew::level(db, &ask.product)?;
        Ok(Level { pieces, state: if pieces > 10 { State::Plenty } else { State::Few } })
    }

    fn take(&self, tx: &mut Tx<'_>, order: Order) -> Answer<i64, TakeRefused> {
        if order.product == "unknown" {
            return Err(TakeRefused::Unknown.into());
        }
        Ok(modulith_skew::take(tx, &order.product, order.pieces.into())?)
    }
}

modulith_skew::application!();
