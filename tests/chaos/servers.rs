//! The database of a run: a server, the standby that takes over from it, and a
//! session that keeps a lock for itself.

use std::time::Duration;

use sqlx::{Connection as _, PgConnection};
use tokio::time;
use weir_tests::{
    PATIENCE,
    postgres::OwnPostgres,
    proxy::{FaultProxy, Target},
    standby::Standby,
};

use crate::{
    clients::NAMESPACE,
    schedule::{Fault, Step},
};

/// A primary and its standby, which has all that the primary has said is
/// committed.
#[derive(Debug)]
pub(crate) struct Servers {
    primary: OwnPostgres,
    /// Missing only while another one is made.
    standby: Option<Standby>,
}

impl Servers {
    pub(crate) async fn start() -> Self {
        let primary = OwnPostgres::start(&[]).await;
        let standby = Some(follow(&primary).await);
        Self { primary, standby }
    }

    /// Where the primary listens.
    pub(crate) fn target(&self) -> Target {
        Target::Unix(self.primary.socket())
    }

    /// Does this to the primary. The `ways` lead to it, whichever it is.
    pub(crate) async fn hurt(&mut self, step: Step, ways: &[&FaultProxy]) {
        match step.fault {
            Fault::Stop => {
                self.primary.sigstop().await;
                time::sleep(step.lasts).await;
                self.primary.sigcont();
            }
            // Ends it first, in order.
            Fault::Terminate => self.primary.start_again().await,
            Fault::Promote => self.fail_over(step.lasts, ways).await,
            _ => {
                self.primary.kill().await;
                time::sleep(step.lasts).await;
                self.primary.start_again().await;
            }
        }
    }

    /// The primary is lost for good, and its standby takes over; then this one
    /// has another standby made.
    async fn fail_over(&mut self, after: Duration, ways: &[&FaultProxy]) {
        self.primary.kill().await;
        time::sleep(after).await;
        let standby = self.standby.take().expect("every primary has a standby");
        standby.promote().await;
        self.primary = standby.into_primary();
        wait_for_standby(&self.primary, false).await;
        for way in ways {
            way.set_targets([self.target()]);
        }
        self.standby = Some(follow(&self.primary).await);
    }
}

/// Starts a standby, and returns when it has all that was committed and no
/// commit is said to be done that it does not have.
async fn follow(primary: &OwnPostgres) -> Standby {
    let standby = Standby::follow(primary).await;
    wait_for_standby(primary, true).await;
    standby
}

/// Says whether commits wait for a standby, and returns when they do or do not.
async fn wait_for_standby(primary: &OwnPostgres, wait: bool) {
    time::timeout(PATIENCE, set_waiting(primary, wait))
        .await
        .expect("the standby follows in time")
        .expect("the primary answers");
}

async fn set_waiting(primary: &OwnPostgres, wait: bool) -> sqlx::Result<()> {
    let (names, set) = if wait {
        ("*", "ALTER SYSTEM SET synchronous_standby_names = '*'")
    } else {
        ("", "ALTER SYSTEM SET synchronous_standby_names = ''")
    };
    let mut connection = connect(primary).await?;
    for statement in [set, "SELECT pg_reload_conf()"] {
        sqlx::query(statement).execute(&mut connection).await?;
    }
    loop {
        // A new session has what the server has read last.
        let mut connection = connect(primary).await?;
        let (now, follows): (String, bool) = sqlx::query_as(
            "SELECT current_setting('synchronous_standby_names'),
                    EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = 'sync')",
        )
        .fetch_one(&mut connection)
        .await?;
        if now == names && (follows || !wait) {
            // It comes after all that was committed before.
            return sqlx::query("SELECT pg_logical_emit_message(true, 'chaos', '')")
                .execute(&mut connection)
                .await
                .map(drop);
        }
        time::sleep(Duration::from_millis(20)).await;
    }
}

async fn connect(primary: &OwnPostgres) -> sqlx::Result<PgConnection> {
    PgConnection::connect(&primary.url()).await
}

/// Holds the lock of a source's row, as a session does that somebody left open;
/// of none where there is no such source. The database may go away meanwhile,
/// and the lock with it.
pub(crate) async fn lock_source(url: &str, name: &str, lasts: Duration) -> sqlx::Result<()> {
    let mut connection = PgConnection::connect(url).await?;
    let mut session = connection.begin().await?;
    sqlx::query("SELECT FROM weir.sources WHERE namespace = $1 AND name = $2 FOR UPDATE")
        .bind(NAMESPACE)
        .bind(name)
        .execute(&mut *session)
        .await?;
    time::sleep(lasts).await;
    session.rollback().await
}
