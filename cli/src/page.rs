//! Lists that come in pages.

use tonic::Status;

/// Most entries that a page is asked for.
const PAGE_SIZE: usize = 1_000;

/// Gathers at most `most` entries. `page` asks for so many of them from a page
/// token on, and returns them with the next token, which is empty at the end.
pub(crate) async fn gather<T>(
    most: usize,
    mut page: impl AsyncFnMut(i32, String) -> Result<(Vec<T>, String), Status>,
) -> Result<Vec<T>, Status> {
    let mut all: Vec<T> = Vec::new();
    let mut token = String::new();
    loop {
        let wanted = (most - all.len()).min(PAGE_SIZE) as i32;
        let (some, next) = page(wanted, token).await?;
        all.extend(some);
        if next.is_empty() || all.len() >= most {
            all.truncate(most);
            return Ok(all);
        }
        token = next;
    }
}
