//! What ends a command, how it reads, and the exit code it gives.

use std::{error::Error as _, fmt::Write as _, io, process::ExitCode};

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::printable::printable;

/// What ended a command early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The command line asks for something that cannot be.
    #[error("{0}")]
    Usage(String),
    /// The coordinator cannot be reached.
    #[error("cannot reach the coordinator at {endpoint}: {reason}")]
    Unreachable {
        /// Where it should be.
        endpoint: String,
        /// What happened instead.
        reason: String,
    },
    /// The coordinator answered with an error.
    #[error("{}", describe(.0))]
    Refused(Box<Status>),
    /// A write was not answered, and when it was sent again others had written.
    #[error(
        "the write was not answered, and when it was sent again others had written: {}. Whether it was done before is \
         not known; look at the source, and write again if it is still to be", reason(.0)
    )]
    Overtaken(Box<Status>),
    /// The command did its work, and the work did not end well; what went
    /// wrong is told already.
    #[error("not everything is embedded")]
    Incomplete,
    /// The command did its work, and some texts were rejected; which and why is
    /// told already, how to go on is said here.
    #[error(
        "all is embedded but what was rejected: {list} has the texts and why. Once the embedder takes them, take it \
         back: weir retry --source {source}", list = .list, source = .source_name
    )]
    Rejected {
        /// The command that lists them.
        list: String,
        /// The source, or a word for it, with the flag of its namespace.
        source_name: String,
    },
    /// What was asked about is degraded; why is told already.
    #[error("degraded")]
    Degraded,
    /// Some of what was to be done was refused, or did not pass; which and why
    /// is told already.
    #[error("{0}")]
    Partly(String),
    /// Anything else.
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

impl Failure {
    /// The exit code that says this.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Usage(_) => 2,
            Self::Unreachable { .. } => 3,
            Self::Refused(status) if status.code() == Code::Unavailable => 3,
            Self::Degraded => 4,
            Self::Rejected { .. } => 5,
            Self::Refused(_)
            | Self::Overtaken(_)
            | Self::Incomplete
            | Self::Partly(_)
            | Self::Other(_) => 1,
        })
    }

    /// Whether the command's own output says all there is to say.
    pub(crate) fn is_told(&self) -> bool {
        matches!(self, Self::Degraded)
    }

    /// Whether the reader of our output went away, as `head` does, which is
    /// not worth a word.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        let Self::Other(error) = self else {
            return false;
        };
        error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl Failure {
    /// Texts of these sources were rejected.
    pub(crate) fn rejected(namespace: &str, sources: &[String]) -> Self {
        let flag = match namespace {
            "default" | "" => String::new(),
            namespace => format!(" --namespace {namespace}"),
        };
        match sources {
            [source] => Self::Rejected {
                list: format!("`weir chunks {source}{flag}`"),
                source_name: format!("{source}{flag}"),
            },
            _ => Self::Rejected {
                list: format!(
                    "of each source that `weir ls{flag}` marks, `weir chunks NAME{flag}`"
                ),
                source_name: format!("NAME{flag}"),
            },
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Other(error.into())
    }
}

/// A status in words, with one line for each fault of the request.
pub(crate) fn describe(status: &Status) -> String {
    let kind = match status.code() {
        Code::InvalidArgument => "the request is not valid",
        Code::NotFound => "not found",
        Code::FailedPrecondition => "not possible now",
        Code::ResourceExhausted => "over a limit",
        Code::Unavailable => "the coordinator is unavailable",
        Code::Aborted => "others came first",
        Code::Unimplemented => "this coordinator cannot do that",
        Code::Unauthenticated => "not signed in",
        Code::PermissionDenied => "not allowed",
        Code::DeadlineExceeded | Code::Cancelled => "the call was cut off",
        _ => "the coordinator failed",
    };
    let mut text = format!("{kind}: {}", reason(status));
    if let Some(bad) = status.get_details_bad_request() {
        for violation in bad.field_violations {
            let (field, what) = (
                printable(&violation.field),
                printable(&violation.description),
            );
            let _ = write!(text, "\n  {field}: {what}");
        }
    }
    text
}

/// What the status says; for one made by the transport, its innermost cause,
/// which is what a person can act on.
pub(crate) fn reason(status: &Status) -> String {
    let mut cause = status.source();
    while let Some(deeper) = cause.and_then(std::error::Error::source) {
        cause = Some(deeper);
    }
    printable(&cause.map_or_else(|| status.message().to_owned(), ToString::to_string))
}

#[cfg(test)]
mod tests {
    use tonic_types::{ErrorDetails, FieldViolation};

    use super::*;
    use crate::printable::{HOSTILE, assert_harmless};

    #[test]
    fn every_fault_of_a_request_has_its_line() {
        let details = ErrorDetails::with_bad_request(vec![
            FieldViolation::new("name", "is empty"),
            FieldViolation::new("items[3].text", "holds \u{1b}[31mNUL"),
        ]);
        let status = Status::with_error_details(Code::InvalidArgument, "2 faults", details);
        let failure = Failure::from(status);
        assert_eq!(
            failure.to_string(),
            "the request is not valid: 2 faults\n  name: is empty\n  items[3].text: holds \
             \u{fffd}[31mNUL"
        );
        assert_eq!(failure.exit_code(), ExitCode::from(1));
    }

    #[test]
    fn exit_codes_are_the_documented_ones() {
        assert_eq!(Failure::Usage(String::new()).exit_code(), ExitCode::from(2));
        assert_eq!(
            Failure::from(Status::unavailable("away")).exit_code(),
            ExitCode::from(3)
        );
        assert_eq!(
            Failure::from(Status::not_found("no")).exit_code(),
            ExitCode::from(1)
        );
        assert_eq!(Failure::Incomplete.exit_code(), ExitCode::from(1));
        assert_eq!(Failure::Degraded.exit_code(), ExitCode::from(4));
        let rejected = Failure::rejected("shop", &["prices".to_owned()]);
        assert_eq!(rejected.exit_code(), ExitCode::from(5));
        let words = rejected.to_string();
        assert!(
            words.contains("weir chunks prices --namespace shop"),
            "{words}"
        );
        assert!(
            words.ends_with("weir retry --source prices --namespace shop"),
            "{words}"
        );
    }

    #[test]
    fn a_closed_pipe_is_known() {
        assert!(Failure::from(io::Error::from(io::ErrorKind::BrokenPipe)).is_broken_pipe());
        assert!(!Failure::from(io::Error::from(io::ErrorKind::NotFound)).is_broken_pipe());
    }

    #[test]
    fn a_hostile_name_is_harmless() {
        let details = ErrorDetails::with_bad_request(vec![FieldViolation::new(HOSTILE, HOSTILE)]);
        let status = Status::with_error_details(Code::InvalidArgument, HOSTILE, details);
        assert_harmless(&Failure::from(status).to_string());
    }
}
