//! A crowd of callers: threads that write prepared bytes to connections that stay open.
//!
//! What is measured is the store's time and little else: from the moment a request is handed to the kernel until a thread
//! that only waited for it has read the last byte of its answer. A client of thousands of tasks in a debug build shares
//! the cores with the processes under test and is late itself, by 1 s and more. A thread that is woken by its socket is not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use modulith_test::HttpConnection;
use serde_json::Value;

use super::buyers::{Answer, Buyer};

/// How a crowd asks.
#[derive(Clone, Copy)]
pub(crate) struct Crowd {
    /// Callers, each with a connection, of which it waits for one answer at a time.
    pub(crate) callers: u32,
    /// Orders a second of all together, at even distances, whether others are answered or not, as long as a caller is free;
    /// without it, each orders as soon as it has an answer.
    pub(crate) per_second: Option<f64>,
    pub(crate) lasts: Duration,
    pub(crate) deadline_ms: u64,
}

/// What one attempt was told.
struct Told {
    key: String,
    answer: Answer,
    /// Of an order, or of a refusal that is not to be repeated.
    json: Option<Value>,
}

impl Crowd {
    /// Every answer. The buyer remembers what it was told.
    pub(crate) async fn orders(self, buyer: &Buyer, url: &str) -> anyhow::Result<Vec<Answer>> {
        let address = url.strip_prefix("http://").context("an address")?.to_owned();
        let callers = buyer.clone();
        let told = tokio::task::spawn_blocking(move || self.ask(&callers, &address)).await??;
        let mut answers = Vec::with_capacity(told.len());
        for Told { key, answer, json } in told {
            let order = json.filter(|_| answer.is_certain);
            buyer
                .remembers(key, order.map(|json| if answer.status == 201 { json } else { Value::Null }))
                .await;
            answers.push(answer);
        }
        Ok(answers)
    }

    fn ask(self, buyer: &Buyer, address: &str) -> anyhow::Result<Vec<Told>> {
        let connect = |_| HttpConnection::open(address);
        let connections = (0..self.callers).map(connect).collect::<Result<Vec<_>, _>>()?;
        let (begun, turn) = (Instant::now(), Arc::new(AtomicU32::new(0)));
        let call = |connection| self.call(buyer, connection, begun, &turn);
        thread::scope(|scope| {
            let callers: Vec<_> =
                connections.into_iter().map(|connection| scope.spawn(move || call(connection))).collect();
            let mut told = Vec::new();
            for caller in callers {
                told.extend(caller.join().expect("no caller panics")?);
            }
            Ok(told)
        })
    }

    /// One caller. Whoever is free takes the next turn.
    fn call(
        self,
        buyer: &Buyer,
        mut connection: HttpConnection,
        begun: Instant,
        turn: &AtomicU32,
    ) -> anyhow::Result<Vec<Told>> {
        let mut told = Vec::new();
        loop {
            let due = match self.per_second {
                None => begun.elapsed(),
                Some(per_second) => Duration::from_secs(1)
                    .mul_f64(f64::from(turn.fetch_add(1, Ordering::Relaxed)) / per_second),
            };
            if due.max(begun.elapsed()) >= self.lasts {
                return Ok(told);
            }
            // The pace of the crowd; nothing is awaited by it.
            thread::sleep(due.saturating_sub(begun.elapsed()));
            let (key, request) = buyer.written_order(self.deadline_ms);
            let asked = Instant::now();
            let answer = connection.send(&request)?;
            let took = asked.elapsed();
            let status = answer.status;
            let says_when_to_come_again = answer.header("retry-after").is_some();
            // Most are refusals of one kind. Reading each would take time from those who are measured.
            let json: Option<Value> = match says_when_to_come_again {
                true => None,
                false => Some(serde_json::from_slice(answer.body)?),
            };
            let is_aborted = json.as_ref().is_some_and(|json| json["type"] == "/problems/aborted");
            let is_certain = status == 201 || is_aborted;
            told.push(Told {
                key,
                answer: Answer { status, says_when_to_come_again, is_certain, took },
                json,
            });
        }
    }
}
