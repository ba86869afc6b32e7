//! A refusal as it is written: its cases, the attributes on them, and their texts cut into pieces.

use std::fmt::Write;

use proc_macro2::Ident;
use syn::parse::{Parse, ParseStream};
use syn::{Attribute, Data, DeriveInput, Error, Expr, ExprLit, Fields, Lit, LitInt, LitStr, Meta, Token};

pub(super) struct Refusal<'i> {
    pub(super) item: &'i DeriveInput,
    pub(super) shape: Shape,
    pub(super) cases: Vec<Case<'i>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Enum,
    Struct,
}

pub(super) struct Case<'i> {
    pub(super) ident: &'i Ident,
    pub(super) fields: &'i Fields,
    /// Each `#[refused(..)]`, read or not.
    pub(super) refused: Vec<(&'i Attribute, syn::Result<Refused>)>,
    /// The first paragraph of the documentation.
    pub(super) doc: Option<String>,
}

/// `#[refused(409, "only {left} left")]`.
#[derive(Clone)]
pub(super) struct Refused {
    pub(super) status: Option<LitInt>,
    pub(super) text: Option<LitStr>,
}

/// A part of a text.
pub(super) enum Piece {
    /// As it stands in the format string, with its doubled braces.
    Words(String),
    /// `{left}` or `{left:>3}`; `form` begins with its colon.
    Field { name: String, form: String },
}

impl<'i> Refusal<'i> {
    /// # Errors
    ///
    /// If the item is a union.
    pub(super) fn parse(item: &'i DeriveInput) -> syn::Result<Self> {
        let (shape, cases) = match &item.data {
            Data::Enum(data) => {
                let case =
                    |variant: &'i syn::Variant| Case::parse(&variant.ident, &variant.fields, &variant.attrs);
                (Shape::Enum, data.variants.iter().map(case).collect())
            }
            Data::Struct(data) => (Shape::Struct, vec![Case::parse(&item.ident, &data.fields, &item.attrs)]),
            Data::Union(data) => {
                let message = "a refusal is one of several cases: write an `enum`";
                return Err(Error::new(data.union_token.span, message));
            }
        };
        Ok(Self { item, shape, cases })
    }
}

impl<'i> Case<'i> {
    fn parse(ident: &'i Ident, fields: &'i Fields, attributes: &'i [Attribute]) -> Self {
        let refused = (attributes.iter().filter(|attribute| attribute.path().is_ident("refused")))
            .map(|attribute| (attribute, attribute.parse_args()))
            .collect();
        Self { ident, fields, refused, doc: first_paragraph(attributes) }
    }
}

impl Parse for Refused {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let wanted = "write `#[refused(409, \"only {left} left\")]`; either part may be left out";
        let or_wanted = |error: Error| Error::new(error.span(), wanted);
        let status: Option<LitInt> = if input.peek(LitInt) { Some(input.parse()?) } else { None };
        let comma = if status.is_some() && !input.is_empty() {
            Some(input.parse::<Token![,]>().map_err(or_wanted)?)
        } else {
            None
        };
        let text: Option<LitStr> = match (&status, comma) {
            (Some(_), _) if input.is_empty() => None,
            _ => Some(input.parse().map_err(or_wanted)?),
        };
        let _ = input.parse::<Option<Token![,]>>()?;
        match input.is_empty() {
            true => Ok(Self { status, text }),
            false => Err(input.error(wanted)),
        }
    }
}

fn first_paragraph(attributes: &[Attribute]) -> Option<String> {
    let mut paragraph = String::new();
    for attribute in attributes {
        let Meta::NameValue(pair) = &attribute.meta else {
            continue;
        };
        let Expr::Lit(ExprLit { lit: Lit::Str(line), .. }) = &pair.value else {
            continue;
        };
        if !pair.path.is_ident("doc") {
            continue;
        }
        let (line, more) = (line.value(), !paragraph.is_empty());
        match line.trim() {
            "" if more => break,
            "" => {}
            words if more => _ = write!(paragraph, " {words}"),
            words => paragraph.push_str(words),
        }
    }
    (!paragraph.is_empty()).then_some(paragraph)
}

/// Cuts a format string at its fields.
///
/// # Errors
///
/// Says what is wrong with its braces.
pub(super) fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut words = String::new();
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '{' | '}' if letters.peek() == Some(&letter) => {
                letters.next();
                words.extend([letter, letter]);
            }
            '}' => return Err("a `}` opens nowhere: write `}}` for a brace".to_owned()),
            '{' => {
                let inside: String = letters.by_ref().take_while(|letter| *letter != '}').collect();
                let (name, form) = inside.find(':').map_or((&inside[..], ""), |colon| inside.split_at(colon));
                pieces.push(Piece::Words(std::mem::take(&mut words)));
                pieces.push(Piece::Field { name: name.trim().to_owned(), form: form.to_owned() });
            }
            letter => words.push(letter),
        }
    }
    pieces.push(Piece::Words(words));
    Ok(pieces)
}
