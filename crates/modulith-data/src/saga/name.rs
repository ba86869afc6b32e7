//! How a person names a saga.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use super::run::SagaId;

/// A saga's name in lists, logs and commands: `orders/5f3a9c1e-3.17`.
///
/// The module that began it; its coordinator's id in hexadecimal, of which 8 digits are printed and 8 to 32 are
/// read; which start of that coordinator's database began it, and its number since then. The name stays what it is
/// when the module moves to another database or comes back with a backup, since the coordinator's id does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SagaName {
    pub module: String,
    /// The first digits of the coordinator's id.
    src: String,
    pub seq: i64,
}

/// Digits of a coordinator's id that are printed.
const DIGITS: usize = 8;
/// Digits that a coordinator's id has.
const DIGITS_MAX: usize = 32;

impl SagaName {
    pub fn of(module: &str, id: SagaId) -> Self {
        let src = id.src.simple().to_string()[..DIGITS].to_owned();
        Self { module: module.to_owned(), src, seq: id.seq }
    }

    /// With all digits, so that it means this saga whatever else there is.
    pub fn whole(module: &str, id: SagaId) -> Self {
        Self { src: id.src.simple().to_string(), ..Self::of(module, id) }
    }

    /// The saga that a whole name means.
    pub fn id(&self) -> Option<SagaId> {
        let (src, last) = self.srcs();
        (src == last).then_some(SagaId { src, seq: self.seq })
    }

    /// The coordinators that the name may mean: the first and the last of them.
    pub(super) fn srcs(&self) -> (Uuid, Uuid) {
        let filled = |digit: char| {
            let digits =
                self.src.chars().chain(std::iter::repeat(digit)).take(DIGITS_MAX).collect::<String>();
            Uuid::parse_str(&digits).expect("32 hexadecimal digits are a UUID")
        };
        (filled('0'), filled('f'))
    }
}

impl fmt::Display for SagaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (incarnation, number) = (self.seq >> 32, self.seq & i64::from(u32::MAX));
        write!(f, "{}/{}-{incarnation}.{number}", self.module, self.src)
    }
}

/// A text that names no saga.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no saga's name; one looks like orders/5f3a9c1e-3.17")]
pub struct NoSagaName(pub String);

/// Strict: only what [`SagaName`] prints, with more of its hexadecimal digits if there are two that begin alike.
impl FromStr for SagaName {
    type Err = NoSagaName;

    fn from_str(text: &str) -> Result<Self, NoSagaName> {
        let read = || {
            let (module, rest) = text.split_once('/')?;
            let (src, seq) = rest.split_once('-')?;
            let (incarnation, number) = seq.split_once('.')?;
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            let hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            let is_name = !module.is_empty() && module.bytes().all(plain);
            let is_src = (DIGITS..=DIGITS_MAX).contains(&src.len()) && src.bytes().all(hex);
            let (incarnation, number) = (number_of(incarnation)?, number_of(number)?);
            (is_name && is_src && incarnation <= i64::MAX >> 32 && number <= i64::from(u32::MAX)).then(|| {
                Self { module: module.to_owned(), src: src.to_owned(), seq: incarnation << 32 | number }
            })
        };
        read().ok_or_else(|| NoSagaName(text.to_owned()))
    }
}

/// One spelling a number: no sign, no zero in front.
fn number_of(text: &str) -> Option<i64> {
    let number: i64 = text.parse().ok()?;
    (number.to_string() == text && number >= 0).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SRC: Uuid = Uuid::from_u128(0x5f3a_9c1e_0000_4000_8000_0000_0000_0001);

    #[test]
    fn a_name_is_read_as_it_is_printed() {
        for (seq, text) in [
            (0, "orders/5f3a9c1e-0.0"),
            ((3 << 32) + 17, "orders/5f3a9c1e-3.17"),
            (i64::MAX, "orders/5f3a9c1e-2147483647.4294967295"),
        ] {
            let name = SagaName::of("orders", SagaId { src: SRC, seq });
            assert_eq!(name.to_string(), text);
            assert_eq!(text.parse(), Ok(name));
        }
    }

    #[test]
    fn more_digits_name_fewer_coordinators() {
        let name: SagaName = "orders/5f3a9c1e-3.17".parse().unwrap();
        let (first, last) = name.srcs();
        assert!(first < SRC && SRC < last);
        assert_eq!(name.id(), None);
        let id = SagaId { src: SRC, seq: (3 << 32) + 17 };
        let whole = SagaName::whole("orders", id);
        assert_eq!(whole.to_string().parse(), Ok(whole.clone()));
        assert_eq!((whole.srcs(), whole.id()), ((SRC, SRC), Some(id)));
    }

    #[test]
    fn nothing_else_is_a_name() {
        for text in [
            "",
            "orders",
            "5f3a9c1e-3.17",
            "/5f3a9c1e-3.17",
            "orders/5f3a9c1-3.17",
            "orders/5F3A9C1E-3.17",
            "orders/5f3a9c1g-3.17",
            "orders/5f3a9c1e0000400080000000000000010-3.17",
            "orders/5f3a9c1e-3",
            "orders/5f3a9c1e-03.17",
            "orders/5f3a9c1e-3.+17",
            "orders/5f3a9c1e--3.17",
            "orders/5f3a9c1e-3.4294967296",
            "orders/5f3a9c1e-2147483648.0",
            "orders/5f3a9c1e-3.17 ",
            "or ders/5f3a9c1e-3.17",
        ] {
            assert_eq!(text.parse::<SagaName>(), Err(NoSagaName(text.to_owned())));
        }
    }
}
