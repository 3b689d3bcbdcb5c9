//! Texts that were embedded more than once, and who had lost what was embedded
//! before.
//!
//! Every text is new, so the embedder should answer for it once. Where it did so
//! `n` times, at least `n - 1` of its calls must have been in vain for a reason
//! that the law allows:
//!
//! - the lease that the call was made under was lost: expired, cancelled or its
//!   source deleted. Each costs what a worker holds at most, also when its worker
//!   was killed; a write ends no lease;
//! - the answer was cut off on its way from the embedder to the worker;
//! - the worker was told to end, and its drain timeout was over before the result
//!   could be acknowledged;
//! - the job was handed back, because the embedder failed, while an answer was
//!   delayed on its way for longer than a session waits for it then.
//!
//! A crash of a coordinator or of Postgres is no reason: results that were not
//! acknowledged are sent again. And nothing is a reason to embed a text under a
//! lease that was claimed when its vector was there already.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ptr,
    time::{Duration, SystemTime},
};

use weir_tests::embedder::Call;

use crate::{
    cluster::IN_HAND,
    history::{End, History, Lease},
    journal::{Event, Journal},
    pen::place_of_text,
    schedule::{Fault, Place},
};

/// What was embedded more than once.
#[derive(Debug, Default)]
pub(crate) struct Repeats {
    /// Texts, by why.
    pub(crate) texts: BTreeMap<Reason, usize>,
    /// Calls that were in vain for at least one text.
    pub(crate) calls: usize,
    /// What no reason accounts for.
    wrong: Vec<String>,
    /// Vectors written under a lease of a worker that did not make them.
    foreign: Vec<String>,
}

/// Why a call was in vain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reason {
    /// Its lease was taken away, for this reason.
    LeaseLost(String),
    /// Its answer did not arrive.
    AnswerCutOff,
    /// Its worker ended before the result was acknowledged.
    Drained,
    /// Its answer was on its way for too long.
    Delayed,
}

/// Reckons what was embedded more than once, and finds what should not have
/// been.
pub(crate) fn reckon(
    history: &History,
    calls: &[Call],
    events: &[Event],
    journal: &Journal,
) -> Repeats {
    let mut repeats = Repeats::default();
    let mut in_vain = HashSet::new();
    // Texts lost, by lease.
    let mut lost: HashMap<*const Lease, usize> = HashMap::new();
    for (text, calls) in answered(calls) {
        repeats.check_writers(history, text, &calls);
        let mut again = calls.len() - 1;
        let mut untold = Vec::new();
        for call in calls {
            let lease = history.lease_of(call, text);
            repeats.check_lease(history, text, lease);
            match reason(call, lease, events) {
                // One of the calls need not have been in vain.
                Some(_) if again == 0 => {}
                Some(reason) => {
                    again -= 1;
                    in_vain.insert(ptr::from_ref(call));
                    if let (Reason::LeaseLost(_), Some(lease)) = (&reason, lease) {
                        *lost.entry(ptr::from_ref(lease)).or_default() += 1;
                    }
                    *repeats.texts.entry(reason).or_default() += 1;
                }
                None => {
                    let lease = lease.map_or("no lease".to_owned(), Lease::to_string);
                    untold.push(format!("{} under {lease}", call.caller));
                }
            }
        }
        if again > 0 {
            let untold = untold.join(", ");
            repeats.wrong.push(format!("{text:?}, by {untold}"));
        }
    }
    if let Some(texts) = lost
        .values()
        .copied()
        .max()
        .filter(|texts| *texts > IN_HAND)
    {
        repeats
            .wrong
            .push(format!("{texts} texts of one lost lease"));
    }
    if let Some(first) = repeats.wrong.first() {
        let count = repeats.wrong.len();
        journal.find(format!(
            "{count} times there was no need to embed again, such as {first}"
        ));
    }
    if let Some(first) = repeats.foreign.first() {
        let count = repeats.foreign.len();
        journal.find(format!(
            "{count} vectors were written by strangers to the lease, such as {first}"
        ));
    }
    repeats.calls = in_vain.len();
    repeats
}

impl Repeats {
    fn check_lease(&mut self, history: &History, text: &str, lease: Option<&Lease>) {
        let (Some(lease), [(_, persisted), ..]) = (lease, history.persisted(text)) else {
            return;
        };
        if lease.claimed > *persisted {
            self.wrong.push(format!(
                "{text:?}, whose vector was there before {lease} began"
            ));
        }
    }

    /// Law 3: whoever wrote the vector under its lease had been given it.
    fn check_writers(&mut self, history: &History, text: &str, calls: &[&Call]) {
        for (worker, at) in history.persisted(text) {
            let embedded = |call: &&Call| call.caller == *worker && call.came < *at;
            if !calls.iter().any(embedded) {
                self.foreign
                    .push(format!("{text:?}, under a lease of {worker}"));
            }
        }
    }

    /// Texts that lost leases cost.
    pub(crate) fn by_leases(&self) -> usize {
        let of_leases = |(reason, _): &(&Reason, &usize)| matches!(reason, Reason::LeaseLost(_));
        self.texts
            .iter()
            .filter(of_leases)
            .map(|(_, texts)| texts)
            .sum()
    }
}

/// The calls that were answered for each text of a client.
fn answered(calls: &[Call]) -> HashMap<&str, Vec<&Call>> {
    let mut by_text: HashMap<&str, Vec<&Call>> = HashMap::new();
    for call in calls.iter().filter(|call| call.answered) {
        // A probe is no text of a client.
        let texts = call
            .texts
            .iter()
            .filter(|text| place_of_text(text).is_some());
        for text in texts {
            by_text.entry(text).or_default().push(call);
        }
    }
    by_text
}

fn reason(call: &Call, lease: Option<&Lease>, events: &[Event]) -> Option<Reason> {
    // An answer is on its way for a moment.
    let arrived = call.ended.unwrap_or(call.came) + Duration::from_millis(500);
    match lease.map(|lease| &lease.end) {
        Some(Some(End::Lost(reason))) => Some(Reason::LeaseLost(reason.clone())),
        _ if befell(call, (call.came, arrived), events, |n, event| {
            event.place == Place::EmbedderLink(n) && !matches!(event.fault, Fault::Delay(_))
        }) =>
        {
            Some(Reason::AnswerCutOff)
        }
        // However long the result had waited for its acknowledgement.
        Some(Some(End::HandedBack(at)))
            if befell(call, (*at, *at), events, |n, event| {
                event.place == Place::Worker(n) && event.fault == Fault::Terminate
            }) =>
        {
            Some(Reason::Drained)
        }
        Some(Some(End::HandedBack(at)))
            if befell(call, (call.came, *at), events, |n, event| {
                event.place == Place::EmbedderLink(n) && matches!(event.fault, Fault::Delay(_))
            }) =>
        {
            Some(Reason::Delayed)
        }
        _ => None,
    }
}

/// Whether something happened between two moments to the worker of a call, given
/// by its number.
fn befell(
    call: &Call,
    (from, to): (SystemTime, SystemTime),
    events: &[Event],
    is_it: impl Fn(usize, &Event) -> bool,
) -> bool {
    let worker = call.caller.strip_prefix("worker-");
    let number = worker.and_then(|worker| worker.split('.').next()?.parse().ok());
    number.is_some_and(|number| {
        let mut events = events.iter();
        events.any(|event| event.from <= to && from <= event.to && is_it(number, event))
    })
}
