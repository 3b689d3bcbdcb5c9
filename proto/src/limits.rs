//! Limits of the contract. Both sides know them, so that a client can check
//! before it sends.

/// Largest message of a client: a whole document, or a page of items.
pub const MAX_CLIENT_MESSAGE_BYTES: usize = 64 << 20;

/// Largest message between a worker and the coordinator: a batch of texts or
/// of vectors.
pub const MAX_WORKER_MESSAGE_BYTES: usize = 32 << 20;

/// Most parts of a message: fields that are texts, bytes or messages of their
/// own, on all levels. A part may take 2 bytes on the wire and a hundred in
/// memory.
pub const MAX_MESSAGE_PARTS: usize = 1_000_000;

/// Longest namespace, in characters.
pub const MAX_NAMESPACE_CHARS: usize = 63;

/// Longest source name, in characters.
pub const MAX_NAME_CHARS: usize = 200;

/// Longest model name, in characters.
pub const MAX_MODEL_CHARS: usize = 200;

/// Longest item id, in bytes. It is part of two index keys, and Postgres takes
/// no key over a third of a page.
pub const MAX_ITEM_ID_BYTES: usize = 512;

/// Largest metadata of an item, in bytes of JSON.
pub const MAX_METADATA_BYTES: usize = 16 << 10;

/// Largest metadata of an item as it is encoded in a request. A number takes
/// more there than in JSON.
pub const MAX_METADATA_WIRE_BYTES: usize = 4 * MAX_METADATA_BYTES;

/// Most values in the metadata of an item, those of lists and objects on all
/// levels, each with whatever it holds.
pub const MAX_METADATA_VALUES: usize = 1_000;

/// Deepest nesting of the metadata of an item: its own fields are on level 1.
pub const MAX_METADATA_DEPTH: usize = 16;

/// Most items that one document is read into.
pub const MAX_DOCUMENT_ITEMS: usize = 1_000_000;

/// What is said of a metadata that is too long.
pub fn metadata_too_long(bytes: usize, most: usize) -> String {
    format!("is {bytes} bytes long; at most {most} are allowed")
}

/// What is said of a metadata that has too many values.
pub fn metadata_too_many() -> String {
    format!("has more than {MAX_METADATA_VALUES} values; keep in it what a search hit has to show")
}

/// What is said of a metadata that is nested too deep.
pub fn metadata_too_deep() -> String {
    format!("is nested more than {MAX_METADATA_DEPTH} levels deep; flatten it")
}

/// Longest text of an item, in bytes.
pub const MAX_ITEM_TEXT_BYTES: usize = 32 << 20;

/// Most entries a list call returns.
pub const MAX_PAGE_SIZE: i32 = 1_000;

/// Most chunks that a worker may hold and have credit for, of all its models
/// together. Their keys fit one message.
pub const MAX_CREDIT: i32 = 20_000;

/// Longest version of a worker, in characters.
pub const MAX_VERSION_CHARS: usize = 100;

/// Most chunks in one batch.
pub const MAX_BATCH_SIZE: i32 = 10_000;

/// Longest wait of `ClaimJob`, in seconds.
pub const MAX_CLAIM_WAIT_SECONDS: i64 = 60;

/// Most models one worker names in a claim.
pub const MAX_CLAIM_MODELS: usize = 100;

/// Most namespaces that a worker says in a claim it has its hands full of.
pub const MAX_BUSY_WITH: usize = 1_000;

/// Longest worker id, in characters.
pub const MAX_WORKER_ID_CHARS: usize = 200;

/// Longest reason kept for a failure, release or rejection, in characters;
/// longer ones are cut.
pub const MAX_REASON_CHARS: usize = 2_000;

/// Largest dimension of a vector: what pgvector's `vector` type holds.
/// <https://github.com/pgvector/pgvector#vector-type>
pub const MAX_DIMENSION: usize = 16_000;
