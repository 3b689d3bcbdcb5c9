//! What is asked of an endpoint, and how far it is.

use bytes::{BufMut as _, Bytes, BytesMut};
use std::{
    collections::{BTreeMap, HashSet},
    ops::Range,
    sync::Arc,
};

use tokio::time::Instant;
use weir_embedder::judge::TextId;
use weir_telemetry::{Span, TraceContext};

use crate::part::{Embedded, MAX_REJECTION_BYTES, Part, PartResult};

/// What became of a part.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) part: Arc<Part>,
    pub(crate) result: PartResult,
    /// Why some of its chunks got no outcome. No job is to blame for that.
    pub(crate) failure: Option<String>,
    /// Since when it was here.
    pub(super) began: Instant,
    pub(super) span: Span,
}

/// A text that is sent.
#[derive(Debug)]
pub(super) struct Text {
    part: Arc<Part>,
    place: usize,
    bytes: usize,
}

impl Text {
    pub(super) fn as_str(&self) -> &str {
        beginning(&self.part.chunks[self.place].text, self.bytes)
    }
}

/// The first so many bytes of a text, or a little less.
fn beginning(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// What is sent in one call.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) texts: Vec<Text>,
    /// The sampled traces of their jobs, each once.
    pub(super) traces: Vec<TraceContext>,
    /// In how many calls before this one the oldest of them was.
    pub(super) retries: u32,
}

/// The parts that are being embedded, each by the name of its first text; the
/// others are named by the numbers that follow.
#[derive(Debug, Default)]
pub(super) struct Requests {
    open: BTreeMap<u64, Request>,
    next: u64,
    /// What became of parts and was not asked for yet.
    answers: Vec<Answer>,
}

#[derive(Debug)]
struct Request {
    part: Arc<Part>,
    trace: Option<TraceContext>,
    span: Span,
    began: Instant,
    settled: Vec<Option<Settled>>,
    /// In how many calls each text was.
    calls: Vec<u32>,
    left: usize,
}

#[derive(Debug)]
enum Settled {
    /// With how many characters of it were embedded, if not all.
    Embedded(Bytes, Option<u32>),
    Rejected(String),
}

impl Requests {
    /// Takes a part in, which is not empty, and names it.
    pub(super) fn admit(
        &mut self,
        part: Arc<Part>,
        trace: Option<TraceContext>,
        span: Span,
    ) -> u64 {
        let name = self.next;
        let left = part.chunks.len();
        self.next += left as u64;
        let request = Request {
            settled: part.chunks.iter().map(|_| None).collect(),
            calls: vec![0; left],
            part,
            trace,
            span,
            began: Instant::now(),
            left,
        };
        self.open.insert(name, request);
        name
    }

    /// Returns what is sent of these texts.
    pub(super) fn take(&mut self, sent: &[(TextId, usize)]) -> Sent {
        let mut call = Sent {
            texts: Vec::with_capacity(sent.len()),
            traces: Vec::new(),
            retries: 0,
        };
        for (text, bytes) in sent {
            // The judge is told when a part goes.
            let Some((request, place)) = self.find(*text) else {
                debug_assert!(false, "the judge sends a text that was removed");
                continue;
            };
            call.texts.push(Text {
                part: Arc::clone(&request.part),
                place,
                bytes: *bytes,
            });
            call.retries = call.retries.max(request.calls[place]);
            request.calls[place] += 1;
            if let Some(trace) = request.trace
                && trace.sampled
                && !call.traces.contains(&trace)
            {
                call.traces.push(trace);
            }
        }
        call
    }

    /// Returns the part of a text, if it is still waited for.
    pub(super) fn of(&self, text: TextId) -> Option<u64> {
        let (name, request) = self.open.range(..=text.0).next_back()?;
        (text.0 - name < request.settled.len() as u64).then_some(*name)
    }

    /// Returns whether a text is still waited for.
    pub(super) fn contains(&self, text: TextId) -> bool {
        self.of(text).is_some()
    }

    fn find(&mut self, text: TextId) -> Option<(&mut Request, usize)> {
        let name = self.of(text)?;
        let place = (text.0 - name) as usize;
        Some((self.open.get_mut(&name)?, place))
    }

    /// Lets go of parts that nobody waits for any more, and of their answers.
    /// Returns their texts.
    pub(super) fn forget(&mut self, parts: &[Arc<Part>]) -> Vec<TextId> {
        let gone: HashSet<*const Part> = parts.iter().map(Arc::as_ptr).collect();
        self.answers
            .retain(|answer| !gone.contains(&Arc::as_ptr(&answer.part)));
        let is_gone = |_: &u64, request: &mut Request| gone.contains(&Arc::as_ptr(&request.part));
        let open = self.open.extract_if(.., is_gone);
        open.flat_map(|(name, request)| texts(name, &request))
            .collect()
    }

    /// The first so many bytes of a text have their vector.
    pub(super) fn embedded(&mut self, text: TextId, bytes: usize, vector: &[f32]) {
        let Some((request, place)) = self.find(text) else {
            return;
        };
        let whole = &request.part.chunks[place].text;
        let sent = beginning(whole, bytes);
        let chars = (sent.len() < whole.len()).then(|| sent.chars().count() as u32);
        self.settle(text, Settled::Embedded(pack(vector), chars));
    }

    /// A text can never be embedded.
    pub(super) fn rejected(&mut self, text: TextId, reason: &str) {
        self.settle(text, Settled::Rejected(rejection(reason)));
    }

    fn settle(&mut self, text: TextId, settled: Settled) {
        // A part that nobody waits for any more has been forgotten.
        let Some((request, place)) = self.find(text) else {
            return;
        };
        if request.settled[place].replace(settled).is_none() {
            request.left -= 1;
        }
        if request.left == 0
            && let Some(name) = self.of(text)
            && let Some(request) = self.open.remove(&name)
        {
            self.answers.push(request.answer(None));
        }
    }

    /// Answers a part with what there is of it. Returns its texts.
    pub(super) fn give_back(&mut self, name: u64, reason: &str) -> Vec<TextId> {
        let Some(request) = self.open.remove(&name) else {
            return Vec::new();
        };
        let texts = texts(name, &request).collect();
        self.answers.push(request.answer(Some(reason.to_owned())));
        texts
    }

    /// The parts that are not embedded yet.
    pub(super) fn names(&self) -> Vec<u64> {
        self.open.keys().copied().collect()
    }

    /// Takes what became of parts since this was asked.
    pub(super) fn take_answers(&mut self) -> Vec<Answer> {
        std::mem::take(&mut self.answers)
    }
}

fn texts(name: u64, request: &Request) -> impl Iterator<Item = TextId> + use<> {
    let numbers: Range<u64> = name..name + request.settled.len() as u64;
    numbers.map(TextId)
}

impl Request {
    fn answer(self, failure: Option<String>) -> Answer {
        let mut result = PartResult {
            seq: self.part.seq,
            ..PartResult::default()
        };
        for (chunk, settled) in self.part.chunks.iter().zip(self.settled) {
            let key = chunk.key.clone();
            match settled {
                Some(Settled::Embedded(vector, chars)) => {
                    result.embedded.push(Embedded { key, vector, chars });
                }
                Some(Settled::Rejected(reason)) => result.rejected.push((key, reason)),
                None => result.left_out.push(key),
            }
        }
        Answer {
            part: self.part,
            result,
            failure,
            began: self.began,
            span: self.span,
        }
    }
}

fn pack(vector: &[f32]) -> Bytes {
    let mut packed = BytesMut::with_capacity(4 * vector.len());
    for number in vector {
        packed.put_f32_le(*number);
    }
    packed.freeze()
}

/// A rejection always has a reason, and one that fits.
fn rejection(reason: &str) -> String {
    if reason.trim().is_empty() {
        return "the embedder refused this text and gave no reason".to_owned();
    }
    reason[..reason.floor_char_boundary(MAX_REJECTION_BYTES)].to_owned()
}
