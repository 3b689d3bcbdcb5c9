use super::*;

mod documents;
mod openapi;
mod robustness;

fn item_ids(ingested: &Ingested) -> Vec<&str> {
    ingested
        .items
        .iter()
        .map(|item| item.item_id.as_str())
        .collect()
}

/// What a refused document is told.
fn refusal(format: Format, content: impl AsRef<[u8]>) -> String {
    read(format, content.as_ref(), "id")
        .expect_err("should be refused")
        .to_string()
}
