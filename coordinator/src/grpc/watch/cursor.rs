//! Where a watch that broke goes on: what the client had last, in few bytes, so
//! that any replica can go on and none has to remember.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tonic::Status;

use crate::{grpc::error::invalid_field, store::sources::MAX_JOBS_WITH_SOURCE};

/// Most jobs whose end a client can wait for: as many as come with a source.
const MAX_JOBS: usize = MAX_JOBS_WITH_SOURCE as usize;

/// What a client had last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::grpc) struct Cursor {
    /// Of the state as it was sent.
    pub(super) digest: u64,
    /// Jobs whose end the client waits for, the difference from each to the
    /// next.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    jobs: Vec<i64>,
}

impl Cursor {
    /// The cursor after a state in which these jobs were unsettled.
    pub(super) fn after(state: &impl prost::Message, jobs: impl IntoIterator<Item = i64>) -> Self {
        let hash = Sha256::digest(state.encode_to_vec());
        let mut digest = [0; 8];
        digest.copy_from_slice(&hash[..8]);
        let mut before = 0;
        let jobs = jobs.into_iter().map(|job| {
            let difference = job - before;
            before = job;
            difference
        });
        Self {
            digest: u64::from_le_bytes(digest),
            jobs: jobs.collect(),
        }
    }

    /// The jobs that were unsettled.
    pub(in crate::grpc) fn jobs(&self) -> Vec<i64> {
        self.ids().flatten().collect()
    }

    /// Their ids; `None` for what can be none.
    fn ids(&self) -> impl Iterator<Item = Option<i64>> {
        let sum = |sum: &mut i64, difference: &i64| {
            let id = sum.checked_add(*difference).filter(|id| *id > 0);
            *sum = id.unwrap_or_default();
            Some(id)
        };
        self.jobs.iter().scan(0, sum)
    }

    /// Whether a watch may have come so far.
    fn may_be(&self) -> bool {
        self.jobs.len() <= MAX_JOBS && self.ids().all(|id| id.is_some())
    }

    /// As a client has it.
    pub(super) fn to_text(&self) -> Result<String, Status> {
        let json = serde_json::to_vec(self)
            .map_err(|error| Status::internal(format!("a cursor could not be made: {error}")))?;
        Ok(URL_SAFE_NO_PAD.encode(json))
    }

    /// What a client sent; `None` when it begins.
    pub(in crate::grpc) fn read(text: &str) -> Result<Option<Self>, Status> {
        if text.is_empty() {
            return Ok(None);
        }
        let json = URL_SAFE_NO_PAD.decode(text).ok();
        let cursor = json.and_then(|json| serde_json::from_slice(&json).ok());
        let cursor = cursor.filter(Self::may_be);
        cursor.map(Some).ok_or_else(|| {
            invalid_field(
                "cursor",
                "is none of a watch: send the cursor of the last message, or none to begin anew",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use weir_proto::v1;

    use super::*;

    proptest! {
        /// What is read names jobs that there may be, and all that were sent.
        #[test]
        fn a_cursor_names_ids_or_is_refused(
            digest: u64,
            jobs in proptest::collection::vec(prop_oneof![any::<i64>(), -9_i64..9], 0..6),
        ) {
            let sent = Cursor { digest, jobs };
            match Cursor::read(&sent.to_text().unwrap()) {
                Ok(read) => {
                    let ids = read.unwrap().jobs();
                    prop_assert_eq!(ids.len(), sent.jobs.len());
                    prop_assert!(ids.iter().all(|id| *id > 0), "{:?}", ids);
                }
                Err(status) => {
                    let sum = |sum: &mut i128, it: &i64| {
                        *sum += i128::from(*it);
                        Some(*sum)
                    };
                    let ids = 1..=i128::from(i64::MAX);
                    let sound = sent.jobs.iter().scan(0, sum).all(|id| ids.contains(&id));
                    prop_assert!(!sound, "{:?}", sent);
                    prop_assert!(status.message().starts_with("cursor: "));
                }
            }
        }
    }

    #[test]
    fn a_cursor_survives_the_round_trip() {
        let state = v1::Job {
            job_id: 7,
            ..v1::Job::default()
        };
        let cursor = Cursor::after(&state, [1_000_009, 1_000_007, 4]);
        let text = cursor.to_text().unwrap();
        let read = Cursor::read(&text).unwrap().unwrap();
        assert_eq!(read, cursor);
        assert_eq!(read.jobs(), [1_000_009, 1_000_007, 4]);
        assert_ne!(Cursor::after(&v1::Job::default(), []).digest, cursor.digest);
        assert_eq!(Cursor::read("").unwrap(), None);
        let endless = Cursor {
            jobs: vec![1; MAX_JOBS + 1],
            ..Cursor::default()
        };
        let endless = endless.to_text().unwrap();
        for foreign in ["x", "%%%", "e30=", "bnVsbA", &endless] {
            let status = Cursor::read(foreign).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{foreign}");
        }
    }
}
