//! `weir doctor`: looks at each part of the set-up, and says what to mend.

mod coordinator;
mod database;
mod embedder;

use std::{io, path::PathBuf};

use clap::Args;
use serde::Serialize;
use weir_embedder::EmbedderConfig;
use weir_proto::secret::UrlText;

use crate::{
    args::Global,
    config::{self, Settings},
    failure::Failure,
    output::{self, count},
    printable::printable,
    table::Tone,
};

/// What `weir doctor` understands.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Look at this database too, as a coordinator would use it.
    #[arg(
        long,
        env = "WEIR_DATABASE_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    database_url: Option<UrlText>,
    /// Try the embedder of this model too, as a worker would use it; of several, separated by commas.
    #[arg(long, env = "WEIR_MODEL", value_name = "NAMES", value_delimiter = ',')]
    model: Vec<String>,
    /// Try the embedders of this file of model profiles; with --model, of those models alone.
    #[arg(long, env = "WEIR_MODELS_FILE", value_name = "FILE")]
    models_file: Option<PathBuf>,
    /// How a worker embeds.
    #[command(flatten)]
    embedder: EmbedderConfig,
}

/// Checks configuration and coordinator, and database and embedder where they
/// are named. Fails when one of them cannot work.
pub(crate) async fn doctor(global: &Global, args: DoctorArgs) -> Result<(), Failure> {
    let mut findings = Findings::new(global.json);
    match config::describe(global).and_then(|place| Ok((place, Settings::of(global)?))) {
        Err(failure) => findings.failed("configuration", &failure.to_string())?,
        Ok((place, settings)) => {
            findings.ok("configuration", &place)?;
            coordinator::check(&settings, &mut findings).await?;
        }
    }
    let url = args.database_url.as_ref().map(UrlText::as_str);
    if let Some(url) = url.filter(|url| !url.is_empty()) {
        database::check(url, &mut findings).await?;
    }
    let of_embedder = &args.embedder;
    let named = of_embedder.embedder.is_some() || of_embedder.embedder_url.is_some();
    if named || !args.model.is_empty() || args.models_file.is_some() {
        embedder::check(&args, &mut findings).await?;
    }
    findings.conclude()
}

/// How a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Ok,
    Warning,
    Failed,
}

/// What was found of a part.
#[derive(Debug, Serialize)]
struct Finding {
    part: String,
    outcome: Outcome,
    text: String,
}

/// What was found, told as it comes; as JSON, at the end.
struct Findings {
    all: Vec<Finding>,
    json: bool,
}

impl Findings {
    fn new(json: bool) -> Self {
        Self {
            all: Vec::new(),
            json,
        }
    }

    fn ok(&mut self, part: &str, text: &str) -> io::Result<()> {
        self.add(part, Outcome::Ok, text)
    }

    fn warning(&mut self, part: &str, text: &str) -> io::Result<()> {
        self.add(part, Outcome::Warning, text)
    }

    fn failed(&mut self, part: &str, text: &str) -> io::Result<()> {
        self.add(part, Outcome::Failed, text)
    }

    fn add(&mut self, part: &str, outcome: Outcome, text: &str) -> io::Result<()> {
        let finding = Finding {
            part: part.to_owned(),
            outcome,
            text: printable(text),
        };
        if !self.json {
            output::line(finding.line())?;
        }
        self.all.push(finding);
        Ok(())
    }

    fn conclude(self) -> Result<(), Failure> {
        #[derive(Serialize)]
        struct Answer<'a> {
            checks: &'a [Finding],
        }

        if self.json {
            output::json(&Answer { checks: &self.all })?;
        }
        let failed = |finding: &&Finding| finding.outcome == Outcome::Failed;
        match self.all.iter().filter(failed).count() {
            0 => Ok(()),
            failed => Err(Failure::Partly(format!(
                "{} failed",
                count(failed as i64, "check")
            ))),
        }
    }
}

impl Finding {
    fn line(&self) -> String {
        let (word, tone) = match self.outcome {
            Outcome::Ok => ("ok     ", Tone::Good),
            Outcome::Warning => ("warning", Tone::Doubtful),
            Outcome::Failed => ("failed ", Tone::Bad),
        };
        format!("{}  {}: {}", tone.paint(word), self.part, self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_failed_fails() {
        let mut findings = Findings::new(true);
        findings.ok("a", "fine").unwrap();
        findings.warning("b", "odd\nly").unwrap();
        assert_eq!(findings.all[1].line(), "warning  b: odd ly");
        findings.conclude().unwrap();
        let mut findings = Findings::new(true);
        findings.failed("c", "gone").unwrap();
        let failure = findings.conclude().unwrap_err();
        assert_eq!(failure.to_string(), "1 check failed");
    }
}
