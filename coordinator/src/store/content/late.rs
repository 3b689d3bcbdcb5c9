//! Writes that expected another revision of their source.

use super::{ContentWrite, Written};
use crate::store::StoreError;

impl ContentWrite<'_> {
    /// Fails as soon as a write that came late would change an item.
    pub(super) fn check_late(&self) -> Result<(), StoreError> {
        match self.late {
            Some(_) if self.changes_items() => Err(self.is_late()),
            _ => Ok(()),
        }
    }

    fn is_late(&self) -> StoreError {
        self.write.key.not_at(self.late, Some(self.source.revision))
    }

    /// Ends a write that expected another revision: well where all that it wants
    /// is there, for then it is a resend of one that was done.
    pub(super) async fn finish_late(mut self, would_change: bool) -> Result<Written, StoreError> {
        if would_change {
            return Err(self.is_late());
        }
        let source = self.stored_source().await?;
        self.answer(source, false, &[]).await
    }
}
