//! `#[derive(Column)]`.

mod expand;
mod model;
mod validate;

use proc_macro2::TokenStream;

pub(crate) fn expand(item: TokenStream) -> TokenStream {
    let item: syn::DeriveInput = match syn::parse2(item) {
        Ok(item) => item,
        Err(error) => return error.into_compile_error(),
    };
    let model = model::Column::parse(&item);
    let errors = validate::check(&item, &model);
    if errors.is_empty() {
        return expand::expand(&item.ident, &model);
    }
    let errors = errors.iter().map(syn::Error::to_compile_error);
    let stub = expand::stub(&item);
    quote::quote! { #(#errors)* #stub }
}
