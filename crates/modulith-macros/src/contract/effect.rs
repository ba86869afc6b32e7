//! What an effect declares of its provider: `#[effect(window = "24h", look_up = find_charge)]`.

use proc_macro2::Ident;
use syn::punctuated::Punctuated;
use syn::{Expr, ExprLit, ItemTrait, Lit, Meta, MetaList, Token, TraitItem};

use super::model::Kind;
use super::validate::{Errors, Method};

pub(super) const WANTED: &str =
    "write `#[effect]`, or `#[effect(window = \"24h\", look_up = find_it)]`; either part may be left out";
const WINDOW_WANTED: &str =
    "a window is a whole number of seconds, minutes, hours or days, and not zero: write `\"24h\"`";

/// What was declared.
#[derive(Default)]
pub(super) struct Provider {
    pub(super) window_s: Option<u64>,
    /// As it is written in the attribute; the macro's errors and the compiler's stand on it.
    pub(super) look_up: Option<Ident>,
}

pub(super) fn arguments(list: &MetaList, errors: &mut Errors) -> Provider {
    let mut provider = Provider::default();
    let Ok(metas) = list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated) else {
        errors.on(list, WANTED);
        return provider;
    };
    for meta in &metas {
        let twice = match meta {
            Meta::NameValue(pair) if pair.path.is_ident("window") => {
                provider.window_s.replace(window(&pair.value, errors)).is_some()
            }
            Meta::NameValue(pair) if pair.path.is_ident("look_up") => match method(&pair.value) {
                Some(method) => provider.look_up.replace(method).is_some(),
                None => {
                    errors
                        .on(&pair.value, "a look-up is a method of this contract: write `look_up = find_it`");
                    false
                }
            },
            _ => {
                errors.on(meta, WANTED);
                false
            }
        };
        if twice {
            errors.on(meta, "this stands twice; keep one");
        }
    }
    provider
}

/// Whether the arguments of another kind are those of an effect.
pub(super) fn declares_a_provider(meta: &Meta) -> bool {
    let Meta::List(list) = meta else { return false };
    let metas = list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated);
    let is_ours = |meta: &Meta| ["window", "look_up"].iter().any(|name| meta.path().is_ident(name));
    metas.is_ok_and(|metas| metas.iter().any(is_ours))
}

/// In seconds; of one that cannot be read any, since its method is left out.
fn window(value: &Expr, errors: &mut Errors) -> u64 {
    let text = match value {
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => text.value(),
        _ => String::new(),
    };
    seconds(&text).unwrap_or_else(|| {
        errors.on(value, WINDOW_WANTED);
        0
    })
}

fn seconds(text: &str) -> Option<u64> {
    let unit = text.chars().last()?;
    let seconds_each = match unit {
        's' => 1,
        'm' => 60,
        'h' => 60 * 60,
        'd' => 24 * 60 * 60,
        _ => return None,
    };
    let digits = text.strip_suffix(unit)?;
    // `u32` takes a sign, and any number of units of it fits in milliseconds of 64 bits.
    let number: u32 = digits.parse().ok().filter(|_| digits.bytes().all(|digit| digit.is_ascii_digit()))?;
    (number > 0).then(|| u64::from(number) * seconds_each)
}

fn method(value: &Expr) -> Option<Ident> {
    match value {
        Expr::Path(path) => path.path.get_ident().cloned(),
        _ => None,
    }
}

/// Takes away each look-up that is none, after saying so. Its types are left to the compiler.
pub(super) fn check_look_ups(methods: &mut [Method], item: &ItemTrait, errors: &mut Errors) {
    let kinds: Vec<(Ident, Kind)> =
        methods.iter().map(|method| (method.ident.clone(), method.kind)).collect();
    let is_written = |name: &Ident| {
        (item.items.iter()).any(|item| matches!(item, TraitItem::Fn(method) if method.sig.ident == *name))
    };
    for method in methods {
        let Some(name) = &method.provider.look_up else { continue };
        let known = kinds.iter().find(|(known, _)| known == name).map(|(_, kind)| *kind);
        let message = match known {
            Some(Kind::Effect) => continue,
            Some(kind) => {
                Some(format!("`{name}` is a {}: a provider is asked by an `#[effect]`", kind.name()))
            }
            // It has a mistake that has been reported.
            None if is_written(name) => None,
            None => Some(format!(
                "this contract has no method `{name}`: write `#[effect] async fn {name}(&self, cx: &Context, key: StepKey) -> \
                 Result<Found<T, E>, CallError<Never>>` with the answer and the refusal of `{}`",
                method.ident
            )),
        };
        if let Some(message) = message {
            errors.on(name, message);
        }
        method.provider.look_up = None;
    }
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn a_window_is_a_number_with_a_unit() {
        for (text, expected) in [("90s", 90), ("30m", 1_800), ("24h", 86_400), ("007d", 604_800)] {
            assert_eq!(seconds(text), Some(expected), "{text}");
        }
        assert_eq!(seconds("4294967295d"), Some(4_294_967_295 * 86_400));
        for text in [
            "",
            "h",
            "24",
            "0s",
            "+1h",
            "-1h",
            "1.5h",
            "1 h",
            "1h ",
            "1h30m",
            "٣h",
            "1H",
            "1hours",
            "4294967296s",
        ] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }
}
