//! How soon work goes on after another Postgres took over.

use std::time::{Duration, Instant};

use tokio::time::sleep;
use weir_tests::{
    bench::report::Report,
    pair::{Pair, embedded},
    proxy::Target,
};

use crate::Scale;

/// Texts of the source: more than are embedded before the server is lost.
const TEXTS: usize = 800;

pub(crate) async fn run(scale: &Scale, report: &mut Report) -> anyhow::Result<()> {
    for _ in 0..scale.failovers {
        let mut pair = Pair::start(TEXTS, &[]).await;
        let _worker = pair.world.worker("8");
        pair.world.embedded("notes", 80).await;
        pair.primary.kill().await;
        pair.switch
            .set_targets([Target::Unix(pair.standby.socket())]);
        // Whoever watches over the servers takes a while to notice.
        sleep(Duration::from_secs_f64(scale.locked / 10.0)).await;
        let pool = pair.standby_pool().await;
        let before = embedded(&pool).await;
        pair.standby.promote().await;
        let promoted = Instant::now();
        while embedded(&pool).await == before {
            sleep(Duration::from_millis(20)).await;
        }
        let vector = promoted.elapsed().as_secs_f64();
        pair.becomes(200).await;
        let ready = promoted.elapsed().as_secs_f64();
        pair.embeds_all(TEXTS).await;
        pool.close().await;
        report.note("standby promoted: until the next vector", "s", vector);
        report.note("standby promoted: until /readyz says so", "s", ready);
    }
    Ok(())
}
