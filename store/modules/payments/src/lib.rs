//! Payments: the ledger, and the provider outside that it may keep the books for.
//!
//! Owns what was paid and what was paid back. Sees a card only long enough to turn it into a token; number and
//! CVC are stored nowhere and logged nowhere.

mod admin;
mod cards;
mod ledger;
mod provider;

use std::path::PathBuf;

use modulith::{
    Answer, CallError, Context, Found, Module, Never, Setup, SetupError, Snapshot, StepKey, Tx, migrations,
};
use serde::Deserialize;
use store_payments_contract::{
    Card, CardRefused, ChargeRepayment, ChargeRequest, Declined, PaidThrough, Payment, Payments, Repayment,
    Tokenized,
};

use admin::Ledger;
use provider::Provider;

pub fn module(setup: &Setup<'_>) -> Result<Module, SetupError> {
    let config: Config = setup.config("payments")?;
    let provider = config.provider()?;
    Ok(Module::new("payments")
        .migrations(migrations!["../migrations/0001_ledger.sql"])
        .serves(Payments.serve(PaymentsModule { provider }))
        .serves(Ledger.serve(admin::LedgerBook))
        .admin_routes(admin::routes))
}

struct PaymentsModule {
    /// None: cards are debited on the ledger.
    provider: Option<Provider>,
}

impl Payments for PaymentsModule {
    fn tokenize(&self, db: &Snapshot<'_>, card: Card) -> Answer<Tokenized, CardRefused> {
        let token = cards::tokenize(&card, db.now_ms())?;
        let paid_through = if self.provider.is_some() { PaidThrough::Provider } else { PaidThrough::Ledger };
        Ok(Tokenized { token, paid_through })
    }

    fn debit(&self, tx: &mut Tx<'_>, request: ChargeRequest) -> Answer<Payment, Declined> {
        cards::decide(&request.card)?;
        let payment = Payment { id: request.payment, amount: request.amount, charge: None };
        ledger::enter(tx, &payment)?;
        Ok(payment)
    }

    fn credit(&self, tx: &mut Tx<'_>, payment: Payment) -> Answer<(), Never> {
        Ok(ledger::take_back(tx, &payment)?)
    }

    async fn charge(&self, cx: &Context, request: ChargeRequest) -> Result<Payment, CallError<Declined>> {
        provider::of(&self.provider)?.charge(&cx.idempotency_key(), request).await
    }

    async fn find_charge(
        &self,
        _: &Context,
        step: StepKey,
    ) -> Result<Found<Payment, Declined>, CallError<Never>> {
        provider::of(&self.provider)?.find_charge(&step.to_string()).await
    }

    async fn refund(&self, cx: &Context, step: StepKey) -> Result<(), CallError<Never>> {
        provider::of(&self.provider)?.refund_step(&cx.idempotency_key(), &step.to_string()).await
    }

    fn record_charge(&self, tx: &mut Tx<'_>, payment: Payment) -> Answer<(), Never> {
        Ok(ledger::enter(tx, &payment)?)
    }

    fn repay(&self, tx: &mut Tx<'_>, repayment: Repayment) -> Answer<(), Never> {
        Ok(ledger::repay(tx, &repayment)?)
    }

    async fn repay_charge(&self, cx: &Context, request: ChargeRepayment) -> Result<(), CallError<Never>> {
        provider::of(&self.provider)?.refund(&cx.idempotency_key(), &request.charge, request.amount).await
    }
}

/// `[module.payments]` of the topology file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(default)]
    provider: ProviderKind,
    /// `http://host:port`; a proxy in front of it speaks TLS.
    url: Option<String>,
    /// A file that holds the provider's secret key, and nothing else.
    secret_key_file: Option<PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "snake_case")]
enum ProviderKind {
    #[default]
    Embedded,
    Stripe,
}

impl Config {
    fn provider(self) -> Result<Option<Provider>, SetupError> {
        let problem = |message: String| SetupError { module: "payments", message };
        match self.provider {
            ProviderKind::Embedded => Ok(None),
            ProviderKind::Stripe => {
                let missing = |key: &str| problem(format!("provider = \"stripe\" needs `{key}`"));
                let url = self.url.ok_or_else(|| missing("url"))?;
                let file = self.secret_key_file.ok_or_else(|| missing("secret_key_file"))?;
                let secret_key = std::fs::read_to_string(&file)
                    .map_err(|error| problem(format!("secret_key_file {}: {error}", file.display())))?;
                Provider::new(&url, secret_key.trim()).map(Some).map_err(|reason| problem(reason.to_owned()))
            }
        }
    }
}
