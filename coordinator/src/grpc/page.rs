//! Page tokens: where the next page begins, bound to the query they came from.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};
use tonic::Status;

use super::error::{invalid_field, unusable_query};
use crate::store::status::{Page, Paging};

/// Bytes of the query's digest that a token carries.
const DIGEST: usize = 8;

/// Makes the token of the page that begins after `position` in the results of
/// `query`.
pub(crate) fn token(query: &impl Serialize, position: &impl Serialize) -> Result<String, Status> {
    let mut bytes = digest(query)?.to_vec();
    serde_json::to_writer(&mut bytes, position).map_err(|error| unusable_query(&error))?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// Reads a token that [`token`] made for the same query; `None` for the first
/// page.
pub(crate) fn position<P: DeserializeOwned>(
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
    serde_json::from_slice(position)
        .map(Some)
        .map_err(|_| foreign())
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
    use super::*;

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
}
