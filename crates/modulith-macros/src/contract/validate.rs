//! What a contract has to be, and the sentence for each way of not being it.
//!
//! A method with a mistake is left out of what is expanded, the others are not, so that code which uses them has
//! no errors of its own.

use proc_macro2::Ident;
use quote::ToTokens;
use syn::ext::IdentExt;
use syn::punctuated::Punctuated;
use syn::{
    Attribute, Error, Expr, ExprLit, FnArg, Lit, Meta, Pat, PatType, ReceiverKind, ReturnType, Token,
    TraitItem, TraitItemFn, Type,
};

use super::effect::{self, Provider};
use super::model::{Contract, Kind, KindAttribute};
use super::types::{last_segment, not_owned, one_argument, plain, return_type, two_arguments};
use crate::names::pascal_case;

/// A contract that can be expanded.
pub(super) struct Checked {
    pub(super) name: String,
    pub(super) version: u32,
    pub(super) methods: Vec<Method>,
    /// Whether every item of the trait is among the methods.
    pub(super) complete: bool,
}

pub(super) struct Method {
    pub(super) kind: Kind,
    pub(super) heavy: bool,
    /// What an effect declares; of the other kinds nothing.
    pub(super) provider: Provider,
    pub(super) ident: Ident,
    /// What the client shows as well: documentation, deprecation.
    pub(super) attributes: Vec<Attribute>,
    pub(super) request: Option<Request>,
    pub(super) answer: Type,
    pub(super) refused: Type,
}

pub(super) struct Request {
    pub(super) ident: Ident,
    pub(super) ty: Type,
}

#[derive(Default)]
pub(super) struct Errors(Vec<Error>);

impl Errors {
    pub(super) fn on(&mut self, tokens: impl ToTokens, message: impl std::fmt::Display) {
        self.0.push(Error::new_spanned(tokens, message));
    }
}

pub(super) fn check(contract: &Contract) -> (Checked, Vec<Error>) {
    let mut errors = Errors::default();
    let (name, version) = arguments(contract, &mut errors);
    the_trait(contract, &mut errors);
    let mut methods: Vec<Method> = Vec::new();
    for (item, kinds) in contract.item.items.iter().zip(&contract.kinds) {
        let TraitItem::Fn(item) = item else {
            errors.on(item, "a contract has methods only: move this out of the trait");
            continue;
        };
        // The compiler reports a name that stands twice.
        if let Some(method) = method(item, kinds, &mut errors)
            && methods.iter().all(|known| known.ident != method.ident)
        {
            methods.push(method);
        }
    }
    effect::check_look_ups(&mut methods, &contract.item, &mut errors);
    let complete = methods.len() == contract.item.items.len();
    (Checked { name, version, methods, complete }, errors.0)
}

fn arguments(contract: &Contract, errors: &mut Errors) -> (String, u32) {
    let metas = match &contract.arguments {
        Ok(metas) => metas,
        Err(error) => {
            errors.0.push(error.clone());
            return (String::new(), 1);
        }
    };
    let (mut name, mut version) = (None, None);
    for meta in metas {
        let twice = match meta {
            Meta::NameValue(pair) if pair.path.is_ident("name") => {
                name.replace(contract_name(&pair.value, errors)).is_some()
            }
            Meta::NameValue(pair) if pair.path.is_ident("version") => {
                version.replace(contract_version(&pair.value, errors)).is_some()
            }
            _ => {
                errors.on(meta, "a contract has `name = \"…\"` and `version = 1`; remove this");
                false
            }
        };
        if twice {
            errors.on(meta, "this stands twice; keep one");
        }
    }
    let proposed = proposal(&contract.item.ident.unraw().to_string());
    let missing = match (&name, &version) {
        (None, None) => Some(format!("write `#[contract(name = \"{proposed}\", version = 1)]`")),
        (None, Some(_)) => Some(format!("the contract's name is missing: write `name = \"{proposed}\"`")),
        (Some(_), None) => Some("the contract's version is missing: write `version = 1`".to_owned()),
        (Some(_), Some(_)) => None,
    };
    errors.0.extend(missing.map(|message| Error::new(contract.attribute, message)));
    (name.unwrap_or_default(), version.unwrap_or(1))
}

/// What is left of a name when all that it may not hold is taken away.
fn proposal(name: &str) -> String {
    let kept = name.to_ascii_lowercase().replace(|letter: char| !letter.is_ascii_alphanumeric(), "");
    let kept = kept.trim_start_matches(|letter: char| letter.is_ascii_digit());
    if kept.is_empty() { "products".to_owned() } else { kept.to_owned() }
}

fn contract_name(value: &Expr, errors: &mut Errors) -> String {
    let Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) = value else {
        errors.on(value, "a contract's name is text: write `name = \"products\"`");
        return String::new();
    };
    let name = text.value();
    let allowed = name.starts_with(|letter: char| letter.is_ascii_lowercase())
        && name.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit());
    if !allowed {
        let message = format!(
            "a contract's name has lower-case letters and digits only, and begins with a letter: write `\"{}\"`",
            proposal(&name)
        );
        errors.on(text, message);
    }
    name
}

fn contract_version(value: &Expr, errors: &mut Errors) -> u32 {
    let parsed = match value {
        Expr::Lit(ExprLit { lit: Lit::Int(number), .. }) if number.suffix().is_empty() => {
            number.base10_parse().ok()
        }
        _ => None,
    };
    match parsed {
        Some(version) if version > 0 => version,
        _ => {
            errors.on(value, "a contract's version is a number from 1: write `version = 1`");
            1
        }
    }
}

fn the_trait(contract: &Contract, errors: &mut Errors) {
    let item = &contract.item;
    if !item.generics.params.is_empty() {
        errors.on(&item.generics.params, "a contract has no generics: name the types that it carries");
    } else if let Some(clause) = &item.generics.where_clause {
        errors.on(clause, "a contract has no `where` clause: remove it");
    }
    if !item.supertraits.is_empty() {
        errors.on(
            &item.supertraits,
            "a contract has no supertraits: remove them; `Send + Sync + 'static` are implied",
        );
    }
    if let Some(token) = &item.unsafety {
        errors.on(token, "a contract is a plain trait: remove `unsafe`");
    }
    if item.items.is_empty() {
        errors.on(&item.ident, "a contract has at least one method");
    }
}

/// The method, unless it has a mistake.
fn method(item: &TraitItemFn, kinds: &[KindAttribute], errors: &mut Errors) -> Option<Method> {
    let errors_before = errors.0.len();
    shape(item, errors);
    let declared = kind(item, kinds, errors);
    if let Some(declared) = &declared {
        asyncness(item, declared.kind, errors);
    }
    let request = inputs(item, declared.as_ref().map(|declared| declared.kind), errors);
    let Declared { kind, heavy, provider } = declared?;
    let (answer, refused) = output(item, kind, errors)?;
    for ty in [&answer, &refused] {
        errors.0.extend(not_owned(ty).map(|message| Error::new_spanned(ty, message)));
    }
    let shown = ["doc", "deprecated"];
    let attributes = item
        .attrs
        .iter()
        .filter(|attribute| shown.iter().any(|name| attribute.path().is_ident(name)))
        .cloned();
    (errors.0.len() == errors_before).then(|| Method {
        kind,
        heavy,
        provider,
        ident: item.sig.ident.clone(),
        attributes: attributes.collect(),
        request,
        answer,
        refused,
    })
}

fn shape(item: &TraitItemFn, errors: &mut Errors) {
    let signature = &item.sig;
    if !signature.generics.params.is_empty() {
        errors.on(
            &signature.generics.params,
            "a contract's method has no generics: name the types that it carries",
        );
    } else if let Some(clause) = &signature.generics.where_clause {
        errors.on(clause, "a contract's method has no `where` clause: remove it");
    }
    if let Some(body) = &item.default {
        let message = "a contract's method has no body, since the module implements it: write `;` instead";
        errors.0.push(Error::new(body.brace_token.span.open(), message));
    }
    let plain = "a contract's method is a plain function: remove this";
    if let Some(token) = &signature.constness {
        errors.on(token, plain);
    }
    if !matches!(signature.safety, syn::Safety::Default) {
        errors.on(&signature.safety, plain);
    }
    if let Some(abi) = &signature.abi {
        errors.on(abi, plain);
    }
    if let Some(dots) = &signature.variadic {
        errors.on(dots, plain);
    }
    if signature.ident.unraw() == "keyed" {
        errors.on(&signature.ident, "every client has `keyed` already: give the method another name");
    }
    for attribute in &item.attrs {
        if attribute.path().is_ident("cfg") || attribute.path().is_ident("cfg_attr") {
            errors.on(attribute, "a contract is the same in every build: remove this");
        }
    }
}

/// A method's kind with its arguments.
struct Declared {
    kind: Kind,
    heavy: bool,
    provider: Provider,
}

fn kind(item: &TraitItemFn, kinds: &[KindAttribute], errors: &mut Errors) -> Option<Declared> {
    let name = &item.sig.ident;
    let [first, others @ ..] = kinds else {
        let message = format!("`{name}` has no kind: write `#[query]`, `#[command]` or `#[effect]` above it");
        errors.on(name, message);
        return None;
    };
    if let [second, ..] = others {
        let message = format!(
            "`{name}` is a {} already: remove this, or `#[{}]`",
            first.kind.name(),
            first.kind.name()
        );
        errors.on(&second.attribute, message);
        return None;
    }
    let mut declared = Declared { kind: first.kind, heavy: false, provider: Provider::default() };
    match (&first.attribute.meta, first.kind) {
        (Meta::Path(_), _) => {}
        (Meta::List(list), Kind::Query) if list.tokens.to_string() == "heavy" => declared.heavy = true,
        (Meta::List(list), Kind::Effect) => declared.provider = effect::arguments(list, errors),
        (meta, kind) if effect::declares_a_provider(meta) => {
            let message = format!(
                "a {} reaches nothing outside: `window` and `look_up` are of an `#[effect]`",
                kind.name()
            );
            errors.on(meta, message);
        }
        (meta, Kind::Query) => {
            errors.on(meta, "write `#[query]`, or `#[query(heavy)]` for one that runs on the pool");
        }
        (meta, Kind::Command) => errors.on(meta, "write `#[command]`: it has no arguments"),
        (meta, Kind::Effect) => errors.on(meta, effect::WANTED),
    }
    Some(declared)
}

fn asyncness(item: &TraitItemFn, kind: Kind, errors: &mut Errors) {
    match (kind, &item.sig.asyncness) {
        (Kind::Effect, None) => {
            errors.on(item.sig.fn_token, "an effect waits for the outside world: write `async fn`");
        }
        (Kind::Query, Some(token)) => {
            errors.on(token, "a query runs on one snapshot and awaits nothing: remove `async`");
        }
        (Kind::Command, Some(token)) => {
            let message = "a command is one transaction and awaits nothing: remove `async`; what reaches the outside \
                           world is an `#[effect]`";
            errors.on(token, message);
        }
        _ => {}
    }
}

fn inputs(item: &TraitItemFn, kind: Option<Kind>, errors: &mut Errors) -> Option<Request> {
    let name = &item.sig.ident;
    let mut inputs = item.sig.inputs.iter().peekable();
    match inputs.peek() {
        Some(FnArg::Receiver(receiver)) => {
            if !matches!(receiver.kind, ReceiverKind::Reference(_, None, None)) {
                errors.on(receiver, "a module is shared by all its calls: write `&self`");
            }
            inputs.next();
        }
        _ => errors.on(name, format!("`{name}` is asked of a module: write `fn {name}(&self, …)`")),
    }
    let mut inputs = inputs.filter_map(|input| match input {
        FnArg::Typed(input) => Some(input),
        FnArg::Receiver(_) => None,
    });
    let works_on = inputs.next();
    if let Some(kind) = kind {
        match works_on {
            Some(input) => works_on_type(input, kind, errors),
            None => {
                let message = format!(
                    "`{name}` is {} {}: write `fn {name}(&self, {}, …)`",
                    article(kind),
                    kind.name(),
                    kind.argument()
                );
                errors.on(name, message);
            }
        }
    }
    let request = inputs.next()?;
    let others: Punctuated<&PatType, Token![,]> = inputs.collect();
    if !others.is_empty() {
        let proposed = pascal_case(&name.unraw().to_string());
        let message = format!(
            "`{name}` takes one request: put all of it into one struct, `request: {proposed}Request`"
        );
        errors.on(others, message);
        return None;
    }
    errors.0.extend(not_owned(&request.ty).map(|message| Error::new_spanned(&request.ty, message)));
    let ident = match &*request.pat {
        Pat::Ident(pattern) => pattern.ident.clone(),
        other => Ident::new("request", syn::spanned::Spanned::span(other)),
    };
    Some(Request { ident, ty: (*request.ty).clone() })
}

fn article(kind: Kind) -> &'static str {
    if kind == Kind::Effect { "an" } else { "a" }
}

/// Judges the argument that the kind asks for.
fn works_on_type(input: &PatType, kind: Kind, errors: &mut Errors) {
    let (mutable, target) = match plain(&input.ty) {
        Type::Reference(reference) => (Some(reference.mutability.is_some()), plain(&reference.elem)),
        other => (None, other),
    };
    let target = last_segment(target).map(|segment| segment.ident.to_string());
    let wanted = kind.argument();
    let message = match (target.as_deref(), kind) {
        (Some(target), kind) if target == kind.works_on() => {
            if mutable == Some(kind == Kind::Command) {
                return;
            }
            format!("{} {} borrows its {target}: write `{wanted}`", article(kind), kind.name())
        }
        (Some("Tx"), Kind::Query) => {
            format!("a query cannot write: write `{wanted}`, or `#[command]` if it has to")
        }
        (Some("Snapshot"), Kind::Command) => {
            format!("a command works on a transaction: write `{wanted}`, or `#[query]` if it only reads")
        }
        (Some("Tx" | "Snapshot"), Kind::Effect) => {
            format!(
                "an effect has no transaction: write `{wanted}`, and keep what it writes in a `#[command]`"
            )
        }
        _ => format!(
            "{} {} works on its {}: write `{wanted}` here",
            article(kind),
            kind.name(),
            kind.works_on()
        ),
    };
    errors.on(&input.ty, message);
}

/// The types of the answer and of the refusal.
fn output(item: &TraitItemFn, kind: Kind, errors: &mut Errors) -> Option<(Type, Type)> {
    let (wanted, found) = match kind {
        Kind::Query | Kind::Command => {
            ("Answer<T, E>", return_type(&item.sig.output).and_then(|ty| two_arguments(ty, "Answer")))
        }
        Kind::Effect => {
            let found = return_type(&item.sig.output).and_then(|ty| two_arguments(ty, "Result"));
            let refused = |(answer, error)| Some((answer, one_argument(error, "CallError")?));
            ("Result<T, CallError<E>>", found.and_then(refused))
        }
    };
    if found.is_none() {
        let message = format!(
            "{} {} returns `{wanted}`; `E` is `Never` for one that cannot refuse",
            article(kind),
            kind.name()
        );
        match &item.sig.output {
            ReturnType::Default => errors.on(&item.sig.ident, message),
            ReturnType::Type(_, ty) => errors.on(ty, message),
        }
    }
    found.map(|(answer, refused)| (answer.clone(), refused.clone()))
}
