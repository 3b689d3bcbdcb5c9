//! The pool of connections: how full it is, and how long a caller waits.

use std::time::Instant;

use crate::{metrics::Metrics, store::Store};

/// Takes one step: looks at the pool, then waits for a connection as any call
/// does.
pub(crate) async fn tick(store: &Store, metrics: &Metrics) {
    let (pool, metrics) = (store.pool(), &metrics.database);
    let (size, idle) = (f64::from(pool.size()), pool.num_idle() as f64);
    metrics.idle.set(idle);
    metrics.in_use.set((size - idle).max(0.0));
    metrics
        .max
        .set(f64::from(pool.options().get_max_connections()));
    let began = Instant::now();
    let got = pool.acquire().await.is_ok();
    metrics.wait.record(began.elapsed().as_secs_f64());
    metrics.up.set(f64::from(got));
}
