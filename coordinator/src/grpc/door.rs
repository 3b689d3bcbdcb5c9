//! The door: requests are checked here, and every fault of one is told at once.
//! Inside nothing is checked again.

use weir_proto::{
    limits::{
        MAX_BUSY_WITH, MAX_DIMENSION, MAX_MODEL_CHARS, MAX_NAME_CHARS, MAX_NAMESPACE_CHARS,
        MAX_PAGE_SIZE, MAX_REASON_CHARS, MAX_WORKER_ID_CHARS,
    },
    v1,
};

use super::{auth::Asked, error::invalid};
use crate::{
    job::{fair_share::MAX_PRIORITY, plan::TextHash},
    store::{
        Violation,
        rows::{Embedded, LeaseKey, Rejected, SourceKey},
    },
};

/// Gathers the faults of a request, so that a client hears of all at once.
#[derive(Debug, Default)]
pub(crate) struct Door {
    violations: Vec<Violation>,
}

impl Door {
    /// Notes a fault, the first hundred of them.
    pub(crate) fn refuse(&mut self, field: impl Into<String>, message: impl Into<String>) {
        if self.violations.len() < 100 {
            self.violations.push(Violation::new(field, message));
        }
    }

    /// Lets the request in, or turns it away with its faults.
    pub(crate) fn close(self) -> Result<(), tonic::Status> {
        if self.violations.is_empty() {
            return Ok(());
        }
        Err(invalid(self.violations))
    }

    /// A namespace; empty means "default".
    pub(crate) fn namespace(&mut self, namespace: String) -> Asked<String> {
        Asked::new(self.namespace_or_default(namespace))
    }

    /// A namespace, where one is named.
    pub(crate) fn any_namespace(&mut self, namespace: String) -> Option<Asked<String>> {
        (!namespace.is_empty()).then(|| self.namespace(namespace))
    }

    fn namespace_or_default(&mut self, namespace: String) -> String {
        if namespace.is_empty() {
            return "default".to_owned();
        }
        self.checked_namespace("namespace", namespace)
    }

    /// A namespace that is named.
    pub(crate) fn checked_namespace(&mut self, field: &'static str, namespace: String) -> String {
        if !is_namespace(&namespace) {
            self.refuse(
                field,
                format!(
                    "must be 1 to {MAX_NAMESPACE_CHARS} lower-case letters, digits, '-', '_' or '.', beginning \
                     with a letter or digit"
                ),
            );
        }
        namespace
    }

    /// A source's name.
    pub(crate) fn name(&mut self, field: &'static str, name: String) -> String {
        if !is_source_name(&name) {
            self.refuse(
                field,
                format!(
                    "must be 1 to {MAX_NAME_CHARS} letters, digits, '-', '_' or '.', beginning with a letter or digit"
                ),
            );
        }
        name
    }

    /// The beginning of sources' names; `None` when it is left empty.
    pub(crate) fn prefix(&mut self, field: &'static str, prefix: String) -> Option<String> {
        (!prefix.is_empty()).then(|| self.name(field, prefix))
    }

    /// A source's namespace and name.
    pub(crate) fn source_key(&mut self, namespace: String, name: String) -> Asked<SourceKey> {
        Asked::new(SourceKey {
            namespace: self.namespace_or_default(namespace),
            name: self.name("name", name),
        })
    }

    /// A model that sources may use; `None` when it is left empty.
    pub(crate) fn model(&mut self, model: String, known: &[String]) -> Option<String> {
        if model.is_empty() {
            return None;
        }
        if !known.contains(&model) {
            self.refuse(
                "model",
                format!(
                    "{:?} is not a model of this coordinator; it has {}",
                    cut(&model, MAX_MODEL_CHARS),
                    known.join(", ")
                ),
            );
        }
        Some(model)
    }

    /// A model, whether sources may use it or not; `None` when it is left empty.
    pub(crate) fn any_model(&mut self, model: String) -> Option<String> {
        if model.is_empty() {
            return None;
        }
        if model.contains('\0') || model.chars().count() > MAX_MODEL_CHARS {
            self.refuse(
                "model",
                format!("must be the name of a model, at most {MAX_MODEL_CHARS} characters"),
            );
        }
        Some(model)
    }

    /// The revision that a write expects, at least `least`; `None`: any.
    pub(crate) fn expected_revision(&mut self, revision: Option<i64>, least: i64) -> Option<i64> {
        if let Some(revision) = revision.filter(|it| *it < least) {
            let zero = match least {
                0 => ", or 0 where the source must not exist yet",
                _ => "",
            };
            self.refuse(
                "expected_revision",
                format!("must be a revision of the source, at least 1{zero}, not {revision}"),
            );
        }
        revision
    }

    /// A number that must lie in a range; 0 stands for `default`.
    pub(crate) fn number(
        &mut self,
        field: &'static str,
        number: i32,
        default: i32,
        range: std::ops::RangeInclusive<i32>,
    ) -> i32 {
        if number == 0 {
            return default;
        }
        if !range.contains(&number) {
            self.refuse(
                field,
                format!("must be {} to {}, not {number}", range.start(), range.end()),
            );
        }
        number
    }

    /// The size of a page.
    pub(crate) fn page_size(&mut self, page_size: i32) -> i64 {
        self.number("page_size", page_size, 100, 1..=MAX_PAGE_SIZE)
            .into()
    }

    /// A priority.
    pub(crate) fn priority(&mut self, priority: i32) -> i16 {
        self.number("priority", priority, 0, 0..=MAX_PRIORITY.into()) as i16
    }

    /// What a worker calls itself.
    pub(crate) fn worker_id(&mut self, field: &'static str, worker_id: &str) {
        let visible = worker_id.bytes().all(|byte| byte.is_ascii_graphic());
        if !visible || !(1..=MAX_WORKER_ID_CHARS).contains(&worker_id.len()) {
            self.refuse(
                field,
                format!("must be 1 to {MAX_WORKER_ID_CHARS} visible ASCII characters"),
            );
        }
    }

    /// A model that a worker embeds with.
    pub(crate) fn known_model(&mut self, field: String, model: &str, known: &[String]) {
        if known.iter().any(|it| it == model) {
            return;
        }
        self.refuse(
            field,
            format!(
                "{:?} is not a model of this coordinator; it has {}",
                cut(model, MAX_MODEL_CHARS),
                known.join(", ")
            ),
        );
    }

    /// Namespaces that a worker has its hands full of. They are compared with, and
    /// looked for nowhere.
    pub(crate) fn busy_with(&mut self, namespaces: &[String]) {
        let too_long = |it: &String| it.len() > MAX_NAMESPACE_CHARS;
        if namespaces.len() > MAX_BUSY_WITH || namespaces.iter().any(too_long) {
            self.refuse(
                "busy_with",
                format!(
                    "must name at most {MAX_BUSY_WITH} namespaces, each of at most \
                     {MAX_NAMESPACE_CHARS} characters"
                ),
            );
        }
    }

    /// The lease that a worker's call names.
    pub(crate) fn lease(&mut self, job_id: i64, epoch: i64) -> Asked<LeaseKey> {
        if job_id < 1 {
            self.refuse("job_id", "must be the id of a job that was claimed");
        }
        if epoch < 1 {
            self.refuse(
                "epoch",
                "must be the epoch of the lease, which is at least 1",
            );
        }
        Asked::new(LeaseKey { job_id, epoch })
    }

    /// A reason in words; too long ones are cut.
    pub(crate) fn reason(&mut self, field: String, reason: &str) -> String {
        if reason.trim().is_empty() {
            self.refuse(field, "must say why, in words for a person");
        }
        Self::cut_reason(reason)
    }

    /// The same, of which there may be none.
    pub(crate) fn cut_reason(reason: &str) -> String {
        cut(&reason.replace('\0', "\u{FFFD}"), MAX_REASON_CHARS)
    }

    /// A hash of a chunk's text.
    fn text_hash(&mut self, field: &str, hash: &[u8]) -> TextHash {
        TextHash::try_from(hash).unwrap_or_else(|_| {
            self.refuse(
                format!("{field}.text_hash"),
                format!(
                    "must be the 32 bytes of the chunk's SHA-256, not {}",
                    hash.len()
                ),
            );
            TextHash::default()
        })
    }

    /// A vector from its bytes.
    pub(crate) fn vector(&mut self, field: &str, bytes: &[u8]) -> Vec<f32> {
        let (numbers, rest) = bytes.as_chunks::<4>();
        let vector: Vec<f32> = numbers
            .iter()
            .map(|number| f32::from_le_bytes(*number))
            .collect();
        if !rest.is_empty() {
            self.refuse(
                field,
                format!(
                    "must be packed little-endian f32, 4 bytes a number; {} bytes are not",
                    bytes.len()
                ),
            );
        } else if vector.is_empty() || vector.len() > MAX_DIMENSION {
            self.refuse(
                field,
                format!(
                    "must have 1 to {MAX_DIMENSION} numbers, not {}",
                    vector.len()
                ),
            );
        } else if let Some(place) = vector.iter().position(|number| !number.is_finite()) {
            self.refuse(
                field,
                format!(
                    "number {place} is {}; every number must be finite",
                    vector[place]
                ),
            );
        }
        vector
    }

    /// To how many characters a text was truncated; 0 means not at all. That the
    /// text has more is seen where the text is.
    fn truncated_to(&mut self, field: &str, chars: i32) -> Option<i32> {
        if chars < 0 {
            self.refuse(
                format!("{field}.truncated_to"),
                format!("must be 0, for the whole text, or a number of characters, not {chars}"),
            );
        }
        (chars != 0).then_some(chars)
    }

    /// The chunks of a result: each well formed, none twice, all vectors of one
    /// dimension.
    pub(crate) fn outcome(
        &mut self,
        embedded: Vec<v1::EmbeddedChunk>,
        rejected: Vec<v1::RejectedChunk>,
    ) -> (Vec<Embedded>, Vec<Rejected>) {
        let embedded: Vec<Embedded> = embedded
            .into_iter()
            .enumerate()
            .map(|(index, chunk)| {
                let field = format!("embedded[{index}]");
                Embedded {
                    text_hash: self.text_hash(&field, &chunk.text_hash),
                    vector: self.vector(&format!("{field}.vector"), &chunk.vector),
                    truncated_to: self.truncated_to(&field, chunk.truncated_to),
                    item_id: chunk.item_id,
                    chunk_index: chunk.chunk_index,
                }
            })
            .collect();
        let rejected: Vec<Rejected> = rejected
            .into_iter()
            .enumerate()
            .map(|(index, chunk)| {
                let field = format!("rejected[{index}]");
                Rejected {
                    text_hash: self.text_hash(&field, &chunk.text_hash),
                    reason: self.reason(format!("{field}.reason"), &chunk.reason),
                    item_id: chunk.item_id,
                    chunk_index: chunk.chunk_index,
                }
            })
            .collect();
        if let Some((index, chunk)) = embedded
            .iter()
            .enumerate()
            .find(|(_, chunk)| chunk.vector.len() != embedded[0].vector.len())
        {
            self.refuse(
                format!("embedded[{index}].vector"),
                format!(
                    "has {} numbers, the first has {}",
                    chunk.vector.len(),
                    embedded[0].vector.len()
                ),
            );
        }
        self.no_chunk_twice(&embedded, &rejected);
        (embedded, rejected)
    }

    fn no_chunk_twice(&mut self, embedded: &[Embedded], rejected: &[Rejected]) {
        let mut seen = std::collections::HashSet::new();
        let embedded = embedded
            .iter()
            .map(|chunk| ("embedded", &chunk.item_id, chunk.chunk_index));
        let rejected = rejected
            .iter()
            .map(|chunk| ("rejected", &chunk.item_id, chunk.chunk_index));
        for (field, item_id, chunk_index) in embedded.chain(rejected) {
            if item_id.contains('\0') {
                self.refuse(field, "an item_id has a NUL character, which no item has");
            }
            if !seen.insert((item_id, chunk_index)) {
                self.refuse(
                    field,
                    format!("chunk {chunk_index} of item {item_id:?} is named twice"),
                );
            }
        }
    }
}

/// Whether a namespace may be called so.
pub(super) fn is_namespace(name: &str) -> bool {
    let lower = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= MAX_NAMESPACE_CHARS && is_name(name, lower)
}

/// Whether a source may be called so.
pub(super) fn is_source_name(name: &str) -> bool {
    name.len() <= MAX_NAME_CHARS && is_name(name, |c| c.is_ascii_alphanumeric())
}

fn is_name(name: &str, first: impl Fn(char) -> bool) -> bool {
    name.chars().next().is_some_and(&first)
        && name
            .chars()
            .all(|c| first(c) || matches!(c, '-' | '_' | '.'))
}

/// The first `chars` characters of a text.
fn cut(text: &str, chars: usize) -> String {
    text.chars().take(chars).collect()
}
