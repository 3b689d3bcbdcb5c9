//! Page tokens: where the next page begins, bound to the query they came from.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::Datelike as _;
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};
use tonic::Status;
use weir_proto::limits::MAX_WORKER_ID_CHARS;

use super::{
    door::{is_namespace, is_source_name},
    error::{invalid_field, unusable_query},
};
use crate::{
    ingest::check_item_id,
    store::{
        failures::FailurePosition,
        rows::SourceKey,
        status::{Page, Paging},
        workers::WorkerPosition,
    },
};

/// Bytes of the query's digest that a token carries.
const DIGEST: usize = 8;

/// A place in a list. A token is a client's to make up: what is in one is
/// taken for a place only where the list may have that.
pub(crate) trait Position: DeserializeOwned {
    /// Whether the list may have this place.
    fn may_be(&self) -> bool;
}

/// A job's id, or one next to it.
impl Position for i64 {
    fn may_be(&self) -> bool {
        *self >= 0
    }
}

impl Position for SourceKey {
    fn may_be(&self) -> bool {
        is_namespace(&self.namespace) && is_source_name(&self.name)
    }
}

/// When a failure was last seen, by a clock that Postgres and RFC 3339 can tell,
/// and its id.
impl Position for FailurePosition {
    fn may_be(&self) -> bool {
        (1..=9_999).contains(&self.0.year()) && self.1.may_be()
    }
}

/// A worker, and the id of its session.
impl Position for WorkerPosition {
    fn may_be(&self) -> bool {
        let (worker_id, session) = self;
        (1..=MAX_WORKER_ID_CHARS).contains(&worker_id.len())
            && worker_id.bytes().all(|b| b.is_ascii_graphic())
            && session.len() == 32
            && session
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    }
}

/// A chunk's item, and its index there.
impl Position for (String, i32) {
    fn may_be(&self) -> bool {
        check_item_id(&self.0).is_ok() && self.1 >= 0
    }
}

impl<P: Position> Position for Paging<P> {
    fn may_be(&self) -> bool {
        let (Self::After(position) | Self::Before(position)) = self;
        position.may_be()
    }
}

/// Makes the token of the page that begins after `position` in the results of
/// `query`.
pub(crate) fn token(query: &impl Serialize, position: &impl Serialize) -> Result<String, Status> {
    let position = serde_json::to_vec(position).map_err(|error| unusable_query(&error))?;
    token_of(query, &position)
}

/// The token with these bytes for a position.
pub(super) fn token_of(query: &impl Serialize, position: &[u8]) -> Result<String, Status> {
    Ok(URL_SAFE_NO_PAD.encode([&digest(query)?[..], position].concat()))
}

/// Reads a token that [`token`] made for the same query; `None` for the first
/// page.
pub(crate) fn position<P: Position>(
    query: &impl Serialize,
    token: &str,
) -> Result<Option<P>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    let foreign = || {
        invalid_field(
            "page_token",
            "is not a token of this query: send the next_page_token or previous_page_token of a request with the same \
             filters, or none to begin anew",
        )
    };
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| foreign())?;
    let (theirs, position) = bytes.split_at_checked(DIGEST).ok_or_else(foreign)?;
    if theirs != digest(query)? {
        return Err(foreign());
    }
    let position: P = serde_json::from_slice(position).map_err(|_| foreign())?;
    if !position.may_be() {
        return Err(foreign());
    }
    Ok(Some(position))
}

fn digest(query: &impl Serialize) -> Result<[u8; DIGEST], Status> {
    let query = serde_json::to_vec(query).map_err(|error| unusable_query(&error))?;
    let mut digest = [0; DIGEST];
    digest.copy_from_slice(&Sha256::digest(query)[..DIGEST]);
    Ok(digest)
}

/// The tokens of the pages after and before one, empty where there is none.
pub(crate) fn tokens<T, P: Serialize>(
    query: &impl Serialize,
    page: &Page<T, P>,
) -> Result<(String, String), Status> {
    let next = page.next.as_ref().map(Paging::After);
    let previous = page.previous.as_ref().map(Paging::Before);
    let made = |paging: Option<Paging<&P>>| {
        paging.map_or(Ok(String::new()), |paging| token(query, &paging))
    };
    Ok((made(next)?, made(previous)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{grpc::door::Door, store::status::beside_nothing};

    #[test]
    fn a_token_serves_its_own_query_only() {
        let made = token(&("jobs", "a"), &7_i64).unwrap();
        assert_eq!(position::<i64>(&("jobs", "a"), &made).unwrap(), Some(7));
        assert_eq!(position::<i64>(&("jobs", "a"), "").unwrap(), None);
        for (query, token) in [
            (("jobs", "b"), made.as_str()),
            (("jobs", "a"), "x"),
            (("jobs", "a"), "%%%"),
            (("jobs", "a"), &made[..made.len() - 1]),
        ] {
            let status = position::<i64>(&query, token).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{token}");
        }
    }

    const QUERY: (&str, &str) = ("jobs", "a");

    /// Reads a token with these bytes for a position. A refusal names the field.
    fn read<P: Position>(position: &[u8]) -> Option<P> {
        match super::position(&QUERY, &token_of(&QUERY, position).unwrap()) {
            Ok(position) => position,
            Err(status) => {
                assert_eq!(status.code(), tonic::Code::InvalidArgument);
                assert!(status.message().starts_with("page_token: "), "{status:?}");
                None
            }
        }
    }

    fn written<P: Position + Serialize>(position: &P) -> Option<P> {
        read(&serde_json::to_vec(position).unwrap())
    }

    fn time(seconds: i64) -> chrono::DateTime<chrono::Utc> {
        chrono::DateTime::from_timestamp(seconds, 7).unwrap()
    }

    /// Any text, of those characters too that decide.
    const ANY_TEXT: &str = "[a-zA-Z0-9_.\0\u{7f}é-]{0,8}|a{195,210}|a{500,520}";

    proptest! {
        #[test]
        fn no_bytes_are_taken_for_a_place_that_no_list_has(bytes: Vec<u8>) {
            read::<Paging<i64>>(&bytes);
            read::<FailurePosition>(&bytes);
            read::<(String, i32)>(&bytes);
        }

        #[test]
        fn a_jobs_place_is_taken_where_ids_are_and_leads_on(id: i64, back: bool) {
            let place = if back { Paging::Before(id) } else { Paging::After(id) };
            let taken = written(&place);
            prop_assert_eq!(taken, (id >= 0).then_some(place));
            if let Some(place) = taken {
                let (next, previous) = beside_nothing(None, None, Some(&place));
                for beside in [next.map(Paging::After), previous.map(Paging::Before)] {
                    prop_assert_eq!(beside.as_ref().and_then(written), beside);
                }
            }
        }

        #[test]
        fn a_sources_place_is_taken_where_a_request_may_name_it(namespace in ANY_TEXT, name in ANY_TEXT) {
            let mut door = Door::default();
            // An empty one is another in a request: it stands for the default.
            door.checked_namespace("namespace", namespace.clone());
            door.name("name", name.clone());
            let place = SourceKey { namespace, name };
            let taken = written(&place).is_some();
            prop_assert_eq!(taken, door.close().is_ok());
        }

        #[test]
        fn a_failures_place_is_taken_within_the_years_of_the_database(
            // All that chrono has, and what is near the ends of what is taken.
            seconds in prop_oneof![
                -8_334_601_228_800_i64..=8_210_266_876_799,
                -62_135_596_900_i64..-62_135_596_700,
                253_402_300_700_i64..253_402_300_900,
            ],
            id: i64,
        ) {
            let years = -62_135_596_800..253_402_300_800;
            let taken = written(&(time(seconds), id)).is_some();
            prop_assert_eq!(taken, id >= 0 && years.contains(&seconds));
        }

        #[test]
        fn a_chunks_place_is_taken_where_an_item_may_be_called_so(item_id in ANY_TEXT, index: i32) {
            let sound = check_item_id(&item_id).is_ok() && index >= 0;
            prop_assert_eq!(written(&(item_id, index)).is_some(), sound);
        }
    }
}
