//! What a refusal has to be. A case with a mistake in its attribute keeps the default status and the words of its
//! name, so that the mistake stays the only error.

use proc_macro2::Ident;
use syn::ext::IdentExt;
use syn::{Error, Fields, LitInt, LitStr, Member};

use super::model::{Case, Piece, Refusal, Refused, Shape, pieces};
use crate::names::{same_name, snake_case};

pub(super) struct Checked {
    pub(super) shape: Shape,
    pub(super) cases: Vec<CheckedCase>,
}

pub(super) struct CheckedCase {
    pub(super) ident: Ident,
    pub(super) code: String,
    pub(super) status: u16,
    pub(super) text: Text,
}

pub(super) enum Text {
    Words(String),
    /// A format string over the named bindings of fields.
    Format {
        format: LitStr,
        fields: Vec<(Member, Ident)>,
    },
}

pub(super) fn check(refusal: &Refusal<'_>) -> (Checked, Vec<Error>) {
    let mut errors = Vec::new();
    let item = refusal.item;
    if !item.generics.params.is_empty() {
        let message = "a refusal has no generics: name the types that it carries";
        errors.push(Error::new_spanned(&item.generics.params, message));
    }
    if refusal.shape == Shape::Enum {
        for attribute in item.attrs.iter().filter(|attribute| attribute.path().is_ident("refused")) {
            errors
                .push(Error::new_spanned(attribute, "each case has its own text: write this above the case"));
        }
    }
    errors.extend(same_name(refusal.cases.iter().map(|case| case.ident)));
    let cases = refusal.cases.iter().map(|case| check_case(case, &mut errors)).collect();
    (Checked { shape: refusal.shape, cases }, errors)
}

fn check_case(case: &Case<'_>, errors: &mut Vec<Error>) -> CheckedCase {
    let code = snake_case(case.ident);
    let mut refused = Refused { status: None, text: None };
    for (position, (attribute, parsed)) in case.refused.iter().enumerate() {
        match parsed {
            _ if position > 0 => errors.push(Error::new_spanned(attribute, "this stands twice; keep one")),
            Ok(parsed) => refused = parsed.clone(),
            Err(error) => errors.push(error.clone()),
        }
    }
    let status = refused.status.as_ref().map_or(Ok(409), check_status).unwrap_or_else(|error| {
        errors.push(error);
        409
    });
    let words = || Text::Words(case.doc.clone().unwrap_or_else(|| code.replace('_', " ")));
    let text = match refused.text.map(|text| check_text(&text, case)) {
        Some(Ok(text)) => text,
        Some(Err(error)) => {
            errors.push(error);
            words()
        }
        None => words(),
    };
    CheckedCase { ident: case.ident.clone(), code, status, text }
}

fn check_status(status: &LitInt) -> syn::Result<u16> {
    match status.base10_parse() {
        Ok(status @ 400..=599) => Ok(status),
        _ => Err(Error::new(status.span(), "a refusal's status is an HTTP error, 400 to 599: write `409`")),
    }
}

fn check_text(text: &LitStr, case: &Case<'_>) -> syn::Result<Text> {
    let error = |message: String| Error::new(text.span(), message);
    let mut format = String::new();
    let mut fields: Vec<(Member, Ident)> = Vec::new();
    for piece in pieces(&text.value()).map_err(error)? {
        let (name, form) = match piece {
            Piece::Words(words) => {
                format.push_str(&words);
                continue;
            }
            Piece::Field { name, form } => (name, form),
        };
        let member = member(case.fields, &name).ok_or_else(|| error(unknown_field(case, &name)))?;
        let binding = Ident::new(&format!("field_{name}"), text.span());
        format.push_str(&format!("{{{binding}{form}}}"));
        if fields.iter().all(|(known, _)| *known != member) {
            fields.push((member, binding));
        }
    }
    Ok(match fields[..] {
        [] => Text::Words(format.replace("{{", "{").replace("}}", "}")),
        _ => Text::Format { format: LitStr::new(&format, text.span()), fields },
    })
}

fn member(fields: &Fields, name: &str) -> Option<Member> {
    match fields {
        Fields::Named(fields) => {
            let field = fields
                .named
                .iter()
                .filter_map(|field| field.ident.as_ref())
                .find(|ident| ident.unraw() == name);
            field.cloned().map(Member::Named)
        }
        Fields::Unnamed(fields) => {
            let index = name.parse::<usize>().ok().filter(|index| *index < fields.unnamed.len())?;
            Some(Member::Unnamed(index.into()))
        }
        Fields::Unit => None,
    }
}

fn unknown_field(case: &Case<'_>, name: &str) -> String {
    let ident = case.ident;
    let known: Vec<String> = match case.fields {
        Fields::Named(fields) => (fields.named.iter().filter_map(|field| field.ident.as_ref()))
            .map(|ident| ident.unraw().to_string())
            .collect(),
        Fields::Unnamed(fields) => (0..fields.unnamed.len()).map(|index| index.to_string()).collect(),
        Fields::Unit => Vec::new(),
    };
    let known = known.iter().map(|name| format!("`{{{name}}}`")).collect::<Vec<_>>().join(", ");
    match (known.is_empty(), name.is_empty()) {
        (true, _) => format!("`{ident}` has no field to show: write `{{{{` for a brace"),
        (false, true) => format!("a text names its fields: write {known}"),
        (false, false) => format!("`{ident}` has no field `{name}`: write {known}"),
    }
}
