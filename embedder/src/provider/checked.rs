//! Trusts no embedder: checks what it returned before anyone uses it.

use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use weir_proto::limits::MAX_DIMENSION;

use crate::{EmbedError, Embedder, Embedding, Limits, Probe, Profile, Role};

/// The text that a probe embeds, or what it repeats.
const PROBE: &str = "probe";

/// One kind of embedder, before its answers are checked.
#[async_trait]
pub(super) trait Provider: Send + Sync + 'static {
    /// The embedder in messages, as "the embedding server host:port".
    fn name(&self) -> &str;

    /// Embeds these texts, of which there is at least one.
    async fn call(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError>;

    /// Embeds one text, finds out how the embedder is to be asked, and what it
    /// says it takes.
    async fn probe(&self, text: &str) -> Result<(Vec<Vec<f32>>, Limits), EmbedError>;
}

/// An embedder whose vectors can be used without a further look.
pub(super) struct Checked<P> {
    provider: P,
    /// What comes before each text.
    prompt: String,
    /// Numbers in its vectors as the profile has it; that of the first probe
    /// where it does not, and 0 before.
    dimension: AtomicUsize,
    is_declared: bool,
    longest_input: Option<usize>,
}

impl<P: Provider> Checked<P> {
    pub(super) fn new(provider: P, profile: &Profile, role: Role) -> Self {
        let declared = profile.dimension.map(usize::from);
        Self {
            provider,
            prompt: match role {
                // The coordinator's part: it belongs to the text.
                Role::Document => String::new(),
                Role::Query => profile.query.prompt.clone(),
            },
            dimension: AtomicUsize::new(declared.unwrap_or_default()),
            is_declared: declared.is_some(),
            longest_input: profile.longest_input.map(|tokens| tokens as usize),
        }
    }

    fn broken(&self, what: &str) -> String {
        format!("{} {what}", self.provider.name())
    }

    fn other_dimension(&self, now: usize, before: usize) -> EmbedError {
        let what = if self.is_declared {
            format!(
                "returned vectors of {now} numbers, where dimension is {before}: serve the model \
                 that has {before}, or set dimension to {now} (--dimensions, WEIR_DIMENSIONS). A \
                 model that has several dimensions must be asked for one (send-dimension)"
            )
        } else {
            format!(
                "returned vectors of {now} numbers, and of {before} before: another model may be \
                 served behind the same name. Serve the one from before again; or restart the \
                 worker if the new one is meant, best under a name of its own"
            )
        };
        EmbedError::Embedder {
            reason: self.broken(&what),
            retry_after: None,
        }
    }
}

#[async_trait]
impl<P: Provider> Embedder for Checked<P> {
    async fn embed(&self, texts: &[&str]) -> Result<Vec<Embedding>, EmbedError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let vectors = if self.prompt.is_empty() {
            self.provider.call(texts).await?
        } else {
            let prompted = texts.iter().map(|text| format!("{}{text}", self.prompt));
            let prompted: Vec<String> = prompted.collect();
            let prompted: Vec<&str> = prompted.iter().map(String::as_str).collect();
            self.provider.call(&prompted).await?
        };
        if vectors.len() != texts.len() {
            let (got, sent) = (vectors.len(), texts.len());
            let reason = self.broken(&format!("returned {got} vectors for {sent} texts"));
            return Err(EmbedError::Transient { reason });
        }
        let probed = match self.dimension.load(Ordering::Relaxed) {
            0 => vectors.iter().map(Vec::len).find(|len| *len > 0),
            probed => Some(probed),
        };
        let dimension = probed.unwrap_or_default();
        // Where none is of the dimension it is not for the texts.
        let other = vectors.iter().map(Vec::len).find(|len| *len > 0);
        if let Some(other) = other
            && !vectors.iter().any(|vector| vector.len() == dimension)
        {
            return Err(self.other_dimension(other, dimension));
        }
        let check = |vector: Vec<f32>| match flaw(&vector, dimension) {
            Some(flaw) => Err(self.broken(&format!("returned a vector that {flaw}"))),
            None => Ok(vector),
        };
        Ok(vectors.into_iter().map(check).collect())
    }

    async fn probe(&self, bytes: usize) -> Result<Probe, EmbedError> {
        let words = bytes.div_ceil(PROBE.len() + 1).max(1);
        let text = format!("{}{}", self.prompt, vec![PROBE; words].join(" "));
        let (vectors, mut limits) = self.provider.probe(&text).await?;
        if let Some(error) = unusable_probe(self.provider.name(), &vectors) {
            return Err(error);
        }
        let dimension = vectors[0].len();
        let first =
            self.dimension
                .compare_exchange(0, dimension, Ordering::Relaxed, Ordering::Relaxed);
        if let Err(known) = first
            && known != dimension
        {
            return Err(self.other_dimension(dimension, known));
        }
        let longest = limits.text_tokens.into_iter().chain(self.longest_input);
        limits.text_tokens = longest.min();
        Ok(Probe { dimension, limits })
    }
}

/// Why what came for a probe is not one vector that can be used, if it is not.
pub(super) fn unusable_probe(name: &str, vectors: &[Vec<f32>]) -> Option<EmbedError> {
    let [vector] = vectors else {
        let reason = format!("{name} returned {} vectors for 1 text", vectors.len());
        return Some(EmbedError::Transient { reason });
    };
    flaw(vector, vector.len()).map(|flaw| EmbedError::Embedder {
        reason: format!("{name} returned a vector for the probe that {flaw}"),
        retry_after: None,
    })
}

/// What keeps a vector from being compared with others of this dimension, if
/// anything does.
fn flaw(vector: &[f32], dimension: usize) -> Option<String> {
    let len = vector.len();
    if len == 0 {
        Some("holds no numbers".to_owned())
    } else if len > MAX_DIMENSION {
        Some(format!(
            "holds {len} numbers; 1 to {MAX_DIMENSION} are possible"
        ))
    } else if len != dimension {
        Some(format!(
            "holds {len} numbers, where others hold {dimension}"
        ))
    } else if !vector.iter().all(|number| number.is_finite()) {
        Some("holds NaN or infinity".to_owned())
    } else if vector.iter().all(|number| *number == 0.0) {
        Some("is all zero".to_owned())
    } else {
        None
    }
}
