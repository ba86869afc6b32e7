//! What a column's type has to be.

use syn::{Data, DeriveInput, Error, Fields};

use super::model::{Column, idents};
use crate::names::same_name;

pub(super) fn check(item: &DeriveInput, column: &Column<'_>) -> Vec<Error> {
    let mut errors = Vec::new();
    if !item.generics.params.is_empty() {
        let message = "a column's type has no generics: name the type that it wraps";
        errors.push(Error::new_spanned(&item.generics.params, message));
    }
    match column {
        Column::Newtype(_) => {}
        Column::Names(variants) if variants.is_empty() => {
            errors.push(Error::new(item.ident.span(), "a column has a value: give the enum a case"));
        }
        Column::Names(variants) => {
            for variant in variants.iter().filter(|variant| !matches!(variant.fields, Fields::Unit)) {
                let message =
                    format!("a case is stored as its name alone: write `{}` without fields", variant.ident);
                errors.push(Error::new_spanned(&variant.fields, message));
            }
            errors.extend(same_name(idents(variants)));
        }
        Column::Other => errors.push(other(item)),
    }
    errors
}

fn other(item: &DeriveInput) -> Error {
    let wanted = format!("a column holds one value: write `struct {}(…);` with one field", item.ident);
    match &item.data {
        Data::Struct(data) if !matches!(data.fields, Fields::Unit) => {
            Error::new_spanned(&data.fields, wanted)
        }
        _ => Error::new(item.ident.span(), wanted),
    }
}
