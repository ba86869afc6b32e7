//! Sagas as an operator reads them: at most 110 columns, as long as names are of a usual length. A saga's name is
//! never cut, so that it can be copied.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use modulith_data::inbox::RowState;
use serde_json::Value;

use super::{Doing, End, Line, Listed, Ordered, Row, Shown, Step};

const COLUMNS: usize = 110;
/// What the columns of the list have at most, but for the first.
const WIDTHS: [usize; 5] = [24, 8, 22, 7, 14];

pub(super) fn listed(listed: &Listed) -> String {
    let mut table = vec![["SAGA", "PLAN", "STATE", "STANDS AT", "BEGUN", "ATTENTION"].map(str::to_owned)];
    table.extend(listed.sagas.iter().map(cells));
    let width = |column: usize| table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for row in &table {
        let mut line = format!("{:<1$}", row[0], width(0));
        for (column, most) in (1..).zip(WIDTHS) {
            let width = width(column).min(most);
            let _ = write!(line, "  {:<width$}", cut(&row[column], width));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    let count =
        |number: Option<i64>| number.map_or("an unknown number".to_owned(), |number| number.to_string());
    let _ = writeln!(text, "{} open, {} of them need attention", count(listed.open), count(listed.attention));
    if let Some(next) = &listed.next {
        let _ = writeln!(text, "more with --after {next}");
    }
    text
}

fn cells(line: &Line) -> [String; 6] {
    [
        line.id.clone(),
        line.plan.clone(),
        line.state.name().to_owned(),
        stands_at(line),
        age(line.begun_ms),
        line.attention.as_ref().map_or(String::new(), |attention| attention.reason.code().to_owned()),
    ]
}

fn stands_at(line: &Line) -> String {
    let step = line.step.as_deref().unwrap_or("");
    match line.doing {
        None | Some(Doing::Run) => step.to_owned(),
        Some(Doing::Seal) => format!("seal {step}"),
        Some(Doing::Turn) => format!("turn at {step}"),
        Some(Doing::Undo) => format!("undo {step}"),
        Some(Doing::End) => "end".to_owned(),
    }
}

pub(super) fn shown(saga: &Shown) -> String {
    let mut text = String::new();
    let line = &saga.line;
    let _ = writeln!(text, "{}  {} version {}", line.id, line.plan, line.version);
    let mut state = line.state.name().to_owned();
    let at = stands_at(line);
    if !at.is_empty() {
        let _ = write!(state, ", at {at}");
    }
    let _ = write!(state, ", begun {} ago", age(line.begun_ms));
    if let Some(ended) = line.ended_ms {
        let _ = write!(state, ", ended {} ago", age(ended));
    }
    if line.state.is_open() {
        state.push_str(if saga.walked { ", is walked" } else { ", is left alone" });
    }
    field(&mut text, "state", &state);
    if line.state.is_open() && line.attempts > 0 {
        field(&mut text, "walks", &format!("{} that the process may not have survived", line.attempts));
    }
    if let Some(attention) = &line.attention {
        field(&mut text, "attention", &attention.to_string());
    }
    if saga.unanswered > 0 {
        let fault = saga.fault.as_deref().unwrap_or("no certain answer");
        field(&mut text, "waits", &format!("{} attempts without a certain answer; {fault}", saga.unanswered));
    }
    match &line.end {
        Some(End::Done(answer)) => field(&mut text, "answer", &answer.to_string()),
        Some(End::Refused { step, refusal }) => {
            field(&mut text, "refused", &format!("by {step}: {}, {}", refusal.code, refusal.text));
        }
        Some(End::Aborted(detail)) => field(&mut text, "aborted", detail),
        None => {}
    }
    if let Some(input) = &saga.input {
        field(&mut text, "input", &input.to_string());
    }
    if saga.in_one_transaction {
        field(&mut text, "steps", "in one transaction with the saga, so nothing stands under their keys");
    }
    for step in &saga.steps {
        step_shown(&mut text, saga, step);
    }
    if !saga.advice.is_empty() {
        text.push_str("\nWhat may be done\n");
        for advice in &saga.advice {
            wrapped(&mut text, "  - ", "    ", advice);
        }
    }
    text
}

fn step_shown(text: &mut String, saga: &Shown, step: &Step) {
    let kind = match step.kind {
        modulith_core::StepKind::Command => "command",
        modulith_core::StepKind::Effect => "effect",
    };
    let pivot = if step.is_pivot { ", the pivot" } else { "" };
    let _ = writeln!(text, "\n  {}: {kind} {} at service `{}`{pivot}", step.name, step.method, step.service);
    field(text, "  key", &step.key);
    if let Some(reason) = &step.unreachable {
        field(text, "  state", &format!("not known, {reason}"));
        return;
    }
    if saga.in_one_transaction {
        return;
    }
    field(text, "  state", &row(step.row.as_ref()));
    if let Some(refusal) = step.row.as_ref().and_then(|row| row.refusal.as_ref()) {
        field(text, "  refused", &format!("{}, {}", refusal.code, refusal.text));
    }
    if let Some(answer) = step.row.as_ref().and_then(|row| row.answer.as_ref()) {
        field(text, "  answer", &answer.to_string());
    }
    if let Some(undo) = &step.undo {
        field(text, "  undo", &format!("{undo}: {}", row(step.undo_row.as_ref())));
    }
}

fn row(row: Option<&Row>) -> String {
    let Some(row) = row else {
        return "none".to_owned();
    };
    let state = match row.state {
        RowState::Started => "started, and not known to have ended",
        RowState::Done => "done",
        RowState::Refused => "refused",
        RowState::Sealed => "sealed, never runs",
    };
    let attempts = if row.attempts > 1 { format!(", {} attempts", row.attempts) } else { String::new() };
    format!("{state}, {} ago{attempts}", age(row.first_at_ms))
}

pub(super) fn ordered(ordered: &Ordered) -> String {
    let mut text = format!("{}\n", ordered.id);
    wrapped(&mut text, "  ", "  ", &ordered.says);
    text
}

/// What an application answered instead of what it was asked for.
pub(super) fn problem(status: http::StatusCode, problem: &Value) -> String {
    let text = |name: &str| problem.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
    let mut message = match text("title") {
        title if title.is_empty() => format!("the application answers {status}"),
        title => title,
    };
    for more in [text("detail"), text_of_attention(problem)] {
        if !more.is_empty() {
            let _ = write!(message, ": {more}");
        }
    }
    message
}

fn text_of_attention(problem: &Value) -> String {
    problem.pointer("/attention/detail").and_then(Value::as_str).unwrap_or("").to_owned()
}

fn field(text: &mut String, name: &str, value: &str) {
    wrapped(text, &format!("  {name:<11}"), &" ".repeat(13), value);
}

/// At spaces, or wherever a line is full.
fn wrapped(text: &mut String, first: &str, others: &str, value: &str) {
    let mut line = first.to_owned();
    let mut is_empty = true;
    for word in value.split_inclusive(' ') {
        let mut word: Vec<char> = word.chars().collect();
        while line.chars().count() + word.len() > COLUMNS {
            if is_empty {
                let room = COLUMNS - line.chars().count();
                line.extend(word.drain(..room));
            }
            let _ = writeln!(text, "{}", line.trim_end());
            (line, is_empty) = (others.to_owned(), true);
        }
        is_empty = is_empty && word.is_empty();
        line.extend(word);
    }
    let _ = writeln!(text, "{}", line.trim_end());
}

fn cut(text: &str, width: usize) -> String {
    match text.char_indices().nth(width) {
        None => text.to_owned(),
        Some(_) => text.chars().take(width - 1).chain(['…']).collect(),
    }
}

fn age(at_ms: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis());
    let seconds = (i64::try_from(now).unwrap_or(i64::MAX) - at_ms).max(0) / 1000;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use modulith_data::saga::{Attention, AttentionReason, SagaState};
    use serde_json::json;

    fn line() -> Line {
        Line {
            id: "orders/5f3a9c1e-12.100000".into(),
            module: "orders".into(),
            plan: "orders.place_charged_from_cart".into(),
            version: 1,
            state: SagaState::Aborting,
            step: Some("a_step_with_a_long_name".into()),
            doing: Some(Doing::Undo),
            begun_ms: 0,
            ended_ms: None,
            attempts: 0,
            attention: Some(Attention::new(AttentionReason::HeldForEnded, "why ".repeat(60))),
            end: None,
        }
    }

    #[test]
    fn lists_and_sagas_fit_into_110_columns() {
        let list =
            listed(&Listed { sagas: vec![line()], open: Some(1), attention: Some(1), ..Listed::default() });
        assert!(
            list.contains("orders/5f3a9c1e-12.100000  orders.place_charged_fr…  aborting  undo"),
            "{list}"
        );
        let step = Step {
            name: "charge".into(),
            method: "payments.charge".into(),
            kind: modulith_core::StepKind::Effect,
            is_pivot: false,
            undo: Some("payments.refund".into()),
            service: "payments".into(),
            key: "s-5f3a9c1e000000000000000000000000-51539707552-1-d".into(),
            row: Some(Row {
                state: RowState::Done,
                attempts: 3,
                first_at_ms: 0,
                answer: Some(json!("x".repeat(300))),
                refusal: None,
            }),
            undo_row: None,
            unreachable: None,
        };
        let saga = Shown {
            line: line(),
            src: uuid::Uuid::nil(),
            walked: true,
            unanswered: 12,
            fault: Some("payments: unreachable ".repeat(20)),
            in_one_transaction: false,
            input: Some(json!({"card": "…"})),
            steps: vec![step],
            advice: vec!["advice ".repeat(40)],
        };
        for text in [list, shown(&saga)] {
            assert!(text.lines().all(|line| line.chars().count() <= COLUMNS), "{text}");
        }
        assert!(shown(&saga).contains(&"x".repeat(90)), "long words are not lost");
    }
}
