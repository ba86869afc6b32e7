//! A plan whose own function panics turns back, wherever its steps stand.

use modulith_core::{
    Answer, Command, ContractModel, Handle, Kind, MethodModel, Never, Plan, PlanModel, Saga, Served, Tx,
};
use modulith_data::Migration;
use modulith_test::sim::{Cast, Simulation, Start, Told};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const PUT: Command<i64, i64, Never> = Command::new("shelf", "put", 0);
const TAKE: Command<i64, (), Never> = Command::new("shelf", "take", 1);
const SIGN: Command<i64, i64, Never> = Command::new("book", "sign", 0);

#[derive(Serialize, Deserialize, JsonSchema)]
struct Clumsy {
    caller: i64,
}

impl Saga for Clumsy {
    const NAME: &'static str = "desk.clumsy";
    const VERSION: u32 = 1;
    type Answer = i64;

    fn plan(plan: &mut Plan<Self>) -> Handle<Self, i64> {
        let put = plan.step("put", PUT, (), |clumsy: &Self| clumsy.caller).undo(TAKE);
        plan.pivot("sign", SIGN, put, |_: &Self, _: &i64| -> i64 { panic!("the plan's own code is broken") })
    }
}

fn served(name: &'static str, methods: &[&'static str]) -> Served {
    let methods =
        methods.iter().map(|name| MethodModel::of::<i64, i64, Never>(name, Kind::Command)).collect();
    Served::new(ContractModel { name, version: 1, methods })
}

fn cast() -> Cast {
    const SHELF: &[Migration] =
        &[Migration { name: "0001", sql: "CREATE TABLE shelf_item (caller bigint NOT NULL);" }];
    let put = |tx: &mut Tx<'_>, caller: i64| -> Answer<i64, Never> {
        tx.execute("INSERT INTO shelf_item (caller) VALUES ($1)", (caller,))?;
        Ok(caller)
    };
    let take = |tx: &mut Tx<'_>, caller: i64| -> Answer<(), Never> {
        tx.execute("DELETE FROM shelf_item WHERE caller = $1", (caller,))?;
        Ok(())
    };
    let sign = |_: &mut Tx<'_>, caller: i64| -> Answer<i64, Never> { Ok(caller) };
    let plan = PlanModel::of::<Clumsy>().expect("its structure is sound");
    Cast::new()
        .module("desk", &[], Vec::new(), vec![plan])
        .module(
            "shelf",
            SHELF,
            vec![served("shelf", &["put", "take"]).command(PUT, put).command(TAKE, take)],
            vec![],
        )
        .module("book", &[], vec![served("book", &["sign"]).command(SIGN, sign)], vec![])
}

#[test]
fn a_plan_that_panics_turns_back() {
    let simulation = Simulation::new(cast(), vec![Start::new("desk", |caller| Clumsy { caller })]);
    let simulation = simulation.check(|view| {
        let left: Vec<(i64,)> = view.rows("shelf", "SELECT count(*) FROM shelf_item", ());
        let told = view.told();
        // Together nothing of it was ever written; apart the step before is undone.
        if left[0].0 == 0 && !told.contains(&Told::Done) {
            Ok(())
        } else {
            Err(format!("{told:?}, and {} are left on the shelf", left[0].0))
        }
    });
    // The panics are expected, and there are many.
    std::panic::set_hook(Box::new(|_| {}));
    let played = simulation.single_faults();
    drop(std::panic::take_hook());
    played.unwrap_or_else(|violation| panic!("{violation}"));
}
