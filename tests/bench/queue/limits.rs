//! What the server can do without Weir: the limits that Weir is judged against.

use std::time::Instant;

use futures::future::try_join_all;
use pgvector::Vector;
use sqlx::{PgConnection, PgPool, postgres::PgPoolCopyExt as _};
use tokio::time::Duration;

use weir_tests::bench::{report::Report, stub};

/// Rows in a statement of the upsert: what a batch of Weir has at the most.
const BATCH: usize = 256;

/// A table like that of the vectors, stored as they are.
pub(crate) async fn prepare(pool: &PgPool) -> sqlx::Result<()> {
    for sql in [
        "CREATE TABLE rows (LIKE weir.embeddings INCLUDING ALL) WITH (toast_tuple_target = 4064)",
        "CREATE TABLE commits (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n bigint)",
    ] {
        sqlx::query(sql).execute(pool).await?;
    }
    Ok(())
}

/// Rows a second, upserted by so many connections at a time.
pub(crate) async fn upsert(
    pool: &PgPool,
    dimension: usize,
    rows: usize,
    connections: usize,
) -> sqlx::Result<f64> {
    sqlx::query("TRUNCATE rows").execute(pool).await?;
    let share = rows / connections;
    let began = Instant::now();
    try_join_all((0..connections).map(async |part| {
        let mut connection = pool.acquire().await?;
        let vectors: Vec<Vector> = stub::vectors(dimension)
            .into_iter()
            .map(Vector::from)
            .collect();
        let mut done = 0;
        while done < share {
            let next = BATCH.min(share - done);
            upsert_batch(&mut connection, &vectors, part, done, next).await?;
            done += next;
        }
        Ok::<_, sqlx::Error>(())
    }))
    .await?;
    Ok((share * connections) as f64 / began.elapsed().as_secs_f64())
}

async fn upsert_batch(
    connection: &mut PgConnection,
    vectors: &[Vector],
    part: usize,
    from: usize,
    rows: usize,
) -> sqlx::Result<()> {
    let ids: Vec<String> = (from..from + rows)
        .map(|n| format!("item-{n:08}"))
        .collect();
    let hashes = vec![vec![7_u8; 32]; rows];
    let embeddings: Vec<&Vector> = (0..rows).map(|n| &vectors[n % vectors.len()]).collect();
    sqlx::query(
        "INSERT INTO rows AS e (source_id, item_id, chunk_index, model, text_hash, embedding)
         SELECT $1, n.item_id, 0, 'fake', n.text_hash, n.embedding
         FROM unnest($2::text[], $3::bytea[], $4::vector[]) AS n(item_id, text_hash, embedding)
         ON CONFLICT (source_id, item_id, chunk_index) DO UPDATE
         SET model = EXCLUDED.model, text_hash = EXCLUDED.text_hash, embedding = EXCLUDED.embedding",
    )
    .bind(part as i64)
    .bind(ids)
    .bind(hashes)
    .bind(embeddings)
    .execute(connection)
    .await?;
    Ok(())
}

/// Rows a second, copied in binary by so many connections at a time.
pub(crate) async fn copy(
    pool: &PgPool,
    dimension: usize,
    rows: usize,
    connections: usize,
) -> anyhow::Result<f64> {
    sqlx::query("TRUNCATE rows").execute(pool).await?;
    let share = rows / connections;
    let began = Instant::now();
    try_join_all((0..connections).map(async |part| {
        let vectors = stub::vectors(dimension);
        let mut done = 0;
        while done < share {
            let next = BATCH.min(share - done);
            let mut copy = pool
                .copy_in_raw(
                    "COPY rows (source_id, item_id, chunk_index, model, text_hash, embedding)
                     FROM STDIN (FORMAT binary)",
                )
                .await?;
            copy.send(binary(&vectors, part, done, next)).await?;
            copy.finish().await?;
            done += next;
        }
        Ok::<_, anyhow::Error>(())
    }))
    .await?;
    Ok((share * connections) as f64 / began.elapsed().as_secs_f64())
}

/// Rows as COPY takes them: a header, each field after its length, a trailer.
fn binary(vectors: &[Vec<f32>], part: usize, from: usize, rows: usize) -> Vec<u8> {
    let mut bytes = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
    let field = |bytes: &mut Vec<u8>, field: &[u8]| {
        bytes.extend((field.len() as i32).to_be_bytes());
        bytes.extend(field);
    };
    for n in from..from + rows {
        let vector = &vectors[n % vectors.len()];
        bytes.extend(6_i16.to_be_bytes());
        field(&mut bytes, &(part as i64).to_be_bytes());
        field(&mut bytes, format!("item-{n:08}").as_bytes());
        field(&mut bytes, &0_i32.to_be_bytes());
        field(&mut bytes, b"fake");
        field(&mut bytes, &[7; 32]);
        let mut wire = (vector.len() as i16).to_be_bytes().to_vec();
        wire.extend(0_i16.to_be_bytes());
        wire.extend(vector.iter().flat_map(|number| number.to_be_bytes()));
        field(&mut bytes, &wire);
    }
    bytes.extend((-1_i16).to_be_bytes());
    bytes
}

/// Rows a second, upserted and copied, into the report. Returns the best upsert.
pub(crate) async fn rows(
    pool: &PgPool,
    dimension: usize,
    rows: usize,
    report: &mut Report,
) -> anyhow::Result<f64> {
    let mut best = 0.0_f64;
    for connections in [1, 4] {
        let rate = upsert(pool, dimension, rows, connections).await?;
        report.note(
            format!("limit: upsert, {dimension} dim., {connections} conn."),
            "rows/s",
            rate,
        );
        best = best.max(rate);
        let rate = copy(pool, dimension, rows, connections).await?;
        report.note(
            format!("limit: copy, {dimension} dim., {connections} conn."),
            "rows/s",
            rate,
        );
    }
    Ok(best)
}

/// Commits a second, of one small row each, into the report. Returns those of
/// 32 connections.
pub(crate) async fn commits(
    pool: &PgPool,
    counted: Duration,
    report: &mut Report,
) -> anyhow::Result<f64> {
    let mut rate = 0.0;
    for connections in [1, 32] {
        rate = commit(pool, connections, counted).await?;
        report.note(
            format!("limit: commits, {connections} conn."),
            "commits/s",
            rate,
        );
    }
    Ok(rate)
}

async fn commit(pool: &PgPool, connections: usize, counted: Duration) -> sqlx::Result<f64> {
    let began = Instant::now();
    let counts = try_join_all((0..connections).map(async |_| {
        let mut connection = pool.acquire().await?;
        let mut count = 0_u64;
        while began.elapsed() < counted {
            sqlx::query("INSERT INTO commits (n) VALUES ($1)")
                .bind(count as i64)
                .execute(&mut *connection)
                .await?;
            count += 1;
        }
        Ok::<_, sqlx::Error>(count)
    }))
    .await?;
    Ok(counts.iter().sum::<u64>() as f64 / began.elapsed().as_secs_f64())
}
