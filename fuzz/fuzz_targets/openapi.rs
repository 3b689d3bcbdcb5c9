//! OpenAPI documents, as YAML and as JSON, and the chunks they are split into.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_coordinator::{
    ingest::{self, Format},
    job::chunk::Chunker,
};

fuzz_target!(|content: &[u8]| {
    if let Ok(read) = ingest::read(Format::OpenApi, content, "document") {
        let chunker = Chunker::new(200, 20).expect("sizes are good");
        for item in read.items {
            ingest::check_item(&item.item_id, &item.text, item.metadata.as_ref())
                .expect("what is read is within the limits");
            let chunks = chunker.chunk_under(&item.heading, &item.text, item.kind);
            assert!(!chunks.is_empty(), "an item has a chunk");
        }
    }
});
