//! What other modules may ask of the cart, written by hand.
//!
//! All other contracts of the store are written by the macro `#[contract]`. This one shows that there is no
//! magic: what stands here is what the macro would write, and calls ordinary functions of `modulith`.

use modulith::{
    Answer, CallError, Client, Command, ContractClient, ContractModel, Kind, MethodModel, Never, Query,
    Refusal, Served, Snapshot, Tx,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use store_products_contract::ProductId;
use store_users_contract::UserId;

/// What the module implements: for each method, a function over its own data.
pub trait Cart: Send + Sync + 'static {
    /// The user's lines, oldest first.
    fn lines(&self, db: &Snapshot<'_>, user: UserId) -> Answer<Vec<CartLine>, Never>;

    /// Puts a product into the cart, or changes its quantity.
    fn set_line(&self, tx: &mut Tx<'_>, request: SetLine) -> Answer<(), CartRefused>;

    /// Takes a product out of the cart. Nothing happens if it is not there.
    fn remove_line(&self, tx: &mut Tx<'_>, request: RemoveLine) -> Answer<(), Never>;

    /// Takes out what was ordered. A line that was changed meanwhile stays.
    fn clear(&self, tx: &mut Tx<'_>, ordered: Ordered) -> Answer<(), Never>;
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CartLine {
    pub product_id: ProductId,
    pub quantity: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SetLine {
    pub user: UserId,
    pub line: CartLine,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RemoveLine {
    pub user: UserId,
    pub product: ProductId,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Ordered {
    pub user: UserId,
    pub lines: Vec<CartLine>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CartRefused {
    CartFull { lines_max: u32 },
}

impl Refusal for CartRefused {
    fn code(&self) -> &str {
        match self {
            Self::CartFull { .. } => "cart_full",
        }
    }
    fn text(&self) -> String {
        match self {
            Self::CartFull { lines_max } => format!("a cart holds at most {lines_max} lines"),
        }
    }
}

/// A token for each method: its place in the contract and its types, for plans and for clients.
pub struct CartMethods {
    pub lines: Query<UserId, Vec<CartLine>, Never>,
    pub set_line: Command<SetLine, (), CartRefused>,
    pub remove_line: Command<RemoveLine, (), Never>,
    pub clear: Command<Ordered, (), Never>,
}

/// Stands beside the trait of the same name: one `use` brings both.
#[expect(non_upper_case_globals, reason = "a token is called as the trait and the method are: `Cart.clear`")]
pub const Cart: CartMethods = CartMethods {
    lines: Query::new("cart", "lines", 0),
    set_line: Command::new("cart", "set_line", 1),
    remove_line: Command::new("cart", "remove_line", 2),
    clear: Command::new("cart", "clear", 3),
};

impl CartMethods {
    /// The contract as data.
    pub fn model(&self) -> ContractModel {
        ContractModel {
            name: CartClient::CONTRACT,
            version: 1,
            methods: vec![
                MethodModel::of::<UserId, Vec<CartLine>, Never>("lines", Kind::Query),
                MethodModel::of::<SetLine, (), CartRefused>("set_line", Kind::Command),
                MethodModel::of::<RemoveLine, (), Never>("remove_line", Kind::Command),
                MethodModel::of::<Ordered, (), Never>("clear", Kind::Command),
            ],
        }
    }

    /// The contract with a module's code behind it.
    pub fn serve(&self, module: impl Cart) -> Served {
        let module = std::sync::Arc::new(module);
        let [lines, set_line, remove_line, clear] = std::array::from_fn(|_| module.clone());
        Served::new(self.model())
            .query(self.lines, false, move |db, request| lines.lines(db, request))
            .command(self.set_line, move |tx, request| set_line.set_line(tx, request))
            .command(self.remove_line, move |tx, request| remove_line.remove_line(tx, request))
            .command(self.clear, move |tx, request| clear.clear(tx, request))
    }
}

/// What a caller holds, wherever the module runs.
#[derive(Clone)]
pub struct CartClient(Client);

impl ContractClient for CartClient {
    const CONTRACT: &'static str = "cart";

    fn model() -> ContractModel {
        Cart.model()
    }

    fn from_client(client: Client) -> Self {
        Self(client)
    }
}

impl CartClient {
    pub async fn lines(&self, user: UserId) -> Result<Vec<CartLine>, CallError<Never>> {
        self.0.query(Cart.lines, user).await
    }

    pub async fn set_line(&self, request: SetLine) -> Result<(), CallError<CartRefused>> {
        self.0.command(Cart.set_line, request).await
    }

    pub async fn remove_line(&self, request: RemoveLine) -> Result<(), CallError<Never>> {
        self.0.command(Cart.remove_line, request).await
    }

    pub async fn clear(&self, ordered: Ordered) -> Result<(), CallError<Never>> {
        self.0.command(Cart.clear, ordered).await
    }
}
