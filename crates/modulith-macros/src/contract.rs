//! `#[contract]`.

mod effect;
mod expand;
mod model;
mod types;
mod validate;

use proc_macro2::TokenStream;

pub(crate) fn expand(arguments: TokenStream, item: TokenStream) -> TokenStream {
    match model::Contract::parse(arguments, item.clone()) {
        Ok(contract) => {
            let (checked, errors) = validate::check(&contract);
            let errors = errors.iter().map(syn::Error::to_compile_error);
            let expanded = expand::expand(&contract.item, &checked);
            quote::quote! { #(#errors)* #expanded }
        }
        Err(error) => {
            let error = error.to_compile_error();
            quote::quote! { #error #item }
        }
    }
}
