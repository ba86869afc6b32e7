//! Users: who a customer is, and how it shows.
//!
//! Owns names, addresses and password hashes. A password is hashed before it comes near the database, and a
//! session is a signed token that nothing stores.

mod accounts;
mod email;
mod http;
mod passwords;

use modulith::{Answer, Module, Setup, SetupError, Snapshot, migrations};
use store_users_contract::{NoSuchUser, User, UserId, Users};

use accounts::{Accounts, AccountsModule};

pub fn module(_: &Setup<'_>) -> Result<Module, SetupError> {
    Ok(Module::new("users")
        .migrations(migrations!["../migrations/0001_users.sql"])
        .serves(Users.serve(UsersModule))
        .serves(Accounts.serve(AccountsModule))
        .routes(&["/users", "/sessions"], http::routes)
        .admin_routes(http::admin_routes))
}

struct UsersModule;

impl Users for UsersModule {
    fn user(&self, db: &Snapshot<'_>, id: UserId) -> Answer<User, NoSuchUser> {
        let found = db.row("SELECT email, name FROM users_user WHERE id = $1", (id,))?;
        let (email, name) = found.ok_or(NoSuchUser::NoSuchUser)?;
        Ok(User { id, email, name })
    }
}
