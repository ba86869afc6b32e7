//! Bytes that released versions wrote, to other services and into databases, and that every later version reads.
//!
//! One file a version, `tests/fixtures/VERSION.txt`, a line each: a name, and bytes in hexadecimal. The file of the
//! present version also has to be what is written now, so a change of the layout shows, and is a new version.
//! `MODULITH_WRITE_FIXTURES=1` writes the file of the present version if there is none. A file is never written again.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use modulith_core::{
    ContractModel, Direction, Kind, MethodModel, NotRun, NotRunReason, Origin, Outcome, RefusalRecord,
    SagaEnd, SagaRefused, StepKey, Trace, TraceFlags, Unknown, UnknownReason, decode, encode,
};
use modulith_data::inbox::{InboxRow, LowWater, StepRows};
use modulith_data::saga::{Ask as SagaAsk, Asked, Bytes as Stored, SagaId, Told as SagaTold};
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use super::hello;
use super::wire::{self, Ask, Asker, Head, Keyed, Told};

/// One value: what is written now, how bytes of any version are read, and what has to come of it.
struct Fixture {
    name: String,
    bytes: Vec<u8>,
    read: fn(&[u8]) -> Result<String, String>,
    value: String,
    /// What is compressed may be written differently by another compressor.
    is_exact: bool,
}

fn stored<T: Serialize + DeserializeOwned + Debug>(name: &str, value: &T) -> Fixture {
    Fixture {
        name: name.to_owned(),
        bytes: encode(value).expect("encodes"),
        read: |bytes| decode::<T>(bytes).map(|value| format!("{value:?}")).map_err(|fault| fault.message),
        value: format!("{value:?}"),
        is_exact: true,
    }
}

fn head(name: &str, head: &Head<'_>) -> Fixture {
    Fixture {
        name: name.to_owned(),
        bytes: head.with_body(b"body").expect("short").to_vec(),
        read: |bytes| {
            let (head, body) = wire::read(bytes)?;
            Ok(format!("{head:?} {:?}", Bytes::copy_from_slice(body)))
        },
        value: format!("{head:?} {:?}", Bytes::from_static(b"body")),
        is_exact: true,
    }
}

fn told(name: &str, told: Told) -> Fixture {
    Fixture {
        name: name.to_owned(),
        value: format!("{told:?}"),
        bytes: told.encode().expect("encodes").to_vec(),
        read: |bytes| {
            let told = Told::decode(Bytes::copy_from_slice(bytes));
            told.map(|told| format!("{told:?}")).map_err(|fault| fault.message)
        },
        is_exact: true,
    }
}

fn introduction() -> Fixture {
    let method = MethodModel {
        name: "method",
        kind: Kind::Query,
        request: serde_json::json!({"$ref": "#/$defs/Id", "$defs": {"Id": {"type": "string", "format": "uuid"}}}),
        answer: serde_json::json!({"type": "integer", "format": "int64"}),
        refused: serde_json::json!(false),
        refusals: &[],
        provider: None,
    };
    let contract = |name| ContractModel { name, version: 1, methods: vec![method.clone()] };
    let bytes = hello::about(&[contract("served")], &[contract("needed")]).expect("fits").to_vec();
    let read = |bytes: &[u8]| hello::read_whole(bytes);
    Fixture { name: "hello".to_owned(), value: read(&bytes).expect("is read"), bytes, read, is_exact: false }
}

fn key() -> StepKey {
    StepKey {
        origin: Origin::Saga,
        src: Uuid::from_bytes([7; 16]),
        seq: 0x0102,
        step: 3,
        direction: Direction::Undo,
    }
}

fn record() -> RefusalRecord {
    RefusalRecord {
        code: "sold_out".into(),
        text: "not enough".into(),
        status: 409,
        body: vec![0x81, 0xa1, b'x', 0x01],
    }
}

fn fixtures() -> Vec<Fixture> {
    let plain = |ask, method| Head {
        ask,
        contract: "products",
        method,
        request_id: "r-1",
        principal: None,
        keyed: None,
        trace: None,
    };
    let not_run = NotRun::new(NotRunReason::Overloaded, "full");
    let unknown = Unknown::new(UnknownReason::ConnectionLost, "gone");
    let mut fixtures = vec![
        introduction(),
        head("head query", &plain(Ask::Query, "product")),
        head("head effect", &Head { principal: Some(Asker::Admin), ..plain(Ask::Effect, "charge") }),
        head("head http", &Head { contract: "", method: "", ..plain(Ask::Http, "") }),
        head("head saga", &Head { contract: "", method: "", ..plain(Ask::Saga, "") }),
        head(
            "head command",
            &Head {
                principal: Some(Asker::User("ann")),
                trace: Some(Trace {
                    id: [3; 16],
                    span: [4; 8],
                    flags: TraceFlags::from_bits(3),
                    state: Some("vendor=1".into()),
                }),
                keyed: Some(Keyed { key: key(), hash: [9; 16], kept_ms: 600_000 }),
                ..plain(Ask::Command, "hold")
            },
        ),
        told("answer done", Told::Outcome(Outcome::Done(b"answer".to_vec()))),
        told("answer refused", Told::Outcome(Outcome::Refused(record()))),
        told("answer of a saga", Told::Saga(SagaTold::Undone)),
        told("answer not run", Told::NotRun(not_run.clone())),
        told("answer unknown", Told::Unknown(unknown)),
        stored("key", &key()),
        stored("refusal", &record()),
        stored("outcome done", &Outcome::Done(b"answer".to_vec())),
        stored("outcome refused", &Outcome::Refused(record())),
        stored("saga done", &SagaEnd::Done(b"answer".to_vec())),
        stored("saga refused", &SagaEnd::Refused(SagaRefused { step: "hold".into(), refusal: record() })),
        stored("saga aborted", &SagaEnd::Aborted(not_run)),
    ];
    let step = (String::from("products"), String::from("hold"), b"request".to_vec());
    let asks = [
        (
            "step",
            SagaAsk::Step {
                contract: step.0.clone(),
                method: step.1.clone(),
                step: 1,
                request: step.2.clone(),
            },
        ),
        (
            "effect",
            SagaAsk::Effect { contract: step.0.clone(), method: step.1.clone(), step: 1, request: step.2 },
        ),
        (
            "run",
            SagaAsk::Run {
                plan: "orders.place_order".into(),
                version: 1,
                fingerprint: -5,
                first: 0,
                last: 3,
                input: b"input".to_vec(),
                answers: vec![Some(Stored(b"hold".to_vec())), None],
            },
        ),
        ("seal", SagaAsk::Seal { contract: step.0.clone(), step: 2 }),
        ("undo", SagaAsk::Undo { contract: step.0.clone(), method: step.1, step: 2, by_key: true }),
        ("look", SagaAsk::Look { contract: step.0, step: 2 }),
    ];
    let saga = SagaId { src: Uuid::from_bytes([7; 16]), seq: 9 };
    let water = LowWater { below: 5, open: vec![2, 3] };
    fixtures.extend(
        asks.into_iter()
            .map(|(name, ask)| stored(&format!("asked {name}"), &Asked { saga, ask, water: water.clone() })),
    );
    let row = serde_json::json!({"method": "hold", "state": "started", "attempts": 2, "first_at_ms": 3, "answer": null});
    let row: InboxRow = serde_json::from_value(row).expect("is a row");
    for (name, value) in [
        ("done", SagaTold::Done(vec![Stored(b"hold".to_vec())])),
        ("refused", SagaTold::Refused { step: 1, record: record() }),
        ("sealed", SagaTold::Sealed { step: 1 }),
        ("started", SagaTold::Started),
        ("undone", SagaTold::Undone),
        ("rows", SagaTold::Rows(StepRows { step: Some(row), undo: None })),
        ("plan unknown", SagaTold::PlanUnknown),
        ("expired", SagaTold::Expired),
    ] {
        fixtures.push(stored(&format!("told {name}"), &value));
    }
    fixtures
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Of the present version: `0.1.txt`.
fn present() -> PathBuf {
    folder().join(concat!(env!("CARGO_PKG_VERSION_MAJOR"), ".", env!("CARGO_PKG_VERSION_MINOR"), ".txt"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.bytes().map(|digit| (digit as char).to_digit(16).expect("is hexadecimal") as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// By name.
fn kept(file: &Path) -> BTreeMap<String, Vec<u8>> {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let lines = text.lines().map(|line| line.split_once(" = ").expect("a name and bytes"));
    lines.map(|(name, bytes)| (name.to_owned(), unhex(bytes))).collect()
}

#[test]
fn bytes_of_every_version_are_read() {
    let fixtures = fixtures();
    if std::env::var_os("MODULITH_WRITE_FIXTURES").is_some() {
        let lines: String = fixtures.iter().map(|it| format!("{} = {}\n", it.name, hex(&it.bytes))).collect();
        let mut file = fs::File::create_new(present()).expect("a version is written once");
        std::io::Write::write_all(&mut file, lines.as_bytes()).expect("writes");
    }
    let mut versions = 0;
    for entry in fs::read_dir(folder()).expect("a folder of fixtures") {
        let file = entry.expect("an entry").path();
        versions += 1;
        for (name, bytes) in kept(&file) {
            let shown = format!("{}: {name}", file.display());
            let fixture =
                fixtures.iter().find(|it| it.name == name).unwrap_or_else(|| panic!("{shown} is gone"));
            assert_eq!((fixture.read)(&bytes).as_ref(), Ok(&fixture.value), "{shown}");
        }
    }
    assert!(versions > 0, "there are no fixtures");
}

#[test]
fn what_is_written_now_is_of_the_present_version() {
    let kept = kept(&present());
    for fixture in fixtures() {
        let bytes =
            kept.get(&fixture.name).unwrap_or_else(|| panic!("`{}` is new: a new version", fixture.name));
        if fixture.is_exact {
            assert_eq!(
                hex(bytes),
                hex(&fixture.bytes),
                "`{}` is written differently: a new version",
                fixture.name
            );
        }
    }
}
