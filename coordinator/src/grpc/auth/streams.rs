//! How many streams a caller may have open at a time.

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroU32,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use anyhow::Context as _;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use prost_reflect::DescriptorPool;
use tonic::{Status, body::Body};
use weir_proto::v1::FILE_DESCRIPTOR_SET;

use super::rate::Key;

/// The streams of all callers.
///
/// Those of workers are none of them: they go both ways, each worker has one, and
/// how many there are is for `--max-calls-per-connection`.
#[derive(Debug)]
pub(super) struct Streams {
    /// The paths of calls with many answers to one request.
    paths: HashSet<String>,
    most: u32,
    open: Mutex<HashMap<Key, u32>>,
}

/// A stream that is open, for as long as this is kept.
#[derive(Debug)]
pub(super) struct Open {
    streams: Arc<Streams>,
    key: Key,
}

impl Streams {
    /// Lets each caller have so many.
    pub(super) fn new(most: NonZeroU32) -> anyhow::Result<Self> {
        let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).context("our own descriptors")?;
        let methods = pool.services().flat_map(|service| {
            let methods: Vec<_> = service.methods().collect();
            methods
        });
        let watches = methods.filter(|it| it.is_server_streaming() && !it.is_client_streaming());
        let paths = watches.flat_map(|method| {
            let (service, name) = (method.parent_service().clone(), method.name());
            [
                format!("/{}/{name}", service.full_name()),
                format!("/api/{}/{name}", service.name()),
            ]
        });
        Ok(Self {
            paths: paths.collect(),
            most: most.get(),
            open: Mutex::default(),
        })
    }

    /// Counts a call to `path` as one of this caller's streams for as long as
    /// what is returned is kept; `RESOURCE_EXHAUSTED` where it is one too many.
    /// Other calls are not counted, nor those of nobody.
    pub(super) fn open(
        self: &Arc<Self>,
        path: &str,
        key: Option<Key>,
    ) -> Result<Option<Open>, Status> {
        let Some(key) = key.filter(|_| self.paths.contains(path)) else {
            return Ok(None);
        };
        let mut open = self.lock();
        let count = open.entry(key.clone()).or_default();
        if *count >= self.most {
            return Err(too_many(self.most, &key));
        }
        *count += 1;
        drop(open);
        let streams = Arc::clone(self);
        Ok(Some(Open { streams, key }))
    }

    /// Locks without poisoning: nothing that holds this lock can panic.
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, u32>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut open = self.streams.lock();
        if let Some(count) = open.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.key);
            }
        }
    }
}

fn too_many(most: u32, key: &Key) -> Status {
    let whose = match key {
        Key::Token(_) => "this token",
        Key::Address(_) => "this address",
    };
    Status::resource_exhausted(format!(
        "{most} streams of {whose} are open, and no more are let in: end one, follow many sources with one \
         WatchSources, or raise --max-streams-per-client (WEIR_MAX_STREAMS_PER_CLIENT)"
    ))
}

/// The answers of a stream that is counted until they end, or nobody reads them
/// any more.
pub(super) struct Counted {
    inner: Body,
    open: Option<Open>,
}

impl Counted {
    /// Counts it as `open` until it ends.
    pub(super) fn new(inner: Body, open: Open) -> Self {
        let open = Some(open);
        Self { inner, open }
    }
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        if let Poll::Ready(None | Some(Err(_))) = &frame {
            self.open = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn what_is_a_stream_is_in_the_contract() {
        let streams = Streams::new(NonZeroU32::MIN).unwrap();
        for (path, is_one) in [
            ("/weir.v1.JobService/WatchJob", true),
            ("/weir.v1.JobService/WatchStatus", true),
            ("/api/JobService/WatchSources", true),
            ("/externalscaler.ExternalScaler/StreamIsActive", true),
            ("/weir.v1.JobService/GetJob", false),
            ("/weir.v1.WorkerService/StreamBatches", false),
            ("/weir.v1.SourceService/ImportSource", false),
            ("/grpc.health.v1.Health/Watch", false),
        ] {
            assert_eq!(streams.paths.contains(path), is_one, "{path}");
        }
    }

    #[test]
    fn a_caller_has_so_many_streams_at_a_time_and_no_more() {
        let streams = Arc::new(Streams::new(NonZeroU32::new(2).unwrap()).unwrap());
        let one = || Some(Key::Token("one".to_owned()));
        let other = || Some(Key::Address([127, 0, 0, 1].into()));
        let (watch, call) = ("/api/JobService/WatchJob", "/api/JobService/GetJob");
        let first = streams.open(watch, one()).unwrap();
        let second = streams.open(watch, one()).unwrap();
        let refused = streams.open(watch, one()).unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert!(refused.message().contains("2 streams of this token"));
        // Another has its own, and what is no stream is not counted.
        let _other = streams.open(watch, other()).unwrap().unwrap();
        assert!(streams.open(call, one()).unwrap().is_none());
        drop(first);
        let third = streams.open(watch, one()).unwrap().unwrap();
        streams.open(watch, one()).unwrap_err();
        drop((second, third));
        // Whoever has none any more is forgotten.
        assert_eq!(streams.lock().len(), 1);
    }
}
