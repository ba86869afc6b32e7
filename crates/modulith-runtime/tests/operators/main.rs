//! What an operator sees of sagas and may do about them, over HTTP: a saga that is stuck is found, shown without its
//! secrets, let go on or turned back; and what cannot be done says why.

mod desk;

use desk::{Act, Desk};
use modulith_test::{Request, until};
use serde_json::{Value, json};

fn id(saga: &Value) -> String {
    saga["id"].as_str().expect("a saga has an id").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_saga_is_found_and_goes_on_when_it_is_resumed() -> anyhow::Result<()> {
    let desk = Desk::open().await?;
    let caller = desk.buy("resumed", (Act::Unknown, Act::Do));
    let listed = desk.first("?attention=true&state=running&plan=book.buy").await;
    assert_eq!(
        (&listed["module"], &listed["state"], &listed["step"], &listed["doing"]),
        (&json!("book"), &json!("running"), &json!("charge"), &json!("run")),
        "{listed}"
    );
    assert_eq!(listed["attention"]["reason"], "no-answer", "{listed}");
    let id = id(&listed);

    let saga = desk.show(&id).await?;
    assert_eq!(saga["input"], json!({"account": "resumed", "pin": "…"}), "{saga}");
    assert_eq!((&saga["walked"], &saga["in_one_transaction"]), (&json!(true), &json!(false)));
    assert!(
        saga["unanswered"].as_u64() >= Some(10) && saga["fault"].to_string().contains("says nothing"),
        "{saga}"
    );
    let [note, charge, record, thank] = &saga["steps"].as_array().expect("steps")[..] else {
        panic!("{saga}")
    };
    assert_eq!((&note["method"], &note["service"]), (&json!("book.note"), &json!("desk")));
    assert_eq!(note["row"]["answer"], json!({"account": "resumed", "code": "…"}));
    assert_eq!((&note["undo"], &note["undo_row"]), (&json!("book.erase"), &Value::Null));
    assert_eq!((&charge["kind"], &charge["row"]["state"]), (&json!("effect"), &json!("started")));
    assert!(charge["row"]["attempts"].as_i64() >= Some(10), "{charge}");
    assert_eq!(
        (&record["is_pivot"], &record["row"], &thank["row"]),
        (&json!(true), &Value::Null, &Value::Null)
    );
    let advice = saga["advice"].to_string();
    assert!(advice.contains(&format!("sagas resume {id}")) && advice.contains("sagas abort"), "{advice}");

    // Its mark is gone, although nothing else has changed yet.
    assert_eq!(desk.order(&id, "resume").await?.status, 202);
    assert_eq!(desk.show(&id).await?["attention"], Value::Null);
    desk.script("resumed", (Act::Do, Act::Do));
    let answer = desk.order(&id, "resume").await?;
    assert_eq!((answer.status, &answer.json["id"]), (202, &json!(id)), "{}", answer.json);
    let saga = desk.becomes(&id, |saga| saga["state"] == "done").await;
    assert_eq!(saga["end"]["done"], json!({"account": "resumed", "code": "…"}), "{saga}");
    assert_eq!((&saga["step"], &saga["advice"], &saga["walked"]), (&Value::Null, &json!([]), &json!(false)));
    assert!(matches!(caller.await??.status, 200 | 504));
    for what in ["resume", "abort"] {
        let ended = desk.order(&id, what).await?;
        assert_eq!((ended.status, ended.problem()), (409, "saga-ended"), "{}", ended.json);
    }
    desk.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_before_its_pivot_is_turned_back() -> anyhow::Result<()> {
    let desk = Desk::open().await?;
    let caller = desk.buy("aborted", (Act::Unknown, Act::Do));
    let saga = desk.first("?attention=true").await;
    let id = id(&saga);
    assert_eq!(desk.noted("aborted").await?, 1);
    // The effect may have happened, so it has to be resolved first. A repeat of the order changes nothing.
    for _ in 0..2 {
        let ordered = desk.order(&id, "abort").await?;
        assert_eq!(ordered.status, 202, "{}", ordered.json);
    }
    assert_eq!(desk.show(&id).await?["state"], "running");
    desk.script("aborted", (Act::Do, Act::Do));
    assert_eq!(desk.order(&id, "resume").await?.status, 202);
    let saga = desk.becomes(&id, |saga| saga["state"] == "aborted").await;
    assert!(saga["end"]["aborted"].to_string().contains("`record`"), "the pivot is sealed: {saga}");
    let [note, charge, record, _] = &saga["steps"].as_array().expect("steps")[..] else { panic!("{saga}") };
    assert_eq!((&note["undo_row"]["state"], &charge["undo_row"]["state"]), (&json!("done"), &json!("done")));
    assert_eq!((&charge["row"]["state"], &record["row"]["state"]), (&json!("done"), &json!("sealed")));
    assert!(desk.was_refunded(&charge["key"]), "{charge}");
    assert_eq!(desk.noted("aborted").await?, 0);
    assert!(matches!(caller.await??.status, 503 | 504));
    desk.close().await;
    Ok(())
}

/// Nothing is sent again, and the operator is told which key to ask the provider about.
#[tokio::test(flavor = "multi_thread")]
async fn an_effect_past_its_providers_window_is_named() -> anyhow::Result<()> {
    let desk = Desk::open().await?;
    desk.buy("overdue", (Act::Unknown, Act::Do));
    let id = id(&desk.first("?attention=true").await);
    desk.change("UPDATE bank__inbox SET first_at = 0")?;
    assert_eq!(desk.order(&id, "resume").await?.status, 202);
    desk.script("overdue", (Act::Do, Act::Do));
    let saga = desk.becomes(&id, |saga| saga["attention"]["reason"] == "window-over").await;
    let charge = &saga["steps"][1];
    assert_eq!((&charge["row"]["state"], &charge["row"]["first_at_ms"]), (&json!("started"), &json!(0)));
    let key = charge["key"].as_str().expect("a step has a key");
    assert!(saga["advice"][0].to_string().contains(key), "{saga}");
    desk.change("UPDATE bank__inbox SET first_at = CAST(strftime('%s') AS INTEGER) * 1000")?;
    assert_eq!(desk.order(&id, "resume").await?.status, 202);
    desk.becomes(&id, |saga| saga["state"] == "done").await;
    desk.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_past_its_pivot_only_goes_forward() -> anyhow::Result<()> {
    let desk = Desk::open().await?;
    let answer = desk.buy("forward", (Act::Do, Act::Unknown)).await??;
    assert_eq!(answer.status, 200, "{}", answer.json);
    let saga = desk.first("?state=running").await;
    let id = id(&saga);
    assert_eq!(saga["step"], "thank", "{saga}");
    let refused = desk.order(&id, "abort").await?;
    assert_eq!((refused.status, refused.problem()), (409, "saga-past-pivot"), "{}", refused.json);
    desk.script("forward", (Act::Do, Act::Do));
    assert_eq!(desk.order(&id, "resume").await?.status, 202);
    let saga = desk.becomes(&id, |saga| saga["state"] == "done").await;
    assert!(!desk.was_refunded(&saga["steps"][1]["key"]));
    assert_eq!(desk.noted("forward").await?, 1);
    desk.close().await;
    Ok(())
}

/// A saga that is left alone is walked by nobody until an operator says so, and not by a build without its plan.
#[tokio::test(flavor = "multi_thread")]
async fn a_saga_that_is_left_alone_waits_for_an_operator() -> anyhow::Result<()> {
    let mut desk = Desk::open().await?;
    for account in ["unplanned", "deadly", "deadly too"] {
        assert_eq!(desk.buy(account, (Act::Do, Act::Do)).await??.status, 200);
    }
    until("sagas to end", async || (desk.admin("?limit=0").await.ok()?.json["open"] == 0).then_some(()))
        .await;
    // The same again, begun and not walked, after ten processes that ended.
    desk = desk
        .open_again_with(
            "CREATE TEMP TABLE again AS SELECT * FROM book__saga;
             UPDATE again SET seq = seq + 100, state = 0, answer = NULL, ended = NULL, attempts = 11;
             UPDATE again SET fingerprint = fingerprint + 1 WHERE seq = (SELECT min(seq) FROM again);
             INSERT INTO book__saga SELECT * FROM again",
        )
        .await?;
    until("three sagas to need a person", async || {
        (desk.admin("?limit=0").await.ok()?.json["attention"] == 3).then_some(())
    })
    .await;
    let list = desk.admin("?attention=true").await?.json;
    let ids: Vec<String> = list["sagas"].as_array().expect("a list").iter().map(id).collect();
    let [deadly_too, deadly, unplanned] = &ids[..] else { panic!("the newest comes first: {list}") };
    for (id, reason) in [(unplanned, "plan-unknown"), (deadly, "process-ends"), (deadly_too, "process-ends")]
    {
        let saga = desk.becomes(id, |saga| !saga["attention"].is_null()).await;
        assert_eq!(
            (&saga["attention"]["reason"], &saga["walked"]),
            (&json!(reason), &json!(false)),
            "{saga}"
        );
        assert_eq!(saga["step"], Value::Null, "nobody knows where it stands: {saga}");
        assert_ne!(saga["advice"], json!([]), "{saga}");
    }
    let saga = desk.show(unplanned).await?;
    assert_eq!(
        (&saga["input"], &saga["steps"]),
        (&Value::Null, &json!([])),
        "nothing is shown without a schema"
    );
    for what in ["resume", "abort"] {
        let refused = desk.order(unplanned, what).await?;
        assert_eq!((refused.status, refused.problem()), (409, "saga-left-alone"), "{}", refused.json);
        assert_eq!(refused.json["attention"]["reason"], "plan-unknown");
        assert_eq!(
            desk.show(unplanned).await?["attention"]["reason"],
            "plan-unknown",
            "it still needs a person"
        );
    }
    // Two operators at once begin one walk.
    let (one, other) = tokio::join!(desk.order(deadly, "resume"), desk.order(deadly, "resume"));
    let mut says = [one?, other?].map(|answer| answer.json["says"].as_str().unwrap_or("ended").to_owned());
    says.sort();
    assert!(says.iter().filter(|says| says.contains("walked again")).count() == 1, "{says:?}");
    assert_eq!(desk.order(deadly_too, "abort").await?.status, 202);
    assert_eq!(desk.becomes(deadly, |saga| saga["ended_ms"].is_i64()).await["state"], "done");
    let saga = desk.becomes(deadly_too, |saga| saga["ended_ms"].is_i64()).await;
    assert_eq!((&saga["state"], &saga["attention"]), (&json!("aborted"), &Value::Null), "{saga}");
    let noted = (desk.noted("deadly").await?, desk.noted("deadly too").await?);
    assert_eq!(noted, (2, 1), "what is aborted did not run a second time");
    desk.close().await;
    Ok(())
}

/// The coordinator's database came back with a backup, and the participants' did not.
#[tokio::test(flavor = "multi_thread")]
async fn a_saga_that_is_held_for_ended_is_marked() -> anyhow::Result<()> {
    let desk = Desk::open().await?;
    assert_eq!(desk.buy("restored", (Act::Do, Act::Do)).await??.status, 200);
    let id = id(&desk.first("?state=done").await);
    let desk = desk
        .open_again_with(
            "INSERT OR REPLACE INTO book__low_water SELECT src, seq + 1, x'' FROM book__saga;
             UPDATE book__saga SET state = 0, answer = NULL, ended = NULL;
             DELETE FROM book__inbox",
        )
        .await?;
    let saga = desk.becomes(&id, |saga| !saga["attention"].is_null()).await;
    assert_eq!(
        (&saga["attention"]["reason"], &saga["walked"]),
        (&json!("held-for-ended"), &json!(true)),
        "{saga}"
    );
    assert!(saga["advice"][0].to_string().contains("backup"), "{saga}");
    desk.change("DELETE FROM book__low_water")?;
    assert_eq!(desk.order(&id, "resume").await?.status, 202);
    desk.becomes(&id, |saga| saga["state"] == "done").await;
    desk.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_of_one_transaction_has_no_rows() -> anyhow::Result<()> {
    let desk = Desk::open().await?;
    assert_eq!(desk.jot("jotted").await?.status, 200);
    assert_eq!(desk.jot("full").await?.status, 409);
    let list = desk.admin("?plan=book.jot").await?.json;
    let [refused, done] = &list["sagas"].as_array().expect("a list")[..] else { panic!("{list}") };
    let done = desk.show(&id(done)).await?;
    assert_eq!((&done["state"], &done["in_one_transaction"]), (&json!("done"), &json!(true)), "{done}");
    let refused = desk.show(&id(refused)).await?;
    assert_eq!((&refused["state"], &refused["in_one_transaction"]), (&json!("aborted"), &json!(true)));
    assert_eq!(refused["end"]["refused"]["step"], "note");
    assert_eq!(refused["end"]["refused"]["refusal"]["body"], json!({"Full": {"pin": "…"}}), "{refused}");
    desk.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_have_pages_and_filters_and_names_are_strict() -> anyhow::Result<()> {
    let desk = Desk::open().await?;
    for _ in 0..5 {
        assert_eq!(desk.jot("jotted").await?.status, 200);
    }
    let all = desk.admin("").await?.json;
    assert_eq!((&all["open"], &all["attention"], &all["next"]), (&json!(0), &json!(0), &Value::Null));
    let (mut found, mut query) = (Vec::new(), "?limit=2".to_owned());
    loop {
        let page = desk.admin(&query).await?.json;
        let sagas = page["sagas"].as_array().expect("a list").clone();
        assert!(sagas.len() <= 2, "{page}");
        found.extend(sagas);
        let Some(next) = page["next"].as_str() else { break };
        query = format!("?limit=2&after={next}");
    }
    assert_eq!(json!(found), all["sagas"]);
    assert_eq!(found.len(), 5);
    assert_eq!(desk.admin("/book").await?.json["sagas"], all["sagas"]);
    for empty in ["?state=running", "?state=aborted", "?attention=true", "?plan=book.buy", "?limit=0"] {
        assert_eq!(desk.admin(empty).await?.json["sagas"], json!([]), "{empty}");
    }
    let id = id(&found[0]);
    for bad in ["?limit=201", "?state=odd", "?attention=1", "?odd=1", "?after=here", &format!("?after={id}")]
    {
        assert_eq!(desk.admin(bad).await?.status, 422, "{bad}");
    }
    for none in [
        "/bank",
        "/nothing",
        "/book/1",
        &format!("/{id}x"),
        &format!("/bank{}", &id[4..]),
        "/book/00000000-1.1",
    ] {
        assert_eq!(desk.admin(none).await?.status, 404, "{none}");
    }
    for what in ["resume", "abort"] {
        assert_eq!(desk.order(&format!("{id}x"), what).await?.status, 404, "{what}");
    }
    for request in [
        Request::get(format!("/admin/sagas/{id}")),
        Request::post(format!("/admin/sagas/{id}/abort"), &json!({})),
    ] {
        assert_eq!(desk.http.send(request).await?.status, 401);
    }

    // Another coordinator whose id begins alike, as after a restore.
    desk.change(
        "CREATE TEMP TABLE twin AS SELECT * FROM book__saga WHERE seq = (SELECT max(seq) FROM book__saga);
         UPDATE twin SET src = CAST(substr(src, 1, 4) || zeroblob(12) AS BLOB), client_hash = NULL;
         INSERT INTO book__saga SELECT * FROM twin",
    )?;
    let ambiguous = desk.admin(&format!("/{id}")).await?;
    assert_eq!((ambiguous.status, ambiguous.problem()), (409, "saga-ambiguous"), "{}", ambiguous.json);
    let whole: Vec<&str> =
        ambiguous.json["sagas"].as_array().expect("names").iter().filter_map(Value::as_str).collect();
    assert_eq!(whole.len(), 2);
    for whole in whole {
        assert_eq!(desk.show(whole).await?["id"], json!(id));
    }
    desk.close().await;
    Ok(())
}
