//! When a round strikes, and whom.

use std::cell::Cell;
use std::fmt;

use modulith_test::{Application, Random, children, is_alive, kill, until};
use tokio::sync::Notify;

/// Services of the split, and its gateway. Those that every order needs fall more often.
const CHILDREN: [&str; 9] =
    ["orders", "orders", "products", "products", "payments", "payments", "cart", "users", "gateway"];

/// The processes that die in one round.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Victim {
    /// The process that was started: the monolith, or the supervisor, whose children have to end by themselves.
    Started,
    /// One service, or the gateway: the supervisor starts it again.
    Child(&'static str),
    /// All at once, as when the machine loses its power, except that what was written to files stays.
    All,
}

impl Victim {
    pub(crate) fn draw(random: &mut Random, app: &Application) -> Self {
        if app.is_monolith() {
            return Self::Started;
        }
        // Two rounds of five end the supervisor, and with it its memory of who falls often: a child that falls
        // again and again is started later and later.
        match random.below(5) {
            0 => Self::Started,
            1 => Self::All,
            _ => Self::Child(CHILDREN[random.below(CHILDREN.len())]),
        }
    }

    pub(crate) fn kill(self, app: &Application) {
        let started = app.process().expect("the test has started it");
        let family = children(started);
        match self {
            Self::Started => kill(started),
            Self::Child(name) => {
                let child = modulith_test::child_of(started, name);
                // One that fell in the round before may not be back yet.
                child.into_iter().for_each(kill);
            }
            Self::All => {
                // The supervisor first: it would start the others again.
                kill(started);
                family.into_iter().for_each(|(child, _)| kill(child));
            }
        }
    }
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started => f.write_str("the process that was started"),
            Self::Child(name) => f.write_str(name),
            Self::All => f.write_str("all"),
        }
    }
}

/// The moment of a round, counted in requests: nobody sleeps, and the seed decides.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Moment {
    /// When so many requests have been sent; the last of them has no answer yet.
    Sent(usize),
    /// When so many orders were acknowledged: behind the answer, steps go on.
    Acknowledged(usize),
}

/// Counts to the moment. When it never comes, the strike falls at the end of the round, on a store at rest.
pub(crate) struct Strike {
    moment: Moment,
    sent: Cell<usize>,
    acknowledged: Cell<usize>,
    reached: Notify,
}

impl Strike {
    pub(crate) fn draw(random: &mut Random, requests: usize) -> Self {
        // About every second request is an order that is acknowledged.
        let moment = match random.once_in(2) {
            true => Moment::Sent(1 + random.below(requests)),
            false => Moment::Acknowledged(1 + random.below(requests.div_ceil(2))),
        };
        Self { moment, sent: Cell::new(0), acknowledged: Cell::new(0), reached: Notify::new() }
    }

    /// Say so before the request is sent: who waits for the strike runs after it has left.
    pub(crate) fn sent(&self) {
        self.sent.set(self.sent.get() + 1);
        if matches!(self.moment, Moment::Sent(count) if count == self.sent.get()) {
            self.reached.notify_one();
        }
    }

    pub(crate) fn acknowledged(&self) {
        self.acknowledged.set(self.acknowledged.get() + 1);
        if matches!(self.moment, Moment::Acknowledged(count) if count == self.acknowledged.get()) {
            self.reached.notify_one();
        }
    }

    /// Nothing more is sent.
    pub(crate) fn at_rest(&self) {
        self.reached.notify_one();
    }

    pub(crate) async fn reached(&self) {
        self.reached.notified().await;
    }
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sent, acknowledged) = (self.sent.get(), self.acknowledged.get());
        write!(f, "{:?} of {sent} sent and {acknowledged} acknowledged", self.moment)
    }
}

/// Waits until the store is back on the same data folder.
pub(crate) async fn back(
    app: &mut Application,
    victim: Victim,
    family: &[u32],
    environment: &[(&str, &str)],
) -> anyhow::Result<()> {
    if !matches!(victim, Victim::Child(_)) {
        let ended = async || family.iter().all(|process| !is_alive(*process)).then_some(());
        until("every process of a killed application to end", ended).await;
        app.start_again(environment).await?;
    }
    until("the application to be ready", async || {
        app.get("/readyz").await.ok().filter(|response| response.status == 200)
    })
    .await;
    Ok(())
}

/// The started process and its children.
pub(crate) fn family(app: &Application) -> Vec<u32> {
    let started = app.process().expect("the test has started it");
    let children = children(started).into_iter().map(|(child, _)| child);
    std::iter::once(started).chain(children).collect()
}
