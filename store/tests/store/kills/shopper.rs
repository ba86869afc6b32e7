//! A customer who orders, now and then cancels, and remembers what she was told.

use anyhow::ensure;
use modulith_test::{Application, Random, Request, until};
use serde_json::{Value, json};

use super::order::{Cancelling, Order, Told, answered};
use super::strike::Strike;
use crate::shop::{CARD, Customer, DECLINED};

const PLENTY: &str = "KILLS-A";
const MORE: &str = "KILLS-B";
const CARTED: &str = "KILLS-C";
const SCARCE: &str = "KILLS-D";
/// What is bought, with its units. Of the last there is little: it is sold out soon, and comes back with a
/// cancelled order.
pub(crate) const SHELF: [(&str, u32); 4] =
    [(PLENTY, 1_000_000_000), (MORE, 1_000_000_000), (CARTED, 1_000_000_000), (SCARCE, 40)];
const QUANTITY_MAX: usize = 3;
const CARTED_MAX: i64 = 10_000;

pub(crate) struct Shopper {
    name: usize,
    customer: Customer,
    random: Random,
    pub(crate) orders: Vec<Order>,
    /// How many of [`CARTED`] she last put into the cart: one more each time, up to what the cart takes, since
    /// clearing the cart behind an order leaves a line alone that has changed meanwhile.
    carted: i64,
}

impl Shopper {
    pub(crate) async fn sign_up(app: &Application, name: usize, random: Random) -> anyhow::Result<Self> {
        let customer = Customer::sign_up(app, &format!("shopper-{name}@example.org")).await?;
        Ok(Self { name, customer, random, orders: Vec::new(), carted: 0 })
    }

    /// So many errands one after the other. Who hears nothing certain waits for the store to be back.
    pub(crate) async fn shop(
        &mut self,
        app: &Application,
        strike: &Strike,
        errands: usize,
    ) -> anyhow::Result<()> {
        for _ in 0..errands {
            strike.sent();
            let certain = match self.random.below(8) {
                0 => self.cancel_one(app).await?,
                1 => self.order_cart(app, strike).await?,
                2 | 3 => self.order(app, strike, &[PLENTY, SCARCE], CARD).await?,
                4 => self.order(app, strike, &[PLENTY], DECLINED).await?,
                _ => self.order(app, strike, &[PLENTY, MORE], CARD).await?,
            };
            if certain.is_none() {
                break;
            }
        }
        Ok(())
    }

    async fn order(
        &mut self,
        app: &Application,
        strike: &Strike,
        products: &[&'static str],
        card: &'static str,
    ) -> anyhow::Result<Option<()>> {
        let random = &mut self.random;
        let lines =
            products.iter().map(|product| (*product, 1 + random.below(QUANTITY_MAX) as i64)).collect();
        self.place(app, strike, lines, false, card).await
    }

    async fn order_cart(&mut self, app: &Application, strike: &Strike) -> anyhow::Result<Option<()>> {
        self.carted = 1 + self.carted % CARTED_MAX;
        let path = format!("/cart/lines/{CARTED}");
        let put = Request::put(path, &json!({"quantity": self.carted}));
        let Some(put) = answered(self.customer.send(app, put).await) else { return Ok(None) };
        ensure!(put.status == 200, "the cart: {} {}", put.status, put.json);
        strike.sent();
        self.place(app, strike, vec![(CARTED, self.carted)], true, CARD).await
    }

    async fn place(
        &mut self,
        app: &Application,
        strike: &Strike,
        lines: Vec<(&'static str, i64)>,
        from_cart: bool,
        card: &'static str,
    ) -> anyhow::Result<Option<()>> {
        let key = format!("{}-{}", self.name, self.orders.len());
        let mut order = Order { key, lines, from_cart, card, told: None, cancelling: Cancelling::No };
        let asked = order.ask(app, &self.customer).await;
        if order.placed().is_some() {
            strike.acknowledged();
        }
        self.orders.push(order);
        asked
    }

    async fn cancel_one(&mut self, app: &Application) -> anyhow::Result<Option<()>> {
        let stands = |order: &&mut Order| order.placed().is_some() && order.cancelling == Cancelling::No;
        let mut standing: Vec<&mut Order> = self.orders.iter_mut().filter(stands).collect();
        if standing.is_empty() {
            return Ok(Some(()));
        }
        // The last ones are the likelier to have steps still open.
        let one = standing.len().saturating_sub(1 + self.random.below(4));
        standing[one].cancel(app, &self.customer).await
    }

    /// Repeats whatever has no certain answer until it has one, which stays when it is repeated again. Returns how
    /// many keys that were.
    pub(crate) async fn repeat_unknown(&mut self, app: &Application) -> anyhow::Result<usize> {
        let mut repeated = 0;
        for order in &mut self.orders {
            if order.told.is_none() {
                repeated += 1;
                for _ in 0..2 {
                    certain(&order.key.clone(), async || order.ask(app, &self.customer).await).await?;
                }
            }
            if order.cancelling == Cancelling::Asked {
                certain(&order.key.clone(), async || order.cancel(app, &self.customer).await).await?;
            }
        }
        Ok(repeated)
    }

    /// Every key once more: each is answered as it was.
    pub(crate) async fn repeat_all(&mut self, app: &Application) -> anyhow::Result<()> {
        for order in &mut self.orders {
            certain(&order.key.clone(), async || order.ask(app, &self.customer).await).await?;
        }
        Ok(())
    }

    /// All orders that the store has of hers.
    pub(crate) async fn list(&self, app: &Application) -> anyhow::Result<Vec<Value>> {
        let mut found = Vec::new();
        let mut after = String::new();
        loop {
            let page = self.customer.get(app, &format!("/orders?limit=100{after}")).await?;
            ensure!(page.status == 200, "orders of shopper {}: {} {}", self.name, page.status, page.json);
            found.extend(page.json["items"].as_array().into_iter().flatten().cloned());
            match page.json["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => return Ok(found),
            }
        }
    }

    /// Behind an order from the cart the cart is cleared.
    pub(crate) async fn check_cart(&self, app: &Application) -> anyhow::Result<()> {
        let last = self.orders.iter().rfind(|order| order.from_cart);
        let Some(Order { told: Some(Told::Placed(order)), lines, .. }) = last else { return Ok(()) };
        // Else she has put something into it since, for an order that was never sent.
        if lines[0].1 == self.carted {
            let cart = self.customer.get(app, "/cart").await?;
            ensure!(cart.json["lines"] == json!([]), "{} left the cart as {}", order["id"], cart.json);
        }
        Ok(())
    }
}

/// Asks until the answer is certain.
async fn certain(key: &str, mut ask: impl AsyncFnMut() -> anyhow::Result<Option<()>>) -> anyhow::Result<()> {
    until(&format!("a certain answer to key {key}"), async || ask().await.transpose()).await
}
