//! The later build: a field with a default, an optional one, a wider number, a case, a refusal and a method more.

use modulith::{Answer, Never, Refusal, Snapshot, Tx, contract};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[contract(name = "stock", version = 1)]
pub trait Stock {
    #[query]
    fn product_count(&self, db: &Snapshot<'_>) -> Answer<i64, Never>;
    #[query]
    fn level(&self, db: &Snapshot<'_>, ask: Ask) -> Answer<Level, Never>;
    #[command]
    fn take(&self, tx: &mut Tx<'_>, order: Order) -> Answer<i64, TakeRefused>;
}

#[derive(Serialize, Deserialize, JsonSchema)]
pub struct Ask {
    product: String,
    #[serde(default)]
    fresh: bool,
}

#[derive(Serialize, Deserialize, JsonSchema)]
pub struct Level {
    pieces: i64,
    state: State,
    reserved: Option<i64>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
pub enum State {
    Plenty,
    Few,
    /// Of the product `withdrawn`.
    Withdrawn,
}

#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct Order {
    product: String,
    pieces: u32,
    note: Option<String>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, Refusal)]
pub enum TakeRefused {
    #[refused(422, "no such product")]
    Unknown,
    #[refused(409, "no longer sold")]
    Withdrawn,
}

fn ask(product: String) -> Ask {
    Ask { product, fresh: true }
}

fn order(product: String) -> Order {
    Order { product, pieces: 1, note: Some("by the later build".to_owned()) }
}

struct Code;

impl Stock for Code {
    fn product_count(&self, db: &Snapshot<'_>) -> Answer<i64, Never> {
        let row: Option<(i64,)> = db.row("SELECT count(*) FROM stock_level", ())?;
        Ok(row.map_or(0, |(count,)| count))
    }

    fn level(&self, db: &Snapshot<'_>, ask: Ask) -> Answer<Level, Never> {
        let pieces = modulith_skew::level(db, &ask.product)?;
        let state = match (&*ask.product, pieces) {
            ("withdrawn", _) => State::Withdrawn,
            (_, ..=10) => State::Few,
            _ => State::Plenty,
        };
        Ok(Level { pieces, state, reserved: Some(0) })
    }

    fn take(&self, tx: &mut Tx<'_>, order: Order) -> Answer<i64, TakeRefused> {
        match &*order.product {
            "unknown" => Err(TakeRefused::Unknown.into()),
            "withdrawn" => Err(TakeRefused::Withdrawn.into()),
            product => Ok(modulith_skew::take(tx, product, order.pieces.into())?),
        }
    }
}

modulith_skew::application!();
