//! What is written for a column's type: `Param` and `Column`.

use proc_macro2::{Ident, TokenStream};
use quote::quote;
use syn::{DeriveInput, Type};

use super::model::{Column, idents};
use crate::names::snake_case;

pub(super) fn expand(ident: &Ident, column: &Column<'_>) -> TokenStream {
    match column {
        Column::Newtype(ty) => newtype(ident, ty),
        Column::Names(variants) => names(ident, &idents(variants).collect::<Vec<_>>()),
        Column::Other => TokenStream::new(),
    }
}

fn newtype(ident: &Ident, ty: &Type) -> TokenStream {
    implement(
        ident,
        &quote! { <#ty as ::modulith::Param>::param(&self.0) },
        &quote! { <#ty as ::modulith::Column>::from_value(value).map(Self) },
    )
}

fn names(ident: &Ident, cases: &[&Ident]) -> TokenStream {
    let names: Vec<_> = cases.iter().map(|case| snake_case(case)).collect();
    let known = names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let unknown = format!("`{{found}}` is no `{ident}`, which is one of {known}");
    implement(
        ident,
        &quote! {
            ::modulith::Value::Text(match self { #(Self::#cases => #names,)* })
        },
        &quote! {
            match value {
                #(::modulith::Value::Text(#names) => ::core::result::Result::Ok(Self::#cases),)*
                other => {
                    // Says of what is no text that it is none.
                    let found = <::std::string::String as ::modulith::Column>::from_value(other)?;
                    let message = ::std::format!(#unknown, found = found);
                    ::core::result::Result::Err(::modulith::Fault::new(::modulith::FaultKind::Type, message))
                }
            }
        },
    )
}

/// Keeps uses of a type with a mistake free of errors of their own.
pub(super) fn stub(item: &DeriveInput) -> TokenStream {
    if !item.generics.params.is_empty() {
        return TokenStream::new();
    }
    let never = quote! { ::core::unreachable!() };
    implement(&item.ident, &never, &quote! { { let _ = value; #never } })
}

fn implement(ident: &Ident, param: &TokenStream, from_value: &TokenStream) -> TokenStream {
    quote! {
        impl ::modulith::Param for #ident {
            fn param(&self) -> ::modulith::Value<'_> {
                #param
            }
        }

        impl ::modulith::Column for #ident {
            fn from_value(
                value: ::modulith::Value<'_>,
            ) -> ::core::result::Result<Self, ::modulith::Fault> {
                #from_value
            }
        }
    }
}
