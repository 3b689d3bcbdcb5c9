//! A server with hidden properties, in virtual time.

use std::collections::HashSet;

use proptest::{collection::vec, prelude::*};
use weir_embedder::judge::{Answer, Hint};

/// Texts are shortened to no less than this.
pub(crate) const SHORTEST: usize = 64;

/// A kind of failure, each of which a server words in its own way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Poison,
    TooLong,
    TooMuch,
    Quota,
    Outage,
    Flake,
}

/// How a server words its failures.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manners {
    poison: Word,
    too_long: Word,
    too_much: Word,
    quota: Word,
    outage: Word,
}

/// What a failure seems to mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    Unknown,
    /// With the place of the text where there is one.
    Right,
    /// With the place of another text.
    WrongPlace,
    TooLong,
    TooMuch,
    Busy,
    Down,
    Broken,
}

/// How a poisoned text shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Symptom {
    /// The call fails.
    Fails,
    /// Its vector cannot be used.
    Flawed,
    /// The server dies and is away for so many milliseconds.
    Dies(u64),
    /// The call is not answered within the limit.
    Hangs,
}

/// A server of the population.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) texts: Vec<usize>,
    pub(crate) poison: HashSet<usize>,
    pub(crate) symptom: Symptom,
    /// Limits: texts of a call, bytes of a call, bytes of a text.
    pub(crate) most_texts: usize,
    pub(crate) most_bytes: usize,
    pub(crate) longest: usize,
    /// Outages: when they begin and how long they last, in milliseconds.
    pub(crate) outages: Vec<(u64, u64)>,
    /// Calls allowed in a second, if that is limited.
    pub(crate) quota: Option<usize>,
    /// One call in so many fails for nothing; 0 for none.
    pub(crate) flaky: u32,
    pub(crate) manners: Manners,
    pub(crate) ceiling: usize,
    pub(crate) concurrency: usize,
    pub(crate) call_ms: u64,
    pub(crate) seed: u64,
}

/// How long a call may take, in milliseconds.
pub(crate) const TIMEOUT: u64 = 5_000;

fn words(hints: bool, right: Vec<Word>) -> BoxedStrategy<Word> {
    if !hints {
        return Just(Word::Unknown).boxed();
    }
    prop_oneof![
        6 => prop::sample::select(right),
        1 => Just(Word::Unknown),
        1 => Just(Word::WrongPlace),
        1 => Just(Word::TooLong),
        1 => Just(Word::TooMuch),
        1 => Just(Word::Busy),
        1 => Just(Word::Down),
        1 => Just(Word::Broken),
    ]
    .boxed()
}

fn manners(hints: bool) -> impl Strategy<Value = Manners> {
    (
        words(hints, vec![Word::Right, Word::Unknown]),
        words(hints, vec![Word::TooLong, Word::Right]),
        words(hints, vec![Word::TooMuch]),
        words(hints, vec![Word::Busy]),
        words(hints, vec![Word::Down, Word::Broken]),
    )
        .prop_map(|(poison, too_long, too_much, quota, outage)| Manners {
            poison,
            too_long,
            too_much,
            quota,
            outage,
        })
}

/// Servers of all kinds. Without `hints` they say nothing that is understood.
pub(crate) fn arbitrary(hints: bool) -> impl Strategy<Value = Server> {
    let texts = vec(
        prop_oneof![8 => 20..2_000_usize, 1 => 2_000..12_000_usize],
        1..600,
    );
    let limits = (
        prop_oneof![2 => Just(usize::MAX), 1 => 1..40_usize],
        prop_oneof![3 => Just(usize::MAX), 1 => 4_000..60_000_usize],
        prop_oneof![3 => Just(usize::MAX), 1 => 1_000..8_000_usize],
    );
    let symptom = prop_oneof![
        4 => Just(Symptom::Fails),
        2 => Just(Symptom::Flawed),
        1 => (1..5_000_u64).prop_map(Symptom::Dies),
        1 => Just(Symptom::Hangs),
    ];
    // One trouble at a time, besides poison and limits.
    let trouble = prop_oneof![
        2 => Just((Vec::new(), None, 0_u32)),
        2 => vec((0..60_000_u64, 1..20_000_u64), 1..4).prop_map(|outages| (outages, None, 0)),
        1 => (6..30_usize).prop_map(|quota| (Vec::new(), Some(quota), 0)),
        1 => (8..50_u32).prop_map(|flaky| (Vec::new(), None, flaky)),
    ];
    (
        texts,
        prop_oneof![Just(0_u32), Just(10), Just(30), Just(200)],
        symptom,
        limits,
        trouble,
        manners(hints),
        (
            prop::sample::select(vec![1_usize, 8, 32, 100]),
            1..5_usize,
            1..400_u64,
            any::<u64>(),
        ),
    )
        .prop_map(
            |(texts, permille, symptom, limits, trouble, manners, rest)| {
                let seed = rest.3;
                let poison = (0..texts.len())
                    .filter(|at| noise(seed, *at as u64) % 1_000 < u64::from(permille))
                    .collect();
                Server {
                    poison,
                    symptom,
                    most_texts: limits.0,
                    most_bytes: limits.1,
                    longest: limits.2,
                    outages: trouble.0,
                    quota: trouble.1,
                    flaky: trouble.2,
                    manners,
                    ceiling: rest.0,
                    concurrency: rest.1,
                    call_ms: rest.2,
                    seed,
                    texts,
                }
            },
        )
}

/// A number that looks random and is not.
pub(crate) fn noise(seed: u64, at: u64) -> u64 {
    let mut x = seed ^ at.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// What a server is at, besides what it is.
#[derive(Debug, Default)]
pub(crate) struct Condition {
    /// Until when it is away, having died.
    dead_until: u64,
    second: (u64, usize),
    calls: u64,
}

impl Server {
    /// A server of which one text in a hundred is bad, and nothing else is wrong.
    pub(crate) fn plain(ceiling: usize, word: Word, symptom: Symptom) -> Self {
        Self {
            texts: vec![150; 2_000],
            poison: (0..2_000).filter(|text| text % 100 == 37).collect(),
            symptom,
            most_texts: usize::MAX,
            most_bytes: usize::MAX,
            longest: usize::MAX,
            outages: Vec::new(),
            quota: None,
            flaky: 0,
            manners: Manners {
                poison: word,
                too_long: word,
                too_much: word,
                quota: word,
                outage: word,
            },
            ceiling,
            concurrency: 1,
            call_ms: 10,
            seed: 1,
        }
    }

    /// The same, but one call in 8 to 15 fails for nothing, or it has a quota of 6
    /// to 8 calls.
    pub(crate) fn unsteady(self) -> Self {
        let drawn = noise(self.seed, u64::MAX);
        let quota = drawn
            .is_multiple_of(4)
            .then(|| 6 + (drawn / 4 % 3) as usize);
        Self {
            outages: Vec::new(),
            quota,
            flaky: quota.map_or(8 + (drawn / 4 % 8) as u32, |_| 0),
            ..self
        }
    }

    /// Whether it is away at this moment for a reason of its own.
    pub(crate) fn is_out(&self, now: u64) -> bool {
        let mut outages = self.outages.iter();
        outages.any(|(from, lasts)| (*from..from + lasts).contains(&now))
    }

    /// Answers a call of texts, each by its number (`None` for a probe) and how
    /// much of it is sent, and says how long that takes.
    pub(crate) fn answer(
        &self,
        condition: &mut Condition,
        now: u64,
        call: &[(Option<usize>, usize)],
    ) -> (Answer, u64, Option<Fault>) {
        condition.calls += 1;
        let fault = self.fault(condition, now, call);
        let Some((fault, place)) = fault else {
            return (self.vectors(call), self.call_ms, None);
        };
        let took = match (fault, self.symptom) {
            (Fault::Poison, Symptom::Hangs) => TIMEOUT,
            (Fault::Poison, Symptom::Dies(away)) => {
                condition.dead_until = now + 1 + away;
                1
            }
            _ => 1 + self.call_ms / 10,
        };
        (self.refusal(fault, place, call.len()), took, Some(fault))
    }

    fn vectors(&self, call: &[(Option<usize>, usize)]) -> Answer {
        let flaws = call.iter().map(|(text, _)| {
            let poisoned = text.is_some_and(|text| self.poison.contains(&text));
            poisoned.then(|| "NaN".to_owned())
        });
        Answer::Vectors(flaws.collect())
    }

    fn fault(
        &self,
        condition: &mut Condition,
        now: u64,
        call: &[(Option<usize>, usize)],
    ) -> Option<(Fault, Option<usize>)> {
        if self.is_out(now) || now < condition.dead_until {
            return Some((Fault::Outage, None));
        }
        if let Some(quota) = self.quota {
            let second = now / 1_000;
            if condition.second.0 != second {
                condition.second = (second, 0);
            }
            condition.second.1 += 1;
            if condition.second.1 > quota {
                return Some((Fault::Quota, None));
            }
        }
        if self.flaky > 0
            && noise(self.seed ^ 1, condition.calls).is_multiple_of(u64::from(self.flaky))
        {
            return Some((Fault::Flake, None));
        }
        let bytes: usize = call.iter().map(|(_, bytes)| bytes).sum();
        if call.len() > self.most_texts || bytes > self.most_bytes {
            return Some((Fault::TooMuch, None));
        }
        if let Some(place) = call.iter().position(|(_, bytes)| *bytes > self.longest) {
            return Some((Fault::TooLong, Some(place)));
        }
        if self.symptom == Symptom::Flawed {
            return None;
        }
        let poisoned = |(text, _): &(Option<usize>, usize)| {
            text.is_some_and(|text| self.poison.contains(&text))
        };
        let place = call.iter().position(poisoned)?;
        Some((Fault::Poison, Some(place)))
    }

    fn refusal(&self, fault: Fault, place: Option<usize>, texts: usize) -> Answer {
        let word = match fault {
            Fault::Poison => match self.symptom {
                Symptom::Dies(_) | Symptom::Hangs if self.manners.poison != Word::Unknown => {
                    Word::Broken
                }
                _ => self.manners.poison,
            },
            Fault::TooLong => self.manners.too_long,
            Fault::TooMuch => self.manners.too_much,
            Fault::Quota => self.manners.quota,
            Fault::Outage => self.manners.outage,
            Fault::Flake => Word::Unknown,
        };
        let hint = match word {
            Word::Unknown => Hint::Unknown,
            Word::Right => match (fault, place) {
                (Fault::TooLong, place) => Hint::TooLong(place),
                (_, Some(place)) => Hint::Text(place),
                (_, None) => Hint::Unknown,
            },
            Word::WrongPlace => Hint::Text((place.unwrap_or(0) + 1) % texts),
            Word::TooLong => Hint::TooLong(None),
            Word::TooMuch => Hint::TooMuch,
            Word::Busy => Hint::Busy,
            Word::Down => Hint::Down,
            Word::Broken => Hint::Broken,
        };
        Answer::Failed {
            hint,
            reason: format!("{fault:?}"),
        }
    }

    /// How many calls any search needs at least to learn what there is to
    /// learn, about.
    pub(crate) fn least(&self) -> f64 {
        // Whole calls, as the server takes them.
        let most = self.ceiling.min(self.most_texts).max(1);
        let (mut calls, mut texts, mut bytes) = (1.0, 0, 0);
        for length in &self.texts {
            let sent = (*length).min(self.longest).min(self.most_bytes);
            if texts + 1 > most || bytes + sent > self.most_bytes.min(4 * TOKENS) {
                calls += 1.0;
                (texts, bytes) = (0, 0);
            }
            texts += 1;
            bytes += sent;
        }
        // A rate of whims that is lower than one in all of these is told from none by nobody, and
        // with each outage began one that may be.
        let (bad, long) = (self.poison.len() as f64, self.long() as f64);
        let one_in = self.quota.unwrap_or(self.flaky as usize) as f64;
        let tries = |seen: f64| {
            let seen = seen / (1 + self.outages.len()) as f64;
            let one_in = if one_in > 0.0 { one_in.min(seen) } else { seen };
            (-UNLIKELY.ln() / one_in.max(MOST_OFTEN).ln()).ceil()
        };
        // Each bad text: which of a call it is, and as many failures as are no accident.
        let per_call = self.texts.len() as f64 / calls;
        let search = per_call.log2().max(0.0);
        let (search_bad, tries_bad) = match self.symptom {
            Symptom::Flawed => (0.0, tries(self.texts.len() as f64)),
            _ => (search, tries(calls + bad + long)),
        };
        // Each failure lies between calls that pass, or a quota may be used up. Those that the texts
        // and half of their search need anyway serve, as far as they go.
        let vouching = (bad * tries_bad - bad * search_bad / 2.0 - calls).max(0.0);
        // Each long text: which of a call it is, that it fails, and how much of it passes. How long
        // a text may be is proved once from above, and once more by one that is not as long.
        let limit = if long > 0.0 {
            2.0 * tries(calls + bad + long)
        } else {
            0.0
        };
        // Where calls fail for nothing, innocent texts fail alone as well, and while the server is
        // hardly known nobody can tell.
        let suspects = if one_in > 0.0 { self.texts.len() } else { 0 };
        let unknown = suspects.min(FIRST);
        let bad = bad * (search_bad + tries_bad) + vouching;
        calls + bad + long * (search + 3.0) + limit + unknown as f64
    }

    /// How many texts are longer than it takes.
    fn long(&self) -> usize {
        let longest = self.longest.min(self.most_bytes);
        self.texts
            .iter()
            .filter(|length| **length > longest)
            .count()
    }
}

/// Innocent texts that fail alone while a server is hardly known.
const FIRST: usize = 8;
/// The chance of an accident that nobody need reckon with, and the calls of
/// which one is taken to be one where fewer were seen.
const UNLIKELY: f64 = 1e-9;
const MOST_OFTEN: f64 = 8.0;
/// Most estimated tokens in a call.
pub(crate) const TOKENS: usize = 16_384;
