//! A model in this process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use weir_bert::{EmbedFailure, SentenceModel};

use super::{checked::Provider, too_slow};
use crate::redact::presentable;
use crate::{EmbedError, Limits, Profile};

/// A sentence-transformers model, computed on the cores of this machine. Calls
/// at the same time share one thread a core.
pub(super) struct Local {
    model: Arc<SentenceModel>,
    timeout: Duration,
}

/// Ends the work of a call that nobody waits for any more: it timed out, or its
/// lease is gone.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Local {
    pub(super) async fn open(profile: &Profile) -> anyhow::Result<Self> {
        const SETTING: &str = "--local-model-dir (WEIR_LOCAL_MODEL_DIR)";
        let folder = profile
            .model_dir
            .clone()
            .with_context(|| format!("{SETTING} is not set"))?;
        let model = spawn_blocking(move || {
            SentenceModel::open(&folder)
                .with_context(|| format!("{} of {SETTING}", folder.display()))
        });
        Ok(Self {
            model: Arc::new(model.await??),
            timeout: profile.timeout,
        })
    }
}

#[async_trait]
impl Provider for Local {
    fn name(&self) -> &'static str {
        "the local model"
    }

    async fn probe(&self, text: &str) -> Result<(Vec<Vec<f32>>, Limits), EmbedError> {
        let limits = Limits {
            text_tokens: Some(self.model.max_tokens()),
            ..Limits::default()
        };
        Ok((self.call(&[text]).await?, limits))
    }

    async fn call(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let model = Arc::clone(&self.model);
        let sent = texts;
        let texts: Vec<String> = texts.iter().copied().map(str::to_owned).collect();
        let guard = StopOnDrop(Arc::default());
        let stop = Arc::clone(&guard.0);
        let work = spawn_blocking(move || model.embed(&texts, &stop));
        let transient = |reason: String| EmbedError::Transient { reason };
        let vectors = timeout(self.timeout, work).await;
        let vectors = vectors.map_err(|_| too_slow(self.name(), self.timeout))?;
        let vectors = vectors.map_err(|_| transient("the local model panicked".to_owned()))?;
        vectors.map_err(|failure| {
            let said = presentable(&failure.to_string(), sent, &[]);
            let reason = format!("the local model failed: {said}");
            match failure {
                EmbedFailure::TooLong { .. } => EmbedError::TooLong {
                    reason,
                    culprit: None,
                },
                EmbedFailure::Tokenize(_) => EmbedError::Input {
                    reason,
                    culprit: None,
                },
                EmbedFailure::Stopped => EmbedError::Transient { reason },
            }
        })
    }
}
