//! Sagas that a command begins: in its transaction, once, and never without it.

use modulith::{
    Answer, App, CallError, Handle, Migration, Module, Mounted, Never, Plan, Refusal, Saga, Setup,
    SetupError, Tx, contract,
};
use modulith_test::until;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
struct Entry {
    text: String,
    /// How many announcements it begins.
    announcements: usize,
    torn_out: bool,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, Refusal)]
enum Torn {
    #[refused(409, "the page was torn out")]
    Out,
}

#[contract(name = "diary", version = 1)]
trait Diary {
    /// Writes an entry and begins its announcements.
    #[command]
    fn write(&self, tx: &mut Tx<'_>, entry: Entry) -> Answer<(), Torn>;
    #[command]
    fn announce(&self, tx: &mut Tx<'_>, text: String) -> Answer<(), Never>;
    #[query]
    fn announced(&self, db: &modulith::Snapshot<'_>, text: String) -> Answer<i64, Never>;
    #[query]
    fn written(&self, db: &modulith::Snapshot<'_>, text: String) -> Answer<i64, Never>;
}

struct DiaryModule;

impl Diary for DiaryModule {
    fn write(&self, tx: &mut Tx<'_>, entry: Entry) -> Answer<(), Torn> {
        tx.execute("INSERT INTO diary_entry (text) VALUES ($1)", (&*entry.text,))?;
        for _ in 0..entry.announcements {
            tx.start_saga(Announce { text: entry.text.clone() })?;
        }
        if entry.torn_out { Err(Torn::Out.into()) } else { Ok(()) }
    }

    fn announce(&self, tx: &mut Tx<'_>, text: String) -> Answer<(), Never> {
        tx.execute("INSERT INTO diary_announced (text) VALUES ($1)", (&*text,))?;
        Ok(())
    }

    fn announced(&self, db: &modulith::Snapshot<'_>, text: String) -> Answer<i64, Never> {
        let counted: Option<(i64,)> =
            db.row("SELECT count(*) FROM diary_announced WHERE text = $1", (&*text,))?;
        Ok(counted.map_or(0, |(count,)| count))
    }

    fn written(&self, db: &modulith::Snapshot<'_>, text: String) -> Answer<i64, Never> {
        let counted: Option<(i64,)> =
            db.row("SELECT count(*) FROM diary_entry WHERE text = $1", (&*text,))?;
        Ok(counted.map_or(0, |(count,)| count))
    }
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Announce {
    text: String,
}

impl Saga for Announce {
    const NAME: &'static str = "diary.announce";
    const VERSION: u32 = 1;
    const IN_FLIGHT_MAX: usize = 20;
    type Answer = ();

    fn plan(plan: &mut Plan<Self>) -> Handle<Self, ()> {
        plan.pivot("announce", Diary.announce, (), |announce: &Self| announce.text.clone())
    }
}

fn diary_module(_: &Setup<'_>) -> Result<Module, SetupError> {
    const SQL: &str = "CREATE TABLE diary_entry (text text NOT NULL);\n\
                       CREATE TABLE diary_announced (text text NOT NULL);";
    Ok(Module::new("diary")
        .migrations(&[Migration { name: "0001_diary", sql: SQL }])
        .serves(Diary.serve(DiaryModule))
        .saga::<Announce>())
}

async fn open(data: &std::path::Path) -> anyhow::Result<(Mounted, DiaryClient)> {
    let mounted = App::new("started").module(diary_module).mount(data).await?;
    until("the application to be ready", async || mounted.missing().is_empty().then_some(())).await;
    let client = mounted.client().expect("the diary is served here");
    Ok((mounted, client))
}

fn entry(text: &str, announcements: usize, torn_out: bool) -> Entry {
    Entry { text: text.to_owned(), announcements, torn_out }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_stands_and_falls_with_the_command_that_begins_it() -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    let (mounted, diary) = open(data.path()).await?;

    diary.write(entry("kept", 3, false)).await?;
    until("three announcements", async || (diary.announced("kept".into()).await.ok()? == 3).then_some(()))
        .await;

    let refused = diary.write(entry("torn", 1, true)).await;
    assert!(matches!(refused, Err(CallError::Refused(Torn::Out))), "{refused:?}");
    // More than one command may begin, and more than there is room for, fail the command whole.
    for announcements in [17, modulith::SAGAS_PER_COMMAND_MAX + 5] {
        let failed = diary.write(entry("too many", announcements, false)).await;
        assert!(matches!(failed, Err(CallError::NotRun(_))), "{failed:?}");
    }
    // What was taken back gave its room back, so that there is room for these.
    for text in ["fourth", "fifth", "sixth"] {
        diary.write(entry(text, 16, false)).await?;
        until("sixteen announcements", async || {
            (diary.announced(text.into()).await.ok()? == 16).then_some(())
        })
        .await;
    }
    for text in ["torn", "too many"] {
        assert_eq!(diary.written(text.into()).await?, 0);
        assert_eq!(diary.announced(text.into()).await?, 0);
    }
    mounted.stop().await;
    drop(diary);

    // Nothing was left to be begun at the next start.
    let (mounted, diary) = open(data.path()).await?;
    assert_eq!(diary.announced("kept".into()).await?, 3);
    assert_eq!(diary.announced("torn".into()).await?, 0);
    mounted.stop().await;
    Ok(())
}
