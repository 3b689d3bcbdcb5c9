//! Models that sources need and no worker here can claim jobs of.

use crate::store::Store;

/// Most models that are told one by one.
const TOLD: i64 = 20;

/// Says in the log which models have sources or open jobs and are not among
/// those that are served.
pub(crate) async fn tell_unserved(store: &Store, served: &[String]) {
    match store.unserved_models(served, TOLD).await {
        Ok(unserved) => {
            for of in unserved {
                tracing::warn!(
                    model = of.model,
                    sources = of.sources,
                    open_jobs = of.open_jobs,
                    "Sources have a model that is not served by this coordinator, and nothing of them can be embedded: \
                     add it to --models (WEIR_MODELS) or its models file."
                );
            }
        }
        Err(error) => {
            tracing::warn!(%error, "It was not found out whether all models of sources are served.");
        }
    }
}
