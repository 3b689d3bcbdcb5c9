//! The texts that wait for an embedder, and which of them travel together.
//! Pure: no clock, no network, no runtime.

use std::{collections::VecDeque, sync::Arc};

use super::limits::{CallSize, estimate_tokens};
use crate::plan::Batch;

/// One text of a request on its way through the embedder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Text {
    /// Whose it is.
    pub(crate) request: u64,
    pub(crate) batch: Arc<Batch>,
    /// Its place in the batch.
    pub(crate) place: usize,
    /// How much of it is sent, in bytes: less than all of it once it was
    /// shortened.
    pub(crate) bytes: usize,
    /// In how many calls it was that took too long.
    pub(crate) timeouts: u8,
}

impl Text {
    /// What is sent.
    pub(crate) fn as_str(&self) -> &str {
        &self.batch.chunks[self.place].text[..self.bytes]
    }

    /// Whether it is of the same chunk, shortened or not.
    pub(crate) fn is_of(&self, other: &Self) -> bool {
        (self.request, self.place) == (other.request, other.place)
    }

    /// Whether it was shortened.
    pub(crate) fn is_short(&self) -> bool {
        self.bytes < self.batch.chunks[self.place].text.len()
    }

    /// Half of it, unless that would be less than `floor` bytes.
    pub(crate) fn shortened(&self, floor: usize) -> Option<Self> {
        let text = &self.batch.chunks[self.place].text;
        let bytes = text.floor_char_boundary(self.bytes / 2);
        (bytes >= floor.max(1) && bytes < self.bytes).then(|| Self {
            bytes,
            ..self.clone()
        })
    }
}

/// The size of a call with these texts.
pub(crate) fn size_of(texts: &[Text]) -> CallSize {
    CallSize {
        texts: texts.len(),
        tokens: texts.iter().map(|text| estimate_tokens(text.bytes)).sum(),
    }
}

/// Texts that travel together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) texts: Vec<Text>,
    /// The other half of a call that was refused: where these texts pass, the
    /// culprit is there; where they do not, nothing speaks against it.
    pub(crate) rest: Vec<Text>,
    /// Who is held to be the culprit of a call that was refused; these are the
    /// others.
    pub(crate) accused: Option<Accused>,
}

/// A text that is taken out of a call that was refused. Where the others pass
/// without it, or with its beginning only, it was the culprit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Accused {
    /// As it was when it was accused.
    pub(crate) text: Text,
    /// Why it is rejected once it is proven; unset where its beginning travels
    /// with the others.
    pub(crate) rejection: Option<String>,
}

impl Call {
    /// Texts that have nothing to do with what was before.
    fn of(texts: Vec<Text>) -> Self {
        Self {
            texts,
            ..Self::default()
        }
    }

    /// Its texts as they were before one of them was accused.
    pub(crate) fn acquit(self) -> Vec<Text> {
        let mut texts = self.texts;
        if let Some(accused) = self.accused {
            texts.retain(|text| !text.is_of(&accused.text));
            texts.push(accused.text);
        }
        texts
    }

    /// Whether several requests have texts in it.
    pub(crate) fn is_shared(&self) -> bool {
        let accused = self.accused.iter().map(|accused| &accused.text);
        let mut requests = self.texts.iter().chain(accused).map(|text| text.request);
        let first = requests.next();
        requests.any(|request| Some(request) != first)
    }

    /// Leaves out the texts for which this does not hold.
    pub(crate) fn retain(&mut self, keep: impl Fn(&Text) -> bool) {
        self.texts.retain(&keep);
        self.rest.retain(&keep);
        self.accused.take_if(|accused| !keep(&accused.text));
    }
}

/// Texts in the order they came, and calls that search for a culprit.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    fresh: VecDeque<Text>,
    /// Each is a call of its own, so that no other text suffers.
    apart: VecDeque<Call>,
}

impl Queue {
    /// Takes in the texts of a request.
    pub(crate) fn push(&mut self, request: u64, batch: &Arc<Batch>) {
        let texts = batch.chunks.iter().enumerate().map(|(place, chunk)| Text {
            request,
            batch: Arc::clone(batch),
            place,
            bytes: chunk.text.len(),
            timeouts: 0,
        });
        self.fresh.extend(texts);
    }

    /// Forgets what waits of a request.
    pub(crate) fn withdraw(&mut self, request: u64) {
        let keep = |text: &Text| text.request != request;
        self.fresh.retain(keep);
        for mut call in std::mem::take(&mut self.apart) {
            call.retain(keep);
            if call.texts.is_empty() {
                self.put_back_untried(call);
            } else {
                self.apart.push_back(call);
            }
        }
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.apart.is_empty()
    }

    /// How many texts wait.
    pub(crate) fn texts(&self) -> usize {
        let apart = self.apart.iter().map(|call| call.texts.len());
        self.fresh.len() + apart.sum::<usize>()
    }

    /// Whether the next call would be no fuller if more came.
    pub(crate) fn fills(&self, size: CallSize) -> bool {
        let fits = fitting(self.fresh.iter(), size);
        !self.apart.is_empty() || fits < self.fresh.len() || fits >= size.texts
    }

    /// The next call; `None` when nothing waits.
    pub(crate) fn next(&mut self, size: CallSize) -> Option<Call> {
        if let Some(call) = self.apart.pop_front() {
            return Some(call);
        }
        let fits = fitting(self.fresh.iter(), size);
        (fits > 0).then(|| Call::of(self.fresh.drain(..fits).collect()))
    }

    /// Has these texts come first, as if they had never been sent.
    pub(crate) fn put_back(&mut self, texts: Vec<Text>) {
        for text in texts.into_iter().rev() {
            self.fresh.push_front(text);
        }
    }

    /// Ends a search whose texts are not wanted any more; what it had not tried
    /// may be innocent.
    pub(crate) fn put_back_untried(&mut self, call: Call) {
        self.put_back(call.rest);
        if let Some(accused) = call.accused {
            self.alone(accused.text);
        }
    }

    /// Has a text travel alone.
    pub(crate) fn alone(&mut self, text: Text) {
        self.apart.push_back(Call::of(vec![text]));
    }

    /// Tries the others of a call, of which there is one at least, without the
    /// text that is held to be the culprit.
    pub(crate) fn accuse(&mut self, texts: Vec<Text>, accused: Accused) {
        self.apart.push_back(Call {
            texts,
            rest: Vec::new(),
            accused: Some(accused),
        });
    }

    /// One of these texts, of which there are several, cannot be embedded: half
    /// of them are tried.
    pub(crate) fn search(&mut self, mut texts: Vec<Text>) {
        let rest = texts.split_off(texts.len() / 2);
        self.apart.push_back(Call {
            texts,
            rest,
            accused: None,
        });
    }

    /// Takes a call apart by the requests in it, so that the trouble of one is
    /// not another's.
    pub(crate) fn part(&mut self, texts: &[Text]) {
        let groups = texts.chunk_by(|a, b| a.request == b.request);
        let calls = groups.map(|texts| Call::of(texts.to_vec()));
        self.apart.extend(calls);
    }
}

/// How many of the first texts fit a call, one at least.
fn fitting<'a>(texts: impl Iterator<Item = &'a Text>, size: CallSize) -> usize {
    let mut tokens = 0;
    texts
        .take(size.texts.max(1))
        .enumerate()
        .take_while(|(place, text)| {
            tokens += estimate_tokens(text.bytes);
            *place == 0 || tokens <= size.tokens
        })
        .count()
}

#[cfg(test)]
mod tests;
