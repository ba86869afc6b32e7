//! The orders service: takes a checkout through the others, and records it.
//!
//! Hold the stock, debit the ledger, record the order, then sell the hold and clear the cart. The
//! order's id follows from the client's key and every step is idempotent by it, so that a client
//! that repeats a request after a crash completes it. Nothing but that repeat does: there is no
//! recovery in the background, which is less work than the store does.

use anyhow::Context;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{FromRef, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use clap::Args;
use peers::api::{PlaceOrder, idempotency_key};
use peers::database::Database;
use peers::orders::{Answer, Request, record};
use peers::problem::Problem;
use peers::tokens::{Principal, Tokens};
use reqwest::Method;
use uuid::Uuid;

use crate::calls::{Remote, client};
use crate::payments::Debit;
use crate::products::{Hold, HoldLines};

/// The services that orders calls.
#[derive(Args)]
pub(crate) struct Needs {
    /// Where products listens.
    #[arg(long, value_name = "URL")]
    products: Option<String>,
    /// Where cart listens.
    #[arg(long, value_name = "URL")]
    cart: Option<String>,
    /// Where payments listens.
    #[arg(long, value_name = "URL")]
    payments: Option<String>,
}

#[derive(Clone, FromRef)]
struct Orders {
    database: Database,
    tokens: Tokens,
    remotes: Remotes,
}

#[derive(Clone)]
struct Remotes {
    products: Remote,
    cart: Remote,
    payments: Remote,
}

pub(crate) fn router(database: Database, tokens: Tokens, needs: &Needs) -> anyhow::Result<Router> {
    let client = client()?;
    let remote = |url: &Option<String>| Some(Remote::new(&client, url.as_ref()?));
    let remotes = Remotes {
        products: remote(&needs.products).context("orders needs --products")?,
        cart: remote(&needs.cart).context("orders needs --cart")?,
        payments: remote(&needs.payments).context("orders needs --payments")?,
    };
    Ok(Router::new().route("/orders", post(place)).with_state(Orders {
        database,
        tokens,
        remotes,
    }))
}

async fn place(
    State(orders): State<Orders>,
    Principal(user): Principal,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Answer, Problem> {
    let request = Request::new(user, idempotency_key(&headers)?, &body);
    let id = request.id();
    if let Some(answer) = request.answered(&orders.database.read).await? {
        // The first attempt may have died between its record and its last steps.
        if answer.status == StatusCode::CREATED {
            orders.remotes.finish(id, user).await?;
        }
        return Ok(answer);
    }
    match orders.sell(&request, id, user, &body).await {
        Err(problem) if !problem.status.is_server_error() => {
            let answer = problem.into();
            request.keep(&orders.database.write, &answer).await?;
            Ok(answer)
        }
        sold => sold,
    }
}

impl Orders {
    async fn sell(&self, request: &Request, id: Uuid, user: Uuid, body: &[u8]) -> Result<Answer, Problem> {
        let PlaceOrder { lines, card } = PlaceOrder::read(body)?;
        let hold = self
            .remotes
            .products
            .call(Method::PUT, &format!("/holds/{id}"), &HoldLines { lines })
            .await?;
        let hold: Hold = hold.json().await?;
        let debit = Debit {
            user,
            amount: hold.total,
            card,
        };
        if let Err(problem) = self
            .remotes
            .payments
            .call(Method::PUT, &format!("/debits/{id}"), &debit)
            .await
        {
            // Only a refusal is sure not to have been booked; anything else is left for the repeat.
            if !problem.status.is_server_error() {
                self.remotes.release(id).await?;
            }
            return Err(problem);
        }
        let mut tx = self.database.begin().await?;
        match request.answered(&mut *tx).await {
            Ok(None) => {}
            Ok(Some(answer)) => return Ok(answer),
            Err(problem) => {
                // Another order took the key in the meantime, so this one is undone.
                tx.rollback().await?;
                self.remotes
                    .payments
                    .call(Method::DELETE, &format!("/debits/{id}"), &())
                    .await?;
                self.remotes.release(id).await?;
                return Err(problem);
            }
        }
        let answer = record(&mut tx, id, user, &hold.lines, hold.total).await?;
        request.keep(&mut *tx, &answer).await?;
        tx.commit().await?;
        self.remotes.finish(id, user).await?;
        Ok(answer)
    }
}

impl Remotes {
    async fn release(&self, id: Uuid) -> Result<(), Problem> {
        self.products
            .call(Method::POST, &format!("/holds/{id}/release"), &())
            .await?;
        Ok(())
    }

    /// What comes after the record; neither waits for the other.
    async fn finish(&self, id: Uuid, user: Uuid) -> Result<(), Problem> {
        let sold = format!("/holds/{id}/sell");
        let cleared = format!("/carts/{user}");
        tokio::try_join!(
            self.products.call(Method::POST, &sold, &()),
            self.cart.call(Method::DELETE, &cleared, &()),
        )?;
        Ok(())
    }
}
