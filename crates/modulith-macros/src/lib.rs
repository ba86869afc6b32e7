//! The macros of modulith. Each is parsed to a model, validated, and expanded to calls of ordinary functions of
//! `modulith-core`; whatever is generated could be written by hand.
//!
//! All mistakes of an item are reported at once, and the item is emitted even when it has some, so that one
//! mistake gives one error. Nothing here reads a file or knows another item: types are taken as they are spelled.

mod column;
mod contract;
mod names;
mod refusal;

use proc_macro::TokenStream;

/// Makes a trait a contract: what other modules may ask of one module.
///
/// ```
/// # mod modules {
/// use modulith::{Answer, CallError, Context, Found, Never, Refusal, Snapshot, StepKey, Tx, contract};
/// use schemars::JsonSchema;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
/// pub struct HoldRequest {
///     pub product: String,
///     pub quantity: u32,
/// }
///
/// #[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
/// pub struct Hold {
///     pub id: i64,
/// }
///
/// #[derive(Debug, Serialize, Deserialize, JsonSchema, Refusal)]
/// pub enum HoldRefused {
///     #[refused("only {left} of {product} left")]
///     SoldOut { product: String, left: u32 },
/// }
///
/// #[contract(name = "products", version = 1)]
/// pub trait Products {
///     /// How much of a product is left.
///     #[query]
///     fn stock(&self, db: &Snapshot<'_>, product: String) -> Answer<u32, Never>;
///
///     /// Holds stock. A repeat with the same key returns the first hold and takes nothing more.
///     #[command]
///     fn hold(&self, tx: &mut Tx<'_>, request: HoldRequest) -> Answer<Hold, HoldRefused>;
///
///     /// Tells the supplier, who deduplicates by the key for a week.
///     #[effect(window = "7d", look_up = find_reorder)]
///     async fn reorder(&self, cx: &Context, product: String) -> Result<(), CallError<Never>>;
///
///     /// What the supplier has under the key of a reorder.
///     #[effect]
///     async fn find_reorder(&self, cx: &Context, key: StepKey) -> Result<Found<(), Never>, CallError<Never>>;
/// }
///
/// pub struct ProductsModule;
///
/// impl Products for ProductsModule {
///     fn stock(&self, db: &Snapshot<'_>, product: String) -> Answer<u32, Never> {
///         let found: Option<(u32,)> = db.row("SELECT stock FROM products_stock WHERE id = $1", (&product,))?;
///         Ok(found.map_or(0, |(stock,)| stock))
///     }
///
///     fn hold(&self, tx: &mut Tx<'_>, request: HoldRequest) -> Answer<Hold, HoldRefused> {
///         let taken: Option<(i64,)> = tx.row(
///             "UPDATE products_stock SET stock = stock - $2 WHERE id = $1 AND stock >= $2 RETURNING hold",
///             (&request.product, request.quantity),
///         )?;
///         match taken {
///             Some((id,)) => Ok(Hold { id }),
///             None => Err(HoldRefused::SoldOut { product: request.product, left: 0 }.into()),
///         }
///     }
///
///     async fn reorder(&self, cx: &Context, _product: String) -> Result<(), CallError<Never>> {
///         let _shown_to_the_supplier = cx.idempotency_key();
///         Ok(())
///     }
///
///     async fn find_reorder(&self, _: &Context, key: StepKey) -> Result<Found<(), Never>, CallError<Never>> {
///         let _asked_of_the_supplier = key.to_string();
///         Ok(Found::Nothing)
///     }
/// }
///
/// // Another module calls through the client:
/// async fn buy(products: &ProductsClient, request: HoldRequest) -> Result<Hold, CallError<HoldRefused>> {
///     products.hold(request).await
/// }
///
/// # fn main_() {
/// let served = Products.serve(ProductsModule);
/// # let _ = (served, buy);
/// # }
/// # }
/// ```
///
/// # The attribute
///
/// - `name`: lower-case letters and digits, beginning with a letter. It is stored and sent: renaming it is a
///   migration.
/// - `version`: a number from 1.
///
/// # The methods
///
/// Each has one kind, `&self`, what its kind works on, and at most one request, which is owned. Without a request
/// it is asked with `()`.
///
/// | kind | works on | returns |
/// | --- | --- | --- |
/// | `#[query]`, `#[query(heavy)]`: `fn` | `&Snapshot<'_>` | `Answer<T, E>` |
/// | `#[command]`: `fn` | `&mut Tx<'_>` | `Answer<T, E>` |
/// | `#[effect]`: `async fn` | `&Context` | `Result<T, CallError<E>>` |
///
/// A heavy query runs on a pool of its own instead of on the caller's thread. `T` and the request derive
/// `Serialize`, `Deserialize` and `JsonSchema`, the request of a command also `Clone`; `E` derives `Refusal`, or is
/// `Never` for a method that cannot refuse. The macro reads these types as they are spelled: an alias of `Answer`
/// or `Result` is not seen through.
///
/// # What an effect declares
///
/// `#[effect(window = "24h", look_up = find_charge)]`; either part may be left out.
///
/// - `window`: how long the provider recognises an idempotency key, from the first attempt: a number of seconds,
///   minutes, hours or days, as `"90s"`, `"30m"`, `"24h"`, `"7d"`. While it lasts, an outcome that is unknown is
///   asked for by sending the same bytes again; past it nothing is sent. Without one it is 24 hours: look at what the
///   provider promises, since a window that is too long does a thing twice.
/// - `look_up`: the effect of this contract that finds what was done under a key, `StepKey` to `Found<T, E>`, with
///   the `T` and `E` of the effect that names it, and that cannot refuse. It is asked past the window. Without one, an
///   outcome that is still unknown then is a matter for a person.
///
/// Neither is in the contract's fingerprint: they concern the module and its provider, not the callers.
///
/// # What it adds
///
/// For `trait Products`:
///
/// - `Products: Send + Sync + 'static`; an effect may be implemented as `async fn`, and `Arc<M>` is a module when
///   `M` is one;
/// - `Products.hold`, the token of each method, for plans and for tests; `Products.model()`, the contract as data;
///   `Products.serve(module)`, the contract with a module's code behind it;
/// - `ProductsClient` with an async method for each of the contract's, and `keyed(key)` for the client whose
///   commands carry an explicit key.
///
/// All have the visibility of the trait.
#[proc_macro_attribute]
pub fn contract(arguments: TokenStream, item: TokenStream) -> TokenStream {
    contract::expand(arguments.into(), item.into()).into()
}

/// Makes an enum (or a struct) the refusal of a method: each case has a stable code, a text and an HTTP status.
///
/// ```
/// use modulith::Refusal;
/// use schemars::JsonSchema;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Debug, Serialize, Deserialize, JsonSchema, Refusal)]
/// pub enum HoldRefused {
///     #[refused("only {left} of {product} left")]
///     SoldOut { product: String, left: u32 },
///     #[refused(404, "there is no product {0}")]
///     UnknownProduct(String),
///     /// the shop is closed
///     Closed,
///     TooMany,
/// }
///
/// let sold_out = HoldRefused::SoldOut { product: "85123A".into(), left: 2 };
/// assert_eq!((sold_out.code(), sold_out.status()), ("sold_out", 409));
/// assert_eq!(sold_out.text(), "only 2 of 85123A left");
/// assert_eq!(HoldRefused::UnknownProduct("1".into()).status(), 404);
/// assert_eq!(HoldRefused::Closed.text(), "the shop is closed");
/// assert_eq!(HoldRefused::TooMany.text(), "too many");
/// ```
///
/// `#[refused(status, "text")]` stands on a case (of a struct: on the struct); both parts may be left out. The
/// status is 400 to 599, and 409 without one. The text names fields as `format!` does: `{left}`, of a tuple
/// `{0}`; without one it is the first paragraph of the case's documentation, or else the words of its name. The
/// code is the case's name in snake case. It is stored and sent: renaming a case is a migration.
#[proc_macro_derive(Refusal, attributes(refused))]
pub fn refusal(item: TokenStream) -> TokenStream {
    refusal::expand(item.into()).into()
}

/// Lets a type stand in a column and a parameter list: a newtype as what it wraps, a fieldless enum as text.
///
/// ```
/// use modulith::{Column, Param, Value};
///
/// #[derive(Debug, PartialEq, Column)]
/// pub struct OrderId(pub i64);
///
/// #[derive(Debug, PartialEq, Column)]
/// pub enum OrderState {
///     Placed,
///     OnItsWay,
/// }
///
/// assert_eq!(OrderId(7).param(), Value::Integer(7));
/// assert_eq!(OrderState::OnItsWay.param(), Value::Text("on_its_way"));
/// assert_eq!(OrderState::from_value(Value::Text("placed")), Ok(OrderState::Placed));
/// assert!(OrderState::from_value(Value::Text("lost")).is_err());
/// ```
///
/// An enum's text is the name of its case in snake case. It is stored: renaming a case is a migration. Text that no
/// case has is a fault of kind `Type`, which names it.
#[proc_macro_derive(Column)]
pub fn column(item: TokenStream) -> TokenStream {
    column::expand(item.into()).into()
}
