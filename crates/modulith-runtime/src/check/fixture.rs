//! A small application for the tests of `check`, `graph` and `placement`, and ways to spoil it.

use modulith_core::{
    Command, ContractModel, Effect, Handle, Kind, MethodModel, Never, Plan, PlanModel, Saga, StepKey,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::model::{AppModel, ModuleModel};

const HOLD: Command<u64, u64, Never> = Command::new("products", "hold", 0);
const RELEASE: Command<u64, (), Never> = Command::new("products", "release", 1);
const SELL: Command<u64, (), Never> = Command::new("products", "sell", 2);
const CHARGE: Effect<u64, u64, Never> = Effect::new("payments", "charge", 0);
const REFUND: Effect<StepKey, (), Never> = Effect::new("payments", "refund", 1);
const RECORD: Command<u64, u64, Never> = Command::new("orders", "record", 0);

/// A plan with an effect between its commands.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct PlaceOrder {
    pub(crate) order: u64,
}

impl Saga for PlaceOrder {
    const NAME: &'static str = "orders.place_order";
    const VERSION: u32 = 1;
    type Answer = u64;

    fn plan(plan: &mut Plan<Self>) -> Handle<Self, u64> {
        let hold = plan.step("hold_stock", HOLD, (), |saga: &Self| saga.order).undo(RELEASE);
        let paid = plan.step("charge", CHARGE, hold, |_: &Self, hold: &u64| *hold).undo_by_key(REFUND);
        let order =
            plan.pivot("record", RECORD, (hold, paid), |_: &Self, hold: &u64, paid: &u64| hold + paid);
        plan.then("sell", SELL, hold, |_: &Self, hold: &u64| *hold);
        order
    }
}

/// A plan with a forgotten undo and without a pivot.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct Forgetful;

impl Saga for Forgetful {
    const NAME: &'static str = "orders.forgetful";
    const VERSION: u32 = 1;
    type Answer = u64;

    fn plan(plan: &mut Plan<Self>) -> Handle<Self, u64> {
        let _ = plan.step("hold", HOLD, (), |_: &Self| 1);
        plan.step("hold_more", HOLD, (), |_: &Self| 1).undo(RELEASE)
    }
}

pub(crate) fn contract(name: &'static str, methods: &[(&'static str, Kind)]) -> ContractModel {
    let method = |(name, kind): &(&'static str, Kind)| MethodModel {
        name,
        kind: *kind,
        request: json!({"type": "integer"}),
        answer: json!({"type": "integer"}),
        refused: json!(false),
        refusals: &[],
        provider: None,
    };
    ContractModel { name, version: 1, methods: methods.iter().map(method).collect() }
}

pub(crate) fn products() -> ContractModel {
    let methods = [
        ("hold", Kind::Command),
        ("release", Kind::Command),
        ("sell", Kind::Command),
        ("product", Kind::Query),
    ];
    contract("products", &methods)
}

pub(crate) fn payments() -> ContractModel {
    contract("payments", &[("charge", Kind::Effect), ("refund", Kind::Effect)])
}

pub(crate) fn module(name: &'static str, contracts: Vec<ContractModel>) -> ModuleModel {
    ModuleModel {
        name,
        contracts,
        needs: Vec::new(),
        optional: Vec::new(),
        plans: Vec::new(),
        plan_problems: Vec::new(),
        prefixes: &[],
        has_tables: false,
    }
}

/// Products, payments, and orders with a saga over all three.
pub(crate) fn shop() -> AppModel {
    let orders = ModuleModel {
        needs: vec![products(), payments()],
        plans: vec![PlanModel::of::<PlaceOrder>().unwrap_or_else(|problems| panic!("{problems:?}"))],
        prefixes: &["/orders"],
        ..module("orders", vec![contract("orders", &[("record", Kind::Command)])])
    };
    let products = ModuleModel { prefixes: &["/products"], ..module("products", vec![products()]) };
    AppModel { name: "shop", modules: vec![products, module("payments", vec![payments()]), orders] }
}
