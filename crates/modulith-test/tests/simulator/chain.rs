//! Made-up applications: a chain of steps, each a command or an effect in a module of its own, with a pivot
//! anywhere, and an outside that remembers everything.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use modulith_core::{
    Answer, CallError, Command, ContractModel, Effect, Found, Handle, Kind, MethodModel, Never, Plan,
    PlanModel, Refusal, Saga, Served, StepKey, Tx,
};
use modulith_data::Migration;
use modulith_test::sim::{Cast, Placement, Simulation, Start, Told, View, now_ms};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The modules, one a step, and the one that begins the saga.
const MODULES: [&str; 4] = ["a", "b", "c", "d"];
const OWNER: &str = "owner";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StepOf {
    Command,
    Effect,
}

/// A plan's shape: its steps, and which is the pivot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) steps: Vec<StepOf>,
    pub(crate) pivot: usize,
}

impl Shape {
    /// Every string over {command, effect} of this length, with every pivot.
    pub(crate) fn of_length(length: usize) -> Vec<Shape> {
        let kinds = |bits: usize| {
            (0..length).map(move |step| if bits >> step & 1 == 0 { StepOf::Command } else { StepOf::Effect })
        };
        let strings = (0..1 << length).map(|bits| kinds(bits).collect::<Vec<_>>());
        strings
            .flat_map(|steps| (0..length).map(move |pivot| Shape { steps: steps.clone(), pivot }))
            .collect()
    }
}

thread_local! {
    /// A saga's plan is made by a function without arguments.
    static SHAPE: RefCell<Option<Shape>> = const { RefCell::new(None) };
}

#[derive(Clone, Serialize, Deserialize, JsonSchema)]
struct Chain {
    caller: i64,
    /// The step that declines the first time it runs.
    refuses: Option<usize>,
}

#[derive(Clone, Serialize, Deserialize, JsonSchema)]
struct Work {
    caller: i64,
    refuses: bool,
    /// The number of the step's predecessor's answer, plus one.
    position: i64,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
enum No {
    No,
}

impl Refusal for No {
    fn code(&self) -> &str {
        "no"
    }
    fn text(&self) -> String {
        "no".into()
    }
}

const fn act(step: usize) -> Command<Work, i64, No> {
    Command::new(MODULES[step], "act", 0)
}
const fn finish(step: usize) -> Command<Work, i64, Never> {
    Command::new(MODULES[step], "finish", 1)
}
const fn undo(step: usize) -> Command<i64, (), Never> {
    Command::new(MODULES[step], "undo", 2)
}
/// Its provider can be asked later what it has done; those of the other effects cannot.
const fn reach(step: usize) -> Effect<Work, i64, No> {
    Effect::new(MODULES[step], "reach", 3).look_up(find_reached(step))
}
const fn find_reached(step: usize) -> Effect<StepKey, Found<i64, No>, Never> {
    Effect::new(MODULES[step], "find_reached", 6)
}
const fn finish_outside(step: usize) -> Effect<Work, i64, Never> {
    Effect::new(MODULES[step], "finish_outside", 4)
}
const fn take_back(step: usize) -> Effect<StepKey, (), Never> {
    Effect::new(MODULES[step], "take_back", 5)
}

/// An answer names its caller, so that an undo, which is given the answer, knows whom it undoes.
fn answer(work: &Work) -> i64 {
    work.caller * 100 + work.position
}

impl Saga for Chain {
    const NAME: &'static str = "owner.chain";
    const VERSION: u32 = 1;
    type Answer = i64;

    fn plan(plan: &mut Plan<Self>) -> Handle<Self, i64> {
        let shape = SHAPE.with_borrow(|shape| shape.clone().expect("a shape is set before its plan is made"));
        let names = ["first", "second", "third", "fourth"];
        let mut last: Option<Handle<Self, i64>> = None;
        let mut pivot = None;
        for (step, kind) in shape.steps.iter().enumerate() {
            let work = move |chain: &Chain, before: i64| Work {
                caller: chain.caller,
                refuses: chain.refuses == Some(step),
                position: before % 100 + 1,
            };
            let first = move |chain: &Chain| work(chain, 0);
            let next = move |chain: &Chain, before: &i64| work(chain, *before);
            let name = names[step];
            use StepOf::*;
            let handle = match (kind, step.cmp(&shape.pivot), last) {
                (Command, std::cmp::Ordering::Less, None) => {
                    plan.step(name, act(step), (), first).undo(undo(step))
                }
                (Command, std::cmp::Ordering::Less, Some(last)) => {
                    plan.step(name, act(step), last, next).undo(undo(step))
                }
                (Effect, std::cmp::Ordering::Less, None) => {
                    plan.step(name, reach(step), (), first).undo_by_key(take_back(step))
                }
                (Effect, std::cmp::Ordering::Less, Some(last)) => {
                    plan.step(name, reach(step), last, next).undo_by_key(take_back(step))
                }
                (Command, std::cmp::Ordering::Equal, None) => plan.pivot(name, act(step), (), first),
                (Command, std::cmp::Ordering::Equal, Some(last)) => plan.pivot(name, act(step), last, next),
                (Effect, std::cmp::Ordering::Equal, None) => plan.pivot(name, reach(step), (), first),
                (Effect, std::cmp::Ordering::Equal, Some(last)) => plan.pivot(name, reach(step), last, next),
                (Command, std::cmp::Ordering::Greater, Some(last)) => {
                    plan.then(name, finish(step), last, next)
                }
                (Effect, std::cmp::Ordering::Greater, Some(last)) => {
                    plan.then(name, finish_outside(step), last, next)
                }
                (_, std::cmp::Ordering::Greater, None) => unreachable!("the pivot comes before it"),
            };
            if step == shape.pivot {
                pivot = Some(handle);
            }
            last = Some(handle);
        }
        pivot.expect("every shape has a pivot")
    }
}

/// What lies outside of every database: providers that honour a key, and how often code has run.
#[derive(Default)]
pub(crate) struct Outside {
    effects: HashMap<String, Happened>,
    /// Effects that happened a second time, which a provider's window no longer kept apart.
    doubled: Vec<String>,
    /// Keys under which a provider has declined: it declines them again.
    declined: HashSet<String>,
    runs: HashMap<(i64, i64), u32>,
}

impl Outside {
    /// Whether the code of this caller's step runs for the first time.
    fn is_first(&mut self, work: &Work) -> bool {
        let runs = self.runs.entry((work.caller, work.position)).or_default();
        *runs += 1;
        *runs == 1
    }

    /// Whether a provider declines: the first time, and whenever the key comes again.
    fn refuses(&mut self, key: &str, work: &Work) -> bool {
        let refuses = self.declined.contains(key) || (work.refuses && self.is_first(work));
        if refuses {
            self.declined.insert(key.to_owned());
        }
        refuses
    }
}

/// An effect under its key.
struct Happened {
    caller: i64,
    position: i64,
    at_ms: i64,
    taken_back: bool,
}

/// How long the providers recognise a key.
const WINDOW_MS: i64 = 24 * 60 * 60 * 1000;

pub(crate) type Shared = Arc<Mutex<Outside>>;

pub(crate) fn serve(step: usize, outside: &Shared) -> Served {
    let method = |name, kind| MethodModel::of::<Work, i64, No>(name, kind);
    let contract = ContractModel {
        name: MODULES[step],
        version: 1,
        methods: vec![
            method("act", Kind::Command),
            method("finish", Kind::Command),
            method("undo", Kind::Command),
            method("reach", Kind::Effect),
            method("finish_outside", Kind::Effect),
            method("take_back", Kind::Effect),
            method("find_reached", Kind::Effect),
        ],
    };
    let insert = format!("INSERT INTO {}_fact (caller, change) VALUES ($1, $2)", MODULES[step]);
    let note = move |tx: &mut Tx<'_>, caller: i64, change: i64| tx.execute(&insert, (caller, change));
    let acts = {
        let (note, outside) = (note.clone(), outside.clone());
        move |tx: &mut Tx<'_>, work: Work| -> Answer<i64, No> {
            note(tx, work.caller, 1)?;
            let first = outside.lock().unwrap().is_first(&work);
            if work.refuses && first { Err(No::No.into()) } else { Ok(answer(&work)) }
        }
    };
    let finishes = {
        let note = note.clone();
        move |tx: &mut Tx<'_>, work: Work| -> Answer<i64, Never> {
            note(tx, work.caller, 1)?;
            Ok(answer(&work))
        }
    };
    let undoes = move |tx: &mut Tx<'_>, answer: i64| -> Answer<(), Never> {
        note(tx, answer / 100, -1)?;
        Ok(())
    };
    let happens = |outside: &Shared, key: String, work: &Work| {
        let (mut outside, now_ms) = (outside.lock().unwrap(), now_ms());
        match outside.effects.get(&key) {
            Some(before) if now_ms - before.at_ms > WINDOW_MS => {
                outside.doubled.push(format!("{key} happened again behind its provider's window"));
            }
            Some(_) => {}
            None => {
                let effect = Happened {
                    caller: work.caller,
                    position: work.position,
                    at_ms: now_ms,
                    taken_back: false,
                };
                outside.effects.insert(key, effect);
            }
        }
    };
    let reaches = {
        let outside = outside.clone();
        move |context: modulith_core::Context, work: Work| {
            let key = context.idempotency_key();
            let refused = outside.lock().unwrap().refuses(&key, &work);
            if !refused {
                happens(&outside, key, &work);
            }
            let answer = if refused { Err(CallError::Refused(No::No)) } else { Ok(answer(&work)) };
            std::future::ready(answer)
        }
    };
    let finishes_outside = {
        let outside = outside.clone();
        move |context: modulith_core::Context, work: Work| {
            happens(&outside, context.idempotency_key(), &work);
            std::future::ready(Ok::<_, CallError<Never>>(answer(&work)))
        }
    };
    let takes_back = {
        let outside = outside.clone();
        move |_: modulith_core::Context, key: StepKey| {
            if let Some(effect) = outside.lock().unwrap().effects.get_mut(&key.to_string()) {
                effect.taken_back = true;
            }
            std::future::ready(Ok::<_, CallError<Never>>(()))
        }
    };
    let finds = {
        let outside = outside.clone();
        move |_: modulith_core::Context, key: StepKey| {
            let (outside, key) = (outside.lock().unwrap(), key.to_string());
            let found = match outside.effects.get(&key) {
                Some(effect) => Found::Done(effect.caller * 100 + effect.position),
                None if outside.declined.contains(&key) => Found::Refused(No::No),
                None => Found::Nothing,
            };
            std::future::ready(Ok::<_, CallError<Never>>(found))
        }
    };
    Served::new(contract)
        .command(act(step), acts)
        .command(finish(step), finishes)
        .command(undo(step), undoes)
        .effect(reach(step), reaches)
        .effect(finish_outside(step), finishes_outside)
        .effect(take_back(step), takes_back)
        .effect(find_reached(step), finds)
}

pub(crate) const FACTS: [&[Migration]; 4] = [
    &[Migration {
        name: "0001",
        sql: "CREATE TABLE a_fact (caller bigint NOT NULL, change bigint NOT NULL);",
    }],
    &[Migration {
        name: "0001",
        sql: "CREATE TABLE b_fact (caller bigint NOT NULL, change bigint NOT NULL);",
    }],
    &[Migration {
        name: "0001",
        sql: "CREATE TABLE c_fact (caller bigint NOT NULL, change bigint NOT NULL);",
    }],
    &[Migration {
        name: "0001",
        sql: "CREATE TABLE d_fact (caller bigint NOT NULL, change bigint NOT NULL);",
    }],
];

/// Which sagas are begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusals {
    /// One that nobody refuses.
    None,
    /// That one, and one for each step that may refuse.
    Each,
}

/// The simulation of one shape.
pub(crate) fn simulation(shape: &Shape, refusals: Refusals) -> Simulation {
    SHAPE.set(Some(shape.clone()));
    let plan = PlanModel::of::<Chain>().expect("a chain is a sound plan");
    let outside = Shared::default();
    let mut cast = Cast::new().module(OWNER, &[], Vec::new(), vec![plan]);
    for step in 0..shape.steps.len() {
        cast = cast.module(MODULES[step], FACTS[step], vec![serve(step, &outside)], Vec::new());
    }
    let refusing = match refusals {
        Refusals::None => 0,
        Refusals::Each => shape.pivot + 1,
    };
    let starts = std::iter::once(None).chain((0..refusing).map(Some));
    let starts = starts.map(|refuses| Start::new(OWNER, move |caller| Chain { caller, refuses })).collect();
    let (shape, at_end) = (shape.clone(), outside.clone());
    let placements = placements(shape.steps.len());
    Simulation::new(cast, starts)
        .placements(placements)
        .reset(move || *outside.lock().unwrap() = Outside::default())
        .check(move |view| check(view, &shape, &at_end.lock().unwrap()))
}

/// Every contiguous placement of the steps, with the saga's own module beside the first group, or alone.
fn placements(length: usize) -> Vec<Placement> {
    (0..1_usize << (length - 1))
        .flat_map(|cuts| {
            let groups: Vec<usize> = (0..length)
                .scan(0, |group, step| {
                    if step > 0 && cuts >> (step - 1) & 1 == 1 {
                        *group += 1;
                    }
                    Some(*group)
                })
                .collect();
            let beside = std::iter::once(0).chain(groups.iter().copied()).collect();
            let alone = std::iter::once(0).chain(groups.iter().map(|group| group + 1)).collect();
            [Placement(beside), Placement(alone)]
        })
        .collect()
}

/// Every caller's steps happened all, or none stands.
fn check(view: &View<'_>, shape: &Shape, outside: &Outside) -> Result<(), String> {
    if let Some(doubled) = outside.doubled.first() {
        return Err(doubled.clone());
    }
    // A saga that waits for a person has answered its caller, and may have something left to do or to undo.
    let is_open = view.open_sagas() > 0;
    for (caller, told) in view.told().into_iter().enumerate() {
        for (step, kind) in shape.steps.iter().enumerate() {
            let stands = match kind {
                StepOf::Command => {
                    let sql = format!(
                        "SELECT coalesce(sum(change), 0), coalesce(sum(abs(change)), 0) FROM {}_fact WHERE caller = $1",
                        MODULES[step]
                    );
                    let (sum, changes): (i64, i64) = view.rows(MODULES[step], &sql, (caller as i64,))[0];
                    if changes > 2 || !(0..=1).contains(&sum) {
                        return Err(format!(
                            "caller {caller}, step {step}: {changes} changes that sum up to {sum}"
                        ));
                    }
                    sum
                }
                StepOf::Effect => {
                    let of_step = |effect: &&Happened| {
                        effect.caller == caller as i64
                            && effect.position == step as i64 + 1
                            && !effect.taken_back
                    };
                    outside.effects.values().filter(of_step).count() as i64
                }
            };
            let expected = match told {
                Told::Done if step <= shape.pivot || !is_open => 1,
                Told::Aborted if is_open => continue,
                Told::Aborted | Told::NotRun => 0,
                Told::Done | Told::Open => continue,
            };
            if stands != expected {
                return Err(format!(
                    "caller {caller} was told {told:?}, and step {step} stands {stands} times"
                ));
            }
        }
    }
    Ok(())
}
