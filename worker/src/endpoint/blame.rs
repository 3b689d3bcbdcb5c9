//! Which text of a call is to blame that the embedder refused it, found with as
//! few calls as its answer allows.
//!
//! A text that is named, or far longer than the others where one is too long, is
//! accused: the others are sent again without it, or with its beginning only. If
//! they pass it was the culprit, whatever the embedder meant by what it named,
//! and the search has cost one call. Otherwise it is tried alone. Where nothing
//! points to a text the call is halved.

use super::{
    State,
    queue::{Accused, Call, Text},
};

/// How much longer than every other a text must be to be accused of it, in
/// hundredths.
const OUTSTANDING: usize = 125;

/// What is wrong with a text.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) reason: String,
    /// A text that is too long is shortened, to no less than this many bytes;
    /// any other is rejected.
    pub(super) floor: Option<usize>,
    /// Whether it was sent alone, so that nothing else can be wrong.
    pub(super) alone: bool,
}

impl Fault {
    fn shortened(&self, text: &Text) -> Option<Text> {
        text.shortened(self.floor?)
    }
}

impl Call {
    /// The text that stands out by its length, if one does. Asked only once:
    /// what is searched after that is not guessed at again, but for the
    /// beginning of the text that was accused, which may still be too long.
    pub(super) fn longest(&self, first_try: bool) -> Option<Text> {
        let texts = || self.texts.iter().enumerate();
        let (place, longest) = texts().max_by_key(|(_, text)| text.bytes)?;
        let stands_out = texts()
            .filter(|(other, _)| *other != place)
            .all(|(_, text)| 100 * longest.bytes >= OUTSTANDING * text.bytes);
        let accused = self.accused.as_ref();
        let again = accused.is_some_and(|accused| longest.is_of(&accused.text));
        (stands_out && (first_try || again)).then(|| longest.clone())
    }
}

impl State {
    /// The embedder refused a call because of one of its texts at least, most
    /// likely the `culprit`.
    pub(super) fn blame(&mut self, call: Call, culprit: Option<Text>, fault: &Fault) {
        let Call {
            mut texts, accused, ..
        } = call;
        let culprit = culprit.filter(|culprit| texts.iter().any(|text| text.is_of(culprit)));
        let mut was = culprit.clone();
        if let Some(Accused { text, .. }) = accused {
            if culprit.as_ref().is_some_and(|culprit| culprit.is_of(&text)) {
                // Its beginning is still too much.
                was = Some(text);
            } else {
                // It is not the only one, or none.
                texts.retain(|other| !other.is_of(&text));
                self.queue.alone(text);
            }
        }
        let long = texts.iter().filter(|text| text.bytes >= self.too_long);
        let several = fault.floor.is_some() && long.count() > 1;
        match (texts.as_slice(), culprit, was) {
            ([text], ..) if fault.alone => self.condemn(text, fault),
            // To accuse one would leave the others to spoil the next call.
            _ if several => self.suspect_long(texts),
            ([_, _, ..], Some(culprit), Some(was)) => self.accuse(texts, &culprit, was, fault),
            ([_], Some(_), Some(was)) => self.queue.alone(was),
            _ if fault.floor.is_some() => self.suspect_long(texts),
            _ => self.suspect(texts),
        }
    }

    /// One of these texts at least is too long. Those of a length that was too
    /// long before are tried alone, for they are rarely the only ones: long
    /// texts of a job come together.
    fn suspect_long(&mut self, mut texts: Vec<Text>) {
        texts.sort_by_key(|text| text.bytes);
        let others = texts.partition_point(|text| text.bytes < self.too_long);
        let long = texts.split_off(others);
        if long.is_empty() {
            // Those that are too long are in the second half.
            self.suspect(texts);
        } else {
            self.queue.put_back(texts);
            for text in long {
                self.queue.alone(text);
            }
        }
    }

    /// A text was refused alone. One that is too long is sent again by half,
    /// until it would be too short to mean anything.
    fn condemn(&mut self, text: &Text, fault: &Fault) {
        if fault.floor.is_some() {
            self.too_long = self.too_long.min(text.bytes);
        }
        match fault.shortened(text) {
            Some(beginning) if beginning.bytes < self.too_long => {
                self.queue.put_back(vec![beginning]);
            }
            Some(beginning) => self.queue.alone(beginning),
            None => self.requests.rejected(text, &fault.reason),
        }
    }

    /// These texts were not too long.
    pub(super) fn were_short(&mut self, texts: &[Text]) {
        let longest = texts.iter().map(|text| text.bytes).max();
        if let Some(longest) = longest.filter(|bytes| *bytes >= self.too_long) {
            self.too_long = longest + 1;
        }
    }

    /// Tries the others without the culprit, or with its beginning. `was`: the
    /// culprit as it was at first.
    fn accuse(&mut self, mut texts: Vec<Text>, culprit: &Text, was: Text, fault: &Fault) {
        let beginning = fault.shortened(culprit);
        let rejection = beginning.is_none().then(|| fault.reason.clone());
        match beginning {
            Some(beginning) => {
                for text in texts.iter_mut().filter(|text| text.is_of(culprit)) {
                    *text = beginning.clone();
                }
            }
            None => texts.retain(|text| !text.is_of(culprit)),
        }
        let accused = Accused {
            text: was,
            rejection,
        };
        self.queue.accuse(texts, accused);
    }

    /// One of these texts, if there are any, cannot be embedded.
    pub(super) fn suspect(&mut self, mut texts: Vec<Text>) {
        if texts.len() > 1 {
            self.queue.search(texts);
        } else if let Some(text) = texts.pop() {
            self.queue.alone(text);
        }
    }
}
