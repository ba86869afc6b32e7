//! The ledger as an operator audits it.

use axum::extract::State;
use modulith::http::{Json, Problem, Query, Router, get};
use modulith::{Answer, Links, Never, Snapshot, contract};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use store_payments_contract::{ChargeId, PaymentId};

pub(crate) fn routes(links: &Links) -> Router {
    Router::new()
        .route("/audit", get(totals))
        .route("/audit/payments", get(payments))
        .with_state(links.client::<LedgerClient>())
}

async fn totals(State(ledger): State<LedgerClient>) -> Result<Json<LedgerTotals>, Problem> {
    Ok(Json(ledger.totals().await?))
}

async fn payments(
    State(ledger): State<LedgerClient>,
    Query(page): Query<LedgerPage>,
) -> Result<Json<Vec<LedgerPayment>>, Problem> {
    Ok(Json(ledger.payments(page).await?))
}

/// Private to the module. Debits that were taken back are in no sum.
#[contract(name = "ledger", version = 1)]
pub(crate) trait Ledger {
    #[query(heavy)]
    fn totals(&self, db: &Snapshot<'_>) -> Answer<LedgerTotals, Never>;

    /// In order of id.
    #[query(heavy)]
    fn payments(&self, db: &Snapshot<'_>, page: LedgerPage) -> Answer<Vec<LedgerPayment>, Never>;
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct LedgerTotals {
    payments: i64,
    payments_minor: i64,
    refunds: i64,
    refunds_minor: i64,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct LedgerPage {
    after: Option<PaymentId>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct LedgerPayment {
    id: PaymentId,
    paid_minor: i64,
    repaid_minor: i64,
    charge: Option<ChargeId>,
}

pub(crate) struct LedgerBook;

impl Ledger for LedgerBook {
    fn totals(&self, db: &Snapshot<'_>) -> Answer<LedgerTotals, Never> {
        // The casts are for PostgreSQL, where a sum of bigints is wider than they are.
        let paid = db.row(
            "SELECT count(*), CAST(coalesce(sum(amount_minor), 0) AS bigint) FROM payments_payment
             WHERE credited_at IS NULL",
            (),
        )?;
        let repaid = db.row(
            "SELECT count(*), CAST(coalesce(sum(amount_minor), 0) AS bigint) FROM payments_repayment",
            (),
        )?;
        let (payments, payments_minor) = paid.unwrap_or_default();
        let (refunds, refunds_minor) = repaid.unwrap_or_default();
        Ok(LedgerTotals { payments, payments_minor, refunds, refunds_minor })
    }

    fn payments(&self, db: &Snapshot<'_>, page: LedgerPage) -> Answer<Vec<LedgerPayment>, Never> {
        let after = page.after.unwrap_or(PaymentId(Default::default()));
        let rows = db.rows(
            "SELECT id, amount_minor, repaid_minor, charge FROM payments_payment
             WHERE id > $1 AND credited_at IS NULL ORDER BY id LIMIT 1000",
            (after,),
        )?;
        let payment =
            |(id, paid_minor, repaid_minor, charge)| LedgerPayment { id, paid_minor, repaid_minor, charge };
        Ok(rows.into_iter().map(payment).collect())
    }
}
