//! Importing an order book: products, customers, every invoice as an order through the checkout's own plan, then
//! the returns.
//!
//! Safe to interrupt and to run again: an invoice number comes once, a customer's too, and a book supplies its
//! stock once, by its digest.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::IsTerminal;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use hyper::body::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::client::Target;
use crate::order_book::{Invoice, Line, OrderBook};

/// Requests at work at once. What waits together is committed together.
const IN_FLIGHT_MAX: usize = 32;
/// A request is full with so many lines; the last invoice in it may go beyond.
const LINES_PER_REQUEST: usize = 200;
const ITEMS_PER_REQUEST: usize = 1_000;
const CURRENCY: &str = "GBP";

/// What the store holds of the book, whether it came with this import or an earlier one.
#[derive(Debug, Default, Serialize)]
pub(crate) struct ImportReport {
    rows: u64,
    orders: usize,
    lines: usize,
    order_minor: i64,
    return_invoices: usize,
    return_lines: usize,
    return_minor: i64,
    /// Of the returns: what was given back, and what no earlier order explains.
    refunded_minor: i64,
    unmatched_lines: i64,
    unmatched_minor: i64,
    /// Orders that were there before this import.
    known_orders: usize,
    /// Rows by reason.
    rejected: BTreeMap<String, u64>,
    elapsed_s: f64,
    /// Lines of orders and returns.
    lines_per_s: f64,
}

#[derive(Deserialize)]
struct Users {
    users: Vec<String>,
}

#[derive(Deserialize)]
struct Imported {
    known: usize,
    refused: Vec<RefusedInvoice>,
}

#[derive(Deserialize)]
struct RefusedInvoice {
    invoice: String,
    reason: Value,
}

#[derive(Deserialize)]
struct Returned {
    refunded_minor: i64,
    unmatched_lines: i64,
    unmatched_minor: i64,
}

/// # Errors
///
/// The file is no order book, or the store cannot be reached or refuses to take part. What was imported stays.
pub(crate) async fn import(store: &Target, file: &Path, progress: bool) -> anyhow::Result<ImportReport> {
    let began = Instant::now();
    let book = OrderBook::read(file)?;
    let source = source(file)?;
    let bar = bar(&book, progress);
    let mut report = ImportReport {
        rows: book.rows,
        rejected: book.rejected.iter().map(|(reason, rows)| ((*reason).to_owned(), *rows)).collect(),
        ..ImportReport::default()
    };
    for body in supplies(&book, &source) {
        store.post::<()>("/admin/products/supply", body).await?;
    }
    let users = users(store, numbers(&book)).await?;
    orders(store, &book, &users, &bar, &mut report).await?;
    // A return is matched to orders, so all of them come first.
    returns(store, &book, &users, &bar, &mut report).await?;
    bar.finish_and_clear();
    report.elapsed_s = began.elapsed().as_secs_f64();
    report.lines_per_s = (report.lines + report.return_lines) as f64 / report.elapsed_s;
    Ok(report)
}

/// The name of the book as a supplier of stock.
fn source(file: &Path) -> anyhow::Result<String> {
    let digest = ring::digest::digest(&ring::digest::SHA256, &std::fs::read(file)?);
    let hex: String = digest.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("order book {hex}"))
}

/// Every product of the book, at the last price it was sold for, with the stock that its orders need; as bodies
/// of requests.
fn supplies(book: &OrderBook, source: &str) -> Vec<Bytes> {
    let returned = book.returns.iter().flat_map(|invoice| &invoice.lines).map(|line| (0, line));
    let sold = book.orders.iter().flat_map(|invoice| &invoice.lines).map(|line| (line.quantity, line));
    let mut products = BTreeMap::new();
    for (units, line) in returned.chain(sold) {
        let (sum, last) = products.entry(&line.product).or_insert((0_u32, line));
        (*sum, *last) = (sum.saturating_add(units), line);
    }
    let product = |(id, (units, line)): (&String, (u32, &Line))| {
        let price = json!({"amount": line.unit_price_minor, "currency": CURRENCY});
        json!({"id": id, "name": line.name, "price": price, "units": units})
    };
    let products: Vec<Value> = products.into_iter().map(product).collect();
    let body = |products| json!({"source": source, "products": products}).to_string().into();
    products.chunks(ITEMS_PER_REQUEST).map(body).collect()
}

fn numbers(book: &OrderBook) -> Vec<String> {
    let numbers = book.orders.iter().chain(&book.returns).filter_map(|invoice| invoice.customer.clone());
    numbers.collect::<HashSet<_>>().into_iter().collect()
}

/// The store's id of every customer, by number.
async fn users(store: &Target, numbers: Vec<String>) -> anyhow::Result<HashMap<String, String>> {
    let mut users = HashMap::new();
    for numbers in numbers.chunks(ITEMS_PER_REQUEST) {
        let body = json!({ "customers": numbers }).to_string();
        let imported: Users = store.post("/admin/users/import", body.into()).await?;
        ensure!(
            imported.users.len() == numbers.len(),
            "the store answered for other customers than it was asked"
        );
        users.extend(numbers.iter().cloned().zip(imported.users));
    }
    Ok(users)
}

/// Orders depend on nothing but their stock.
async fn orders(
    store: &Target,
    book: &OrderBook,
    users: &HashMap<String, String>,
    bar: &ProgressBar,
    report: &mut ImportReport,
) -> anyhow::Result<()> {
    let groups = requests(&book.orders, users)?.into_iter().map(|request| vec![request]).collect();
    let mut refused = HashSet::new();
    for imported in send::<Imported>(store, "/admin/orders/import", groups, bar).await? {
        report.known_orders += imported.known;
        for RefusedInvoice { invoice, reason } in imported.refused {
            bar.suspend(|| eprintln!("order {invoice} refused: {reason}"));
            refused.insert(invoice);
        }
    }
    for order in &book.orders {
        if refused.contains(&order.number) {
            *report.rejected.entry("order refused".to_owned()).or_default() += order.lines.len() as u64;
            continue;
        }
        report.orders += 1;
        report.lines += order.lines.len();
        report.order_minor += order.total_minor();
    }
    Ok(())
}

/// Which order a return is matched to depends on the customer's returns before it, so each customer's go one
/// after the other, in the order of the book.
async fn returns(
    store: &Target,
    book: &OrderBook,
    users: &HashMap<String, String>,
    bar: &ProgressBar,
    report: &mut ImportReport,
) -> anyhow::Result<()> {
    let mut by_customer = BTreeMap::<_, Vec<&Invoice>>::new();
    for invoice in &book.returns {
        by_customer.entry(&invoice.customer).or_default().push(invoice);
    }
    let groups: anyhow::Result<_> = by_customer.values().map(|invoices| requests(invoices, users)).collect();
    for returned in send::<Returned>(store, "/admin/orders/returns", groups?, bar).await? {
        report.refunded_minor += returned.refunded_minor;
        report.unmatched_lines += returned.unmatched_lines;
        report.unmatched_minor += returned.unmatched_minor;
    }
    report.return_invoices = book.returns.len();
    report.return_lines = lines(&book.returns);
    report.return_minor = book.returns.iter().map(Invoice::total_minor).sum();
    Ok(())
}

/// Sends many groups at once, and the requests of a group one after the other.
async fn send<T: DeserializeOwned>(
    store: &Target,
    path: &'static str,
    groups: Vec<Vec<Request>>,
    bar: &ProgressBar,
) -> anyhow::Result<Vec<T>> {
    let work = groups.into_iter().map(|group| {
        let (store, bar) = (store.clone(), bar.clone());
        async move {
            let mut answers = Vec::new();
            for Request { lines, body } in group {
                answers.push(store.post(path, body).await?);
                bar.inc(lines as u64);
            }
            anyhow::Ok(answers)
        }
    });
    stream::iter(work).buffer_unordered(IN_FLIGHT_MAX).try_concat().await
}

struct Request {
    lines: usize,
    body: Bytes,
}

/// Invoices as bodies of requests, some lines each.
fn requests<I: AsRef<Invoice>>(
    invoices: &[I],
    users: &HashMap<String, String>,
) -> anyhow::Result<Vec<Request>> {
    let mut requests = Vec::new();
    let mut begin = 0;
    for end in 1..=invoices.len() {
        let lines = lines(&invoices[begin..end]);
        if lines >= LINES_PER_REQUEST || end == invoices.len() {
            requests.push(Request { lines, body: body(&invoices[begin..end], users)? });
            begin = end;
        }
    }
    Ok(requests)
}

fn lines<I: AsRef<Invoice>>(invoices: &[I]) -> usize {
    invoices.iter().map(|invoice| invoice.as_ref().lines.len()).sum()
}

#[derive(Serialize)]
struct Body<'b> {
    currency: &'static str,
    invoices: Vec<BodyInvoice<'b>>,
}

#[derive(Serialize)]
struct BodyInvoice<'b> {
    invoice: &'b str,
    user: Option<&'b str>,
    at_ms: i64,
    lines: &'b [Line],
}

fn body<I: AsRef<Invoice>>(invoices: &[I], users: &HashMap<String, String>) -> anyhow::Result<Bytes> {
    let invoices = invoices.iter().map(AsRef::as_ref).map(|invoice| {
        let user = |number| users.get(number).map(String::as_str).context("a customer without an id");
        let user = invoice.customer.as_ref().map(user).transpose()?;
        Ok(BodyInvoice { invoice: &invoice.number, user, at_ms: invoice.at_ms, lines: &invoice.lines })
    });
    let body = Body { currency: CURRENCY, invoices: invoices.collect::<anyhow::Result<_>>()? };
    Ok(serde_json::to_vec(&body)?.into())
}

/// On standard error, and only if somebody looks.
fn bar(book: &OrderBook, progress: bool) -> ProgressBar {
    if !progress || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} lines, {per_sec}, {eta} left");
    let bar = ProgressBar::new((lines(&book.orders) + lines(&book.returns)) as u64);
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
