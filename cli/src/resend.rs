//! Writes that are sent again where their answer was lost, and undo nothing.
//!
//! A write whose connection broke may have been done, may never have come, or
//! may come yet, after others have written. So each sending names the revision
//! that the source had before the first one: the coordinator does it at most
//! once, and answers a resend of what it did with success.

use std::time::Duration;

use tokio::time::sleep;
use tonic::{Code, Status};
use weir_proto::v1;

use crate::{
    connect::Session,
    failure::{Failure, reason},
};

/// How long is waited before each resend; then it is given up.
const WAITS: [Duration; 4] = [
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];

/// How often a write begins anew that others came before.
const RACES: usize = 10;

/// Sends a write until it is answered. `revision` reads the source's, and
/// `write` sends the write for the source at that. Whoever comes between the
/// two is seen, and the write made for what is there then; but not where a
/// sending before it was lost: it may have been done, and been changed since.
pub(crate) async fn until_answered<T>(
    revision: impl AsyncFn() -> Result<i64, Failure>,
    write: impl AsyncFn(i64) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let (mut waits, mut races) = (WAITS.iter(), 0..RACES);
    let mut lost = false;
    let mut expected = revision().await?;
    loop {
        let status = match write(expected).await {
            Ok(answer) => return Ok(answer),
            Err(Failure::Refused(status)) => *status,
            Err(failure) => return Err(failure),
        };
        if is_lost(&status) {
            let Some(wait) = waits.next() else {
                return Err(status.into());
            };
            tracing::warn!(
                reason = reason(&status),
                wait_ms = wait.as_millis() as u64,
                "The write was not answered; it is sent again."
            );
            lost = true;
            sleep(*wait).await;
        } else if status.code() != Code::Aborted {
            return Err(status.into());
        } else if lost {
            return Err(Failure::Overtaken(Box::new(status)));
        } else if races.next().is_none() {
            return Err(status.into());
        } else {
            expected = revision().await?;
        }
    }
}

/// Whether nobody knows what became of a call: the coordinator could not say,
/// or the transport has made the status.
fn is_lost(status: &Status) -> bool {
    status.code() == Code::Unavailable || std::error::Error::source(status).is_some()
}

/// The revision of a source; 0 where there is none.
pub(crate) async fn revision(session: &Session, name: &str) -> Result<i64, Failure> {
    let request = v1::GetSourceRequest {
        namespace: session.namespace.clone(),
        name: name.to_owned(),
    };
    match session.sources().get_source(request).await {
        Ok(answer) => Ok(answer.into_inner().source.map_or(0, |it| it.revision)),
        Err(status) if status.code() == Code::NotFound => Ok(0),
        Err(status) => Err(status.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    /// A source that others write as well: each answer is given, and what the
    /// writes expected is kept.
    async fn written(
        revisions: &[i64],
        answers: Vec<Result<(), Status>>,
    ) -> (Result<(), Failure>, Vec<i64>) {
        let (reads, sent) = (Cell::new(0), RefCell::new(Vec::new()));
        let answers = RefCell::new(answers.into_iter());
        let outcome = until_answered(
            async || {
                let read = reads.replace(reads.get() + 1);
                Ok(revisions[read])
            },
            async |expected| {
                sent.borrow_mut().push(expected);
                Ok(answers.borrow_mut().next().unwrap()?)
            },
        );
        (outcome.await, sent.into_inner())
    }

    fn lost() -> Result<(), Status> {
        Err(Status::unavailable("the connection broke"))
    }

    fn aborted() -> Result<(), Status> {
        Err(Status::aborted("it is at another revision"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_resend_expects_what_the_first_sending_did() {
        let (outcome, sent) = written(&[4, 5], vec![lost(), lost(), Ok(())]).await;
        outcome.unwrap();
        assert_eq!(sent, [4, 4, 4]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_others_came_before_is_made_for_what_is_there() {
        let (outcome, sent) = written(&[4, 5], vec![aborted(), Ok(())]).await;
        outcome.unwrap();
        assert_eq!(sent, [4, 5]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_resend_that_others_came_before_is_given_up() {
        let (outcome, sent) = written(&[4, 5], vec![lost(), aborted()]).await;
        let failure = outcome.unwrap_err();
        assert!(matches!(failure, Failure::Overtaken(_)), "{failure}");
        assert_eq!(sent, [4, 4]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_stays_without_an_answer_is_given_up() {
        let (outcome, sent) = written(&[0], (0..9).map(|_| lost()).collect()).await;
        assert!(matches!(outcome.unwrap_err(), Failure::Refused(_)));
        assert_eq!(sent, [0; 5]);
    }

    #[tokio::test]
    async fn a_refusal_is_no_reason_to_send_again() {
        let refused = Err(Status::invalid_argument("bad"));
        let (outcome, sent) = written(&[1], vec![refused]).await;
        assert!(matches!(outcome.unwrap_err(), Failure::Refused(_)));
        assert_eq!(sent, [1]);
    }
}
