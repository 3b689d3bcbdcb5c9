//! What stands between the network and the store, for random bytes. Built for
//! `make fuzz` alone.

use std::sync::LazyLock;

use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor};
use weir_proto::{
    limits::MAX_MESSAGE_PARTS,
    parts,
    v1::{self, FILE_DESCRIPTOR_SET, stream_batches_request::Message as FromWorker},
};

use super::{content, door::Door, json, page, stream};

/// As the codec does.
fn decode<M: Message + Name + Default>(bytes: &[u8]) -> Option<M> {
    parts::check(&M::full_name(), bytes, MAX_MESSAGE_PARTS).ok()?;
    M::decode(bytes).ok()
}

/// A message of a worker on its stream.
pub fn stream_message(bytes: &[u8]) {
    let Some(v1::StreamBatchesRequest {
        message: Some(message),
    }) = decode(bytes)
    else {
        return;
    };
    match message {
        FromWorker::Open(open) => drop(stream::check_open(&open)),
        FromWorker::Result(result) => {
            let mut door = Door::default();
            door.outcome(result.embedded, result.rejected);
            drop(door.close());
        }
        FromWorker::Heartbeat(_) => {}
    }
}

static METHODS: LazyLock<Vec<MethodDescriptor>> = LazyLock::new(|| {
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap_or_default();
    let services = pool.services();
    services
        .flat_map(|service| service.methods().collect::<Vec<_>>())
        .collect()
});

/// A request of a client; the first byte says which, and of one in JSON the
/// second to what method.
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
        3 => {
            if let Some(list) = decode::<v1::ListJobsRequest>(bytes) {
                drop(page::position::<i64>(&("jobs", ""), &list.page_token));
            }
        }
        _ => {
            if let Some((which, bytes)) = bytes.split_first() {
                let method = &METHODS[usize::from(*which) % METHODS.len()];
                let message: Result<DynamicMessage, _> = json::parse(method, bytes);
                drop(message.and_then(|message| json::json(&message)));
            }
        }
    }
    drop(door.close());
}
