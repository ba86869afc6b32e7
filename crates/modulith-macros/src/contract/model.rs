//! A contract as it is written: the attribute's arguments, the trait without the attributes that are ours, and
//! those attributes beside the methods they stood on. Nothing is judged here.

use proc_macro2::{Span, TokenStream};
use syn::parse::Parser;
use syn::punctuated::Punctuated;
use syn::{Attribute, ItemTrait, Meta, Token, TraitItem};

pub(super) struct Contract {
    /// `Err` if what stands in the parentheses is no list at all.
    pub(super) arguments: syn::Result<Vec<Meta>>,
    /// Where an argument that is missing is reported.
    pub(super) attribute: Span,
    pub(super) item: ItemTrait,
    /// The attributes of kind of each item of the trait, in the same order.
    pub(super) kinds: Vec<Vec<KindAttribute>>,
}

pub(super) struct KindAttribute {
    pub(super) kind: Kind,
    pub(super) attribute: Attribute,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Query,
    Command,
    Effect,
}

impl Contract {
    /// # Errors
    ///
    /// If the item is no trait.
    pub(super) fn parse(arguments: TokenStream, item: TokenStream) -> syn::Result<Self> {
        let mut item: ItemTrait = match syn::parse2(item.clone()) {
            Ok(item) => item,
            Err(error) => {
                let other_item = syn::parse2::<syn::Item>(item).is_ok();
                let wanted =
                    "a contract is a trait: write `#[contract(name = \"…\", version = 1)]` above one";
                return Err(if other_item { syn::Error::new(Span::call_site(), wanted) } else { error });
            }
        };
        let kinds = item.items.iter_mut().map(take_kinds).collect();
        let arguments = Punctuated::<Meta, Token![,]>::parse_terminated
            .parse2(arguments)
            .map(|arguments| arguments.into_iter().collect());
        Ok(Self { arguments, attribute: Span::call_site(), item, kinds })
    }
}

fn take_kinds(item: &mut TraitItem) -> Vec<KindAttribute> {
    let TraitItem::Fn(method) = item else {
        return Vec::new();
    };
    let mut kinds = Vec::new();
    for attribute in std::mem::take(&mut method.attrs) {
        match Kind::of(&attribute) {
            Some(kind) => kinds.push(KindAttribute { kind, attribute }),
            None => method.attrs.push(attribute),
        }
    }
    kinds
}

impl Kind {
    fn of(attribute: &Attribute) -> Option<Self> {
        [Kind::Query, Kind::Command, Kind::Effect]
            .into_iter()
            .find(|kind| attribute.path().is_ident(kind.name()))
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Query => "query",
            Kind::Command => "command",
            Kind::Effect => "effect",
        }
    }

    /// The name of the type that a method of this kind works on.
    pub(super) fn works_on(self) -> &'static str {
        match self {
            Kind::Query => "Snapshot",
            Kind::Command => "Tx",
            Kind::Effect => "Context",
        }
    }

    /// That argument as it is to be written.
    pub(super) fn argument(self) -> &'static str {
        match self {
            Kind::Query => "db: &Snapshot<'_>",
            Kind::Command => "tx: &mut Tx<'_>",
            Kind::Effect => "cx: &Context",
        }
    }
}
