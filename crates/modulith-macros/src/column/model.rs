//! A column's type as it is written.

use proc_macro2::Ident;
use syn::{Data, DeriveInput, Fields, Type, Variant};

pub(super) enum Column<'i> {
    /// `struct OrderId(i64);`: stored as what it wraps.
    Newtype(&'i Type),
    /// `enum OrderState { Placed, Paid }`: stored as text.
    Names(Vec<&'i Variant>),
    /// Anything else.
    Other,
}

impl<'i> Column<'i> {
    pub(super) fn parse(item: &'i DeriveInput) -> Self {
        match &item.data {
            Data::Struct(data) => match &data.fields {
                Fields::Unnamed(fields) if fields.unnamed.len() == 1 => Self::Newtype(&fields.unnamed[0].ty),
                _ => Self::Other,
            },
            Data::Enum(data) => Self::Names(data.variants.iter().collect()),
            Data::Union(_) => Self::Other,
        }
    }
}

/// The names of an enum's cases.
pub(super) fn idents<'v>(variants: &'v [&Variant]) -> impl Iterator<Item = &'v Ident> {
    variants.iter().map(|variant| &variant.ident)
}
