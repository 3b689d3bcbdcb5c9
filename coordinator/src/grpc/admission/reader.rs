//! What comes from a client, read as it comes.

use std::{future::Future, pin::pin, time::Duration};

use bytes::{Buf as _, Bytes};
use futures::future::poll_fn;
use http_body::Body as _;
use tokio::time::{Instant, interval_at};
use tonic::{Code, Status, body::Body};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::grpc::memory::Hold;

/// What a client has to send a second once others wait for the memory that its
/// message is received in.
const BYTES_A_SECOND: usize = 1 << 20;

/// How long it may take for the first of it.
const GRACE: Duration = Duration::from_secs(5);

/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The body of a call.
pub(in crate::grpc) struct Reader {
    body: Body,
    /// Read and not asked for yet.
    rest: Bytes,
}

impl Reader {
    pub(in crate::grpc) fn new(body: Body) -> Self {
        Self {
            body,
            rest: Bytes::new(),
        }
    }

    /// Reads up to `len` bytes, less only where the body ends. Who sends them
    /// too slowly is refused once others wait for the memory that is held.
    pub(in crate::grpc) async fn read(
        &mut self,
        into: &mut Vec<u8>,
        len: usize,
        held: Option<&Hold>,
    ) -> Result<(), Status> {
        let began = Instant::now();
        let mut look = interval_at(began + GRACE, LOOK_EVERY);
        while into.len() < len {
            if self.rest.is_empty() {
                tokio::select! {
                    biased;
                    more = next(&mut self.body) => match more? {
                        Some(more) => self.rest = more,
                        None => return Ok(()),
                    },
                    _ = look.tick(), if held.is_some() => {
                        if held.is_some_and(Hold::is_wanted) && is_slow(into.len(), began.elapsed()) {
                            return Err(too_slow());
                        }
                    }
                }
            }
            let some = self.rest.len().min(len - into.len());
            into.extend_from_slice(&self.rest[..some]);
            self.rest.advance(some);
        }
        Ok(())
    }

    /// Whether the body ends here.
    pub(in crate::grpc) async fn is_at_end(&mut self, held: &Hold) -> Result<bool, Status> {
        let mut more = Vec::new();
        self.read(&mut more, 1, Some(held)).await?;
        Ok(more.is_empty())
    }
}

/// Waits for what a client sends next, while `held` is held for the `bytes` that
/// it sent before; `waited` is for how long it was waited for already, and is
/// brought up to date. One that sends too slowly is refused once others want
/// that memory.
pub(in crate::grpc) async fn in_time<T>(
    next: impl Future<Output = T>,
    bytes: usize,
    waited: &mut Duration,
    held: &[Hold],
) -> Result<T, Status> {
    let (began, before) = (Instant::now(), *waited);
    let mut look = interval_at(began + LOOK_EVERY, LOOK_EVERY);
    let mut next = pin!(next);
    loop {
        tokio::select! {
            biased;
            it = &mut next => {
                *waited = before + began.elapsed();
                return Ok(it);
            }
            _ = look.tick() => {
                let time = before + began.elapsed();
                if is_slow(bytes, time) && held.iter().any(Hold::is_wanted) {
                    return Err(too_slow());
                }
            }
        }
    }
}

/// The next bytes of a body.
async fn next(body: &mut Body) -> Result<Option<Bytes>, Status> {
    loop {
        let frame = poll_fn(|cx| std::pin::Pin::new(&mut *body).poll_frame(cx)).await;
        match frame.transpose()? {
            None => return Ok(None),
            // Trailers of a client say nothing.
            Some(frame) => match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => return Ok(Some(data)),
                Err(_) => {}
            },
        }
    }
}

/// Whether who sent so many bytes in this time is slower than others need wait
/// for.
fn is_slow(bytes: usize, time: Duration) -> bool {
    let due = time.saturating_sub(GRACE).as_secs() as usize * BYTES_A_SECOND;
    time >= GRACE && bytes <= due
}

fn too_slow() -> Status {
    Status::with_error_details(
        Code::Unavailable,
        "the message came too slowly while others waited for the memory that it takes; send less at a time",
        ErrorDetails::with_retry_info(Some(LOOK_EVERY)),
    )
}

#[cfg(test)]
mod tests {
    use http_body::Frame;

    use super::*;
    use crate::grpc::memory::Memory;

    /// A client that sends one byte and then nothing.
    struct Stuck(bool);

    impl http_body::Body for Stuck {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<Frame<Bytes>, Status>>> {
            if std::mem::replace(&mut self.0, true) {
                return std::task::Poll::Pending;
            }
            std::task::Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"x")))))
        }
    }

    #[test]
    fn slowness_is_a_matter_of_bytes_and_time() {
        let second = Duration::from_secs(1);
        assert!(!is_slow(0, second));
        assert!(is_slow(0, GRACE));
        assert!(!is_slow(1, GRACE));
        assert!(is_slow(BYTES_A_SECOND, GRACE + second));
        assert!(!is_slow(BYTES_A_SECOND + 1, GRACE + second));
    }

    #[tokio::test]
    async fn who_sends_too_slowly_is_cut_off_once_others_wait() {
        let memory = Memory::default();
        let held = memory.to_receive(usize::MAX).await.unwrap();
        let mut reader = Reader::new(Body::new(Stuck(false)));
        let mut bytes = Vec::new();
        let (read, other) = tokio::join!(
            async {
                let read = reader.read(&mut bytes, 100, Some(&held)).await;
                drop(held);
                read
            },
            memory.to_receive(usize::MAX)
        );
        assert_eq!(read.unwrap_err().code(), Code::Unavailable);
        assert!(other.is_ok());
        assert_eq!(bytes, b"x");
    }
}
