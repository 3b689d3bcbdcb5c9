//! What stands between the network and the store, for random bytes. Built for
//! `make fuzz` alone.

use std::sync::LazyLock;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use prost::{Message, Name};
use prost_reflect::{DescriptorPool, MethodDescriptor};
use weir_proto::{
    limits::MAX_MESSAGE_PARTS,
    parts,
    v1::{self, FILE_DESCRIPTOR_SET, stream_batches_request::Message as FromWorker},
};

use super::{
    auth::Caller,
    content,
    door::Door,
    json,
    page::{self, Position},
    stream,
    watch::Cursor,
};
use crate::store::{
    failures::FailurePosition,
    fuzzing::{bind, bind_text, bind_time},
    rows::SourceKey,
    status::{Paging, beside_nothing},
};

/// As the codec does.
fn decode<M: Message + Name + Default>(bytes: &[u8]) -> Option<M> {
    parts::measure(&M::full_name(), bytes, MAX_MESSAGE_PARTS).ok()?;
    M::decode(bytes).ok()
}

/// A message of a worker on its session: the first, or one after that.
pub fn stream_message(bytes: &[u8]) {
    let Some(message) = decode::<v1::StreamBatchesRequest>(bytes) else {
        return;
    };
    match message.message {
        Some(FromWorker::Open(open)) => {
            let models: Vec<String> = open.models.iter().map(|it| it.name.clone()).collect();
            drop(stream::check_open(open, &Caller::of_all(), &models));
        }
        _ => drop(stream::heard(message)),
    }
}

static METHODS: LazyLock<Vec<MethodDescriptor>> = LazyLock::new(|| {
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap_or_default();
    let services = pool.services();
    services
        .flat_map(|service| service.methods().collect::<Vec<_>>())
        .collect()
});

/// A token of the query that it is sent with, or a cursor, with anything for a
/// position, as far as it would be bound; the first byte says of what.
fn place(input: &[u8]) {
    let Some((which, json)) = input.split_first() else {
        return;
    };
    match which % 6 {
        0 => {
            if let Some(paging) = read::<Paging<i64>>(json) {
                let (next, previous) = beside_nothing(None, None, Some(&paging));
                for beside in [next.map(Paging::After), previous.map(Paging::Before)] {
                    let again = beside.and_then(|it| read(&serde_json::to_vec(&it).ok()?));
                    assert_eq!(again, beside, "beside {paging:?}");
                }
                let (Paging::After(id) | Paging::Before(id)) = paging;
                bind(id);
            }
        }
        1 => {
            if let Some(Paging::After(key) | Paging::Before(key)) = read::<Paging<SourceKey>>(json)
            {
                bind_text(&key.namespace);
                bind_text(&key.name);
            }
        }
        2 => {
            if let Some((time, id)) = read::<FailurePosition>(json) {
                bind_time(time);
                bind(id);
            }
        }
        3 => {
            if let Some((item_id, index)) = read::<(String, i32)>(json) {
                bind_text(&item_id);
                bind(index);
            }
        }
        4 => {
            let text = URL_SAFE_NO_PAD.encode(json);
            if let Ok(Some(cursor)) = Cursor::read(&text) {
                bind(cursor.jobs());
            }
        }
        _ => {
            let text = String::from_utf8_lossy(json);
            drop(page::position::<Paging<i64>>(&QUERY, &text));
            drop(Cursor::read(&text));
        }
    }
}

/// The query whose tokens are read.
const QUERY: &str = "query";

fn read<P: Position>(position: &[u8]) -> Option<P> {
    let token = page::token_of(&QUERY, position).ok()?;
    page::position(&QUERY, &token).ok()?
}

/// A request of a client; the first byte says which, and of one in JSON the
/// second to what method, of a token or cursor of what.
pub fn request(input: &[u8]) {
    let Some((first, bytes)) = input.split_first() else {
        return;
    };
    let mut door = Door::default();
    match first % 5 {
        0 => {
            if let Some(list) = decode::<v1::ItemList>(bytes) {
                drop(content::check_items("items", list.items));
            }
        }
        1 => {
            if let Some(patch) = decode::<v1::PatchSourceRequest>(bytes) {
                door.source_key(patch.namespace, patch.name);
                drop(content::check_items("upsert", patch.upsert));
            }
        }
        2 => {
            if let Some(search) = decode::<v1::SearchRequest>(bytes) {
                door.namespace(search.namespace);
                door.vector("vector", &search.vector);
            }
        }
        3 => place(bytes),
        _ => {
            if let Some((which, bytes)) = bytes.split_first() {
                let method = &METHODS[usize::from(*which) % METHODS.len()];
                let message = json::encode(method, bytes);
                drop(message.and_then(|message| json::json(&method.input(), &message)));
            }
        }
    }
    drop(door.close());
}
