//! The pools of connections: how full they are, and how long a caller waits.

use std::time::Instant;

use crate::{
    metrics::{Metrics, Pool},
    store::{ConnectionPool, Store},
};

/// Takes one step: looks at each pool, then waits for one of its connections
/// as any call does.
pub(crate) async fn tick(store: &Store, metrics: &Metrics) {
    let metrics = &metrics.database;
    let (general, leases) = tokio::join!(
        look(store.pool(), &metrics.general),
        look(store.leases_pool(), &metrics.leases)
    );
    metrics.up.set(f64::from(general && leases));
}

/// Returns whether a connection could be had.
async fn look(pool: &ConnectionPool, metrics: &Pool) -> bool {
    let (size, idle) = (f64::from(pool.size()), pool.num_idle() as f64);
    metrics.idle.set(idle);
    metrics.in_use.set((size - idle).max(0.0));
    let most = pool.options().get_max_connections();
    metrics.max.set(f64::from(most));
    let began = Instant::now();
    let got = pool.acquire().await.is_ok();
    metrics.wait.record(began.elapsed().as_secs_f64());
    got
}
