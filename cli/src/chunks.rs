//! `weir chunks`: a source's chunks by what became of them.

use std::time::SystemTime;

use clap::{Args, ValueEnum};
use serde::Serialize;
use weir_proto::v1::{self, ChunkState};

use crate::{
    connect::Session,
    failure::Failure,
    output::{self, ago},
    page,
    table::{Cell, table},
    view,
};

/// What `weir chunks` understands.
#[derive(Debug, Args)]
pub(crate) struct ChunksArgs {
    /// The source's name.
    name: String,
    /// What became of the chunks.
    #[arg(long, value_enum, default_value = "rejected")]
    state: State,
    /// Most chunks to list.
    #[arg(long, default_value = "100", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
}

/// What became of a chunk, as an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum State {
    /// The embedder can never take it.
    Rejected,
    /// Its vector is of the beginning of its text.
    Truncated,
    /// It has no vector yet.
    Pending,
    /// It has its vector.
    Embedded,
}

impl From<State> for ChunkState {
    fn from(state: State) -> Self {
        match state {
            State::Rejected => Self::Rejected,
            State::Truncated => Self::Truncated,
            State::Pending => Self::Pending,
            State::Embedded => Self::Embedded,
        }
    }
}

/// Lists chunks, by item.
pub(crate) async fn chunks(session: &Session, args: ChunksArgs) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Answer {
        chunks: Vec<view::ChunkStatus>,
    }

    let mut client = session.sources();
    let chunks = page::gather(args.limit as usize, async |page_size, page_token| {
        let request = v1::ListChunksRequest {
            namespace: session.namespace.clone(),
            name: args.name.clone(),
            state: ChunkState::from(args.state).into(),
            page_size,
            page_token,
        };
        let page = client.list_chunks(request).await?.into_inner();
        Ok((page.chunks, page.next_page_token))
    })
    .await?;
    if session.json {
        return Ok(output::json(&Answer {
            chunks: view::all(&chunks),
        })?);
    }
    if chunks.is_empty() {
        return Ok(output::line("No such chunks.")?);
    }
    Ok(output::fitting(&chunk_table(&chunks, SystemTime::now()))?)
}

fn chunk_table(chunks: &[v1::ChunkStatus], now: SystemTime) -> String {
    let row = |chunk: &v1::ChunkStatus| -> [Cell; 5] {
        let note = if chunk.truncated_to > 0 {
            format!("of the first {} characters", chunk.truncated_to)
        } else {
            chunk.reason.clone()
        };
        [
            chunk.item_id.as_str().into(),
            chunk.chunk_index.to_string().into(),
            chunk.chars.to_string().into(),
            ago(chunk.time, now).into(),
            note.into(),
        ]
    };
    let rows: Vec<_> = chunks.iter().map(row).collect();
    table(["ITEM", ">CHUNK", ">CHARS", "WHEN", "NOTE"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::printable::{HOSTILE, assert_harmless};

    #[test]
    fn a_chunk_says_what_became_of_it() {
        let chunk = |item_id: &str, truncated_to, reason: &str| v1::ChunkStatus {
            item_id: item_id.into(),
            chars: 900,
            truncated_to,
            reason: reason.into(),
            ..v1::ChunkStatus::default()
        };
        let chunks = [chunk("a", 0, "too\nodd"), chunk("b", 512, "")];
        assert_eq!(
            chunk_table(&chunks, SystemTime::now()),
            "ITEM  CHUNK  CHARS  WHEN  NOTE\n\
             a         0    900  -     too odd\n\
             b         0    900  -     of the first 512 characters"
        );
    }

    #[test]
    fn a_hostile_name_is_harmless() {
        let chunk = v1::ChunkStatus {
            item_id: HOSTILE.into(),
            reason: HOSTILE.into(),
            ..v1::ChunkStatus::default()
        };
        assert_harmless(&chunk_table(&[chunk], SystemTime::now()));
    }
}
