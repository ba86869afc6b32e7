//! Reading an order book in the format of UCI's *Online Retail*: one row a line, invoices that begin with C are
//! returns.
//!
//! The data is as dirty as real data is. A row that cannot be a line of an order or of a return is rejected with
//! a reason and counted; none is lost: accepted and rejected rows are all rows.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, bail};
use serde::Serialize;

const COLUMNS: [&str; 8] = [
    "InvoiceNo",
    "StockCode",
    "Description",
    "Quantity",
    "InvoiceDate",
    "UnitPrice",
    "CustomerID",
    "Country",
];

#[derive(Default)]
pub(crate) struct OrderBook {
    pub(crate) rows: u64,
    /// In the order of the file, like the lines in them.
    pub(crate) orders: Vec<Invoice>,
    pub(crate) returns: Vec<Invoice>,
    /// Rows by reason.
    pub(crate) rejected: BTreeMap<&'static str, u64>,
}

pub(crate) struct Invoice {
    pub(crate) number: String,
    /// None: a guest.
    pub(crate) customer: Option<String>,
    pub(crate) at_ms: i64,
    pub(crate) lines: Vec<Line>,
}

/// Quantity and price are positive, of a return too.
#[derive(Serialize)]
pub(crate) struct Line {
    /// As written: the same code in two cases is two products.
    pub(crate) product: String,
    pub(crate) name: String,
    pub(crate) quantity: u32,
    pub(crate) unit_price_minor: i64,
}

impl AsRef<Invoice> for Invoice {
    fn as_ref(&self) -> &Invoice {
        self
    }
}

impl Invoice {
    pub(crate) fn total_minor(&self) -> i64 {
        self.lines.iter().map(|line| i64::from(line.quantity) * line.unit_price_minor).sum()
    }
}

/// What a row is.
enum Kind {
    Sale,
    Return,
}

impl OrderBook {
    /// # Errors
    ///
    /// The file is no CSV with the columns of *Online Retail*.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let mut reader =
            csv::Reader::from_path(path).with_context(|| format!("order book {}", path.display()))?;
        if reader.headers()?.iter().ne(COLUMNS) {
            bail!("{} has other columns than {}", path.display(), COLUMNS.join(","));
        }
        let mut book = Self::default();
        let mut places = HashMap::new();
        for record in reader.records() {
            let record = record?;
            book.rows += 1;
            match line(&record) {
                Ok((kind, line)) => {
                    let invoices = match kind {
                        Kind::Sale => &mut book.orders,
                        Kind::Return => &mut book.returns,
                    };
                    let at_ms = time_ms(&record[4]).unwrap_or_default();
                    let place = *places.entry(record[0].to_owned()).or_insert_with(|| {
                        let customer = Some(record[6].to_owned()).filter(|number| !number.is_empty());
                        invoices.push(Invoice {
                            number: record[0].to_owned(),
                            customer,
                            at_ms,
                            lines: Vec::new(),
                        });
                        invoices.len() - 1
                    });
                    invoices[place].lines.push(line);
                }
                Err(reason) => *book.rejected.entry(reason).or_default() += 1,
            }
        }
        Ok(book)
    }
}

/// The line that a row is, or why it is none.
fn line(record: &csv::StringRecord) -> Result<(Kind, Line), &'static str> {
    let [invoice, product, name, quantity, date, price] =
        [0, 1, 2, 3, 4, 5].map(|column| record[column].trim());
    if invoice.is_empty() || product.is_empty() {
        return Err("invoice or product missing");
    }
    let quantity: i64 = quantity.parse().map_err(|_| "quantity unreadable")?;
    let unit_price_minor = pence(price)?;
    time_ms(date).ok_or("date unreadable")?;
    let kind = if invoice.starts_with('C') { Kind::Return } else { Kind::Sale };
    let quantity = match kind {
        Kind::Sale if quantity <= 0 => return Err("quantity not positive"),
        Kind::Return if quantity >= 0 => return Err("returned quantity not negative"),
        _ => u32::try_from(quantity.abs()).map_err(|_| "quantity too large")?,
    };
    if unit_price_minor <= 0 {
        return Err("price not positive");
    }
    let name = if name.is_empty() { product } else { name };
    Ok((kind, Line { product: product.to_owned(), name: name.to_owned(), quantity, unit_price_minor }))
}

/// Pounds as pence: `2.55`, `2.1`, `3`, `-11062.06`.
fn pence(price: &str) -> Result<i64, &'static str> {
    let unreadable = "price unreadable";
    let (sign, digits) = match price.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, price),
    };
    let (pounds, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if pounds.is_empty() || pounds.len() > 9 || !plain(pounds) || !plain(fraction) {
        return Err(unreadable);
    }
    let fraction = fraction.trim_end_matches('0');
    if fraction.len() > 2 {
        return Err("price finer than a penny");
    }
    let pounds: i64 = pounds.parse().map_err(|_| unreadable)?;
    let pence: i64 = format!("{fraction:0<2}").parse().map_err(|_| unreadable)?;
    Ok(sign * (pounds * 100 + pence))
}

/// `2010-12-01 08:26`, taken as UTC, by Hinnant's `days_from_civil`
/// (<https://howardhinnant.github.io/date_algorithms.html>).
fn time_ms(date: &str) -> Option<i64> {
    let (date, time) = date.split_once(' ')?;
    let mut numbers = date.split('-').chain(time.split(':')).map(str::parse::<i64>);
    let mut next = || numbers.next()?.ok();
    let (year, month, day, hour, minute) = (next()?, next()?, next()?, next()?, next()?);
    let in_range = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute);
    if !in_range || numbers.next().is_some() {
        return None;
    }
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    Some(((days * 24 + hour) * 60 + minute) * 60_000)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::PathBuf;

    use super::*;

    /// The first 49,999 rows of the real one, which is no part of the project.
    fn real() -> Option<PathBuf> {
        let path = match std::env::var_os("MODULITH_ORDER_BOOK") {
            Some(path) => path.into(),
            None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/online-retail-2010-12.csv"),
        };
        if !path.exists() {
            eprintln!("skipped: no order book; name one in MODULITH_ORDER_BOOK");
        }
        path.exists().then_some(path)
    }

    #[test]
    fn the_real_book_is_read_to_the_penny() {
        let Some(path) = real() else { return };
        let book = OrderBook::read(&path).unwrap();
        let lines = |invoices: &[Invoice]| invoices.iter().map(|invoice| invoice.lines.len()).sum::<usize>();
        let minor = |invoices: &[Invoice]| invoices.iter().map(Invoice::total_minor).sum::<i64>();
        let sold = || book.orders.iter().flat_map(|order| &order.lines);
        let customers: HashSet<_> = book.orders.iter().filter_map(|order| order.customer.as_ref()).collect();

        assert_eq!(book.rows, 49_999);
        assert_eq!(
            (book.orders.len(), lines(&book.orders), minor(&book.orders)),
            (1_794, 48_779, 95_533_893)
        );
        assert_eq!(sold().map(|line| line.quantity).sum::<u32>(), 435_085);
        assert_eq!(sold().map(|line| &line.product).collect::<HashSet<_>>().len(), 2_840);
        assert_eq!(book.orders.iter().filter(|order| order.customer.is_none()).count(), 177);
        assert_eq!(customers.len(), 973);
        assert_eq!((book.returns.len(), lines(&book.returns), minor(&book.returns)), (384, 923, 11_472_638));
        assert_eq!(
            book.rejected,
            BTreeMap::from([("price not positive", 212), ("quantity not positive", 85)])
        );
        assert_eq!(book.orders.iter().map(|order| order.lines.len()).max(), Some(675));
        assert_eq!(book.orders.iter().map(Invoice::total_minor).max(), Some(1_874_586));
    }

    #[test]
    fn prices_are_exact() {
        for (text, minor) in
            [("2.55", 255), ("2.1", 210), ("3", 300), ("0.29", 29), ("-11062.06", -1_106_206), ("1.500", 150)]
        {
            assert_eq!(pence(text), Ok(minor), "{text}");
        }
        assert_eq!(pence("0.001"), Err("price finer than a penny"));
        for text in ["", ".5", "-", "1e3", "1,5", "--1", "1.2.3", "9999999999"] {
            assert_eq!(pence(text), Err("price unreadable"), "{text}");
        }
    }

    #[test]
    fn dates_are_utc() {
        assert_eq!(time_ms("1970-01-01 00:00"), Some(0));
        assert_eq!(time_ms("2010-12-01 08:26"), Some(1_291_191_960_000));
        assert_eq!(time_ms("2000-02-29 12:00"), Some(951_825_600_000));
        for text in ["", "2010-12-01", "2010-13-01 08:26", "01/12/2010 08:26", "2010-12-01 08:26:00"] {
            assert_eq!(time_ms(text), None, "{text}");
        }
    }
}
