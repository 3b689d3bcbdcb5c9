//! Whether a coordinator can work with a database.

use std::io;

use clap::Parser as _;
use weir_coordinator::{
    config::Config,
    store::{self, MigrateError},
};

use super::Findings;

/// Looks at the database, and changes nothing.
pub(super) async fn check(url: &str, findings: &mut Findings) -> io::Result<()> {
    let words = ["weir-coordinator", "--database-url", url];
    let config = match Config::try_parse_from(words) {
        Ok(config) => config,
        Err(error) => return findings.failed("database", &error.to_string()),
    };
    let pool = match store::connect(&config.database) {
        Ok(pools) => pools.general,
        Err(error) => return findings.failed("database", &format!("{error:#}")),
    };
    let found = match store::inspect(&pool).await {
        Ok(found) => found,
        Err(error) => {
            let mend =
                "see that the server is up, and that host, port, user and database are right";
            return findings.failed("database", &format!("{error}: {mend}"));
        }
    };
    findings.ok("database", "it can be reached")?;
    tell(findings, "PostgreSQL", found.server)?;
    tell(findings, "pgvector", found.pgvector)?;
    match found.schema {
        Err(error) => findings.failed("schema", &error.to_string())?,
        Ok(steps) if steps.unknown > 0 => findings.failed(
            "schema",
            &format!(
                "a newer Weir brought {} that this version does not know: use that version",
                crate::output::count(steps.unknown as i64, "step")
            ),
        )?,
        Ok(steps) if steps.pending > 0 => findings.warning(
            "schema",
            &format!(
                "{} of {} steps are pending: a coordinator applies them when it starts, or \
                 `weir-coordinator migrate` does",
                steps.pending,
                steps.pending + steps.applied
            ),
        )?,
        Ok(steps) => findings.ok(
            "schema",
            &format!("all {} steps are applied", steps.applied),
        )?,
    }
    tell(findings, "permissions", found.permissions)
}

fn tell(
    findings: &mut Findings,
    part: &str,
    found: Result<String, MigrateError>,
) -> io::Result<()> {
    match found {
        Ok(text) => findings.ok(part, &text),
        Err(error) => findings.failed(part, &error.to_string()),
    }
}
