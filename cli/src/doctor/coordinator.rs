//! Whether the coordinator is there, lets us in, and works.

use std::{io, time::Instant};

use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
use weir_proto::v1::{GetStatusRequest, GetStatusResponse, Verdict};

use super::Findings;
use crate::{
    config::Settings,
    connect::Session,
    failure::{self, Failure},
};

/// Looks at the coordinator from where this command is.
pub(super) async fn check(settings: &Settings, findings: &mut Findings) -> io::Result<()> {
    let before = Instant::now();
    let session = match Session::connect(settings).await {
        Ok(session) => session,
        Err(failure @ Failure::Unreachable { .. }) => {
            let mend = "start it there, or say where it is with --coordinator (WEIR_COORDINATOR)";
            return findings.failed("coordinator", &format!("{failure}: {mend}"));
        }
        Err(failure) => return findings.failed("coordinator", &failure.to_string()),
    };
    findings.ok(
        "coordinator",
        &format!(
            "{} takes connections, {} ms",
            settings.coordinator,
            before.elapsed().as_millis()
        ),
    )?;
    health(&session, findings).await?;
    let request = GetStatusRequest {
        namespace: session.namespace.clone(),
    };
    let answer = session.jobs().get_status(request).await;
    access(settings, answer.as_ref().err(), findings)?;
    match answer {
        Ok(answer) => state(&session, &answer.into_inner(), findings),
        Err(_) => Ok(()),
    }
}

async fn health(session: &Session, findings: &mut Findings) -> io::Result<()> {
    let request = HealthCheckRequest::default();
    match session.health().check(request).await {
        Ok(answer) if answer.get_ref().status() == ServingStatus::Serving => {
            findings.ok("health", "it serves, and its database answers")
        }
        Ok(_) => findings.failed(
            "health",
            "it does not serve: its database does not answer, or it is about to stop; its log says which",
        ),
        Err(status) => findings.failed("health", &failure::describe(&status)),
    }
}

/// Whether we are let in.
fn access(
    settings: &Settings,
    refused: Option<&Status>,
    findings: &mut Findings,
) -> io::Result<()> {
    let token = settings.credentials.token_file.is_some();
    match refused {
        None if token => findings.ok("access", "the token is good for this namespace"),
        None => findings.ok("access", "no token is needed"),
        Some(status) if status.code() == Code::Unauthenticated && !token => findings.failed(
            "access",
            &format!(
                "{}: set --token-file (WEIR_TOKEN_FILE), or token-file of the profile",
                failure::describe(status)
            ),
        ),
        Some(status) => findings.failed("access", &failure::describe(status)),
    }
}

fn state(session: &Session, status: &GetStatusResponse, findings: &mut Findings) -> io::Result<()> {
    const OURS: &str = env!("CARGO_PKG_VERSION");
    if status.version == OURS {
        findings.ok("version", &format!("{OURS}, as this program"))?;
    } else {
        findings.warning(
            "version",
            &format!(
                "the coordinator is {}, this program {OURS}: use the same where something is missing",
                status.version
            ),
        )?;
    }
    let total = status.total.clone().unwrap_or_default();
    let part = format!("namespace {}", session.namespace);
    if total.verdict() == Verdict::Degraded {
        let why = total.reasons.join(", ");
        return findings.warning(&part, &format!("degraded: {why}; see weir failures"));
    }
    findings.ok(&part, "nothing is wrong")
}
