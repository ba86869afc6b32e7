//! Accounts as the module's own endpoints use them: registering, signing in, importing.

use modulith::{Answer, Never, Refusal, Secret, Snapshot, Tx, contract};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use store_users_contract::UserId;

use crate::email::Email;

/// Private to the module.
#[contract(name = "accounts", version = 1)]
pub(crate) trait Accounts {
    #[command]
    fn register(&self, tx: &mut Tx<'_>, account: NewAccount) -> Answer<(), RegisterRefused>;

    /// What a password is compared with, if anybody signs in by this address.
    #[query]
    fn credentials(&self, db: &Snapshot<'_>, email: Email) -> Answer<Option<Credentials>, Never>;

    /// Adds those customers that are not known yet, and answers with the ids of all, in the same order.
    #[command]
    fn import(&self, tx: &mut Tx<'_>, customers: Vec<Customer>) -> Answer<Vec<UserId>, Never>;
}

/// Ids are made by the caller, since a command may run more than once.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct NewAccount {
    pub(crate) id: UserId,
    pub(crate) email: Email,
    pub(crate) name: String,
    pub(crate) password_hash: PasswordHash,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Credentials {
    pub(crate) user: UserId,
    pub(crate) password_hash: PasswordHash,
}

/// A customer of an order book from elsewhere, by its number there.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Customer {
    /// The id that it gets if it is new.
    pub(crate) id: UserId,
    pub(crate) number: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Refusal)]
pub(crate) enum RegisterRefused {
    #[refused(409, "this e-mail address is taken")]
    EmailTaken,
}

/// A hash in the PHC string format.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, modulith::Column)]
#[serde(transparent)]
pub(crate) struct PasswordHash(pub(crate) Secret<String>);

pub(crate) struct AccountsModule;

impl Accounts for AccountsModule {
    fn register(&self, tx: &mut Tx<'_>, account: NewAccount) -> Answer<(), RegisterRefused> {
        let now_ms = tx.now_ms();
        let new = tx.execute(
            "INSERT INTO users_user (id, email, name, password_hash, registered_at) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (email) DO NOTHING",
            (account.id, &account.email, &account.name, &account.password_hash, now_ms),
        )?;
        if new == 0 {
            return Err(RegisterRefused::EmailTaken.into());
        }
        Ok(())
    }

    fn credentials(&self, db: &Snapshot<'_>, email: Email) -> Answer<Option<Credentials>, Never> {
        let sql = "SELECT id, password_hash FROM users_user WHERE email = $1 AND password_hash IS NOT NULL";
        Ok(db.row(sql, (&email,))?.map(|(user, password_hash)| Credentials { user, password_hash }))
    }

    fn import(&self, tx: &mut Tx<'_>, customers: Vec<Customer>) -> Answer<Vec<UserId>, Never> {
        let now_ms = tx.now_ms();
        let mut ids = Vec::with_capacity(customers.len());
        for Customer { id, number } in &customers {
            tx.execute(
                "INSERT INTO users_user (id, name, customer, registered_at) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (customer) DO NOTHING",
                (id, format!("Customer {number}"), number, now_ms),
            )?;
            let known = tx.row("SELECT id FROM users_user WHERE customer = $1", (number,))?;
            ids.extend(known.map(|(known,): (UserId,)| known));
        }
        Ok(ids)
    }
}
