//! What is known of a queue: where the jobs of each namespace begin, and whose
//! turn it is.

use std::collections::{HashMap, HashSet};

use tokio::time::Instant;

use crate::{
    job::fair_share::{self, FairShare, Waiting, Wanted, Weights, tier},
    store::{
        claim::{Claim, Head, Portion},
        rows::Job,
    },
};

/// Jobs of one namespace, model and priority.
#[derive(Debug)]
struct Level {
    head: Head,
    /// The wake-up at which nothing was left of them.
    drained: Option<u64>,
    /// Whether one was claimed since the last look.
    served: bool,
}

/// What is known of a queue.
#[derive(Debug)]
pub(super) struct Queue {
    /// By namespace, the highest priority first.
    levels: Vec<Level>,
    share: FairShare,
    /// The wake-up before the last look, and until when there is no other.
    seen: Option<(u64, Instant)>,
}

/// What was got of a portion.
#[derive(Debug, Clone, Copy, Default)]
struct Got {
    jobs: i64,
    chunks: i64,
    /// The last of its levels that a job was of.
    last: usize,
}

impl Got {
    fn add(&mut self, chunks: i64, level: usize) {
        self.jobs += 1;
        self.chunks += chunks;
        self.last = self.last.max(level);
    }
}

/// What may be claimed next.
pub(super) enum Next {
    /// Nothing is known to be due.
    Nothing,
    /// What is next is of a namespace that the worker has its hands full of.
    FullHands,
    /// These, as many as wanted.
    Portions(Portions),
}

/// Whose turn it is: places among the levels, and what may be taken of them.
pub(super) struct Portions(Vec<Places>);

struct Places {
    levels: Vec<usize>,
    tier: i16,
    share: fair_share::Portion,
}

impl Portions {
    pub(super) fn of<'a>(&self, queue: &'a Queue) -> Vec<Portion<'a>> {
        let portions = self.0.iter().map(|it| Portion {
            heads: it.levels.iter().map(|at| &queue.levels[*at].head).collect(),
            jobs: it.share.jobs,
            chunks: it.share.chunks,
            tier: it.tier,
            from: it.share.from,
            step: it.share.step,
        });
        portions.collect()
    }
}

impl Queue {
    pub(super) fn new(weights: Weights) -> Self {
        Self {
            levels: Vec::new(),
            share: FairShare::new(weights),
            seen: None,
        }
    }

    /// Whether it was looked at since this wake-up.
    pub(super) fn was_seen(&self, wake: u64) -> bool {
        self.seen.is_some_and(|(seen, _)| seen == wake)
    }

    /// Whether it is to be looked at: long enough after the last time, and not
    /// where that showed all there is and everything is taken.
    pub(super) fn is_due(&self, wake: u64) -> bool {
        let rested = self.seen.is_none_or(|(_, rest)| Instant::now() >= rest);
        rested && !(self.was_seen(wake) && self.levels.iter().all(|it| it.drained.is_some()))
    }

    /// When it may be looked at again, where something has come since.
    pub(super) fn rests_until(&self, wake: u64) -> Option<Instant> {
        self.seen
            .filter(|(seen, _)| *seen != wake)
            .map(|(_, rest)| rest)
    }

    /// Takes in what a look showed that began after this wake-up. What a claim
    /// emptied lately is kept in mind: most likely more comes to it.
    pub(super) fn saw(&mut self, heads: Vec<Head>, wake: u64, rest: Instant) {
        let there: HashSet<_> = heads.iter().map(key).collect();
        let lately = std::mem::take(&mut self.levels).into_iter();
        let lately = lately.filter(|it| it.served && !there.contains(&key(&it.head)));
        let lately = lately.map(|level| Level {
            drained: Some(wake),
            served: false,
            ..level
        });
        let lately: Vec<Level> = lately.collect();
        let found = heads.into_iter().map(|head| Level {
            head,
            drained: None,
            served: false,
        });
        self.levels = found.chain(lately).collect();
        self.levels.sort_by(|a, b| {
            let (a, b) = (&a.head, &b.head);
            let by_priority = b.priority.cmp(&a.priority);
            let by_age = || (a.run_at, a.id).cmp(&(b.run_at, b.id));
            let by_namespace = a.namespace.cmp(&b.namespace);
            by_namespace.then(by_priority).then_with(by_age)
        });
        self.seen = Some((wake, rest));
        self.go_on();
    }

    /// Decides whose turn it is. Where nothing is known to be left, but something
    /// came after the last look, what was emptied before is tried again.
    pub(super) fn next(&self, claim: &Claim<'_>, wake: u64) -> Next {
        let is_open = |level: &Level| level.drained.is_none();
        let may_be_filled =
            |level: &Level| !self.was_seen(wake) && level.drained.is_some_and(|it| it < wake);
        let mut waiting = self.waiting(is_open);
        if waiting.is_empty() {
            waiting = self.waiting(may_be_filled);
        }
        if waiting.is_empty() {
            return Next::Nothing;
        }
        let (ones, levels): (Vec<Waiting<'_>>, Vec<Vec<usize>>) = waiting.into_iter().unzip();
        let wanted = Wanted {
            jobs: claim.max_jobs,
            chunks: claim.max_chunks,
        };
        let full_of = |namespace: &str| claim.busy_with.iter().any(|it| it == namespace);
        let portions = self.share.portions(&ones, wanted, full_of).into_iter();
        let portions: Vec<Places> = portions
            .map(|share| Places {
                levels: levels[share.waiting].clone(),
                tier: ones[share.waiting].tier,
                share,
            })
            .collect();
        if portions.is_empty() {
            return Next::FullHands;
        }
        Next::Portions(Portions(portions))
    }

    /// Those who have such levels, once for each tier, with the places of these.
    fn waiting(&self, which: impl Fn(&Level) -> bool) -> Vec<(Waiting<'_>, Vec<usize>)> {
        let mut waiting: Vec<(Waiting<'_>, Vec<usize>)> = Vec::new();
        for (at, level) in self.levels.iter().enumerate().filter(|(_, it)| which(it)) {
            let head = &level.head;
            let (namespace, tier) = (head.namespace.as_str(), tier(head.priority));
            match waiting.last_mut() {
                Some((last, levels)) if (last.namespace, last.tier) == (namespace, tier) => {
                    levels.push(at);
                }
                _ => {
                    let one = Waiting {
                        namespace,
                        tier,
                        chunks: head.chunks,
                        since: head.run_at.timestamp_micros(),
                    };
                    waiting.push((one, vec![at]));
                }
            }
        }
        waiting
    }

    /// Takes in what a claim got of the portions that it was given, which began
    /// after this wake-up.
    pub(super) fn took(&mut self, claim: &Claim<'_>, portions: &Portions, jobs: &[Job], wake: u64) {
        let mut got = vec![Got::default(); portions.0.len()];
        let mut places: HashMap<usize, (usize, usize)> = HashMap::new();
        for (portion, it) in portions.0.iter().enumerate() {
            let levels = it.levels.iter().zip(0..);
            places.extend(levels.map(|(at, nth)| (*at, (portion, nth))));
        }
        for job in jobs {
            let Some(at) = self.level_of(job) else {
                continue;
            };
            let Some((portion, nth)) = places.get(&at).copied() else {
                continue;
            };
            let chunks = i64::from(job.chunks_pending());
            got[portion].add(chunks, nth);
            self.share.took(&job.namespace, tier(job.priority), chunks);
            let level = &mut self.levels[at];
            (level.served, level.drained) = (true, None);
            level.head.chunks = chunks;
            if (level.head.run_at, level.head.id) < (job.run_at, job.id) {
                (level.head.run_at, level.head.id) = (job.run_at, job.id);
            }
        }
        let all: i64 = got.iter().map(|it| it.chunks).sum();
        let is_enough = jobs.len() as i64 >= claim.max_jobs
            || (claim.max_chunks > 0 && all >= claim.max_chunks);
        if !is_enough {
            for (Places { levels, share, .. }, got) in portions.0.iter().zip(got) {
                if got.jobs < share.jobs && got.chunks < share.chunks {
                    // What is behind is tried next: what seemed to be before it others may have.
                    for at in &levels[..=got.last] {
                        self.levels[*at].drained = Some(wake);
                    }
                }
            }
        }
        self.go_on();
    }

    fn level_of(&self, job: &Job) -> Option<usize> {
        let from = self
            .levels
            .partition_point(|it| it.head.namespace < job.namespace);
        let of = (job.namespace.as_str(), job.model.as_str(), job.priority);
        let at = self.levels[from..]
            .iter()
            .position(|it| key(&it.head) == of);
        at.map(|at| from + at)
    }

    fn go_on(&mut self) {
        let open = self.levels.iter().filter(|it| it.drained.is_none());
        let waiting = open.map(|it| (it.head.namespace.as_str(), tier(it.head.priority)));
        self.share.go_on(waiting);
    }
}

/// What tells a level from the others.
fn key(head: &Head) -> (&str, &str, i16) {
    (&head.namespace, &head.model, head.priority)
}
