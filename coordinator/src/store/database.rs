//! Connections to a database that may fall silent: nothing that is asked of
//! them waits for ever.
//!
//! Postgres itself ends a statement that takes too long. But a server that is
//! stopped, or a network that lost the connection without a word, says nothing
//! at all, and the driver would wait for as long as that lasts.

use std::{
    future::Future,
    io,
    ops::{Deref, DerefMut},
    time::Duration,
};

use futures::{
    FutureExt as _, StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use sqlx::{
    Describe, Either, Execute, Executor, PgPool, Postgres, SqlStr,
    postgres::{PgQueryResult, PgRow, PgStatement, PgTypeInfo},
};
use tokio::time::timeout;

type Answer = Result<Either<PgQueryResult, PgRow>, sqlx::Error>;

/// A pool whose statements and transactions are answered within a limit or
/// fail.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    pub(super) inner: PgPool,
    /// For a statement, with the wait for a connection.
    pub(super) limit: Duration,
}

impl Pool {
    /// Begins a transaction. Dropped without a commit it changes nothing.
    pub(super) async fn begin(&self) -> Result<Transaction, sqlx::Error> {
        // In a box, for the driver's future is large, and every write of the store would carry it.
        let inner = within(self.limit, self.inner.begin().boxed()).await?;
        Ok(Transaction(Open {
            inner,
            limit: self.limit,
        }))
    }
}

/// An open transaction.
#[derive(Debug)]
pub(super) struct Transaction(Open);

impl Transaction {
    pub(super) async fn commit(self) -> Result<(), sqlx::Error> {
        within(self.0.limit, self.0.inner.commit()).await
    }

    /// Sets these settings to these values, for what follows in the transaction.
    pub(super) async fn set<'s>(
        &mut self,
        settings: impl IntoIterator<Item = (&'s str, &'s str)>,
    ) -> Result<(), sqlx::Error> {
        let (names, values): (Vec<&str>, Vec<&str>) = settings.into_iter().unzip();
        sqlx::query(
            "-- store::database::set
             SELECT set_config(name, value, true) FROM unnest($1::text[], $2::text[]) AS it(name, value)",
        )
        .bind(names)
        .bind(values)
        .execute(&mut **self)
        .await?;
        Ok(())
    }
}

impl Deref for Transaction {
    type Target = Open;

    fn deref(&self) -> &Open {
        &self.0
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut Open {
        &mut self.0
    }
}

/// The connection of an open transaction, for statements.
#[derive(Debug)]
pub(super) struct Open {
    inner: sqlx::Transaction<'static, Postgres>,
    limit: Duration,
}

/// Both are what statements run on, in the same way.
macro_rules! bounded_executor {
    ($executor:ty, $inner:ident => $run_on:expr) => {
        impl<'c> Executor<'c> for $executor {
            type Database = Postgres;

            fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Answer>
            where
                'c: 'e,
                E: 'q + Execute<'q, Postgres>,
            {
                let (limit, $inner) = (self.limit, self);
                each_within(limit, $run_on.fetch_many(query))
            }

            fn fetch_optional<'e, 'q: 'e, E>(
                self,
                query: E,
            ) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
            where
                'c: 'e,
                E: 'q + Execute<'q, Postgres>,
            {
                let (limit, $inner) = (self.limit, self);
                within(limit, $run_on.fetch_optional(query)).boxed()
            }

            fn prepare_with<'e>(
                self,
                sql: SqlStr,
                parameters: &'e [PgTypeInfo],
            ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
            where
                'c: 'e,
            {
                let (limit, $inner) = (self.limit, self);
                within(limit, $run_on.prepare_with(sql, parameters)).boxed()
            }

            fn describe<'e>(
                self,
                sql: SqlStr,
            ) -> BoxFuture<'e, Result<Describe<Postgres>, sqlx::Error>>
            where
                'c: 'e,
            {
                let (limit, $inner) = (self.limit, self);
                within(limit, $run_on.describe(sql)).boxed()
            }
        }
    };
}

bounded_executor!(&'c Pool, pool => (&pool.inner));
bounded_executor!(&'c mut Open, open => (&mut *open.inner));

async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    timeout(limit, answer)
        .await
        .unwrap_or_else(|_| Err(silent()))
}

/// The same for every row: many may take longer together.
fn each_within(limit: Duration, answers: BoxStream<'_, Answer>) -> BoxStream<'_, Answer> {
    stream::unfold(Some((answers, limit)), async |rest| {
        let (mut answers, limit) = rest?;
        match timeout(limit, answers.next()).await {
            Ok(Some(answer)) => Some((answer, Some((answers, limit)))),
            Ok(None) => None,
            Err(_) => Some((Err(silent()), None)),
        }
    })
    .boxed()
}

fn silent() -> sqlx::Error {
    sqlx::Error::Io(io::Error::new(
        io::ErrorKind::TimedOut,
        "the database did not answer",
    ))
}
