//! Whether a worker can embed.

use std::{io, time::Instant};

use anyhow::{Context as _, ensure};
use weir_embedder::{Limits, Probe, Profile, Role, RoleProfile};

use super::{DoctorArgs, Findings};

/// Embeds a word with each model, by the worker's own code.
pub(super) async fn check(args: &DoctorArgs, findings: &mut Findings) -> io::Result<()> {
    if args.model.is_empty() && args.models_file.is_none() {
        let what = "--model (WEIR_MODEL) is not set: name the model to embed with";
        return findings.failed("embedder", what);
    }
    let file = args.models_file.as_deref();
    let models = match args.embedder.profiles(file, &args.model) {
        Ok(models) => models,
        Err(error) => return findings.failed("embedder", &format!("{error:#}")),
    };
    for model in models {
        findings.ok(&format!("profile of {}", model.name), &described(&model))?;
        let part = format!("embedder of {}", model.name);
        match probe(&model).await {
            Ok(text) => findings.ok(&part, &text)?,
            Err(error) => findings.failed(&part, &format!("{error:#}"))?,
        }
    }
    Ok(())
}

/// Embeds a document, and a query where that is asked for otherwise.
async fn probe(model: &Profile) -> anyhow::Result<String> {
    let embedder = weir_embedder::build(model, Role::Document).await?;
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
    if model.document != model.query {
        let query = weir_embedder::build(model, Role::Query).await?;
        let of_query = query.probe(0).await.context("as a query")?;
        let (one, other) = (probe.dimension, of_query.dimension);
        ensure!(
            one == other,
            "vectors of documents have {one} numbers, and those of queries {other}"
        );
    }
    let Probe { dimension, limits } = &probe;
    Ok(format!(
        "{} makes vectors of {dimension} numbers; first answer in {} ms, the next in {} ms{}",
        model.provider.as_str(),
        first.as_millis(),
        took.as_millis(),
        told(limits)
    ))
}

/// What the profile says that matters to what is embedded, and where it is from.
fn described(model: &Profile) -> String {
    let mut parts = vec![match model.built_in() {
        Some(name) => format!("built-in profile: {name}"),
        None => "no built-in profile".to_owned(),
    }];
    if let Some(name) = &model.served_as {
        parts.push(format!("served as {name}"));
    }
    parts.push(match &model.url {
        Some(url) => format!("{} at {url}", model.provider.as_str()),
        None => model.provider.as_str().to_owned(),
    });
    if let Some(dimension) = model.dimension {
        parts.push(format!("vectors of {dimension} numbers alone are taken"));
    }
    if let Some(longest) = model.longest_input {
        parts.push(format!("texts of at most {longest} tokens"));
    }
    for (of, role) in [("documents", &model.document), ("queries", &model.query)] {
        parts.push(role_described(of, role));
    }
    parts.join("; ")
}

fn role_described(of: &str, role: &RoleProfile) -> String {
    let prompt = match role.prompt.as_str() {
        "" => format!("no prompt before {of}"),
        prompt => format!("{prompt:?} before {of}"),
    };
    // Values may be secrets.
    let fields: Vec<&str> = role.body.keys().map(String::as_str).collect();
    if fields.is_empty() {
        prompt
    } else {
        format!("{prompt}, whose requests have {}", fields.join(", "))
    }
}

/// What the server says it takes.
fn told(limits: &Limits) -> String {
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
        assert_eq!(told(&Limits::default()), "");
        let some = Limits {
            batch_size: Some(32),
            text_tokens: Some(512),
            ..Limits::default()
        };
        assert_eq!(told(&some), "; takes 32 texts a call, 512 tokens a text");
    }

    #[test]
    fn a_profile_is_told_with_its_prompts_and_without_what_may_be_secret() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let tables = "[e5-large]\nurl = \"http://a/embed?key=hunter2\"\nserved-as = \"e5\"\ndimension = 1024\n\
                      query.body = { pass = \"hunter2\" }\ndocument.prompt = \"\"";
        std::fs::write(file.path(), tables).unwrap();
        let flags = weir_embedder::EmbedderConfig::default();
        let model = flags.profile_in(Some(file.path()), "e5-large").unwrap();
        assert_eq!(
            described(&model),
            "built-in profile: e5; served as e5; ollama at http://a/embed?…; vectors of 1024 numbers alone are taken; texts \
             of at most 512 tokens; no prompt before documents; \"query: \" before queries, whose requests have pass"
        );
        let other = flags.profile("other");
        assert!(
            described(&other)
                .starts_with("no built-in profile; ollama; no prompt before documents")
        );
    }
}
