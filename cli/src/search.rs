//! `weir search`.

use std::path::PathBuf;

use clap::Args;
use console::{Term, truncate_str};
use serde::Serialize;
use weir_embedder::{EmbedderConfig, Role};
use weir_proto::v1;

use crate::{
    connect::Session, failure::Failure, local::DEFAULT_MODEL, output, printable::printable, view,
};

/// What `weir search` understands.
#[derive(Debug, Args)]
pub(crate) struct SearchArgs {
    /// What to search for, in any words.
    #[arg(required = true)]
    text: Vec<String>,
    /// Search only this source.
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Most hits to show.
    #[arg(long, default_value = "10", value_parser = clap::value_parser!(i32).range(1..=1_000))]
    limit: i32,
    /// The model that made the vectors; with --source that of the source, else by
    /// default all-MiniLM-L6-v2.
    #[arg(long, env = "WEIR_MODEL", value_name = "NAME")]
    model: Option<String>,
    /// File of model profiles, as workers have it: the model's table there says how
    /// the text is embedded.
    #[arg(long, env = "WEIR_MODELS_FILE", value_name = "FILE")]
    models_file: Option<PathBuf>,
    /// How the text is embedded.
    #[command(flatten)]
    pub(crate) embedder: EmbedderConfig,
}

/// Embeds the text here and asks the coordinator for the chunks nearest to it.
pub(crate) async fn search(session: &Session, args: SearchArgs) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Answer {
        hits: Vec<view::Hit>,
    }

    let text = args.text.join(" ");
    if text.trim().is_empty() {
        return Err(Failure::Usage("the text to search for is blank".to_owned()));
    }
    let model = match &args.source {
        Some(source) => model_of(session, source).await?,
        None => args.model.clone().unwrap_or(DEFAULT_MODEL.to_owned()),
    };
    if let Some(named) = args.model.filter(|named| *named != model) {
        return Err(Failure::Usage(format!(
            "--model (WEIR_MODEL) is {named:?}, but the source has the model {model:?}: leave it out"
        )));
    }
    let file = args.models_file.as_deref();
    let profile = args.embedder.profile_in(file, &model)?;
    let embedder = weir_embedder::build(&profile, Role::Query).await?;
    let failed = |error| anyhow::anyhow!("cannot embed the text: {error}");
    // Finds out how the server is to be asked.
    embedder.probe(0).await.map_err(failed)?;
    let vectors = embedder.embed(&[&text]).await.map_err(failed)?;
    let vectors: Result<Vec<_>, _> = vectors.into_iter().collect();
    let vectors = vectors.map_err(|flaw| anyhow::anyhow!("cannot embed the text: {flaw}"))?;
    let request = v1::SearchRequest {
        namespace: session.namespace.clone(),
        source: args.source.unwrap_or_default(),
        model,
        vector: vectors
            .iter()
            .flatten()
            .flat_map(|x| x.to_le_bytes())
            .collect(),
        limit: args.limit,
    };
    let hits = session.search().search(request).await?.into_inner().hits;
    if session.json {
        return Ok(output::json(&Answer {
            hits: view::all(&hits),
        })?);
    }
    if hits.is_empty() {
        return Ok(output::line("Nothing is embedded there yet.")?);
    }
    let width = Term::stdout()
        .size_checked()
        .map_or(200, |(_, columns)| usize::from(columns));
    for (rank, hit) in hits.iter().enumerate() {
        output::line(truncate_str(&describe(rank + 1, hit), width, "…"))?;
    }
    Ok(())
}

async fn model_of(session: &Session, source: &str) -> Result<String, Failure> {
    let request = v1::GetSourceRequest {
        namespace: session.namespace.clone(),
        name: source.to_owned(),
    };
    let answer = session.sources().get_source(request).await?.into_inner();
    Ok(answer.source.unwrap_or_default().model)
}

/// Rank, similarity, where, and the first line of what was found.
fn describe(rank: usize, hit: &v1::SearchHit) -> String {
    let chunk = if hit.chunk_index > 0 {
        format!("#{}", hit.chunk_index)
    } else {
        String::new()
    };
    let first = hit
        .text
        .lines()
        .find(|line| !line.trim().is_empty())
        .unwrap_or_default();
    format!(
        "{rank:>3}  {:.3}  {}/{}{chunk}  {}",
        1.0 - hit.distance,
        printable(&hit.source),
        printable(&hit.item_id),
        printable(first)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::printable::{HOSTILE, assert_harmless};

    #[test]
    fn a_hit_is_one_line() {
        let mut hit = v1::SearchHit {
            source: "shop".into(),
            item_id: "cancelOrder".into(),
            text: "\n  Cancel an order\nDELETE /orders/{id}".into(),
            distance: 0.25,
            ..v1::SearchHit::default()
        };
        assert_eq!(
            describe(1, &hit),
            "  1  0.750  shop/cancelOrder  Cancel an order"
        );
        hit.chunk_index = 2;
        assert!(describe(12, &hit).starts_with(" 12  0.750  shop/cancelOrder#2  "));
    }

    #[test]
    fn a_hostile_name_is_harmless() {
        let hit = v1::SearchHit {
            source: HOSTILE.into(),
            item_id: HOSTILE.into(),
            text: HOSTILE.into(),
            ..v1::SearchHit::default()
        };
        assert_harmless(&describe(1, &hit));
    }
}
