//! What is written for a contract: the trait, the tokens, `serve`, the client.

use proc_macro2::{Ident, Literal, Span, TokenStream};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::{ItemTrait, ReturnType, TraitItem};

use super::model::Kind;
use super::validate::{Checked, Method};

pub(super) fn expand(item: &ItemTrait, checked: &Checked) -> TokenStream {
    let the_trait = the_trait(item, checked);
    if !item.generics.params.is_empty() {
        // A mistake that has been reported; what stands beside the trait could not name it.
        return the_trait;
    }
    let arc = checked.complete.then(|| arc(item, checked));
    let tokens = tokens(item, checked);
    let client = client(item, checked);
    quote! { #the_trait #arc #tokens #client }
}

/// The trait with the bounds that serving it needs. An `async fn` says `Send`, which the user cannot write, and
/// may still be implemented as `async fn`.
fn the_trait(item: &ItemTrait, checked: &Checked) -> TokenStream {
    let mut item = item.clone();
    item.colon_token.get_or_insert_with(Default::default);
    item.supertraits.push(syn::parse_quote!(::core::marker::Send));
    item.supertraits.push(syn::parse_quote!(::core::marker::Sync));
    item.supertraits.push(syn::parse_quote!('static));
    for method in &mut item.items {
        let TraitItem::Fn(method) = method else { continue };
        if method.sig.asyncness.take().is_none() {
            continue;
        }
        let output = match &method.sig.output {
            ReturnType::Default => quote!(()),
            ReturnType::Type(_, ty) => ty.to_token_stream(),
        };
        // A command that is `async` is a mistake that has been reported, and could not be `Send`.
        let send = (checked.methods.iter().any(|known| known.ident == method.sig.ident))
            .then(|| quote!(+ ::core::marker::Send));
        method.sig.output = syn::parse_quote!(-> impl ::core::future::Future<Output = #output> #send);
        // A body is a mistake that has been reported.
        if let Some(body) = &mut method.default {
            *body = syn::parse_quote!({ async move #body });
        }
    }
    item.into_token_stream()
}

/// A shared module is a module, so that `serve` takes it with and without `Arc`.
fn arc(item: &ItemTrait, checked: &Checked) -> TokenStream {
    let name = &item.ident;
    let methods = checked.methods.iter().map(|method| {
        let Method { ident, answer, refused, .. } = method;
        let request = method.request_type();
        let (argument, parameter) = match &method.request {
            Some(_) => (Some(quote!(, request)), Some(quote!(, request: #request))),
            None => (None, None),
        };
        let answer_type = quote!(::modulith::Answer<#answer, #refused>);
        let (work, output) = match method.kind {
            Kind::Query => (quote!(&::modulith::Snapshot<'_>), answer_type),
            Kind::Command => (quote!(&mut ::modulith::Tx<'_>), answer_type),
            Kind::Effect => {
                let output = quote!(::core::result::Result<#answer, ::modulith::CallError<#refused>>);
                (
                    quote!(&::modulith::Context),
                    quote!(impl ::core::future::Future<Output = #output> + ::core::marker::Send),
                )
            }
        };
        quote! {
            fn #ident(&self, work: #work #parameter) -> #output {
                <M as #name>::#ident(self, work #argument)
            }
        }
    });
    quote! {
        impl<M: #name> #name for ::std::sync::Arc<M> {
            #(#methods)*
        }
    }
}

/// The tokens of the methods, and what is known of the contract as a whole.
fn tokens(item: &ItemTrait, checked: &Checked) -> TokenStream {
    let (name, visibility) = (&item.ident, &item.vis);
    let struct_name = format_ident!("{}Methods", name.unraw());
    let (contract, version) = (&checked.name, Literal::u32_unsuffixed(checked.version));
    let struct_doc = format!("The methods of `{name}`, as tokens.");
    let const_doc = format!("The contract `{contract}`: its tokens, its model, and `serve`.");
    let idents: Vec<_> = checked.methods.iter().map(|method| &method.ident).collect();
    let fields = checked.methods.iter().map(|method| {
        let Method { kind, ident, attributes, .. } = method;
        let (doc, types) = (format!("The {} `{contract}.{}`.", kind.name(), ident.unraw()), method.types());
        let (token, gap) = (kind.token(), (!attributes.is_empty()).then(|| quote!(#[doc = ""])));
        quote! { #[doc = #doc] #gap #(#attributes)* #visibility #ident: ::modulith::#token<#types> }
    });
    let values = checked.methods.iter().enumerate().map(|(index, method)| {
        let (token, name, index) = (method.kind.token(), method.name(), Literal::usize_unsuffixed(index));
        let provider = provider(checked, method);
        quote! { ::modulith::#token::new(#contract, #name, #index) #provider }
    });
    let models = checked.methods.iter().map(|method| {
        let (ident, token, types, name) = (&method.ident, method.kind.token(), method.types(), method.name());
        match method.kind {
            Kind::Effect => quote! { ::modulith::MethodModel::effect(self.#ident) },
            _ => quote! { ::modulith::MethodModel::of::<#types>(#name, ::modulith::Kind::#token) },
        }
    });
    let served = checked.methods.iter().map(|method| served(item, method));
    let shared = match checked.methods[..] {
        [] => quote!(let _ = module;),
        _ => quote!(let module = ::std::sync::Arc::new(module);),
    };
    quote! {
        #[doc = #struct_doc]
        #[allow(dead_code, deprecated, reason = "a contract has all its tokens, used or not")]
        #[derive(Clone, Copy)]
        #visibility struct #struct_name {
            #(#fields,)*
        }

        #[doc = #const_doc]
        #[allow(non_upper_case_globals, reason = "it stands beside the trait, in the namespace of values")]
        #[allow(dead_code, deprecated, reason = "a contract has all its tokens, used or not")]
        #visibility const #name: #struct_name = #struct_name {
            #(#idents: #values,)*
        };

        #[allow(dead_code, deprecated, reason = "a contract has all its tokens, used or not")]
        impl #struct_name {
            /// The contract as data.
            #visibility fn model(&self) -> ::modulith::ContractModel {
                ::modulith::ContractModel {
                    name: #contract,
                    version: #version,
                    methods: ::std::vec![#(#models),*],
                }
            }

            /// The contract with a module's code behind it. The module may be shared: an `Arc` of it is taken too.
            #visibility fn serve<M: #name>(&self, module: M) -> ::modulith::Served {
                #shared
                ::modulith::Served::new(self.model()) #(#served)*
            }
        }
    }
}

/// What makes an effect's token one with a window and a look-up. The compiler compares the types of the two.
fn provider(checked: &Checked, method: &Method) -> TokenStream {
    let window = method.provider.window_s.map(|seconds| {
        let seconds = Literal::u64_unsuffixed(seconds);
        quote! { .window(::core::time::Duration::from_secs(#seconds)) }
    });
    let look_up = method.provider.look_up.as_ref().and_then(|written| {
        let (index, found) =
            checked.methods.iter().enumerate().find(|(_, method)| method.ident == *written)?;
        let (contract, types, name) = (&checked.name, found.types(), found.name());
        let index = Literal::usize_unsuffixed(index);
        let span = Span::call_site().located_at(written.span());
        Some(quote_spanned! {span=> .look_up(::modulith::Effect::<#types>::new(#contract, #name, #index)) })
    });
    quote! { #window #look_up }
}

fn served(item: &ItemTrait, method: &Method) -> TokenStream {
    let (name, Method { ident, heavy, .. }) = (&item.ident, method);
    let types = method.types();
    let (pattern, argument) = match &method.request {
        Some(_) => (quote!(request), Some(quote!(, request))),
        None => (quote!(()), None),
    };
    let shared = quote!(let module = ::std::sync::Arc::clone(&module););
    match method.kind {
        Kind::Query => quote! {
            .query::<#types>(self.#ident, #heavy, {
                #shared
                move |db, #pattern| <M as #name>::#ident(&module, db #argument)
            })
        },
        Kind::Command => quote! {
            .command::<#types>(self.#ident, {
                #shared
                move |tx, #pattern| <M as #name>::#ident(&module, tx #argument)
            })
        },
        Kind::Effect => quote! {
            .effect::<#types, _>(self.#ident, {
                #shared
                move |cx, #pattern| {
                    #shared
                    async move { <M as #name>::#ident(&module, &cx #argument).await }
                }
            })
        },
    }
}

fn client(item: &ItemTrait, checked: &Checked) -> TokenStream {
    let (name, visibility, contract) = (&item.ident, &item.vis, &checked.name);
    let client = format_ident!("{}Client", name.unraw());
    let doc = format!("Calls the module that serves [`trait@{name}`], wherever it runs.");
    let methods = checked.methods.iter().map(|method| {
        let Method { ident, attributes, answer, refused, .. } = method;
        let (parameter, argument) = match &method.request {
            Some(request) => {
                let (argument, ty) = (&request.ident, &request.ty);
                (Some(quote!(, #argument: #ty)), quote!(#argument))
            }
            None => (None, quote!(())),
        };
        // A type that lacks a derive is told at the method, not at the attribute above the trait.
        let span = Span::call_site().located_at(ident.span());
        let (contract, call) = (respanned(name, span), Ident::new(method.kind.name(), span));
        quote_spanned! {span=>
            #(#attributes)*
            #visibility async fn #ident(
                &self #parameter
            ) -> ::core::result::Result<#answer, ::modulith::CallError<#refused>> {
                self.0.#call(#contract.#ident, #argument).await
            }
        }
    });
    quote! {
        #[doc = #doc]
        #[allow(dead_code, reason = "a client has all its methods, used or not")]
        #[derive(Clone)]
        #visibility struct #client(::modulith::Client);

        impl ::modulith::ContractClient for #client {
            const CONTRACT: &'static str = #contract;

            fn model() -> ::modulith::ContractModel {
                #name.model()
            }

            fn from_client(client: ::modulith::Client) -> Self {
                Self(client)
            }
        }

        #[allow(dead_code, deprecated, reason = "a client has all its methods, used or not")]
        impl #client {
            #(#methods)*

            /// The same client, whose commands carry an explicit key: a repeat within its retention gets the first
            /// answer, also after a restart of caller and callee.
            #visibility fn keyed(&self, key: ::modulith::ClientKey) -> Self {
                Self(self.0.keyed(key))
            }
        }
    }
}

impl Kind {
    /// The name of the type of its token, and of its case of `modulith::Kind`.
    fn token(self) -> TokenStream {
        match self {
            Kind::Query => quote!(Query),
            Kind::Command => quote!(Command),
            Kind::Effect => quote!(Effect),
        }
    }
}

impl Method {
    fn name(&self) -> String {
        self.ident.unraw().to_string()
    }

    fn request_type(&self) -> TokenStream {
        self.request.as_ref().map_or_else(|| quote!(()), |request| request.ty.to_token_stream())
    }

    fn types(&self) -> TokenStream {
        let (request, answer, refused) = (self.request_type(), &self.answer, &self.refused);
        quote!(#request, #answer, #refused)
    }
}

fn respanned(ident: &Ident, span: Span) -> Ident {
    let mut ident = ident.clone();
    ident.set_span(span.resolved_at(ident.span()));
    ident
}
