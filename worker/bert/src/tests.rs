use std::fs;
use std::path::PathBuf;

use super::*;

/// The folder of all-MiniLM-L6-v2.
fn folder() -> PathBuf {
    let folder = std::env::var_os("WEIR_LOCAL_MODEL_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.runtime/model"),
        PathBuf::from,
    );
    assert!(
        folder.join("config.json").exists(),
        "no model in {}: run `make runtime`, or set WEIR_LOCAL_MODEL_DIR",
        folder.display()
    );
    folder
}

fn embed(model: &SentenceModel, texts: &[&str]) -> Vec<Vec<f32>> {
    model.embed(texts, &AtomicBool::new(false)).unwrap()
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// A copy of the model's folder without one file, or with another content.
fn altered(file: &str, content: Option<&[u8]>) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    fs::create_dir(copy.path().join("1_Pooling")).unwrap();
    for name in [
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "modules.json",
        "1_Pooling/config.json",
        "sentence_bert_config.json",
    ] {
        let path = copy.path().join(name);
        if name != file {
            std::os::unix::fs::symlink(folder().join(name), path).unwrap();
        } else if let Some(content) = content {
            fs::write(path, content).unwrap();
        }
    }
    copy
}

fn refusal(file: &str, content: Option<&[u8]>) -> String {
    match SentenceModel::open(altered(file, content).path()) {
        Ok(_) => panic!("{file} was accepted"),
        Err(error) => format!("{error:#}"),
    }
}

/// The file with one field set to another value.
fn with_field(file: &str, field: &str, value: serde_json::Value) -> Vec<u8> {
    let mut json: serde_json::Value =
        serde_json::from_slice(&fs::read(folder().join(file)).unwrap()).unwrap();
    json[field] = value;
    serde_json::to_vec(&json).unwrap()
}

#[test]
fn vectors_are_those_of_the_model() {
    let model = SentenceModel::open(&folder()).unwrap();
    assert_eq!(model.dimension(), 384);
    let vectors = embed(&model, &["a cat", "a kitten", "quantum physics"]);
    for vector in &vectors {
        assert_eq!(vector.len(), 384);
        assert!((cosine(vector, vector) - 1.0).abs() < 1e-5);
    }
    // Computed with candle's BERT from the same files.
    assert!((cosine(&vectors[0], &vectors[1]) - 0.766_28).abs() < 1e-4);
    assert!((cosine(&vectors[0], &vectors[2]) - 0.187_79).abs() < 1e-4);
}

#[test]
fn a_vector_does_not_depend_on_the_texts_beside_it() {
    let model = SentenceModel::open(&folder()).unwrap();
    let long = "every parcel of the shipment is listed with its weight and carrier ".repeat(9);
    let texts: Vec<String> = (0..40)
        .map(|index| format!("{index} {}", &long[..(index * 131) % long.len()]))
        .chain([String::new()])
        .collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let together = embed(&model, &texts);
    assert_eq!(together.len(), texts.len());
    for (index, text) in texts.iter().enumerate() {
        let alone = &embed(&model, &[text])[0];
        let apart = alone
            .iter()
            .zip(&together[index])
            .map(|(a, b)| (a - b).abs());
        assert!(apart.fold(0.0, f32::max) < 1e-4, "text {index} differs");
    }
}

#[test]
fn no_texts_give_no_vectors() {
    let model = SentenceModel::open(&folder()).unwrap();
    assert!(embed(&model, &[]).is_empty());
}

#[test]
fn a_long_text_is_truncated_to_max_seq_length() {
    let model = SentenceModel::open(&folder()).unwrap();
    // max_seq_length is 256, of which two frame the text.
    let words = |count: usize| "parcel ".repeat(count);
    let [full, over, short, huge] = <[_; 4]>::try_from(embed(
        &model,
        &[&words(254), &words(300), &words(253), &words(2_000_000)],
    ))
    .unwrap();
    assert_eq!(full, over);
    assert_eq!(full, huge);
    assert_ne!(full, short);
}

#[test]
fn a_raised_flag_stops_the_work() {
    let model = SentenceModel::open(&folder()).unwrap();
    let outcome = model.embed(&["a cat"], &AtomicBool::new(true));
    assert!(matches!(outcome, Err(EmbedFailure::Stopped)));
}

#[test]
fn a_missing_file_is_named() {
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let message = refusal(file, None);
        assert!(
            message.contains("cannot read") && message.contains(file),
            "{message}"
        );
    }
}

#[test]
fn files_that_may_be_missing_may_be_missing() {
    for file in [
        "modules.json",
        "1_Pooling/config.json",
        "sentence_bert_config.json",
    ] {
        SentenceModel::open(altered(file, None).path()).unwrap();
    }
}

#[test]
fn what_is_not_built_is_refused() {
    for (file, field, value) in [
        ("config.json", "model_type", "roberta".into()),
        ("config.json", "hidden_act", "relu".into()),
        (
            "config.json",
            "position_embedding_type",
            "relative_key".into(),
        ),
        ("config.json", "num_attention_heads", 0.into()),
        ("config.json", "num_attention_heads", 7.into()),
        ("config.json", "type_vocab_size", 0.into()),
        ("config.json", "vocab_size", 10.into()),
        (
            "1_Pooling/config.json",
            "pooling_mode_cls_token",
            true.into(),
        ),
        (
            "1_Pooling/config.json",
            "pooling_mode_mean_tokens",
            false.into(),
        ),
        ("sentence_bert_config.json", "max_seq_length", 2.into()),
    ] {
        let message = refusal(file, Some(&with_field(file, field, value)));
        assert!(
            message.contains(file) && message.contains(field),
            "{field}: {message}"
        );
    }
    let message = refusal(
        "modules.json",
        Some(br#"[{"type": "sentence_transformers.models.Dense"}]"#),
    );
    assert!(message.contains("a Dense module"), "{message}");
}

#[test]
fn damaged_files_are_refused() {
    for file in [
        "config.json",
        "tokenizer.json",
        "modules.json",
        "1_Pooling/config.json",
    ] {
        let message = refusal(file, Some(b"{\"half\": "));
        assert!(message.contains(file), "{message}");
    }
    let weights = fs::read(folder().join("model.safetensors")).unwrap();
    let message = refusal("model.safetensors", Some(&weights[..weights.len() / 2]));
    assert!(message.contains("not a safetensors file"), "{message}");
    let more_layers = with_field("config.json", "num_hidden_layers", 7.into());
    let message = refusal("config.json", Some(&more_layers));
    assert!(message.contains("tensor encoder.layer.6."), "{message}");
    let wider = with_field("config.json", "intermediate_size", 3072.into());
    let message = refusal("config.json", Some(&wider));
    assert!(
        message.contains("has shape [1536, 384], expected [3072, 384]"),
        "{message}"
    );
}

#[test]
fn packs_keep_the_order_and_share_the_work() {
    let texts: Vec<Vec<u32>> = [70, 3, 500, 2, 60, 80, 256].map(|len| vec![0; len]).into();
    for threads in [1, 2, 8, 1000] {
        let packs = packs(&texts, threads);
        assert!(packs.iter().all(|pack| !pack.is_empty()));
        assert_eq!(packs.concat(), texts);
    }
    let sizes = |packs: Vec<&[Vec<u32>]>| -> Vec<usize> {
        packs
            .iter()
            .map(|pack| pack.iter().map(Vec::len).sum())
            .collect()
    };
    let equal = vec![vec![0; 50]; 32];
    assert_eq!(sizes(packs(&equal, 2)), [800, 800]);
    // A thread is not worth starting for a handful of tokens.
    assert_eq!(sizes(packs(&equal[..1], 2)), [50]);
    // A large batch does not grow the packs without bound.
    let many = vec![vec![0; 256]; 100];
    assert!(
        sizes(packs(&many, 2))
            .into_iter()
            .all(|tokens| tokens <= 1024 + 128)
    );
    assert!(packs(&[], 2).is_empty());
}
