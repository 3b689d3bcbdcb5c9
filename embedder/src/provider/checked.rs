//! Trusts no embedder: checks what it returned before anyone uses it.

use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use weir_proto::limits::MAX_DIMENSION;

use crate::{EmbedError, Embedder, Embedding, Limits, Probe};

/// The text that a probe embeds, or what it repeats.
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
    /// That of the first probe; 0 before it.
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

    fn other_dimension(&self, now: usize, before: usize) -> EmbedError {
        EmbedError::Embedder {
            reason: self.broken(&format!(
                "returned vectors of {now} numbers, and of {before} before: another model may be \
                 served behind the same name. Serve the one from before again; or restart the \
                 worker if the new one is meant, best under a name of its own"
            )),
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
        let vectors = self.provider.call(texts).await?;
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
        let limits = self.provider.limits().await?;
        let words = bytes.div_ceil(PROBE.len() + 1).max(1);
        let text = vec![PROBE; words].join(" ");
        let vectors = self.provider.call(&[&text]).await?;
        let [vector] = vectors.as_slice() else {
            let got = vectors.len();
            let reason = self.broken(&format!("returned {got} vectors for 1 text"));
            return Err(EmbedError::Transient { reason });
        };
        if let Some(flaw) = flaw(vector, vector.len()) {
            return Err(EmbedError::Embedder {
                reason: self.broken(&format!("returned a vector for the probe that {flaw}")),
                retry_after: None,
            });
        }
        let dimension = vector.len();
        let first =
            self.dimension
                .compare_exchange(0, dimension, Ordering::Relaxed, Ordering::Relaxed);
        match first {
            Err(probed) if probed != dimension => Err(self.other_dimension(dimension, probed)),
            _ => Ok(Probe { dimension, limits }),
        }
    }
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
