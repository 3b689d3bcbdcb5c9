//! Whether a worker can embed.

use std::{ffi::OsString, io, time::Instant};

use clap::{Parser as _, ValueEnum as _};
use weir_embedder::{Limits, Role};
use weir_worker::config::{Config, Model};

use super::{DoctorArgs, Findings};

/// Embeds a word with each model, by the worker's own code.
pub(super) async fn check(args: &DoctorArgs, findings: &mut Findings) -> io::Result<()> {
    let models = match models(args) {
        Ok(models) => models,
        Err(error) => return findings.failed("embedder", &format!("{error:#}")),
    };
    for model in models {
        let part = format!("embedder of {}", model.name);
        match probe(&model).await {
            Ok(text) => findings.ok(&part, &text)?,
            Err(error) => findings.failed(&part, &format!("{error:#}"))?,
        }
    }
    Ok(())
}

/// The models that a worker with these settings would serve.
fn models(args: &DoctorArgs) -> anyhow::Result<Vec<Model>> {
    let mut words: Vec<OsString> = vec!["weir-worker".into()];
    if let Some(model) = &args.model {
        words.extend(["--model".into(), model.into()]);
    }
    if let Some(file) = &args.models_file {
        words.extend(["--models-file".into(), file.into()]);
    }
    if words.len() == 1 {
        anyhow::bail!("--model (WEIR_MODEL) is not set: name the model to embed with");
    }
    let config = Config::try_parse_from(&words)?;
    let mut models = config.models(&words)?;
    if let (Some(embedder), None) = (&args.embedder, &args.models_file) {
        for model in &mut models {
            model.settings.embedder = embedder.clone();
        }
    }
    Ok(models)
}

async fn probe(model: &Model) -> anyhow::Result<String> {
    let settings = &model.settings.embedder;
    let embedder = weir_embedder::build(&settings.profile(&model.name), Role::Document).await?;
    let before = Instant::now();
    let probe = embedder.probe(0).await?;
    let first = before.elapsed();
    // The first call may load the model; those that follow are what a job sees.
    let before = Instant::now();
    let vectors = embedder.embed(&["probe"]).await?;
    let took = before.elapsed();
    for vector in vectors {
        vector.map_err(anyhow::Error::msg)?;
    }
    let kind = settings.embedder.to_possible_value();
    Ok(format!(
        "{} makes vectors of {} numbers; first answer in {} ms, the next in {} ms{}",
        kind.as_ref().map_or("it", |kind| kind.get_name()),
        probe.dimension,
        first.as_millis(),
        took.as_millis(),
        limits(&probe.limits)
    ))
}

/// What the server says it takes.
fn limits(limits: &Limits) -> String {
    let parts: Vec<String> = [
        (limits.batch_size, "texts a call"),
        (limits.batch_tokens, "tokens a call"),
        (limits.text_tokens, "tokens a text"),
        (limits.concurrent_calls, "calls at a time"),
    ]
    .into_iter()
    .filter_map(|(most, what)| Some(format!("{} {what}", most?)))
    .collect();
    if parts.is_empty() {
        return String::new();
    }
    format!("; takes {}", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_limits_that_there_are_are_told() {
        assert_eq!(limits(&Limits::default()), "");
        let some = Limits {
            batch_size: Some(32),
            text_tokens: Some(512),
            ..Limits::default()
        };
        assert_eq!(limits(&some), "; takes 32 texts a call, 512 tokens a text");
    }
}
