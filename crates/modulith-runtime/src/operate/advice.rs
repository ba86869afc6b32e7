//! What an operator may do about a saga that needs a person, for each reason why it does.

use modulith_data::inbox::RowState;
use modulith_data::saga::AttentionReason;

use super::{Doing, Shown};

/// Sentences, the first thing to do first. Empty if nobody has to do anything.
pub(super) fn of(saga: &Shown, pivot_is_done: bool) -> Vec<String> {
    let Some(attention) = &saga.line.attention else {
        return Vec::new();
    };
    let id = &saga.line.id;
    let goes_on =
        format!("It goes on by itself, within 10 s or so; `sagas resume {id}` lets it try at once.");
    match attention.reason {
        AttentionReason::NoAnswer => {
            let mut advice = absent(saga);
            if advice.is_empty() {
                advice.push("All its participants answer now, so what it waited for may be over.".to_owned());
            }
            advice.push(goes_on);
            advice.push(turn_back(saga, pivot_is_done));
            advice
        }
        AttentionReason::WindowOver => {
            let mut advice = Vec::new();
            let started = |step: &&super::Step| {
                step.row.as_ref().or(step.undo_row.as_ref()).is_some_and(|row| row.state == RowState::Started)
            };
            for step in saga.steps.iter().filter(started) {
                advice.push(format!(
                    "Ask the provider of {} what it has under the key {}: it may have happened, and its window for \
                     repeats is over, so nothing is sent again.",
                    step.method, step.key
                ));
            }
            advice.push(format!(
                "A build whose contract names a look-up for it learns the outcome by itself; then `sagas resume {id}`. \
                 No command writes the outcome down by hand."
            ));
            advice
        }
        AttentionReason::PlanUnknown => vec![
            format!(
                "Run a build that has plan `{}` version {} as it was when the saga began: it is walked at the start of \
                 that build.",
                saga.line.plan, saga.line.version
            ),
            "This build can neither resume nor abort it.".to_owned(),
        ],
        AttentionReason::ProcessEnds => vec![
            "Read in the log what ended the process, and mend that first.".to_owned(),
            format!("`sagas resume {id}` walks it again, and may end the process again."),
            format!("`sagas abort {id}` seals its steps instead of running them, and undoes those that were done."),
        ],
        AttentionReason::HeldForEnded => vec![
            "A database has come back with a backup that is older than those of the saga's participants: they have seen \
             its end. Compare what the saga was to do with what they have, and mend the difference by hand."
                .to_owned(),
            "Neither resuming nor aborting it changes what they answer.".to_owned(),
        ],
        AttentionReason::Unreadable => vec![format!(
            "What is recorded of it cannot be read by this build. Run one whose `{}` reads it: it is walked at the start \
             of that build.",
            saga.line.plan
        )],
    }
}

/// The services that do not answer, each once.
fn absent(saga: &Shown) -> Vec<String> {
    let mut services: Vec<&str> =
        saga.steps.iter().filter(|step| step.unreachable.is_some()).map(|step| &*step.service).collect();
    services.sort_unstable();
    services.dedup();
    services
        .iter()
        .map(|service| format!("Service `{service}` does not answer: start it or mend it."))
        .collect()
}

fn turn_back(saga: &Shown, pivot_is_done: bool) -> String {
    let turned = matches!(saga.line.doing, Some(Doing::Turn | Doing::Undo));
    match (turned, pivot_is_done) {
        (true, _) => {
            "It has turned back, and what was done is undone as soon as its participant answers.".to_owned()
        }
        (false, true) => "Its pivot is done, so it only goes forward and cannot be aborted.".to_owned(),
        (false, false) => format!(
            "`sagas abort {}` gives it up. That too waits for the participant of its step, which has to promise that the \
             step never runs.",
            saga.line.id
        ),
    }
}
