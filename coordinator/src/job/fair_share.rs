//! Whose turn it is: namespaces share the workers by weight, not by who came
//! first.
//!
//! Pure: start-time fair queueing over the chunks of claimed jobs. Each namespace
//! has a time until which it is served, which moves on with what it takes,
//! divided by its weight; the one that is served until the earliest time is next.
//! One that was idle begins at the time of those that wait: what it left unused
//! it has not saved. Jobs whose priority counts across namespaces have a time of
//! their own for each priority, and go first.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap, HashSet},
};

/// The highest priority that a client may ask for.
pub const MAX_PRIORITY: i16 = 9;

/// What is added to a priority, from 1, that counts across namespaces.
const ACROSS: i16 = 10;

/// What a namespace of the weight 1 is served for a chunk: so much that every
/// weight up to [`MAX_WEIGHT`] divides it with hardly a rest.
const CHUNK: u64 = 1_000_000;

/// The largest weight of a namespace.
pub const MAX_WEIGHT: u32 = 1_000;

/// Returns the priority of a job that was asked for with this one, where that
/// may go before jobs of other namespaces.
pub fn across(asked: i16) -> i16 {
    if asked > 0 { asked + ACROSS } else { asked }
}

/// Returns the priority that a job was asked for with.
pub fn asked(priority: i16) -> i16 {
    priority % ACROSS
}

/// Returns the tier of a job: all of a higher one go first, whatever their
/// namespace. 0 is that of the jobs whose priority counts in their namespace.
pub fn tier(priority: i16) -> i16 {
    if priority > ACROSS { priority } else { 0 }
}

/// How large the shares of namespaces are; 1 where nothing is said.
#[derive(Debug, Clone, Default)]
pub struct Weights(HashMap<String, u32>);

impl Weights {
    /// What a namespace is served for a chunk.
    fn step(&self, namespace: &str) -> u64 {
        let weight = self.0.get(namespace).copied().unwrap_or(1).max(1);
        CHUNK / u64::from(weight)
    }

    /// The same for so many.
    fn cost(&self, namespace: &str, chunks: i64) -> u64 {
        let chunks = chunks.max(1).unsigned_abs();
        chunks.saturating_mul(self.step(namespace))
    }
}

impl FromIterator<(String, u32)> for Weights {
    fn from_iter<T: IntoIterator<Item = (String, u32)>>(weights: T) -> Self {
        Self(weights.into_iter().collect())
    }
}

/// A namespace that has jobs due in a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting<'a> {
    /// Which namespace.
    pub namespace: &'a str,
    /// Which tier.
    pub tier: i16,
    /// Chunks that its next job has, as far as known.
    pub chunks: i64,
    /// Since when that waits, by any clock: at equal times it is the turn of the
    /// one that waits longest.
    pub since: i64,
}

/// How much is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Most jobs.
    pub jobs: i64,
    /// Chunks that are enough; 0: no such bound.
    pub chunks: i64,
}

/// What a namespace may take now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Portion {
    /// Whose turn it is: the place among those that wait.
    pub waiting: usize,
    /// Most jobs.
    pub jobs: i64,
    /// Chunks with which it has enough: no job is added once those taken have so
    /// many.
    pub chunks: i64,
    /// Its jobs are taken in the order of the times at which they begin: the first
    /// at this one, and each later than the one before it by `step` for every
    /// chunk of that.
    pub from: i64,
    /// See `from`.
    pub step: i64,
}

/// The times of a tier.
#[derive(Debug, Default)]
struct Tier {
    /// The time at which the service began that was given last.
    now: u64,
    /// Until when a namespace is served, where that is later.
    until: HashMap<String, u64>,
}

impl Tier {
    fn until(&self, namespace: &str) -> u64 {
        self.until
            .get(namespace)
            .map_or(self.now, |until| self.now.max(*until))
    }
}

/// Decides whose turn it is.
#[derive(Debug, Default)]
pub struct FairShare {
    weights: Weights,
    tiers: BTreeMap<i16, Tier>,
}

impl FairShare {
    /// Begins with nobody served.
    pub fn new(weights: Weights) -> Self {
        Self {
            weights,
            tiers: BTreeMap::new(),
        }
    }

    /// Shares out what is wanted among those that wait, each of them once by
    /// namespace and tier, the highest tier first. Each tier could have all of it:
    /// how many jobs there are in one is not known. Nobody goes before one that
    /// `must_not`: at equal times the others do.
    pub fn portions(
        &self,
        waiting: &[Waiting<'_>],
        wanted: Wanted,
        must_not: impl Fn(&str) -> bool,
    ) -> Vec<Portion> {
        let mut tiers: BTreeMap<Reverse<i16>, Vec<usize>> = BTreeMap::new();
        for (place, one) in waiting.iter().enumerate() {
            tiers.entry(Reverse(one.tier)).or_default().push(place);
        }
        let mut portions = Vec::new();
        for (Reverse(tier), places) in tiers {
            if !self.portions_of_tier(tier, &places, waiting, wanted, &must_not, &mut portions) {
                break;
            }
        }
        portions
    }

    /// Returns whether somebody may go after this tier.
    fn portions_of_tier(
        &self,
        tier: i16,
        places: &[usize],
        waiting: &[Waiting<'_>],
        wanted: Wanted,
        must_not: &impl Fn(&str) -> bool,
        portions: &mut Vec<Portion>,
    ) -> bool {
        let most = if wanted.chunks > 0 {
            wanted.chunks
        } else {
            i64::MAX
        };
        let nobody = Tier::default();
        let times = self.tiers.get(&tier).unwrap_or(&nobody);
        let none_yet = |place: usize| {
            let namespace = waiting[place].namespace;
            let from = times.until(namespace) - times.now;
            Portion {
                waiting: place,
                jobs: 0,
                chunks: 0,
                from: i64::try_from(from).unwrap_or(i64::MAX),
                step: self.weights.step(namespace).cast_signed(),
            }
        };
        if let [alone] = places {
            let may = !must_not(waiting[*alone].namespace);
            portions.extend(may.then(|| Portion {
                jobs: wanted.jobs,
                chunks: most,
                ..none_yet(*alone)
            }));
            return may;
        }
        let mut next: BinaryHeap<_> = places
            .iter()
            .map(|place| {
                let namespace = waiting[*place].namespace;
                let since = waiting[*place].since;
                Reverse((times.until(namespace), must_not(namespace), since, *place))
            })
            .collect();
        let mut of: HashMap<usize, usize> = HashMap::new();
        let (mut jobs, mut chunks) = (0, 0);
        while jobs < wanted.jobs && chunks < most {
            let Some(Reverse((until, barred, since, place))) = next.pop() else {
                break;
            };
            if barred {
                return false;
            }
            let one = &waiting[place];
            let size = one.chunks.max(1);
            let at = *of.entry(place).or_insert_with(|| {
                portions.push(none_yet(place));
                portions.len() - 1
            });
            portions[at].jobs += 1;
            portions[at].chunks += size;
            (jobs, chunks) = (jobs + 1, chunks + size);
            let until = until.saturating_add(self.weights.cost(one.namespace, size));
            next.push(Reverse((until, barred, since, place)));
        }
        true
    }

    /// Takes in that a namespace got a job of so many chunks.
    pub fn took(&mut self, namespace: &str, tier: i16, chunks: i64) {
        let cost = self.weights.cost(namespace, chunks);
        let times = self.tiers.entry(tier).or_default();
        let from = times.until(namespace);
        times.now = times.now.max(from);
        let until = from.saturating_add(cost);
        times.until.insert(namespace.to_owned(), until);
    }

    /// Forgets who was served no longer than the time that it is; and where nobody
    /// waits all begin anew. The time stays where the last service began, so that
    /// one who takes little is served again before one who has taken much.
    pub fn go_on<'a>(&mut self, waiting: impl Iterator<Item = (&'a str, i16)>) {
        let waited_for: HashSet<i16> = waiting.map(|(_, tier)| tier).collect();
        self.tiers.retain(|tier, times| {
            times.until.retain(|_, until| *until > times.now);
            waited_for.contains(tier)
        });
    }
}

#[cfg(test)]
mod tests;
