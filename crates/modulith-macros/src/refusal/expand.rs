//! What is written for a refusal: one implementation with a `match` a method.

use proc_macro2::{Ident, TokenStream};
use quote::{ToTokens, quote};
use syn::ext::IdentExt;

use super::model::Shape;
use super::validate::{Checked, CheckedCase, Text};

pub(super) fn expand(ident: &Ident, checked: &Checked) -> TokenStream {
    let codes = arms(checked, |case| case.code.to_token_stream());
    let statuses = arms(checked, |case| case.status.to_token_stream());
    let texts = checked.cases.iter().map(|case| {
        let path = path(checked, case);
        match &case.text {
            Text::Words(words) => quote! { #path { .. } => ::std::string::String::from(#words), },
            Text::Format { format, fields } => {
                let (members, bindings): (Vec<_>, Vec<_>) = fields.iter().map(|(member, binding)| (member, binding)).unzip();
                quote! {
                    #path { #(#members: #bindings,)* .. } => ::std::format!(#format, #(#bindings = #bindings),*),
                }
            }
        }
    });
    let cases = checked.cases.iter().map(|case| {
        let CheckedCase { ident, code, status, text } = case;
        let name = ident.unraw().to_string();
        let text = match text {
            Text::Words(words) => words.to_token_stream(),
            Text::Format { format, .. } => format.to_token_stream(),
        };
        quote! { ::modulith::RefusalCase { name: #name, code: #code, status: #status, text: #text } }
    });
    // A reference to a type without cases still has to be matched by a case.
    let this = if checked.cases.is_empty() { quote!(*self) } else { quote!(self) };
    quote! {
        impl ::modulith::Refusal for #ident {
            fn code(&self) -> &str {
                match #this { #codes }
            }

            fn text(&self) -> ::std::string::String {
                match #this { #(#texts)* }
            }

            fn status(&self) -> u16 {
                match #this { #statuses }
            }

            fn cases() -> &'static [::modulith::RefusalCase] {
                const { &[#(#cases),*] }
            }
        }
    }
}

fn arms(checked: &Checked, value: impl Fn(&CheckedCase) -> TokenStream) -> TokenStream {
    let arm = |case| {
        let (path, value) = (path(checked, case), value(case));
        quote! { #path { .. } => #value, }
    };
    checked.cases.iter().map(arm).collect()
}

fn path(checked: &Checked, case: &CheckedCase) -> TokenStream {
    let ident = &case.ident;
    match checked.shape {
        Shape::Enum => quote!(Self::#ident),
        Shape::Struct => quote!(Self),
    }
}
