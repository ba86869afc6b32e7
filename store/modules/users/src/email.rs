//! E-mail addresses: one spelling each.

use modulith::Column;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An address that looks like one, in lower case. Only a letter that arrives proves more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Column)]
#[serde(transparent)]
pub(crate) struct Email(String);

impl Email {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.trim().to_lowercase();
        let (mailbox, domain) = text.rsplit_once('@')?;
        let plain = |c: char| !c.is_whitespace() && !c.is_control() && c != '@';
        let labels_are_whole = domain.contains('.') && domain.split('.').all(|label| !label.is_empty());
        // RFC 5321, 4.5.3.1: a mailbox has at most 64 bytes, an address in a path at most 254.
        let fits = (1..=64).contains(&mailbox.len()) && text.len() <= 254;
        (fits && labels_are_whole && mailbox.chars().all(plain) && domain.chars().all(plain))
            .then_some(Self(text))
    }

    pub(crate) fn into_text(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::Email;

    #[test]
    fn one_spelling_each() {
        assert_eq!(Email::parse(" Ada@Example.COM "), Email::parse("ada@example.com"));
    }

    #[test]
    fn what_is_no_address() {
        let long = format!("{}@example.com", "a".repeat(65));
        for text in [
            "",
            "ada",
            "@example.com",
            "ada@",
            "ada@localhost",
            "a b@example.com",
            "a@b@c.de",
            "ada@.com",
            &long,
        ] {
            assert_eq!(Email::parse(text), None, "{text}");
        }
    }
}
