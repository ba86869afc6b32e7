//! `#[derive(Refusal)]`.

mod expand;
mod model;
mod validate;

use proc_macro2::TokenStream;

pub(crate) fn expand(item: TokenStream) -> TokenStream {
    let item = match syn::parse2(item) {
        Ok(item) => item,
        Err(error) => return error.into_compile_error(),
    };
    let refusal = match model::Refusal::parse(&item) {
        Ok(refusal) => refusal,
        Err(error) => return error.into_compile_error(),
    };
    let (checked, errors) = validate::check(&refusal);
    let errors = errors.iter().map(syn::Error::to_compile_error);
    // An implementation for a type with generics would be an error of its own.
    let expanded = item.generics.params.is_empty().then(|| expand::expand(&item.ident, &checked));
    quote::quote! { #(#errors)* #expanded }
}
