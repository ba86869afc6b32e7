//! Types as they are spelled: what stands in `Answer<T, E>`, and whether something is borrowed.

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::{GenericArgument, PathArguments, PathSegment, ReturnType, Type};

pub(super) fn return_type(output: &ReturnType) -> Option<&Type> {
    match output {
        ReturnType::Default => None,
        ReturnType::Type(_, ty) => Some(ty),
    }
}

pub(super) fn two_arguments<'t>(ty: &'t Type, name: &str) -> Option<(&'t Type, &'t Type)> {
    match type_arguments(ty, name)?[..] {
        [first, second] => Some((first, second)),
        _ => None,
    }
}

pub(super) fn one_argument<'t>(ty: &'t Type, name: &str) -> Option<&'t Type> {
    match type_arguments(ty, name)?[..] {
        [only] => Some(only),
        _ => None,
    }
}

fn type_arguments<'t>(ty: &'t Type, name: &str) -> Option<Vec<&'t Type>> {
    let segment = last_segment(plain(ty)).filter(|segment| segment.ident == name)?;
    let PathArguments::AngleBracketed(arguments) = &segment.arguments else {
        return None;
    };
    let of_type = |argument: &'t GenericArgument| match argument {
        GenericArgument::Type(ty) => Some(ty),
        _ => None,
    };
    arguments.args.iter().map(of_type).collect()
}

pub(super) fn last_segment(ty: &Type) -> Option<&PathSegment> {
    match ty {
        Type::Path(path) if path.qself.is_none() => path.path.segments.last(),
        _ => None,
    }
}

/// A type without parentheses, and without the invisible ones that `macro_rules!` puts around it.
pub(super) fn plain(ty: &Type) -> &Type {
    match ty {
        Type::Group(group) => plain(&group.elem),
        Type::Paren(paren) => plain(&paren.elem),
        other => other,
    }
}

/// What is wrong with a type that is to cross a contract. It has to be owned and named, since it is stored, sent,
/// and known to callers.
pub(super) fn not_owned(ty: &Type) -> Option<&'static str> {
    match plain(ty) {
        Type::Reference(_) => {
            Some("a contract's types are owned, since they are stored and sent: remove `&`")
        }
        Type::ImplTrait(_) | Type::Infer(_) | Type::TraitObject(_) => {
            Some("a contract's types are known to its callers: name the type")
        }
        other => borrowed(other.to_token_stream()),
    }
}

fn borrowed(tokens: TokenStream) -> Option<&'static str> {
    let mut tokens = tokens.into_iter();
    while let Some(token) = tokens.next() {
        let found = match token {
            TokenTree::Ident(ident) if ident == "Self" => {
                Some("`Self` is the module, which callers do not know: name the type")
            }
            TokenTree::Punct(punct) if punct.as_char() == '\'' => match tokens.next() {
                Some(TokenTree::Ident(lifetime)) if lifetime != "static" => {
                    Some("a contract's types are owned, since they are stored and sent: remove the lifetime")
                }
                _ => None,
            },
            TokenTree::Group(group) => borrowed(group.stream()),
            _ => None,
        };
        if found.is_some() {
            return found;
        }
    }
    None
}
