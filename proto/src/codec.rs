//! The codec of every call: prost's own, after a look at how much a message
//! would take once it is decoded.

use std::marker::PhantomData;

use prost::{Message, Name, bytes::Buf as _};
use tokio::runtime::{Handle, RuntimeFlavor};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder},
};
use tonic_prost::{ProstDecoder, ProstEncoder};

use crate::{
    gathered,
    limits::MAX_MESSAGE_PARTS,
    parts::{self, Fault},
};

/// Bytes of a message from which on others notice the work on it.
const LONG: usize = 64 << 10;

/// Encodes `T`, and decodes `U` where it has no more than
/// [`MAX_MESSAGE_PARTS`]; a message with more is `RESOURCE_EXHAUSTED`.
#[derive(Debug, Clone)]
pub struct BoundedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for BoundedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Name + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(ProstDecoder::default())
    }
}

/// Decodes `U` where it is within bounds.
#[derive(Debug, Clone)]
pub struct BoundedDecoder<U>(ProstDecoder<U>);

impl<U: Message + Name + Default> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        if let Some(message) = gathered::take(buffer.chunk()) {
            buffer.advance(buffer.remaining());
            // Whoever left it there has looked at it.
            let decoded = beside_others(message.bytes.len(), || U::decode(message.bytes.clone()));
            return decoded
                .map(Some)
                .map_err(|error| Status::invalid_argument(error.to_string()));
        }
        // The transport gathers a message before it is decoded: one chunk has all of it.
        match parts::check(&U::full_name(), buffer.chunk(), MAX_MESSAGE_PARTS) {
            Ok(()) => self.0.decode(buffer),
            Err(Fault::TooMany) => Err(Status::resource_exhausted(format!(
                "the message has more than {MAX_MESSAGE_PARTS} fields; send its items in several"
            ))),
            Err(Fault::Malformed) => Err(Status::invalid_argument(format!(
                "failed to decode Protobuf message: these bytes are no {}",
                U::NAME
            ))),
            Err(Fault::Metadata { field, message }) => {
                Err(Status::invalid_argument(format!("{field}: {message}")))
            }
        }
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

/// Works on a message of so many bytes; where they are many, so that the
/// thread's other tasks do not wait for it.
pub fn beside_others<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    let runtime = Handle::try_current().map(|runtime| runtime.runtime_flavor());
    match runtime {
        Ok(RuntimeFlavor::MultiThread) if bytes > LONG => tokio::task::block_in_place(work),
        _ => work(),
    }
}
