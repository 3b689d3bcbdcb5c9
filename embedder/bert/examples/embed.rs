//! Embeds the texts of a file, 16 a call in their order, and says what it took:
//! embed MODEL-FOLDER TEXTS.json VECTORS.json ROUNDS
//!
//! `make bench-local` compares that with ONNX Runtime.

#![expect(clippy::print_stdout, reason = "what it took goes to who runs it")]

use std::{env, fs, path::Path, sync::atomic::AtomicBool, time::Instant};

use anyhow::Context as _;
use weir_bert::SentenceModel;

/// Texts in a call.
const BATCH: usize = 16;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [folder, texts, vectors, rounds] = args.as_slice() else {
        anyhow::bail!("usage: embed MODEL-FOLDER TEXTS.json VECTORS.json ROUNDS");
    };
    let model = SentenceModel::open(Path::new(folder))?;
    let texts: Vec<String> = serde_json::from_slice(&fs::read(texts)?)?;
    let stop = AtomicBool::new(false);
    let (mut all, mut best) = (Vec::new(), f64::INFINITY);
    for _ in 0..rounds.parse::<usize>().context("ROUNDS")? {
        all.clear();
        let began = Instant::now();
        for batch in texts.chunks(BATCH) {
            all.extend(model.embed(batch, &stop)?);
        }
        best = best.min(began.elapsed().as_secs_f64());
    }
    fs::write(vectors, serde_json::to_vec(&all)?)?;
    println!("{}", serde_json::json!({ "seconds": best }));
    Ok(())
}
