//! A worker with one judge and one server, in virtual time.

use std::collections::{BTreeMap, HashMap, HashSet};

use proptest::test_runner::TestCaseError;
use weir_embedder::judge::{Answer, Call, CallId, CallSize, Judge, Settings, TextId, Verdict};

use super::server::{Condition, Fault, SHORTEST, Server, TOKENS};

/// Longest rest that an overloaded embedder is given, in milliseconds.
const LONGEST_REST: u64 = 90_000;
/// Between two probes of an embedder that is down.
const PROBE_EVERY: u64 = 1_000;
/// Calls that an outage, or learning a limit, may cost.
const PER_EVENT: f64 = 60.0;
/// Calls that one costs which failed at the server's whim or by its quota: it
/// is made again, in parts where it was of several texts.
const PER_REFUSAL: f64 = 8.0;

pub(crate) struct World {
    server: Server,
    condition: Condition,
    judge: Judge,
    now: u64,
    /// Calls under way, by their ends.
    ends: BTreeMap<(u64, u64), (Call, Answer)>,
    waiting: HashSet<usize>,
    handed_back: Vec<usize>,
    names: HashMap<TextId, usize>,
    last_name: u64,
    is_down: bool,
    next_probe: u64,
    rest_until: u64,
    busy: u32,
    embedded: HashMap<usize, usize>,
    rejected: HashSet<usize>,
    calls: u64,
    /// Calls that failed at the server's whim, and by its quota.
    whims: u64,
    refused: u64,
    events: u64,
}

impl World {
    pub(crate) fn new(server: Server) -> Self {
        let settings = Settings {
            ceiling: CallSize {
                texts: server.ceiling,
                tokens: TOKENS,
            },
            shortest: SHORTEST,
        };
        Self {
            condition: Condition::default(),
            judge: Judge::new(settings),
            now: 0,
            ends: BTreeMap::new(),
            waiting: HashSet::new(),
            handed_back: (0..server.texts.len()).collect(),
            names: HashMap::new(),
            last_name: 0,
            is_down: true,
            next_probe: 0,
            rest_until: 0,
            busy: 0,
            embedded: HashMap::new(),
            rejected: HashSet::new(),
            calls: 0,
            whims: 0,
            refused: 0,
            events: 1,
            server,
        }
    }

    /// Returns how many calls it took.
    pub(crate) fn run(mut self, factor: f64) -> Result<u64, TestCaseError> {
        while self.embedded.len() + self.rejected.len() < self.server.texts.len() {
            if self.now > 40_000_000 || self.calls as f64 > 20.0 * self.server.least() + 3_000.0 {
                return Err(self.fails("it does not come to an end"));
            }
            self.send();
            self.step()?;
        }
        self.judge_calls(factor)?;
        Ok(self.calls)
    }

    fn send(&mut self) {
        while self.ends.len() < self.server.concurrency {
            if self.now < self.rest_until || self.is_down && self.now < self.next_probe {
                return;
            }
            let Some(call) = self.judge.next_call() else {
                return;
            };
            self.calls += 1;
            let sent: Vec<(Option<usize>, usize)> = match &call {
                Call::Probe(_, bytes) => vec![(None, *bytes)],
                Call::Embed(_, texts) => {
                    let texts = texts.iter();
                    texts
                        .map(|(id, bytes)| (Some(self.names[id]), *bytes))
                        .collect()
                }
            };
            let (answer, took, fault) = self.server.answer(&mut self.condition, self.now, &sent);
            self.whims += u64::from(fault == Some(Fault::Flake));
            self.refused += u64::from(fault == Some(Fault::Quota));
            let CallId(id) = call.id();
            self.ends.insert((self.now + took, id), (call, answer));
        }
    }

    fn step(&mut self) -> Result<(), TestCaseError> {
        let end = self.ends.first_key_value().map(|((at, _), _)| *at);
        let pause = match (self.is_down, self.now < self.rest_until) {
            (_, true) => Some(self.rest_until),
            (true, false) => Some(self.next_probe),
            _ => None,
        };
        let pause = pause.filter(|at| *at > self.now);
        match (end, pause) {
            (None, None) => return Err(self.fails("nothing is sent and nothing comes")),
            (Some(end), Some(pause)) if pause < end => self.now = pause,
            (None, Some(pause)) => self.now = pause,
            (Some(_), _) => {
                let Some(((at, _), (call, answer))) = self.ends.pop_first() else {
                    return Ok(());
                };
                self.now = self.now.max(at);
                self.ended(&call, answer)?;
            }
        }
        Ok(())
    }

    fn ended(&mut self, call: &Call, answer: Answer) -> Result<(), TestCaseError> {
        if matches!(&answer, Answer::Vectors(_)) {
            self.busy = 0;
        }
        for verdict in self.judge.answered(call.id(), answer) {
            match verdict {
                Verdict::Embedded { text, bytes, .. } => self.was_embedded(text, bytes)?,
                Verdict::Rejected { text, .. } => self.was_rejected(text)?,
                Verdict::Down { .. } => self.down(),
                Verdict::Fit => self.fit(),
                Verdict::Rest => self.rest(),
            }
        }
        if self.is_down {
            self.release();
        }
        Ok(())
    }

    fn was_embedded(&mut self, text: TextId, bytes: usize) -> Result<(), TestCaseError> {
        let text = self.names[&text];
        self.waiting.remove(&text);
        if self.embedded.insert(text, bytes).is_some() {
            return Err(self.fails("a text was embedded twice"));
        }
        if self.server.poison.contains(&text) {
            return Err(self.fails("poison was embedded"));
        }
        let whole = self.server.texts[text];
        let longest = self.server.longest.min(self.server.most_bytes);
        // Within a factor of four of what passes.
        if bytes < whole && (whole <= longest || bytes < (longest / 4).max(SHORTEST).min(whole)) {
            return Err(self.fails(&format!("{bytes} of {whole} were embedded of {text}")));
        }
        Ok(())
    }

    fn rest(&mut self) {
        self.busy += 1;
        let rest = 500 * 2_u64.pow(self.busy.min(12) - 1);
        self.rest_until = self.rest_until.max(self.now + rest);
        if rest > LONGEST_REST {
            self.judge.give_up();
            self.down();
        }
    }

    fn was_rejected(&mut self, text: TextId) -> Result<(), TestCaseError> {
        let text = self.names[&text];
        self.waiting.remove(&text);
        self.rejected.insert(text);
        if !self.server.poison.contains(&text) {
            return Err(self.fails(&format!(
                "text {text} was rejected, and nothing is wrong with it"
            )));
        }
        Ok(())
    }

    /// Everything goes back to the queue.
    fn down(&mut self) {
        if !self.is_down {
            self.events += 1;
        }
        self.is_down = true;
        self.next_probe = self.now + PROBE_EVERY;
    }

    /// Hands back what the server has nothing of.
    fn release(&mut self) {
        let busy: HashSet<TextId> = self
            .ends
            .values()
            .flat_map(|(call, _)| match call {
                Call::Embed(_, texts) => texts.iter().map(|(id, _)| *id).collect(),
                Call::Probe(..) => Vec::new(),
            })
            .collect();
        let mut back: Vec<(TextId, usize)> = self
            .names
            .iter()
            .filter(|(id, text)| self.waiting.contains(text) && !busy.contains(id))
            .map(|(id, text)| (*id, *text))
            .collect();
        back.sort_unstable();
        for (id, text) in back {
            self.judge.remove(id);
            self.waiting.remove(&text);
            self.names.remove(&id);
            self.handed_back.push(text);
        }
        self.handed_back.sort_unstable();
    }

    /// They are claimed again.
    fn fit(&mut self) {
        self.is_down = false;
        for text in std::mem::take(&mut self.handed_back) {
            self.last_name += 1;
            let id = TextId(self.last_name);
            self.names.insert(id, text);
            self.waiting.insert(text);
            self.judge.add(id, self.server.texts[text], text as u64, 0);
        }
    }

    fn judge_calls(&self, factor: f64) -> Result<(), TestCaseError> {
        let down: u64 = self
            .server
            .outages
            .iter()
            .map(|(_, lasts)| lasts / PROBE_EVERY + 1)
            .sum();
        let events = PER_EVENT * (self.events + 1) as f64;
        let refused = PER_REFUSAL * (self.whims + self.refused) as f64;
        let allowed = factor * self.server.least() + events + refused + down as f64;
        if self.calls as f64 > allowed {
            return Err(self.fails(&format!("{} calls, {allowed} are allowed", self.calls)));
        }
        Ok(())
    }

    fn fails(&self, why: &str) -> TestCaseError {
        let server = &self.server;
        TestCaseError::fail(format!(
            "{why}: {} calls, {} ms, {}+{} of {} texts, {} bad ({:?}), {} events; at most {}/{}/{}, outages {:?}, \
             quota {:?}, flaky {}, {:?}, {} at a time, {} ms",
            self.calls,
            self.now,
            self.embedded.len(),
            self.rejected.len(),
            server.texts.len(),
            server.poison.len(),
            server.symptom,
            self.events,
            server.ceiling.min(server.most_texts),
            server.most_bytes,
            server.longest,
            server.outages,
            server.quota,
            server.flaky,
            server.manners,
            server.concurrency,
            server.call_ms,
        ))
    }
}
