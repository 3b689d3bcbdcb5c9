//! Imports: content that arrives in many messages waits in a table of its own,
//! so that no transaction waits for a slow client, and becomes the source's
//! content in one.

use sqlx::postgres::types::PgInterval;

use super::{
    Store, StoreError, Violation,
    content::{ContentWrite, PAGE_ITEMS, SourceWrite, Written},
};
use crate::job::{
    chunk::{Chunker, TextKind},
    plan::{PlannedItem, sort_items},
};

/// Text that is read back and written at a time, in bytes, and the text that
/// takes it over that.
pub const PAGE_BYTES: i64 = 2 << 20;

/// An item of an import on its way in, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportItem {
    /// The item's id.
    pub item_id: String,
    /// Its whole text.
    pub text: String,
    /// Its metadata as JSON text.
    pub metadata: Option<String>,
}

impl Store {
    /// Stores some items of an import. An id that the import had already is
    /// refused.
    pub async fn add_import_items(
        &self,
        import_id: i64,
        items: &[ImportItem],
    ) -> Result<(), StoreError> {
        let ids: Vec<&str> = items.iter().map(|item| item.item_id.as_str()).collect();
        let texts: Vec<&str> = items.iter().map(|item| item.text.as_str()).collect();
        let metadata: Vec<Option<&str>> =
            items.iter().map(|item| item.metadata.as_deref()).collect();
        let result = sqlx::query(
            "-- store::imports::add_import_items
             INSERT INTO weir.import_items (import_id, item_id, text, metadata)
             SELECT $1, item_id, text, metadata::jsonb
             FROM unnest($2::text[], $3::text[], $4::text[]) AS new(item_id, text, metadata)",
        )
        .bind(import_id)
        .bind(&ids)
        .bind(&texts)
        .bind(&metadata)
        .execute(&self.pool)
        .await;
        match result {
            Ok(_) => Ok(()),
            Err(sqlx::Error::Database(error)) if error.is_unique_violation() => {
                Err(StoreError::Invalid(vec![Violation::new(
                    "items",
                    "an item_id of this message occurs twice in the import; each item may be sent once",
                )]))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Makes what an import brought, `count` items, the whole content of its
    /// source. Changes nothing when they are not all there any more: the table
    /// they wait in is emptied by a crash of the database, and a part of the
    /// content must not pass for the whole.
    pub async fn finish_import(
        &self,
        write: &SourceWrite,
        import_id: i64,
        count: usize,
        chunker: &Chunker,
    ) -> Result<Written, StoreError> {
        self.at_source(&write.key, || {
            self.try_finish_import(write, import_id, count, chunker)
        })
        .await
    }

    async fn try_finish_import(
        &self,
        write: &SourceWrite,
        import_id: i64,
        count: usize,
        chunker: &Chunker,
    ) -> Result<Written, StoreError> {
        let mut content = ContentWrite::begin(self, write, true, false).await?;
        let mut after: Option<String> = None;
        let mut found = 0;
        loop {
            let page = next_page(&mut content, import_id, after.as_deref(), chunker).await?;
            found += page.len();
            if page.is_empty() && found != count {
                return Err(StoreError::Aborted(format!(
                    "of the import's {count} items the database has {found}: it was restarted in the midst of it, \
                     or the import took longer than a day; nothing was changed, begin the import again"
                )));
            }
            let upto = page.last().map(|item| item.item_id.clone());
            content
                .delete_between(after.as_deref().unwrap_or(""), upto.as_deref(), &page)
                .await?;
            if page.is_empty() {
                return content.finish().await;
            }
            content.write_items(&page).await?;
            after = upto;
        }
    }

    /// Forgets what an import brought.
    pub async fn drop_import(&self, import_id: i64) -> Result<(), StoreError> {
        sqlx::query(
            "-- store::imports::drop_import\nDELETE FROM weir.import_items WHERE import_id = $1",
        )
        .bind(import_id)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Forgets up to `limit` items of imports that a crash cut off, those that
    /// arrived more than a day ago. Returns how many there were.
    pub async fn drop_stale_imports(&self, limit: i64) -> Result<u64, StoreError> {
        let day = PgInterval {
            months: 0,
            days: 1,
            microseconds: 0,
        };
        let result = sqlx::query(
            "-- store::imports::drop_stale_imports
             DELETE FROM weir.import_items WHERE (import_id, item_id) IN (
                 SELECT import_id, item_id FROM weir.import_items WHERE created_at < now() - $1
                 ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED)",
        )
        .bind(day)
        .bind(limit)
        .execute(&self.pool)
        .await?;
        Ok(result.rows_affected())
    }
}

/// The import's next items in order of id, bounded in number and in bytes.
async fn next_page(
    content: &mut ContentWrite<'_>,
    import_id: i64,
    after: Option<&str>,
    chunker: &Chunker,
) -> Result<Vec<PlannedItem>, StoreError> {
    let rows: Vec<(String, String, Option<String>)> = sqlx::query_as(
        "-- store::imports::next_page
         SELECT item_id, text, metadata::text
         -- Read but once: what Postgres knows of the table is older than the import, and it would join it as if it were
         -- a row. How long a text is, is known without it.
         FROM (SELECT *, sum(octet_length(text)) OVER (ORDER BY item_id) - octet_length(text) AS bytes_before
               FROM (SELECT item_id, text, metadata FROM weir.import_items
                     WHERE import_id = $1 AND item_id > $2 ORDER BY item_id LIMIT $3) page) page
         WHERE bytes_before < $4
         ORDER BY item_id",
    )
    .bind(import_id)
    .bind(after.unwrap_or(""))
    .bind(PAGE_ITEMS as i64)
    .bind(PAGE_BYTES)
    .fetch_all(&mut **content.transaction())
    .await?;
    let mut items: Vec<PlannedItem> = rows
        .into_iter()
        .map(|(item_id, text, metadata)| PlannedItem {
            chunks: chunker.chunk(&text, TextKind::Plain),
            item_id,
            metadata,
        })
        .collect();
    sort_items(&mut items).map_err(|item_id| {
        StoreError::invalid("items", format!("item_id {item_id:?} occurs twice"))
    })?;
    Ok(items)
}
