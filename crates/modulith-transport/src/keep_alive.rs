//! Tells a silent connection from a dead one.
//!
//! One timer a connection, armed again only when it fires: hearing something costs a clock reading and nothing
//! more. A process that was stopped for a while must not declare its peers dead on waking, so death needs a
//! ping that was sent and not answered, and the owner reads its socket before it asks here.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep, sleep_until};

use crate::Limits;

pub(crate) enum Beat {
    Ping,
    Dead,
}

pub(crate) struct KeepAlive {
    interval: Duration,
    /// How long a ping may stay unanswered.
    patience: Duration,
    heard: Instant,
    pinged: Option<Instant>,
    timer: Pin<Box<Sleep>>,
}

impl KeepAlive {
    pub(crate) fn new(limits: &Limits) -> Self {
        let now = Instant::now();
        Self {
            interval: limits.keep_alive_interval,
            patience: limits.dead_after.saturating_sub(limits.keep_alive_interval),
            heard: now,
            pinged: None,
            timer: Box::pin(sleep_until(now + limits.keep_alive_interval)),
        }
    }

    /// The other side gave a sign of life.
    pub(crate) fn heard(&mut self, now: Instant) {
        self.heard = now;
        self.pinged = None;
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Beat> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let (next, beat) = match self.pinged {
                None if now < self.heard + self.interval => (self.heard + self.interval, None),
                None => {
                    self.pinged = Some(now);
                    // The answer is heard soon, and from then on the silence counts.
                    (now + self.patience.min(self.interval), Some(Beat::Ping))
                }
                Some(pinged) if now < pinged + self.patience => (pinged + self.patience, None),
                Some(_) => (now + self.interval, Some(Beat::Dead)),
            };
            self.timer.as_mut().reset(next);
            if let Some(beat) = beat {
                return Poll::Ready(beat);
            }
        }
        Poll::Pending
    }
}

/// Says when to look for bodies that make no progress; the timer runs only while there are any.
pub(crate) struct Rounds {
    every: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Rounds {
    /// Four rounds in the time that a body may idle, so that it is ended at most a quarter late.
    pub(crate) fn new(limits: &Limits) -> Self {
        Self { every: limits.body_idle_max / 4, timer: None }
    }

    /// Ready when it is time to look.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, has_bodies: bool) -> Poll<()> {
        if !has_bodies {
            self.timer = None;
            return Poll::Pending;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(self.every)));
        if timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        timer.as_mut().reset(Instant::now() + self.every);
        // Not polled again in this turn, so the task must be, for the timer to be armed.
        cx.waker().wake_by_ref();
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// However long the other side was there, and answered pings after a while, and however little else it said.
    #[tokio::test(start_paused = true)]
    async fn silence_is_found_in_time() {
        let limits = Limits::default();
        for (answers_ms, last_ms) in [(0, 0), (1, 1), (1, 1_999), (1, 2_002), (1_500, 7_000), (3_900, 20_000)]
        {
            let mut alive = KeepAlive::new(&limits);
            let begun = Instant::now();
            let mut last = begun;
            loop {
                match poll_fn(|cx| alive.poll(cx)).await {
                    Beat::Ping if begun.elapsed() <= Duration::from_millis(last_ms) => {
                        sleep(Duration::from_millis(answers_ms)).await;
                        last = Instant::now();
                        alive.heard(last);
                    }
                    Beat::Ping => {}
                    Beat::Dead => break,
                }
            }
            let silent = last.elapsed();
            // A timer of tokio is at most a millisecond late, and three follow each other.
            let latest = limits.dead_after + Duration::from_millis(3);
            assert!(
                silent >= limits.dead_after && silent <= latest,
                "{silent:?} at {answers_ms} and {last_ms} ms"
            );
        }
    }
}
