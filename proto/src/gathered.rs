//! Messages that were gathered before the transport saw them.
//!
//! The transport keeps a buffer for each call, as large as the largest message
//! that came in it, for as long as the call lasts; a stream that had a message
//! of 64 MiB once would keep that for days. So whoever reads the body gathers
//! the message in memory of its own, which it has asked for, leaves it here and
//! sends a token instead. [`BoundedCodec`](crate::codec::BoundedCodec) takes
//! what the token stands for, and that is gone once it is decoded.
//!
//! A token is 16 random bytes that never leave the process, and is good once:
//! no client can name one.

use std::{
    any::Any,
    collections::HashMap,
    fmt,
    sync::{LazyLock, Mutex, PoisonError},
};

use prost::bytes::Bytes;

static GATHERED: LazyLock<Mutex<HashMap<[u8; 16], Gathered>>> = LazyLock::new(Mutex::default);

/// A message that waits to be decoded, and what is to be held until it is.
pub(crate) struct Gathered {
    pub(crate) bytes: Bytes,
    _held: Box<dyn Any + Send>,
}

/// Stands for a message; with it goes the message, if nobody took it.
pub struct Token([u8; 16]);

/// Leaves a message, within bounds, under a token that nobody can guess.
/// `held` is dropped once the message is decoded.
pub fn leave(token: [u8; 16], bytes: Bytes, held: impl Any + Send) -> Token {
    let gathered = Gathered {
        bytes,
        _held: Box::new(held),
    };
    let mut all = GATHERED.lock().unwrap_or_else(PoisonError::into_inner);
    all.insert(token, gathered);
    Token(token)
}

/// The message that these bytes are the token of.
pub(crate) fn take(token: &[u8]) -> Option<Gathered> {
    let token = token.try_into().ok()?;
    let mut all = GATHERED.lock().unwrap_or_else(PoisonError::into_inner);
    all.remove::<[u8; 16]>(token)
}

impl Token {
    /// What is sent instead of the message.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        drop(take(&self.0));
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}
