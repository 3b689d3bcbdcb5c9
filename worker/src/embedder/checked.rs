//! Trusts no embedder: checks what it returned before anyone uses it.

use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use weir_proto::limits::MAX_DIMENSION;

use super::{EmbedError, Embedder, Limits, Probe};

/// The text that a probe embeds.
const PROBE: &str = "probe";

/// One kind of embedder, before its answers are checked.
#[async_trait]
pub(super) trait Provider: Send + Sync + 'static {
    /// The embedder in messages, as "the embedding server host:port".
    fn name(&self) -> &str;

    /// Embeds these texts, of which there is at least one.
    async fn call(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError>;

    /// What the server says it takes. Called before each probe, so that what
    /// was learned of a server that has gone is forgotten.
    async fn limits(&self) -> Result<Limits, EmbedError> {
        Ok(Limits::default())
    }
}

/// An embedder whose vectors can be used without a further look.
pub(super) struct Checked<P> {
    provider: P,
    /// That of the last probe; 0 before the first.
    dimension: AtomicUsize,
}

impl<P: Provider> Checked<P> {
    pub(super) fn new(provider: P) -> Self {
        Self {
            provider,
            dimension: AtomicUsize::new(0),
        }
    }

    fn broken(&self, what: &str) -> String {
        format!("{} {what}", self.provider.name())
    }
}

#[async_trait]
impl<P: Provider> Embedder for Checked<P> {
    async fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let vectors = self.provider.call(texts).await?;
        let dimension = check_shape(&vectors, texts.len()).map_err(|what| {
            let reason = self.broken(&what);
            EmbedError::Transient { reason }
        })?;
        let probed = self.dimension.load(Ordering::Relaxed);
        if probed != 0 && dimension != probed {
            return Err(EmbedError::Embedder {
                reason: self.broken(&format!(
                    "returned vectors of {dimension} numbers, and of {probed} when it was probed; \
                     another model may be served behind the same name"
                )),
                retry_after: None,
            });
        }
        let places = vectors.iter().enumerate();
        let unusable = places.filter_map(|(place, vector)| Some((place, flaw(vector)?)));
        match (unusable.clone().next(), unusable.count()) {
            (None, _) => Ok(vectors),
            // It embeds other texts: those without a vector are to blame.
            (Some((place, flaw)), count) if count < vectors.len() || count == 1 => {
                Err(EmbedError::Input {
                    reason: self.broken(&format!("returned a vector that {flaw}")),
                    culprit: Some(place),
                })
            }
            (Some((_, flaw)), count) => Err(EmbedError::Transient {
                reason: self.broken(&format!(
                    "returned {count} vectors, each of which {flaw} or worse"
                )),
            }),
        }
    }

    async fn probe(&self) -> Result<Probe, EmbedError> {
        let limits = self.provider.limits().await?;
        let vectors = self.provider.call(&[PROBE]).await?;
        let dimension = check_shape(&vectors, 1).map_err(|what| {
            let reason = self.broken(&what);
            EmbedError::Transient { reason }
        })?;
        if let Some(flaw) = vectors.first().and_then(|vector| flaw(vector)) {
            // There is nothing wrong with the text.
            return Err(EmbedError::Embedder {
                reason: self.broken(&format!("returned a vector for the probe that {flaw}")),
                retry_after: None,
            });
        }
        self.dimension.store(dimension, Ordering::Relaxed);
        Ok(Probe { dimension, limits })
    }
}

/// Returns the dimension of `count` vectors that have one in common.
fn check_shape(vectors: &[Vec<f32>], count: usize) -> Result<usize, String> {
    if vectors.len() != count {
        let got = vectors.len();
        return Err(format!("returned {got} vectors for {count} texts"));
    }
    let dimension = vectors.first().map_or(0, Vec::len);
    for vector in vectors {
        let len = vector.len();
        if len != dimension {
            return Err(format!(
                "returned vectors of {dimension} and of {len} numbers"
            ));
        }
        if !(1..=MAX_DIMENSION).contains(&len) {
            return Err(format!(
                "returned a vector of {len} numbers; 1 to {MAX_DIMENSION} are possible"
            ));
        }
    }
    Ok(dimension)
}

/// What keeps a vector from being compared with others, if anything does.
fn flaw(vector: &[f32]) -> Option<&'static str> {
    if !vector.iter().all(|number| number.is_finite()) {
        Some("holds NaN or infinity")
    } else if vector.iter().all(|number| *number == 0.0) {
        Some("is all zero")
    } else {
        None
    }
}
