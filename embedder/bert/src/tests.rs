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
        "config_sentence_transformers.json",
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
fn a_text_of_more_tokens_than_max_seq_length_is_too_long() {
    let model = SentenceModel::open(&folder()).unwrap();
    assert_eq!(model.max_tokens(), 256);
    // Two frame the text.
    let words = |count: usize| "parcel ".repeat(count);
    embed(&model, &["short", &words(254)]);
    for (count, expected) in [(255, Some(257)), (2_000_000, None)] {
        let outcome = model.embed(&["short", &words(count)], &AtomicBool::new(false));
        match outcome.unwrap_err() {
            EmbedFailure::TooLong { tokens, most } => assert_eq!((tokens, most), (expected, 256)),
            other => panic!("{other}"),
        }
    }
}

/// The cosine of each pair of vectors.
fn cosines(one: &[Vec<f32>], other: &[Vec<f32>]) -> Vec<f32> {
    let length = |vector: &[f32]| cosine(vector, vector).sqrt();
    let pairs = one.iter().zip(other);
    pairs
        .map(|(a, b)| cosine(a, b) / length(a) / length(b))
        .collect()
}

#[test]
fn pooling_and_length_are_those_of_the_folder() {
    const TEXTS: [&str; 2] = ["a cat", "every parcel of the shipment"];
    let plain = SentenceModel::open(&folder()).unwrap();
    let plain = embed(&plain, &TEXTS);
    let pooled = |mode: &str| {
        let config = serde_json::json!({ format!("pooling_mode_{mode}"): true });
        let copy = altered("1_Pooling/config.json", Some(config.to_string().as_bytes()));
        embed(&SentenceModel::open(copy.path()).unwrap(), &TEXTS)
    };
    for mode in ["mean_tokens", "mean_sqrt_len_tokens"] {
        assert!(cosines(&plain, &pooled(mode)).iter().all(|x| *x > 0.9999));
    }
    for mode in ["cls_token", "max_tokens"] {
        assert!(cosines(&plain, &pooled(mode)).iter().all(|x| *x < 0.99));
    }

    let modules = br#"[{"type": "sentence_transformers.models.Transformer", "path": ""},
        {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]"#;
    let copy = altered("modules.json", Some(modules));
    let unscaled = embed(&SentenceModel::open(copy.path()).unwrap(), &TEXTS);
    assert!(cosines(&plain, &unscaled).iter().all(|x| *x > 0.9999));
    assert!(unscaled.iter().all(|x| (cosine(x, x) - 1.0).abs() > 0.1));
}

#[test]
fn the_pooling_of_states_is_what_it_says() {
    let states = ndarray::array![[1.0, -2.0], [3.0, -4.0], [5.0, 0.0], [7.0, -6.0]];
    let pooled = |pooling: bert::Pooling| pooling.apply(&states.view());
    assert_eq!(pooled(bert::Pooling::Cls), [1.0, -2.0]);
    assert_eq!(pooled(bert::Pooling::Mean), [4.0, -3.0]);
    assert_eq!(pooled(bert::Pooling::MeanSqrtLen), [8.0, -6.0]);
    assert_eq!(pooled(bert::Pooling::Max), [7.0, 0.0]);
}

#[test]
fn an_encoder_in_a_folder_of_its_own_is_found() {
    let copy = altered("modules.json", None);
    let encoder = copy.path().join("0_Transformer");
    fs::create_dir(&encoder).unwrap();
    for name in [
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "sentence_bert_config.json",
    ] {
        fs::rename(copy.path().join(name), encoder.join(name)).unwrap();
    }
    let modules = r#"[{"type": "Transformer", "path": "0_Transformer"},
        {"type": "Pooling", "path": "1_Pooling"}, {"type": "Normalize", "path": "2_Normalize"}]"#;
    fs::write(copy.path().join("modules.json"), modules).unwrap();
    let model = SentenceModel::open(copy.path()).unwrap();
    assert_eq!(model.max_tokens(), 256);
}

/// A `RoBERTa` is a BERT whose positions begin after those of its padding, and
/// whose texts have one segment.
#[test]
fn a_roberta_begins_after_its_padding() {
    const TEXTS: [&str; 2] = ["a cat", "every parcel of the shipment"];
    let bytes = fs::read(folder().join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let positions = tensors
        .tensor("embeddings.position_embeddings.weight")
        .unwrap();
    // Two rows that must not be read.
    let row = 4 * positions.shape()[1];
    let shifted = [&vec![0x7f; 2 * row], positions.data()].concat();
    let shape = vec![positions.shape()[0] + 2, positions.shape()[1]];
    let shifted = safetensors::tensor::TensorView::new(positions.dtype(), shape, &shifted).unwrap();
    let renamed = tensors.iter().map(|(name, tensor)| {
        let is_positions = name == "embeddings.position_embeddings.weight";
        let tensor = if is_positions {
            shifted.clone()
        } else {
            tensor
        };
        (format!("roberta.{name}"), tensor)
    });
    let weights = safetensors::serialize(renamed.collect::<Vec<_>>(), None).unwrap();
    let copy = altered("model.safetensors", Some(&weights));
    let config = fs::read(folder().join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    config["model_type"] = "xlm-roberta".into();
    config["pad_token_id"] = 1.into();
    config["max_position_embeddings"] = 514.into();
    fs::remove_file(copy.path().join("config.json")).unwrap();
    fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
    let roberta = embed(&SentenceModel::open(copy.path()).unwrap(), &TEXTS);
    assert_eq!(
        roberta,
        embed(&SentenceModel::open(&folder()).unwrap(), &TEXTS)
    );
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
        ("config.json", "model_type", "t5".into()),
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
    let dense = br#"[{"type": "sentence_transformers.models.Dense", "path": ""}]"#;
    let message = refusal("modules.json", Some(dense));
    assert!(message.contains("a Dense module"), "{message}");
    let prompt = br#"{"default_prompt_name": "query"}"#;
    let message = refusal("config_sentence_transformers.json", Some(prompt));
    assert!(message.contains("default_prompt_name"), "{message}");
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
