//! `/admin/orders`: importing a book of orders and returns from elsewhere, and auditing.

use std::collections::HashSet;

use axum::extract::State;
use futures_util::{StreamExt, stream};
use modulith::http::{Invalid, Json, Problem, Query, Router, get, post};
use modulith::{CallError, Links, SagaClient};
use serde::{Deserialize, Serialize};
use store_orders_contract::OrderId;
use store_payments_contract::{CardToken, Currency, Money};
use store_users_contract::UserId;
use uuid::Uuid;

use crate::book::{
    Invoice, NewLine, NewOrder, OrderBook, OrderBookClient, OrderPage, OrderSums, OrderTotals, ProductUnits,
    RecordRefused, UnitsPage,
};
use crate::checkout::{PlaceOrder, Purchase};
use crate::returns::{ReturnGoods, Returned, TakeBack, TakeBackRefused};

/// Far beyond any real line, and far from the end of the integers.
const UNITS_MAX: u32 = 1_000_000;
const UNIT_PRICE_MINOR_MAX: i64 = 1_000_000_000;

#[derive(Clone)]
struct Office {
    book: OrderBookClient,
    place: SagaClient<PlaceOrder>,
    return_goods: SagaClient<ReturnGoods>,
}

/// `POST /import`: orders, in no particular order. `POST /returns`: returns, one after the other.
/// Both may be repeated: an invoice number comes once.
/// `GET /audit`, `GET /audit/orders?after=`, `GET /audit/units?after=`: the sums, each order's, each product's.
pub(crate) fn routes(links: &Links) -> Router {
    let office = Office { book: links.client(), place: links.saga(), return_goods: links.saga() };
    Router::new()
        .route("/import", post(import))
        .route("/returns", post(returns))
        .route("/audit", get(totals))
        .route("/audit/orders", get(sums))
        .route("/audit/units", get(units))
        .with_state(office)
}

#[derive(Deserialize)]
struct Import {
    currency: Currency,
    invoices: Vec<Booked>,
}

/// An order or a return as it was booked elsewhere.
#[derive(Deserialize)]
struct Booked {
    invoice: String,
    /// None: a guest.
    user: Option<UserId>,
    at_ms: i64,
    lines: Vec<NewLine>,
}

#[derive(Serialize)]
struct Imported {
    /// Orders that are new.
    placed: usize,
    /// Orders that were there.
    known: usize,
    refused: Vec<RefusedInvoice>,
}

#[derive(Serialize)]
struct RefusedInvoice {
    invoice: String,
    reason: Problem,
}

/// Orders of one import on their way at a time.
const ORDERS_AT_ONCE: usize = 16;

/// What came of one order.
enum Booking {
    Placed,
    Known,
    Refused(RefusedInvoice),
}

async fn import(State(office): State<Office>, Json(import): Json<Import>) -> Result<Json<Imported>, Problem> {
    let Import { currency, invoices } = import;
    check(&invoices)?;
    let numbers = invoices.iter().map(|booked| booked.invoice.clone()).collect();
    let known: HashSet<String> = office.book.recorded(numbers).await?.into_iter().collect();
    let new = invoices.into_iter().filter(|booked| !known.contains(&booked.invoice));
    // Several at once, since what waits together is committed together; not more, or the writer refuses what comes last. Each
    // is heard to its end: an order that went on unheard would hold its goods while the next try asks for them.
    let bookings = stream::iter(new.map(|booked| office.book_order(currency, booked)));
    let bookings: Vec<_> = bookings.buffered(ORDERS_AT_ONCE).collect().await;
    let mut imported = Imported { placed: 0, known: known.len(), refused: Vec::new() };
    for booking in bookings {
        match booking? {
            Booking::Placed => imported.placed += 1,
            Booking::Known => imported.known += 1,
            Booking::Refused(refused) => imported.refused.push(refused),
        }
    }
    Ok(Json(imported))
}

impl Office {
    /// Through the same plan as a customer's checkout, at the prices of the invoice, which was paid elsewhere.
    async fn book_order(&self, currency: Currency, booked: Booked) -> Result<Booking, Problem> {
        let Booked { invoice, user, at_ms, lines } = booked;
        let refused = |reason| Booking::Refused(RefusedInvoice { invoice: invoice.clone(), reason });
        let Some(total) = total(currency, &lines) else {
            return Ok(refused(Problem::invalid([("lines", "have no sum that is a price")])));
        };
        let order = NewOrder {
            id: OrderId(Uuid::now_v7()),
            user,
            lines,
            total,
            client_reference: None,
            invoice: Some(Invoice { number: invoice.clone(), placed_at_ms: at_ms }),
        };
        match self.place.start(PlaceOrder(Purchase { order, card: CardToken::on_invoice() }), None).await {
            Ok(_) => Ok(Booking::Placed),
            Err(CallError::Refused(refusal)) => Ok(match refusal.of(OrderBook.record) {
                Some(RecordRefused::AlreadyRecorded) => Booking::Known,
                None => refused(Problem::refused(&refusal)),
            }),
            Err(error) => Err(error.into()),
        }
    }

    /// A return that is known answers what came of it the first time.
    async fn take_back(&self, goods: TakeBack) -> Result<Returned, Problem> {
        let invoice = goods.invoice.clone();
        if let Some(returned) = self.book.returned(invoice.clone()).await? {
            return Ok(returned);
        }
        match self.return_goods.start(ReturnGoods(goods), None).await {
            Ok(taken) => Ok(taken.returned),
            Err(CallError::Refused(refusal)) => match refusal.of(OrderBook.take_back) {
                Some(TakeBackRefused::AlreadyTakenBack) => {
                    Ok(self.book.returned(invoice).await?.unwrap_or_default())
                }
                None => Err(Problem::refused(&refusal)),
            },
            Err(error) => Err(error.into()),
        }
    }
}

fn total(currency: Currency, lines: &[NewLine]) -> Option<Money> {
    let totals: Option<Vec<Money>> =
        lines.iter().map(|line| Money::new(line.unit_price_minor, currency).times(line.quantity)).collect();
    Money::sum(totals?)
}

/// One after the other, since which order a return is matched to depends on the returns before it.
async fn returns(
    State(office): State<Office>,
    Json(import): Json<Import>,
) -> Result<Json<Returned>, Problem> {
    let Import { currency, invoices } = import;
    check(&invoices)?;
    let mut sum = Returned::default();
    for Booked { invoice, user, at_ms, lines } in invoices {
        let goods = TakeBack { invoice, user, returned_at_ms: at_ms, currency, lines };
        let Returned { refunded_minor, unmatched_lines, unmatched_minor } = office.take_back(goods).await?;
        sum.refunded_minor += refunded_minor;
        sum.unmatched_lines += unmatched_lines;
        sum.unmatched_minor += unmatched_minor;
    }
    Ok(Json(sum))
}

fn check(invoices: &[Booked]) -> Result<(), Problem> {
    let mut invalid = Invalid::default();
    for (place, booked) in invoices.iter().enumerate() {
        let at = |field: &str| format!("invoices[{place}].{field}");
        invalid.check(!booked.invoice.is_empty(), &at("invoice"), "must not be empty");
        invalid.check(!booked.lines.is_empty(), &at("lines"), "must not be empty");
        let sane = |line: &NewLine| {
            (1..=UNITS_MAX).contains(&line.quantity)
                && (1..=UNIT_PRICE_MINOR_MAX).contains(&line.unit_price_minor)
        };
        invalid.check(
            booked.lines.iter().all(sane),
            &at("lines"),
            "must have positive quantities and prices",
        );
    }
    invalid.finish()
}

async fn totals(State(office): State<Office>) -> Result<Json<OrderTotals>, Problem> {
    Ok(Json(office.book.totals().await?))
}

async fn sums(
    State(office): State<Office>,
    Query(page): Query<OrderPage>,
) -> Result<Json<Vec<OrderSums>>, Problem> {
    Ok(Json(office.book.sums(page).await?))
}

async fn units(
    State(office): State<Office>,
    Query(page): Query<UnitsPage>,
) -> Result<Json<Vec<ProductUnits>>, Problem> {
    Ok(Json(office.book.units(page).await?))
}
