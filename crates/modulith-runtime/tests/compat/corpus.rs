//! Every pair of a corpus of types, one as the writer and one as the reader, over random values.
//!
//! Whatever the rules let pass has to be read, with equal values in all that both have; and where they say that a case
//! may be met, the error names it. The other way round is shown by `rules`: a rule that refused everything would pass
//! here.

use std::collections::{BTreeMap, BTreeSet};

use modulith_core::compat::{Document, Part, Weight, compare};
use modulith_core::{ContractModel, Kind, MethodModel, Never, Secret, Wire, decode, encode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::anything::{Random, anything};

macro_rules! types {
    ($($(#[$attribute:meta])* $kind:ident $name:ident $body:tt)*) => {$(
        #[derive(Debug, Serialize, Deserialize, JsonSchema)]
        $(#[$attribute])*
        $kind $name $body
    )*};
}

types! {
    struct One { a: u32 }
    struct Two { a: u32, b: String }
    struct TwoDefault { a: u32, #[serde(default)] b: String }
    struct TwoOption { a: u32, b: Option<String> }
    struct TwoNumber { a: u32, #[serde(default)] b: u8 }
    struct Wide { a: u64 }
    struct Signed { a: i64 }
    struct Narrow { a: u8 }
    #[serde(deny_unknown_fields)]
    struct Closed { a: u32 }
    struct Nothing {}
    struct Inside { one: One, more: Vec<Two> }
    struct InsideDefault { one: TwoDefault, #[serde(default)] more: Vec<TwoDefault>, #[serde(default)] set: BTreeSet<u8> }
    struct InsideOption { one: Option<One>, more: Option<Vec<One>> }
    struct Tree { value: u32, below: Vec<Tree> }
    struct TreeMore { value: u64, below: Vec<TreeMore>, #[serde(default)] name: Option<String> }
    struct TreeOther { value: u32, below: Vec<TreeMore> }
    struct List { next: Option<Box<List>> }
    struct Keyed { of: BTreeMap<String, One> }
    struct KeyedMore { of: BTreeMap<String, TwoDefault> }
    struct Numbered { of: BTreeMap<u32, u8> }
    enum Plain { A, B }
    enum PlainMore {
        /// Described cases stand apart in the schema.
        A,
        /// So does this one.
        B,
        C,
    }
    enum Mixed { A, N(u32), T(u8, u8), S { x: u8 }, O(Option<u8>), E() }
    enum MixedMore { A, N(u64), T(u8, u16), S { x: u8, #[serde(default)] y: Option<u8> }, O(Option<u8>), E(), Z(One) }
    enum MixedOther { A(u32), N, T(u8), S(u8), O(u8), E {} }
    #[serde(tag = "kind")]
    enum Tagged { One { a: u32 }, Two { b: u8 } }
    #[serde(tag = "kind")]
    enum TaggedMore { One { a: u32, #[serde(default)] c: u8 }, Two { b: u16 }, Three { d: u8 } }
    #[serde(tag = "kind", content = "of")]
    enum Beside { One { a: u32 }, Two(u8), Three }
    #[serde(tag = "kind", content = "of")]
    enum BesideMore { One { a: u64 }, Two(u8), Three(u8) }
    #[serde(untagged)]
    enum Loose { Number(u32), Text(String) }
    #[serde(untagged)]
    enum LooseMore { Number(u64), Text(String) }
    struct UsesMixed { m: Mixed, o: Option<Plain> }
    struct UsesMore { m: MixedMore, o: Option<PlainMore> }
    struct Flat { a: u32, #[serde(flatten)] rest: FlatRest }
    struct FlatRest { b: Option<String> }
    struct Identified { id: Uuid, name: String }
    struct IdentifiedText { id: String, name: String }
    struct Secretive { id: Secret<String>, name: Secret<String> }
    struct Renamed { #[serde(rename = "a")] z: u32 }
    struct Arrays { a: [u8; 2], b: (u8, u8) }
    struct ArraysLoose { a: Vec<u8>, b: (u8, u16) }
    struct Floats { a: f32 }
    struct FloatsWide { a: f64 }
    struct Huge { a: i128 }
    struct Character { name: char }
    struct Word { name: String }
    struct Units { u: (), v: UnitStruct }
    struct UnitsSwapped { u: UnitStruct, v: () }
    struct Free { a: Value }
    struct Hex { #[schemars(regex(pattern = "^[0-9a-f]+$"))] name: String }
}
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Newtype(u32);
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct NewtypeText(String);
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Pair(u32, u8);
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct UnitStruct;

/// Makes a value: encoded, and as JSON.
type Write = Box<dyn Fn(&mut Random) -> (Vec<u8>, Value)>;

/// One type.
struct Entry {
    name: &'static str,
    method: MethodModel,
    write: Write,
    read: fn(&[u8]) -> Result<Value, String>,
}

fn made<T: Wire>(make: impl Fn(&mut Random) -> T + 'static) -> Entry {
    Entry {
        name: std::any::type_name::<T>(),
        method: MethodModel::of::<T, T, Never>("method", Kind::Query),
        write: Box::new(move |random| {
            let value = make(random);
            (encode(&value).expect("encodes"), serde_json::to_value(&value).expect("is JSON"))
        }),
        read: |bytes| {
            let value = decode::<T>(bytes).map_err(|fault| fault.message)?;
            serde_json::to_value(&value).map_err(|error| error.to_string())
        },
    }
}

fn any<T: Wire>() -> Entry {
    made(anything::<T>)
}

/// Of these values, for types that decide by what they meet what they are.
fn given<T: Wire>(values: &'static [&'static str]) -> Entry {
    made(move |random| serde_json::from_str::<T>(random.one_of(values)).expect("a value of the type"))
}

fn corpus() -> Vec<Entry> {
    vec![
        any::<u8>(),
        any::<u32>(),
        any::<u64>(),
        any::<i16>(),
        any::<i64>(),
        any::<i128>(),
        any::<usize>(),
        any::<f32>(),
        any::<f64>(),
        any::<bool>(),
        any::<char>(),
        any::<String>(),
        any::<()>(),
        any::<UnitStruct>(),
        any::<Uuid>(),
        any::<Option<u32>>(),
        any::<Option<One>>(),
        any::<Vec<u8>>(),
        any::<Vec<u32>>(),
        any::<BTreeSet<u32>>(),
        any::<[u8; 2]>(),
        any::<(u8, u8)>(),
        any::<BTreeMap<String, u8>>(),
        any::<BTreeMap<String, u16>>(),
        any::<Result<u8, String>>(),
        given::<std::num::NonZeroU32>(&["1", "4294967295"]),
        any::<One>(),
        any::<Two>(),
        any::<TwoDefault>(),
        any::<TwoOption>(),
        any::<TwoNumber>(),
        any::<Wide>(),
        any::<Signed>(),
        any::<Narrow>(),
        any::<Closed>(),
        any::<Nothing>(),
        any::<Newtype>(),
        any::<NewtypeText>(),
        any::<Pair>(),
        any::<Inside>(),
        any::<InsideDefault>(),
        any::<InsideOption>(),
        any::<Tree>(),
        any::<TreeMore>(),
        any::<TreeOther>(),
        any::<List>(),
        any::<Keyed>(),
        any::<KeyedMore>(),
        any::<Numbered>(),
        any::<Plain>(),
        any::<PlainMore>(),
        any::<Mixed>(),
        any::<MixedMore>(),
        any::<MixedOther>(),
        any::<UsesMixed>(),
        any::<UsesMore>(),
        any::<FlatRest>(),
        any::<Identified>(),
        any::<IdentifiedText>(),
        any::<Secretive>(),
        any::<Renamed>(),
        any::<Arrays>(),
        any::<ArraysLoose>(),
        any::<Floats>(),
        any::<FloatsWide>(),
        any::<Huge>(),
        any::<Character>(),
        any::<Word>(),
        any::<Units>(),
        any::<UnitsSwapped>(),
        any::<Hex>(),
        given::<Tagged>(&[r#"{"kind":"One","a":7}"#, r#"{"kind":"Two","b":255}"#]),
        given::<TaggedMore>(&[
            r#"{"kind":"One","a":7,"c":1}"#,
            r#"{"kind":"Two","b":700}"#,
            r#"{"kind":"Three","d":0}"#,
        ]),
        given::<Beside>(&[
            r#"{"kind":"One","of":{"a":7}}"#,
            r#"{"kind":"Two","of":2}"#,
            r#"{"kind":"Three"}"#,
        ]),
        given::<BesideMore>(&[r#"{"kind":"One","of":{"a":7}}"#, r#"{"kind":"Three","of":2}"#]),
        given::<Loose>(&["7", r#""seven""#]),
        given::<LooseMore>(&["5000000000", r#""seven""#]),
        given::<Flat>(&[r#"{"a":1}"#, r#"{"a":1,"b":"x"}"#]),
        given::<Free>(&[r#"{"a":[1,"x",null]}"#, r#"{"a":{"b":2}}"#]),
    ]
}

/// The contract of one method that takes and gives the type.
fn document(entry: &Entry) -> Document {
    Document::of(&ContractModel { name: "c", version: 1, methods: vec![entry.method.clone()] })
}

/// Whether what both values have is the same.
fn agree(written: &Value, read: &Value) -> bool {
    match (written, read) {
        (Value::Object(written), Value::Object(read)) => {
            written.iter().all(|(name, value)| read.get(name).is_none_or(|other| agree(value, other)))
        }
        (Value::Array(written), Value::Array(read)) => {
            written.len() == read.len() && written.iter().zip(read).all(|(value, other)| agree(value, other))
        }
        _ => written == read,
    }
}

#[test]
fn whatever_the_rules_let_pass_is_read() {
    let seed = std::env::var("SEED").map_or(20_261_121, |seed| seed.parse().expect("SEED is a number"));
    println!("SEED={seed}");
    let mut random = Random(seed);
    let corpus = corpus();
    let documents: Vec<Document> = corpus.iter().map(document).collect();
    let (mut passed, mut met, mut refused, mut refused_and_read) = (0, 0, 0, 0);
    for (writer, served) in corpus.iter().zip(&documents) {
        for (reader, wanted) in corpus.iter().zip(&documents) {
            let names = format!("{} read as {}", writer.name, reader.name);
            // The callee writes answers, and the caller writes requests: both have to come to the same.
            let weight_of = |differences: Vec<modulith_core::compat::Difference>, part| {
                let parts = differences.into_iter().filter(|difference| difference.part == part);
                parts.map(|difference| difference.weight).max().unwrap_or(Weight::Safe)
            };
            let weight = weight_of(compare(wanted, served), Part::Answer);
            assert_eq!(weight, weight_of(compare(served, wanted), Part::Request), "{names}");
            let mut all_read = true;
            for _ in 0..24 {
                let (bytes, value) = (writer.write)(&mut random);
                match ((reader.read)(&bytes), weight) {
                    (Ok(read), Weight::Safe | Weight::WhenMet) => {
                        assert!(agree(&value, &read), "{names}: {value} became {read}");
                    }
                    (Err(error), Weight::WhenMet) => {
                        assert!(error.contains("unknown variant"), "{names}: {value}: {error}");
                        assert!(error.contains(reader.name), "{names}: {error}");
                        met += 1;
                    }
                    (Err(error), Weight::Safe) => panic!("{names}: {value}: {error}"),
                    (Ok(_), Weight::Breaks) => {}
                    (Err(_), Weight::Breaks) => all_read = false,
                }
            }
            match weight {
                Weight::Breaks => {
                    refused += 1;
                    refused_and_read += usize::from(all_read);
                }
                _ => passed += 1,
            }
        }
    }
    println!("{passed} pairs pass, {refused} are refused; {refused_and_read} of those happened to be read");
    // Beside each type with itself.
    assert!(passed > corpus.len() + 60, "the rules refuse almost everything: {passed}");
    assert!(met > 0, "no unknown case was met");
}

#[test]
fn a_type_differs_in_nothing_from_itself() {
    for entry in corpus() {
        let document = document(&entry);
        assert_eq!(compare(&document, &document), [], "{}", entry.name);
    }
}
