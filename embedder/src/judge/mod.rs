//! Decides which texts are sent to an embedder next, and what its answers prove.
//!
//! Pure: no clock, no network, no runtime. Calls and their answers go in, the
//! next experiment or a verdict comes out. What a server says with a failure,
//! its status and its words, is a [`Hint`]: it decides which experiment comes
//! first and never what is concluded. The conclusions are these:
//!
//! - **The embedder is down** when it fails a probe. Nobody is to blame.
//! - **A call was too large** when it failed and none as large has passed. Less
//!   is sent, and more is tried again, ever more rarely while that fails.
//! - **A text is too long** when it fails alone, again and again, and its
//!   beginning passes. Less and less of it is tried until that passes, and then
//!   the least that failed, until that is proved to be too much.
//! - **A text is rejected** when it and then its beginning failed alone, while
//!   other texts passed after each of these failures, and as often as could
//!   happen to an innocent one once in a thousand million times, by what was
//!   seen of the embedder. A call that failed with it counts as one of these
//!   where all else of it has passed since, and calls as large do.
//!
//! A text that failed alone is tried again with nothing beside it, right after
//! something passed: so neither the death of the embedder by another text nor
//! an outage that has begun can be taken for its fault.
//!
//! A failure of several texts is searched by halves. While the first half
//! passes, what is wrong is in the other; once it fails, nothing speaks against
//! the other half, which travels with the rest.

mod doubt;
mod fresh;
mod memory;
mod protocol;
mod search;
mod size;
mod text;
mod trial;
mod trust;

use std::collections::{HashMap, VecDeque};

use self::{
    doubt::{Doubt, Kind},
    fresh::Fresh,
    memory::Memory,
    search::Task,
    size::SizeLimit,
    text::Text,
    trust::{Advice, Trust},
};
pub use self::{
    protocol::{Answer, Call, CallId, Hint, Settings, TextId, Verdict},
    size::{CallSize, estimate_tokens},
};

/// Failures in a row after which an embedder is probed, whatever it says, and
/// after which it is where such probes keep passing and texts do, too: then many
/// texts are bad.
const FAILURES_BEFORE_PROBE: u32 = 3;
const MOST_BEFORE_PROBE: u32 = 6;
/// Failures in a row after which other texts are sent before a search goes on,
/// so that what passes shows that the embedder works.
const FAILURES_BEFORE_OTHERS: u32 = 2;
/// Times that the failure of a call is put down to the embedder's condition,
/// because it says so: once before a probe, once after one that passed.
const MOST_EXCUSES: u8 = 2;
/// Times that it is, because the embedder often fails for nothing.
const FLAKY_EXCUSES: u8 = 4;
/// Times that the failure of a text that is sent alone is, because the embedder
/// says so.
const ALONE_EXCUSES: u8 = 8;
/// Failed probes of full length after which it is believed that the embedder
/// takes shorter texts than it did.
const LONG_PROBES: u32 = 600;

/// What is known of the embedder's condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    /// It embeds.
    Fit,
    /// It failed, and is to be probed.
    Doubtful,
    /// It failed a probe.
    Down,
}

/// A call whose answer is awaited.
#[derive(Debug)]
struct UnderWay {
    what: Sent,
    /// The moment at which it began.
    began: u64,
}

#[derive(Debug)]
enum Sent {
    Task(Task, CallSize),
    Probe(usize),
}

/// Judges one embedder. See the module.
#[derive(Debug)]
pub struct Judge {
    settings: Settings,
    texts: HashMap<TextId, Text>,
    /// Texts that nothing is known against, in the order they are to be sent.
    fresh: Fresh,
    /// Searches, each of which is a call of its own.
    tasks: VecDeque<Task>,
    /// Texts that failed alone, until something else passes.
    unproven: Vec<TextId>,
    /// Texts whose beginning passed, although others as long passed whole: a
    /// probe of their length decides whether it is them.
    controls: Vec<TextId>,
    under_way: HashMap<CallId, UnderWay>,
    size: SizeLimit,
    /// Bytes of the shortest text that was too long, and most bytes of a text that
    /// passed, whole or shortened.
    too_long: usize,
    passed_bytes: usize,
    /// Of calls that fail, and of vectors that cannot be used.
    doubt: Doubt,
    flaws: Doubt,
    trust: Trust,
    memory: Memory,
    health: Health,
    /// Failures since something passed.
    failures: u32,
    /// How many of them ask for a probe, and whether a text has passed since the
    /// last one.
    patience: u32,
    text_passed: bool,
    /// Bytes of the probe that an embedder must pass that is down.
    probe_bytes: usize,
    long_probes: u32,
    /// Moments are numbered: each beginning and end of a call is one.
    moment: u64,
    /// When the latest call began that passed.
    proof: u64,
    /// When a call last failed.
    failed_at: u64,
    /// Calls that have ended.
    ended: u64,
    /// When it was last left alone for a while.
    rested_at: u64,
    /// Whether it is doubted because of what it said.
    was_advised: bool,
    last_call: u64,
}

impl Judge {
    /// Makes a judge of an embedder that was not tried yet: it probes first.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            texts: HashMap::new(),
            fresh: Fresh::default(),
            tasks: VecDeque::new(),
            unproven: Vec::new(),
            controls: Vec::new(),
            under_way: HashMap::new(),
            size: SizeLimit::new(settings.ceiling),
            too_long: usize::MAX,
            passed_bytes: 0,
            doubt: Doubt::default(),
            flaws: Doubt::default(),
            trust: Trust::default(),
            memory: Memory::default(),
            health: Health::Down,
            failures: 0,
            patience: FAILURES_BEFORE_PROBE,
            text_passed: false,
            probe_bytes: 0,
            long_probes: 0,
            moment: 0,
            proof: 0,
            failed_at: 0,
            ended: 0,
            rested_at: 0,
            was_advised: false,
            last_call: 0,
        }
    }

    /// Takes in a text of so many bytes. The fingerprint is that of its
    /// content: a text that comes again is known by it. Those `whose` texts wait
    /// take turns, by calls.
    pub fn add(&mut self, id: TextId, bytes: usize, fingerprint: u64, whose: u64) {
        let mut text = Text::new(bytes, fingerprint);
        match self.memory.take(fingerprint) {
            None => {
                self.texts.insert(id, text);
                if bytes >= self.too_long {
                    self.tasks.push_back(Task::alone(id));
                } else {
                    self.fresh.push(id, whose, self.size.get().texts);
                }
            }
            Some(known) => {
                text.resume(known, self.settings.shortest);
                text.is_counted = self.is_guilty(&text);
                let (is_counted, learns) = (text.is_counted, text.learns());
                self.texts.insert(id, text);
                if is_counted {
                    self.unproven.push(id);
                } else if !learns || self.choose_length(id) {
                    self.suspect_again(id, known.among.unwrap_or(1));
                }
            }
        }
    }

    /// Has a text that was suspected before travel with few others of its kind.
    fn suspect_again(&mut self, id: TextId, among: usize) {
        if let Some(text) = self.texts.get(&id).filter(|text| text.is_remembered) {
            // At any place, so that no rhythm of the embedder's hits the same text each time.
            let place = text.mixed(self.moment) % (self.tasks.len() as u64 + 1);
            let task = self.alone(id);
            return self.tasks.insert(place as usize, task);
        }
        let most = (among / 2).max(1);
        let joins = |task: &&mut Task| task.again == Some(most) && task.texts.len() < most;
        match self.tasks.iter_mut().find(joins) {
            Some(task) => task.texts.push(id),
            None => self.tasks.push_back(Task {
                again: Some(most),
                ..Task::of(vec![id])
            }),
        }
    }

    /// Forgets a text that nobody waits for any more. What is known against it
    /// is remembered.
    pub fn remove(&mut self, id: TextId) {
        let Some(text) = self.texts.remove(&id) else {
            return;
        };
        if let Some(mut known) = text.findings(self.settings.shortest) {
            // What fails for nothing is not tried again before the embedder is down once more, and
            // would not be noticed.
            let is_whim = known.failed_once();
            self.doubt.presume(&mut known.presumed, is_whim);
            self.memory.keep(text.fingerprint, known);
        }
        self.fresh.remove(id);
        self.unproven.retain(|other| *other != id);
        self.controls.retain(|other| *other != id);
        for mut task in std::mem::take(&mut self.tasks) {
            task.texts.retain(|other| *other != id);
            task.rest.retain(|other| *other != id);
            if task.texts.is_empty() {
                self.put_back(task.rest);
            } else {
                self.tasks.push_back(task);
            }
        }
    }

    /// Returns how many texts wait or are at the embedder.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// Returns whether there are no texts.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// Lowers the ceiling of a call to what the embedder says of itself.
    pub fn keep_within(&mut self, ceiling: CallSize) {
        self.size.keep_within(CallSize {
            texts: ceiling.texts.min(self.settings.ceiling.texts),
            tokens: ceiling.tokens.min(self.settings.ceiling.tokens),
        });
    }

    /// Returns the size of the next call, as far as it is learned.
    pub fn size(&self) -> CallSize {
        self.size.get()
    }

    /// Holds the embedder for one that embeds nothing, whatever it says.
    pub fn give_up(&mut self) {
        self.health = Health::Down;
    }

    /// Returns what to send next, or nothing until an answer or a text comes.
    /// While the embedder is down, that is one probe at a time: the caller
    /// decides how often.
    pub fn next_call(&mut self) -> Option<Call> {
        if self.health != Health::Fit {
            return self.probe(self.probe_bytes);
        }
        let controls = self.controls.iter().filter_map(|id| self.texts.get(id));
        if let Some(bytes) = controls.map(|text| text.known.least).max()
            && let Some(probe) = self.probe(bytes)
        {
            return Some(probe);
        }
        let apart = |call: &UnderWay| matches!(&call.what, Sent::Task(task, _) if task.is_apart());
        if self.under_way.values().any(apart) {
            return None;
        }
        let Some(task) = self.tasks.front().filter(|task| task.is_apart()) else {
            // Nothing else can show that the embedder works.
            let idle = !self.unproven.is_empty();
            return self
                .common()
                .or_else(|| idle.then(|| self.probe(0)).flatten());
        };
        // Something must just have passed, so that the outcome is not the embedder's condition:
        // what has to be sent anyway, where there is that, and where it will not profit from
        // what is just learned of the length of texts.
        if task.exclusive && self.proof <= self.failed_at {
            let mut texts = task.texts.iter().filter_map(|id| self.texts.get(id));
            let learns = texts.any(Text::learns);
            let common = if learns { None } else { self.common() };
            return common.or_else(|| self.probe(0));
        }
        // Nothing else may be what the embedder is too busy with, or dies of.
        let task = self.tasks.pop_front_if(|_| self.under_way.is_empty())?;
        Some(self.begin(task))
    }

    /// Sends what may travel beside other calls.
    fn common(&mut self) -> Option<Call> {
        let others_first = self.failures == FAILURES_BEFORE_OTHERS && !self.fresh.is_empty();
        if !others_first && let Some(at) = self.tasks.iter().position(|task| !task.is_apart()) {
            let task = self.tasks.remove(at)?;
            return Some(self.begin(task));
        }
        let fits = self.fitting();
        if fits == 0 {
            return None;
        }
        let texts = self.fresh.take(fits);
        Some(self.begin(Task::of(texts)))
    }

    /// Probes the embedder unless that is under way.
    fn probe(&mut self, bytes: usize) -> Option<Call> {
        let mut calls = self.under_way.values();
        if calls.any(|call| matches!(call.what, Sent::Probe(_))) {
            return None;
        }
        let id = self.start(Sent::Probe(bytes));
        Some(Call::Probe(id, bytes))
    }

    fn begin(&mut self, task: Task) -> Call {
        let sent: Vec<(TextId, usize)> = task
            .texts
            .iter()
            .filter_map(|id| Some((*id, self.texts.get(id)?.sent(self.settings.shortest))))
            .collect();
        let size = CallSize {
            texts: sent.len(),
            tokens: sent.iter().map(|(_, bytes)| estimate_tokens(*bytes)).sum(),
        };
        let id = self.start(Sent::Task(task, size));
        Call::Embed(id, sent)
    }

    fn start(&mut self, what: Sent) -> CallId {
        self.last_call += 1;
        self.moment += 1;
        let id = CallId(self.last_call);
        let began = self.moment;
        self.under_way.insert(id, UnderWay { what, began });
        id
    }

    /// How many of the first fresh texts fit a call, one at least.
    fn fitting(&self) -> usize {
        let size = self.size.get();
        let mut tokens = 0;
        let bytes = self.fresh.iter().filter_map(|id| self.texts.get(&id));
        bytes
            .take(size.texts)
            .enumerate()
            .take_while(|(place, text)| {
                tokens += estimate_tokens(text.bytes);
                *place == 0 || tokens <= size.tokens
            })
            .count()
    }

    /// Takes in that a call was given up before it ended, which proves nothing.
    /// Those of its texts that are still waited for are sent again.
    pub fn cancelled(&mut self, id: CallId) {
        let Some(UnderWay { what, .. }) = self.under_way.remove(&id) else {
            return;
        };
        if let Sent::Task(mut task, _) = what {
            task.texts = self.known(task.texts);
            if task.texts.is_empty() {
                self.put_back(task.rest);
            } else {
                self.tasks.push_front(task);
            }
        }
    }

    /// Takes in how a call ended and returns what that proves.
    pub fn answered(&mut self, id: CallId, answer: Answer) -> Vec<Verdict> {
        let Some(UnderWay { what, began }) = self.under_way.remove(&id) else {
            return Vec::new();
        };
        self.moment += 1;
        self.ended += 1;
        let mut verdicts = Vec::new();
        match (what, answer) {
            (Sent::Probe(bytes), Answer::Vectors(flaws)) => {
                match flaws.into_iter().flatten().next() {
                    None => self.probe_passed(bytes, began, &mut verdicts),
                    Some(reason) => self.probe_failed(bytes, reason, &mut verdicts),
                }
            }
            (Sent::Probe(bytes), Answer::Failed { reason, .. }) => {
                self.probe_failed(bytes, reason, &mut verdicts);
            }
            (Sent::Task(task, size), Answer::Vectors(flaws)) => {
                if flaws.iter().all(Option::is_some) {
                    let reason = flaws.into_iter().flatten().next().unwrap_or_default();
                    self.failed(task, (size, began), None, &reason, &mut verdicts);
                } else {
                    self.passed(task, size, began, &flaws, &mut verdicts);
                }
            }
            (Sent::Task(task, size), Answer::Failed { hint, reason }) => {
                self.failed(task, (size, began), Some(hint), &reason, &mut verdicts);
            }
        }
        self.weigh();
        verdicts.append(&mut self.rejected());
        verdicts
    }

    fn probe_passed(&mut self, bytes: usize, began: u64, verdicts: &mut Vec<Verdict>) {
        if bytes < self.probe_bytes {
            return;
        }
        // While it may be down a whim is not noticed either.
        let counts = self.health == Health::Fit;
        self.doubt.passed(usize::from(counts), began);
        self.proof = self.proof.max(began);
        self.failures = 0;
        self.long_probes = 0;
        self.probe_bytes = 0;
        self.settle_controls(bytes);
        match self.health {
            Health::Down => verdicts.push(Verdict::Fit),
            Health::Doubtful if self.was_advised => self.trust.followed(Advice::Probe, false),
            Health::Doubtful if self.text_passed => {
                self.patience = (self.patience + 1).min(MOST_BEFORE_PROBE);
            }
            Health::Doubtful => self.patience = FAILURES_BEFORE_PROBE,
            Health::Fit => {}
        }
        self.text_passed = false;
        self.health = Health::Fit;
    }

    /// Goes on with texts whose beginning passed: one as long as they passes.
    fn settle_controls(&mut self, bytes: usize) {
        for id in std::mem::take(&mut self.controls) {
            match self.texts.get_mut(&id) {
                Some(text) if text.known.least > bytes => self.controls.push(id),
                Some(text) => {
                    text.known.too_much = text.known.least;
                    self.go_on(id);
                }
                None => {}
            }
        }
    }

    fn probe_failed(&mut self, bytes: usize, reason: String, verdicts: &mut Vec<Verdict>) {
        if bytes > 0 {
            self.probe_bytes = bytes;
            self.long_probes += 1;
            if self.long_probes >= LONG_PROBES {
                (self.probe_bytes, self.long_probes, self.passed_bytes) = (0, 0, 0);
            }
        }
        self.controls.clear();
        self.patience = FAILURES_BEFORE_PROBE;
        if self.health == Health::Doubtful {
            self.trust.followed(Advice::Probe, true);
        }
        if self.failures == 0 {
            self.doubt.good_failed();
        }
        self.failures += 1;
        self.failed_at = self.moment;
        self.doubt.rested(Kind::Down);
        if self.health != Health::Down {
            // All searches are, for the texts are handed back.
            self.doubt.lost();
        }
        // Said each time: what it says may change.
        self.health = Health::Down;
        verdicts.push(Verdict::Down { reason });
    }
}
