//! From a card to a token, and from a token to a decision.
//!
//! The store knows Stripe's test cards and no others. Their tokens are Stripe's own names for them, so that the
//! ledger and a provider in the shape of Stripe's decide alike.

use store_payments_contract::{Card, CardRefused, CardToken, Declined};

const VISA: &str = "pm_card_visa";
const DECLINED: &str = "pm_card_visa_chargeDeclined";
const INSUFFICIENT_FUNDS: &str = "pm_card_visa_chargeDeclinedInsufficientFunds";

/// Checks what can be checked without asking anybody.
pub(crate) fn tokenize(card: &Card, now_ms: i64) -> Result<CardToken, CardRefused> {
    let number: String = card.number.expose().chars().filter(|c| !matches!(c, ' ' | '-')).collect();
    if !(12..=19).contains(&number.len()) || !passes_luhn(&number) {
        return Err(CardRefused::CardNumberInvalid);
    }
    if !(1..=12).contains(&card.exp_month) {
        return Err(CardRefused::CardExpiryInvalid);
    }
    let cvc = card.cvc.expose();
    if !(3..=4).contains(&cvc.len()) || !cvc.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(CardRefused::CardCvcInvalid);
    }
    // A card is good to the end of its month.
    if (card.exp_year, card.exp_month) < year_and_month(now_ms) {
        return Err(CardRefused::CardExpired);
    }
    let token = match number.as_str() {
        "4242424242424242" => VISA,
        "4000000000000002" => DECLINED,
        "4000000000009995" => INSUFFICIENT_FUNDS,
        _ => return Err(CardRefused::CardUnsupported),
    };
    Ok(CardToken(token.to_owned()))
}

/// Whether the ledger takes money from a card.
pub(crate) fn decide(token: &CardToken) -> Result<(), Declined> {
    match token.0.as_str() {
        VISA => Ok(()),
        INSUFFICIENT_FUNDS => Err(Declined::InsufficientFunds),
        _ if *token == CardToken::on_invoice() => Ok(()),
        _ => Err(Declined::CardDeclined),
    }
}

/// ISO/IEC 7812-1, annex B: every second digit from the right counts twice, and the sum ends in zero.
fn passes_luhn(number: &str) -> bool {
    let mut sum = 0;
    for (place, byte) in number.bytes().rev().enumerate() {
        if !byte.is_ascii_digit() {
            return false;
        }
        let digit = u32::from(byte - b'0') * if place % 2 == 1 { 2 } else { 1 };
        sum += digit / 10 + digit % 10;
    }
    sum % 10 == 0
}

/// The year and month (1 to 12) of a time, by Hinnant's `civil_from_days`
/// (<https://howardhinnant.github.io/date_algorithms.html>), for times after 1970.
fn year_and_month(now_ms: i64) -> (u32, u32) {
    let days = u32::try_from(now_ms / 86_400_000).unwrap_or(0) + 719_468;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (days / 146_097 * 400 + year_of_era + u32::from(month <= 2), month)
}

#[cfg(test)]
mod tests {
    use modulith::{Secret, encode, redacted};
    use serde_json::json;
    use store_payments_contract::Payments;

    use super::*;

    /// 21 November 2026.
    const NOW_MS: i64 = 1_795_219_200_000;

    fn card(number: &str, exp_month: u32, exp_year: u32) -> Card {
        let (number, cvc) = (Secret::new(number.to_owned()), Secret::new("123".to_owned()));
        Card { number, exp_month, exp_year, cvc }
    }

    fn token(number: &str) -> Result<String, CardRefused> {
        tokenize(&card(number, 12, 2030), NOW_MS).map(|token| token.0)
    }

    #[test]
    fn test_cards_become_stripes_names() {
        assert_eq!(token("4242 4242 4242 4242").as_deref(), Ok(VISA));
        assert_eq!(token("4000-0000-0000-0002").as_deref(), Ok(DECLINED));
        assert_eq!(token("4000000000009995").as_deref(), Ok(INSUFFICIENT_FUNDS));
        assert_eq!(token("5555555555554444"), Err(CardRefused::CardUnsupported));
    }

    #[test]
    fn a_mistyped_number_is_no_card() {
        for number in
            ["4242424242424241", "2424242424242424", "", "0", "４２４２４２４２４２４２", "4242x42424242424"]
        {
            assert_eq!(token(number), Err(CardRefused::CardNumberInvalid), "{number}");
        }
    }

    #[test]
    fn a_card_is_good_to_the_end_of_its_month() {
        let good = "4242424242424242";
        assert_eq!(year_and_month(NOW_MS), (2026, 11));
        assert_eq!(year_and_month(951_782_400_000), (2000, 2), "29 February");
        assert!(tokenize(&card(good, 11, 2026), NOW_MS).is_ok());
        assert_eq!(tokenize(&card(good, 10, 2026), NOW_MS), Err(CardRefused::CardExpired));
        assert_eq!(tokenize(&card(good, 12, 26), NOW_MS), Err(CardRefused::CardExpired));
        assert_eq!(tokenize(&card(good, 13, 2030), NOW_MS), Err(CardRefused::CardExpiryInvalid));
    }

    #[test]
    fn number_and_cvc_are_shown_nowhere() {
        let card = card("4242424242424242", 12, 2030);
        let printed = format!("{card:?}");
        let shown = redacted(&encode(&card).unwrap(), &Payments.model().methods[0].request);
        assert_eq!(shown, json!({"number": "…", "exp_month": 12, "exp_year": 2030, "cvc": "…"}));
        assert!(!printed.contains("4242") && !printed.contains("123"), "{printed}");
    }
}
