//! What all embedders have in common that are servers.

use std::fmt;

use async_trait::async_trait;

use super::{
    checked::{Provider, unusable_probe},
    http::{Failure, Server},
    ways::{Fault, Way, Ways},
};
use crate::{EmbedError, Limits};

/// A server that may be asked in several ways.
#[async_trait]
pub(super) trait Remote: Send + Sync + 'static {
    /// What differs in requests.
    type Form: fmt::Debug + Send + Sync + 'static;

    fn server(&self) -> &Server;

    fn ways(&self) -> &Ways<Self::Form>;

    /// Has these texts embedded.
    async fn ask(&self, way: &Way<Self::Form>, texts: &[&str]) -> Result<Vec<Vec<f32>>, Failure>;

    /// What a failure speaks against.
    fn fault(&self, failure: &Failure) -> Fault {
        failure.fault()
    }

    /// What the server says it takes.
    async fn limits(&self) -> Result<Limits, EmbedError> {
        Ok(Limits::default())
    }
}

#[async_trait]
impl<R: Remote> Provider for R {
    fn name(&self) -> &str {
        self.server().name()
    }

    async fn call(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let vectors = self.ask(self.ways().taken(), texts).await;
        vectors.map_err(|failure| self.server().sort(failure, texts))
    }

    async fn probe(&self, text: &str) -> Result<(Vec<Vec<f32>>, Limits), EmbedError> {
        let limits = self.limits().await?;
        let mut search = self.ways().search();
        loop {
            let vectors = self.ask(search.way(), &[text]).await;
            // What cannot be used may be packed in a way of the server's own.
            let vectors = vectors.and_then(|vectors| {
                let unusable = unusable_probe(self.name(), &vectors);
                unusable.map_or(Ok(vectors), |error| Err(Failure::Other(Fault::Form, error)))
            });
            match vectors {
                Ok(vectors) => {
                    search.passed();
                    return Ok((vectors, limits));
                }
                Err(failure) => {
                    if let Some(failure) = search.failed(self.fault(&failure), failure) {
                        return Err(self.server().sort(failure, &[text]));
                    }
                }
            }
        }
    }
}
