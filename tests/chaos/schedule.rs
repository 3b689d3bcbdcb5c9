//! What goes wrong, and when: drawn from a seed alone, so that a run can be
//! repeated.

use std::{fmt, time::Duration};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use weir_tests::proxy::{Cut, Silence};

/// How many of each there are.
pub(crate) const COORDINATORS: usize = 2;
pub(crate) const WORKERS: usize = 4;
pub(crate) const CLIENTS: usize = 3;
/// Sources of a client.
pub(crate) const SOURCES: usize = 8;

/// Longest that anything is stopped or silent: longer than a lease.
pub(crate) const LONGEST: Duration = Duration::from_secs(5);

/// What a fault befalls. The faults of one place come one after the other, those
/// of different places at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Place {
    Coordinator(usize),
    Worker(usize),
    /// A machine with a coordinator and every worker of the same turn.
    Node(usize),
    Postgres,
    /// The row of some source.
    Source,
    Embedder,
    /// From a worker to the coordinators.
    WorkerLink(usize),
    /// From a worker to the embedder.
    EmbedderLink(usize),
    /// From a coordinator to Postgres.
    PostgresLink(usize),
    /// From a client to the coordinators.
    ClientLink(usize),
}

/// One thing that goes wrong, for as long as its step lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL; it starts again at the end.
    Kill,
    /// Ended in order; it starts again at the end.
    Terminate,
    /// SIGSTOP, and SIGCONT at the end.
    Stop,
    /// SIGKILL for good, and its standby takes over.
    Promote,
    /// A session holds the lock of a client's source, or of the hot one.
    Lock(Option<(usize, usize)>),
    /// The connections are cut, once.
    Cut(Cut),
    /// New connections are refused, those that are there cut.
    Refuse,
    /// Everything comes this much later.
    Delay(Duration),
    /// Connections are half-open; at the end what was held arrives.
    Silence(Silence),
    /// Connections are half-open, and are cut at the end.
    SilenceThenCut(Silence),
    /// The embedder is rude to so many of a hundred calls.
    Rude(Rudeness, u8),
}

/// How the embedder errs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Rudeness {
    /// 429 with `Retry-After`.
    Busy,
    /// 500.
    Broken,
    /// 503.
    Away,
    /// One vector is missing.
    WrongCount,
    /// The answer breaks off.
    CutOff,
    /// No answer comes at all.
    Silent,
}

impl Fault {
    /// The name under which faults of a kind are counted.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::Kill => "SIGKILL",
            Self::Terminate => "restart",
            Self::Stop => "SIGSTOP",
            Self::Promote => "promoted",
            Self::Lock(None) => "locked, hot",
            Self::Lock(Some(_)) => "locked",
            Self::Cut(Cut::Reset) => "reset",
            Self::Cut(Cut::Close) => "closed",
            Self::Refuse => "refused",
            Self::Delay(_) => "delayed",
            Self::Silence(_) => "half-open",
            Self::SilenceThenCut(_) => "half-open, cut",
            Self::Rude(Rudeness::Busy, _) => "429",
            Self::Rude(Rudeness::Broken, _) => "500",
            Self::Rude(Rudeness::Away, _) => "503",
            Self::Rude(Rudeness::WrongCount, _) => "wrong count",
            Self::Rude(Rudeness::CutOff, _) => "cut off",
            Self::Rude(Rudeness::Silent, _) => "no answer",
        }
    }
}

/// A fault, when it begins, counted from the start of the run, and how long it
/// lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) at: Duration,
    pub(crate) fault: Fault,
    pub(crate) lasts: Duration,
}

impl Place {
    /// Every place there is.
    pub(crate) fn all() -> Vec<Self> {
        let workers = (0..WORKERS)
            .flat_map(|n| [Self::Worker(n), Self::WorkerLink(n), Self::EmbedderLink(n)]);
        let coordinators = (0..COORDINATORS)
            .flat_map(|n| [Self::Coordinator(n), Self::PostgresLink(n), Self::Node(n)]);
        let clients = (0..CLIENTS).map(Self::ClientLink);
        [Self::Postgres, Self::Embedder, Self::Source]
            .into_iter()
            .chain(coordinators)
            .chain(workers)
            .chain(clients)
            .collect()
    }

    /// How long it is left alone between two faults, on average.
    fn peace(self) -> Duration {
        Duration::from_secs(match self {
            Self::Coordinator(_) | Self::PostgresLink(_) | Self::ClientLink(_) => 9,
            Self::Worker(_) => 7,
            Self::Postgres => 14,
            Self::Node(_) => 18,
            Self::Embedder | Self::Source => 5,
            Self::WorkerLink(_) | Self::EmbedderLink(_) => 8,
        })
    }

    /// The kind of place, for counting.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::Coordinator(_) => "coordinator",
            Self::Worker(_) => "worker",
            Self::Node(_) => "node",
            Self::Postgres => "Postgres",
            Self::Source => "source",
            Self::Embedder => "embedder",
            Self::WorkerLink(_) => "worker - coordinator",
            Self::EmbedderLink(_) => "worker - embedder",
            Self::PostgresLink(_) => "coordinator - Postgres",
            Self::ClientLink(_) => "client - coordinator",
        }
    }

    fn draw(self, random: &mut StdRng) -> (Fault, Duration) {
        let fault = match self {
            Self::Coordinator(_) | Self::Worker(_) => *one_of(
                random,
                &[Fault::Kill, Fault::Kill, Fault::Stop, Fault::Terminate],
            ),
            Self::Postgres => *one_of(
                random,
                &[
                    Fault::Kill,
                    Fault::Promote,
                    Fault::Promote,
                    Fault::Stop,
                    Fault::Terminate,
                ],
            ),
            Self::Node(_) => Fault::Kill,
            Self::Source => {
                let client = random.random_range(0..CLIENTS);
                let source = random.random_range(0..SOURCES);
                *one_of(
                    random,
                    &[Fault::Lock(None), Fault::Lock(Some((client, source)))],
                )
            }
            Self::Embedder => {
                let rudeness = [
                    Rudeness::Busy,
                    Rudeness::Broken,
                    Rudeness::Away,
                    Rudeness::WrongCount,
                    Rudeness::CutOff,
                    Rudeness::Silent,
                ];
                Fault::Rude(*one_of(random, &rudeness), random.random_range(10..=60))
            }
            _ => {
                let silence = *one_of(
                    random,
                    &[Silence::ToTarget, Silence::ToClient, Silence::Both],
                );
                let delay = Duration::from_millis(random.random_range(20..=300));
                *one_of(
                    random,
                    &[
                        Fault::Cut(Cut::Reset),
                        Fault::Cut(Cut::Close),
                        Fault::Refuse,
                        Fault::Delay(delay),
                        Fault::Silence(silence),
                        Fault::SilenceThenCut(silence),
                    ],
                )
            }
        };
        let millis = match fault {
            Fault::Cut(_) => 0..=0,
            // As long as it takes something to start it again.
            Fault::Kill | Fault::Terminate | Fault::Promote => 50..=2_000,
            Fault::Refuse | Fault::Delay(_) | Fault::Rude(..) => 300..=3_000,
            Fault::Stop | Fault::Lock(_) | Fault::Silence(_) | Fault::SilenceThenCut(_) => {
                300..=LONGEST.as_millis() as u64
            }
        };
        (fault, Duration::from_millis(random.random_range(millis)))
    }
}

fn one_of<'a, T>(random: &mut StdRng, from: &'a [T]) -> &'a T {
    from.choose(random).expect("there are some")
}

/// Everything that befalls a place in a run of this length: a function of the
/// seed and the place.
pub(crate) fn steps(seed: u64, place: Place, length: Duration) -> Vec<Step> {
    let mut random = source(seed, &place);
    let mut steps = Vec::new();
    let mut at = Duration::ZERO;
    loop {
        at += place.peace().mul_f64(random.random_range(0.2..1.8));
        let (fault, lasts) = place.draw(&mut random);
        if at + lasts > length {
            return steps;
        }
        steps.push(Step { at, fault, lasts });
        at += lasts;
    }
}

/// Randomness of one's own, from the seed of the run and a name.
pub(crate) fn source(seed: u64, name: &impl fmt::Debug) -> StdRng {
    use sha2::{Digest as _, Sha256};
    StdRng::from_seed(Sha256::digest(format!("{seed} {name:?}")).into())
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Postgres | Self::Embedder | Self::Source => f.write_str(self.kind()),
            Self::Coordinator(n) | Self::Worker(n) | Self::Node(n) => {
                write!(f, "{}-{n}", self.kind())
            }
            Self::WorkerLink(n) => write!(f, "worker-{n} - coordinator"),
            Self::EmbedderLink(n) => write!(f, "worker-{n} - embedder"),
            Self::PostgresLink(n) => write!(f, "coordinator-{n} - Postgres"),
            Self::ClientLink(n) => write!(f, "client-{n} - coordinator"),
        }
    }
}

#[test]
fn a_seed_is_a_schedule() {
    let length = Duration::from_mins(10);
    let schedule = |seed| {
        Place::all()
            .into_iter()
            .map(move |place| steps(seed, place, length))
    };
    assert!(schedule(7).eq(schedule(7)));
    assert!(schedule(7).ne(schedule(8)));
    let kinds: std::collections::BTreeSet<_> = schedule(7)
        .flatten()
        .map(|step| step.fault.kind())
        .collect();
    assert_eq!(kinds.len(), 18, "{kinds:?}");
}
