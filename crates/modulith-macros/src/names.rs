//! Names as they are stored and sent.

use proc_macro2::Ident;
use syn::ext::IdentExt;

/// `SoldOut` as `sold_out`, `HTTPError` as `http_error`.
pub(crate) fn snake_case(ident: &Ident) -> String {
    let name: Vec<char> = ident.unraw().to_string().chars().collect();
    let mut snake = String::new();
    for (index, &letter) in name.iter().enumerate() {
        let after_small = index > 0 && !name[index - 1].is_uppercase() && name[index - 1] != '_';
        let begins_word = index > 0
            && name[index - 1].is_uppercase()
            && name.get(index + 1).is_some_and(|next| next.is_lowercase());
        if letter.is_uppercase() && (after_small || begins_word) {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    snake
}

/// `hold_stock` as `HoldStock`.
pub(crate) fn pascal_case(name: &str) -> String {
    let mut pascal = String::new();
    for word in name.split('_') {
        let mut letters = word.chars();
        pascal.extend(letters.next().map(|letter| letter.to_ascii_uppercase()));
        pascal.push_str(letters.as_str());
    }
    pascal
}

/// The first case whose stored name another one before it has.
pub(crate) fn same_name<'a>(cases: impl Iterator<Item = &'a Ident>) -> Option<syn::Error> {
    let mut seen: Vec<(String, &Ident)> = Vec::new();
    for case in cases {
        let name = snake_case(case);
        if let Some((_, first)) = seen.iter().find(|(known, _)| *known == name) {
            let message =
                format!("`{first}` and `{case}` are both stored as `{name}`; give one another name");
            return Some(syn::Error::new(case.span(), message));
        }
        seen.push((name, case));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::snake_case;

    #[test]
    fn names_are_snake_case() {
        for (name, snake) in [
            ("SoldOut", "sold_out"),
            ("HTTPError", "http_error"),
            ("Over2Left", "over2_left"),
            ("A", "a"),
            ("IsABox", "is_a_box"),
            ("Sold_Out", "sold_out"),
        ] {
            assert_eq!(snake_case(&syn::Ident::new(name, proc_macro2::Span::call_site())), snake);
        }
    }
}
