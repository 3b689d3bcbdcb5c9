//! What must hold of the vectors of any server.

use anyhow::{Error, bail, ensure};
use weir_embedder::{EmbedError, Embedder};

/// Of these texts the first have no accents. Ollama reads those otherwise than
/// the model's own tokenizer, which takes them off.
const PLAIN: usize = 3;

/// The first two are alike, the third is unlike both.
const TEXTS: [&str; 4] = [
    "a cat",
    "a kitten",
    "quantum physics",
    "\"quoted\"\nand long ö 漢字",
];

fn cosine(one: &[f32], other: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    dot(one, other) / (dot(one, one) * dot(other, other)).sqrt()
}

/// Returns the vectors of these texts, all of which can be used.
async fn embed(embedder: &dyn Embedder, texts: &[&str]) -> anyhow::Result<Vec<Vec<f32>>> {
    let vectors = embedder.embed(texts).await?;
    vectors
        .into_iter()
        .map(|it| it.map_err(Error::msg))
        .collect()
}

/// Checks the vectors of a server, which are those of the other embedder where
/// both have one model, and returns what was found out.
pub(crate) async fn check(
    embedder: &dyn Embedder,
    same_as: Option<&dyn Embedder>,
) -> anyhow::Result<String> {
    let probe = embedder.probe(0).await?;
    let vectors = embed(embedder, &TEXTS).await?;
    ensure!(vectors.len() == TEXTS.len(), "{} vectors", vectors.len());
    for vector in &vectors {
        ensure!(vector.len() == probe.dimension, "{} numbers", vector.len());
    }

    let again = embed(embedder, &TEXTS).await?;
    let mut least = f32::INFINITY;
    for (index, text) in TEXTS.iter().enumerate() {
        let alone = embed(embedder, &[text]).await?.concat();
        least = least.min(cosine(&vectors[index], &again[index]));
        least = least.min(cosine(&vectors[index], &alone));
    }
    ensure!(
        least > 0.999,
        "the same text gives another vector: cosine {least}"
    );

    let (alike, unlike) = (
        cosine(&vectors[0], &vectors[1]),
        cosine(&vectors[0], &vectors[2]),
    );
    ensure!(
        alike > unlike,
        "a cat is nearer to physics: {alike} < {unlike}"
    );

    let many: Vec<String> = (0..40).map(|index| format!("parcel {index}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    ensure!(embed(embedder, &many).await?.len() == many.len());

    let long = "parcel ".repeat(2_000);
    let long = match embedder.embed(&["short", &long]).await {
        Ok(_) => "cut by the server".to_owned(),
        Err(EmbedError::TooLong { reason, .. }) => format!("too long ({reason})"),
        Err(other) => bail!("a long text: {other:?}"),
    };

    let mut said = format!(
        "{} numbers; same text, cosine at least {least:.5}; long text: {long}",
        probe.dimension
    );
    if let Some(local) = same_as {
        let local = embed(local, &TEXTS).await?;
        let cosines = vectors
            .iter()
            .zip(&local)
            .map(|(ours, its)| cosine(ours, its));
        let cosines: Vec<f32> = cosines.collect();
        let (plain, accented) = cosines.split_at(PLAIN);
        ensure!(
            plain.iter().all(|cosine| *cosine > 0.99),
            "other vectors than the local model's: cosines {plain:?}"
        );
        said += &format!("; to the local model, cosines {plain:.5?}, with accents {accented:.5?}");
    }
    Ok(said)
}
