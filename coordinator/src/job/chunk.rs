//! Chunking: one item's text → the texts that each become one vector.

use std::{borrow::Cow, ops::Range};

use sha2::{Digest, Sha256};
use text_splitter::{ChunkConfig, MarkdownSplitter, TextSplitter};

/// Smallest `chunk_size`, in characters. Below it a chunk says too little to
/// be found by, and a text falls into absurdly many.
pub const MIN_CHUNK_SIZE: usize = 64;

/// How many chunks' worth of text the splitter sees at once. For each chunk it
/// looks at all the text it is given, so a 10 MB text at once would take hours;
/// through a window the time is the length times this. Less would leave it too
/// little text to choose boundaries from.
const WINDOW_CHUNKS: usize = 4;

/// Longest run of white space that is kept, in characters: the Markdown
/// splitter takes time with the square of a run of blank lines.
const MAX_BLANK_RUN: usize = 64;

/// How a text is to be split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextKind {
    /// At paragraphs, lines, sentences and words, in this order of preference.
    Plain,
    /// At headings and blocks first.
    Markdown,
}

/// One text that becomes one vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The text: not blank, at most `chunk_size` characters.
    pub text: String,
    /// SHA-256 of the text.
    pub text_hash: [u8; 32],
}

impl Chunk {
    /// The chunk of a text.
    pub fn new(text: String) -> Self {
        let text_hash = Sha256::digest(&text).into();
        Self { text, text_hash }
    }

    /// SHA-256 of what is embedded for it: a prompt, and then its text.
    pub fn hash_after(&self, prompt: &str) -> [u8; 32] {
        if prompt.is_empty() {
            return self.text_hash;
        }
        Sha256::new()
            .chain_update(prompt)
            .chain_update(&self.text)
            .finalize()
            .into()
    }
}

/// Why the settings of a [`Chunker`] are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChunkerError {
    /// Chunks would be too short to mean anything.
    #[error("chunk_size must be at least {MIN_CHUNK_SIZE} characters, not {chunk_size}")]
    ChunkSize {
        /// What was asked for, in characters.
        chunk_size: usize,
    },
    /// Each chunk would repeat most of its predecessor, and the number of
    /// chunks would explode.
    #[error(
        "chunk_overlap must be at most half of chunk_size ({} of {chunk_size} characters), not \
         {chunk_overlap}",
        chunk_size / 2
    )]
    ChunkOverlap {
        /// The chunk size, in characters.
        chunk_size: usize,
        /// What was asked for, in characters.
        chunk_overlap: usize,
    },
}

/// Splits texts into chunks of at most `chunk_size` characters. The same text
/// always gives the same chunks.
#[derive(Debug)]
pub struct Chunker {
    chunk_size: usize,
    chunk_overlap: usize,
    plain: TextSplitter<text_splitter::Characters>,
    markdown: MarkdownSplitter<text_splitter::Characters>,
}

impl Chunker {
    /// Both settings are in characters: the most a chunk may have, and how
    /// many of them neighbouring chunks may share, at most half.
    pub fn new(chunk_size: usize, chunk_overlap: usize) -> Result<Self, ChunkerError> {
        if chunk_size < MIN_CHUNK_SIZE {
            return Err(ChunkerError::ChunkSize { chunk_size });
        }
        let refused = || ChunkerError::ChunkOverlap {
            chunk_size,
            chunk_overlap,
        };
        if chunk_overlap > chunk_size / 2 {
            return Err(refused());
        }
        let config = || {
            ChunkConfig::new(chunk_size)
                .with_overlap(chunk_overlap)
                .map_err(|_| refused())
        };
        Ok(Self {
            chunk_size,
            chunk_overlap,
            plain: TextSplitter::new(config()?),
            markdown: MarkdownSplitter::new(config()?),
        })
    }

    /// Splits a text. One that fits is one chunk, a blank one is none. White
    /// space around chunks is dropped and a run of it is cut to 64 characters;
    /// everything else is in at least one chunk, in order.
    pub fn chunk(&self, text: &str, kind: TextKind) -> Vec<Chunk> {
        let text = shorten_blanks(text.trim());
        self.ranges(&text, kind)
            .into_iter()
            .map(|range| Chunk::new(text[range].to_owned()))
            .collect()
    }

    /// As [`Self::chunk`], but every chunk after the first begins with
    /// `heading`, a line that says what the text is about, for a chunk from the
    /// middle of a text says little alone. With the heading, cut to a quarter
    /// of it, no chunk is longer than `chunk_size`.
    pub fn chunk_under(&self, heading: &str, text: &str, kind: TextKind) -> Vec<Chunk> {
        let heading = &heading[..char_prefix(heading, self.chunk_size / 4)];
        let room = self.chunk_size - heading.chars().count() - 1;
        let fits = char_prefix(text, self.chunk_size) == text.len();
        let narrower = match Self::new(room, self.chunk_overlap.min(room / 2)) {
            Ok(narrower) if !fits && !heading.trim().is_empty() => narrower,
            // One chunk, nothing to say, or chunks too small to say it in.
            _ => return self.chunk(text, kind),
        };
        let mut chunks = narrower.chunk(text, kind);
        for chunk in chunks.iter_mut().skip(1) {
            *chunk = Chunk::new(format!("{heading}\n{}", chunk.text));
        }
        chunks
    }

    /// Byte ranges of the chunks, by rising start and rising end.
    ///
    /// A long text goes through a window: the last chunk of each is dropped,
    /// for more text might have joined it, and the next window begins where it
    /// began. So boundaries and overlap come out as if there were no window,
    /// but for Markdown constructs longer than a window, which are split as if
    /// they began there.
    fn ranges(&self, text: &str, kind: TextKind) -> Vec<Range<usize>> {
        let window_chars = self.chunk_size.saturating_mul(WINDOW_CHUNKS);
        let mut ranges: Vec<Range<usize>> = Vec::new();
        let mut start = 0;
        while start < text.len() {
            let rest = &text[start..];
            if let Some(len) = self.unbroken_prefix(rest) {
                ranges.push(start..start + len);
                start += char_prefix(rest, self.chunk_size - self.chunk_overlap);
                continue;
            }
            let len = char_prefix(rest, window_chars);
            let mut chunks = self.split(&rest[..len], kind);
            let mut next = start + len;
            if next < text.len()
                && let Some(last) = chunks.pop_if(|last| last.start > 0)
            {
                next = start + last.start;
            }
            for chunk in chunks {
                let range = start + chunk.start..start + chunk.end;
                // Around long blanks the splitter may give a chunk that its
                // neighbour holds whole; and the same text in a new window may
                // be cut shorter, to what the chunk before holds.
                ranges.pop_if(|before| before.start >= range.start && before.end < range.end);
                if ranges.last().is_none_or(|before| range.end > before.end) {
                    ranges.push(range);
                }
            }
            start = next;
        }
        ranges
    }

    /// The length in bytes of a full chunk of letters and digits alone, when
    /// the text begins with one and goes on. It has no boundary to respect but
    /// those of words in scripts without spaces, for which the splitter asks a
    /// dictionary, very slowly in a run this long.
    fn unbroken_prefix(&self, text: &str) -> Option<usize> {
        let len = char_prefix(text, self.chunk_size);
        (len < text.len() && text[..len].chars().all(char::is_alphanumeric)).then_some(len)
    }

    /// What the splitter makes of one window.
    fn split(&self, window: &str, kind: TextKind) -> Vec<Range<usize>> {
        fn range((offset, chunk): (usize, &str)) -> Range<usize> {
            offset..offset + chunk.len()
        }
        match kind {
            TextKind::Plain => self.plain.chunk_indices(window).map(range).collect(),
            TextKind::Markdown => self.markdown.chunk_indices(window).map(range).collect(),
        }
    }
}

/// The length in bytes of the first `chars` characters.
fn char_prefix(text: &str, chars: usize) -> usize {
    text.char_indices()
        .nth(chars)
        .map_or(text.len(), |(offset, _)| offset)
}

/// Cuts every run of white space to [`MAX_BLANK_RUN`].
fn shorten_blanks(text: &str) -> Cow<'_, str> {
    fn within_run(run: &mut usize, c: char) -> bool {
        *run = if c.is_whitespace() { *run + 1 } else { 0 };
        *run <= MAX_BLANK_RUN
    }
    let mut run = 0;
    if text.chars().all(|c| within_run(&mut run, c)) {
        return Cow::Borrowed(text);
    }
    run = 0;
    Cow::Owned(text.chars().filter(|&c| within_run(&mut run, c)).collect())
}

#[cfg(test)]
mod tests;
