//! Markdown, plain text and JSON Lines, and the chunks they are split into. The
//! first byte says which, and how long a chunk may be.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_coordinator::{
    ingest::{self, Format},
    job::chunk::{Chunker, MIN_CHUNK_SIZE},
};

fuzz_target!(|input: &[u8]| {
    let Some((first, content)) = input.split_first() else {
        return;
    };
    let format = [Format::Markdown, Format::Text, Format::JsonLines][usize::from(first % 3)];
    if let Ok(read) = ingest::read(format, content, "document") {
        let size = MIN_CHUNK_SIZE + usize::from(first / 3);
        let chunker = Chunker::new(size, size / 4).expect("sizes are good");
        for item in read.items {
            ingest::check_item(&item.item_id, &item.text, item.metadata.as_ref())
                .expect("what is read is within the limits");
            let chunks = chunker.chunk_under(&item.heading, &item.text, item.kind);
            assert!(!chunks.is_empty(), "an item has a chunk");
        }
    }
});
