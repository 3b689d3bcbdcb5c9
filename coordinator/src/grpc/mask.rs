//! Field masks: only what a client wants of each entry of a list.

use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, ReflectMessage as _};
use prost_types::FieldMask;
use std::sync::LazyLock;
use tonic::Status;
use weir_proto::v1::FILE_DESCRIPTOR_SET;

use super::door::Door;

#[expect(
    clippy::expect_used,
    reason = "our own descriptors, which every test reads"
)]
static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("our own descriptors"));

/// The fields of a message that are kept.
#[derive(Debug)]
pub(crate) struct Mask {
    message: MessageDescriptor,
    paths: Vec<Vec<String>>,
}

impl Mask {
    /// Reads the mask of a list of `message`s; `None` keeps everything.
    pub(crate) fn read(door: &mut Door, mask: Option<FieldMask>, message: &str) -> Option<Self> {
        let paths = mask?.paths;
        if paths.is_empty() {
            return None;
        }
        let message = POOL.get_message_by_name(message)?;
        let mut kept = Vec::with_capacity(paths.len());
        for path in paths {
            let parts: Vec<String> = path.split('.').map(str::to_owned).collect();
            if !is_path(&message, &parts) {
                door.refuse(
                    "read_mask",
                    format!("{:?} has no field {path:?}", message.name()),
                );
            }
            kept.push(parts);
        }
        kept.sort_unstable();
        kept.dedup();
        Some(Self {
            message,
            paths: kept,
        })
    }

    /// Messages with the fields that are kept, and no others.
    pub(crate) fn apply_all<M: prost::Message + Default>(
        &self,
        messages: &[M],
    ) -> Result<Vec<M>, Status> {
        messages.iter().map(|message| self.apply(message)).collect()
    }

    fn apply<M: prost::Message + Default>(&self, message: &M) -> Result<M, Status> {
        let fault = |error: &dyn std::fmt::Display| {
            Status::internal(format!("an answer could not be masked: {error}"))
        };
        let bytes = message.encode_to_vec();
        let mut whole = DynamicMessage::decode(self.message.clone(), bytes.as_slice())
            .map_err(|error| fault(&error))?;
        let paths: Vec<&[String]> = self.paths.iter().map(Vec::as_slice).collect();
        retain(&mut whole, &paths);
        M::decode(prost::Message::encode_to_vec(&whole).as_slice()).map_err(|error| fault(&error))
    }
}

fn is_path(message: &MessageDescriptor, path: &[String]) -> bool {
    let Some((first, rest)) = path.split_first() else {
        return true;
    };
    let Some(field) = message.get_field_by_name(first) else {
        return false;
    };
    match field.kind().as_message() {
        Some(inner) if !field.is_list() => is_path(inner, rest),
        _ => rest.is_empty(),
    }
}

fn retain(message: &mut DynamicMessage, paths: &[&[String]]) {
    let fields: Vec<_> = message.descriptor().fields().collect();
    for field in fields {
        let mut below = Vec::new();
        let mut whole = false;
        for path in paths {
            match path.split_first() {
                Some((first, [])) if first == field.name() => whole = true,
                Some((first, rest)) if first == field.name() => below.push(rest),
                _ => {}
            }
        }
        if whole {
            continue;
        }
        if below.is_empty() {
            message.clear_field(&field);
        } else if message.has_field(&field)
            && let Some(inner) = message.get_field_mut(&field).as_message_mut()
        {
            retain(inner, &below);
        }
    }
}

#[cfg(test)]
mod tests {
    use weir_proto::v1;

    use super::*;

    fn mask(paths: &[&str]) -> Result<Mask, Status> {
        let mut door = Door::default();
        let paths = paths.iter().map(|&path| path.to_owned()).collect();
        let mask = Mask::read(
            &mut door,
            Some(FieldMask { paths }),
            "weir.v1.SourceSummary",
        );
        door.close()?;
        Ok(mask.expect("some paths"))
    }

    #[test]
    fn only_what_is_named_is_kept() {
        let summary = v1::SourceSummary {
            source: Some(v1::Source {
                name: "shop".to_owned(),
                chunks: 7,
                badge: Some(v1::Badge {
                    text: "queued".to_owned(),
                    total: 7,
                    ..v1::Badge::default()
                }),
                ..v1::Source::default()
            }),
            job: Some(v1::Job::default()),
        };
        let kept = mask(&["source.name", "source.badge.text"])
            .unwrap()
            .apply(&summary)
            .unwrap();
        let source = kept.source.unwrap();
        assert_eq!(
            (source.name.as_str(), source.chunks, kept.job),
            ("shop", 0, None)
        );
        let badge = source.badge.unwrap();
        assert_eq!((badge.text.as_str(), badge.total), ("queued", 0));
        let kept = mask(&["source", "source.name"])
            .unwrap()
            .apply(&summary)
            .unwrap();
        assert_eq!(kept.source, summary.source);
    }

    #[test]
    fn an_unknown_field_is_refused() {
        for path in ["nothing", "source.nothing", "source.name.more", "", "job."] {
            let status = mask(&["job", path]).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{path}");
            assert!(status.message().contains("read_mask"), "{status}");
        }
    }
}
