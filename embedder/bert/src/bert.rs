//! BERT's encoder (Devlin et al., 2018) over packed texts.

use anyhow::Context as _;
use ndarray::linalg::general_mat_mul;
use ndarray::{Array1, Array2, ArrayView2, Axis, s};
use safetensors::SafeTensors;
use serde::Deserialize;

use crate::tensor::{LayerNorm, Linear, Weights, gelu, softmax};

/// The shape of a model, as `config.json` gives it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Config {
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) max_position_embeddings: usize,
    pub(crate) type_vocab_size: usize,
    pub(crate) layer_norm_eps: f32,
    /// The position of a text's first token: that of `RoBERTa` comes after its padding.
    #[serde(skip)]
    pub(crate) first_position: usize,
}

/// How the states of a text's tokens become its vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pooling {
    /// That of the first token.
    Cls,
    /// Their mean.
    Mean,
    /// Their sum, over the square root of how many they are.
    MeanSqrtLen,
    /// The largest number of each column.
    Max,
}

impl Pooling {
    /// `states` has a row for each token, at least one.
    pub(crate) fn apply(self, states: &ArrayView2<'_, f32>) -> Vec<f32> {
        let count = states.nrows() as f32;
        match self {
            Self::Cls => states.row(0).to_vec(),
            Self::Mean => (states.sum_axis(Axis(0)) / count).to_vec(),
            Self::MeanSqrtLen => (states.sum_axis(Axis(0)) / count.sqrt()).to_vec(),
            Self::Max => states
                .fold_axis(Axis(0), f32::NEG_INFINITY, |max, x| max.max(*x))
                .to_vec(),
        }
    }
}

/// The encoder with its weights.
pub(crate) struct Bert {
    words: Array2<f32>,
    positions: Array2<f32>,
    /// The embedding of the first segment, the only one a single text has.
    segment: Array1<f32>,
    norm: LayerNorm,
    layers: Vec<Layer>,
    first_position: usize,
    pooling: Pooling,
}

struct Layer {
    heads: usize,
    query: Linear,
    key: Linear,
    value: Linear,
    attended: Linear,
    attended_norm: LayerNorm,
    widen: Linear,
    narrow: Linear,
    norm: LayerNorm,
}

impl Bert {
    /// Reads the weights from the bytes of a safetensors file.
    pub(crate) fn load(config: &Config, pooling: Pooling, bytes: &[u8]) -> anyhow::Result<Self> {
        let tensors = SafeTensors::deserialize(bytes).context("not a safetensors file")?;
        // Models saved with a head on top keep the encoder under such a name.
        let prefix = ["bert.", "roberta."].into_iter().find(|prefix| {
            let name = format!("{prefix}embeddings.word_embeddings.weight");
            tensors.tensor(&name).is_ok()
        });
        let weights = Weights::new(&tensors, prefix.unwrap_or_default());
        let hidden = config.hidden_size;
        let embeddings = weights.under("embeddings");
        let segments = embeddings.matrix(
            "token_type_embeddings.weight",
            config.type_vocab_size,
            hidden,
        )?;
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::load(config, &weights.under(&format!("encoder.layer.{index}"))));
        Ok(Self {
            words: embeddings.matrix("word_embeddings.weight", config.vocab_size, hidden)?,
            positions: embeddings.matrix(
                "position_embeddings.weight",
                config.max_position_embeddings,
                hidden,
            )?,
            segment: segments.row(0).to_owned(),
            norm: LayerNorm::load(
                &embeddings.under("LayerNorm"),
                hidden,
                config.layer_norm_eps,
            )?,
            layers: layers.collect::<anyhow::Result<_>>()?,
            first_position: config.first_position,
            pooling,
        })
    }

    pub(crate) fn dimension(&self) -> usize {
        self.segment.len()
    }

    /// Returns each text's pooled token states. Each text has at least one token
    /// and no more than there are positions, every one below `vocab_size`.
    pub(crate) fn embed(&self, texts: &[Vec<u32>]) -> Vec<Vec<f32>> {
        let lengths: Vec<usize> = texts.iter().map(Vec::len).collect();
        let mut states = Array2::zeros((lengths.iter().sum(), self.dimension()));
        let places = texts.iter().flat_map(|text| text.iter().enumerate());
        for (mut state, (position, &token)) in states.axis_iter_mut(Axis(0)).zip(places) {
            state += &self.words.row(token as usize);
            state += &self.positions.row(self.first_position + position);
            state += &self.segment;
        }
        self.norm.apply(&mut states);
        for layer in &self.layers {
            states = layer.apply(&states, &lengths);
        }
        let mut start = 0;
        let vectors = lengths.iter().map(|&length| {
            let text = states.slice(s![start..start + length, ..]);
            start += length;
            self.pooling.apply(&text)
        });
        vectors.collect()
    }
}

impl Layer {
    fn load(config: &Config, weights: &Weights<'_>) -> anyhow::Result<Self> {
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        let epsilon = config.layer_norm_eps;
        let attention = weights.under("attention");
        let norm = |weights: &Weights<'_>| {
            LayerNorm::load(&weights.under("output.LayerNorm"), hidden, epsilon)
        };
        Ok(Self {
            heads: config.num_attention_heads,
            query: Linear::load(&attention.under("self.query"), hidden, hidden)?,
            key: Linear::load(&attention.under("self.key"), hidden, hidden)?,
            value: Linear::load(&attention.under("self.value"), hidden, hidden)?,
            attended: Linear::load(&attention.under("output.dense"), hidden, hidden)?,
            attended_norm: norm(&attention)?,
            widen: Linear::load(&weights.under("intermediate.dense"), hidden, wide)?,
            narrow: Linear::load(&weights.under("output.dense"), wide, hidden)?,
            norm: norm(weights)?,
        })
    }

    fn apply(&self, states: &Array2<f32>, lengths: &[usize]) -> Array2<f32> {
        let attention = self.attention(states, lengths);
        let mut attended = self.attended.apply(&attention);
        attended += states;
        self.attended_norm.apply(&mut attended);

        let mut wide = self.widen.apply(&attended);
        gelu(&mut wide);
        let mut out = self.narrow.apply(&wide);
        out += &attended;
        self.norm.apply(&mut out);
        out
    }

    /// Each token's view of its own text: heads attend within a text only,
    /// which is what stands in for a padding mask.
    fn attention(&self, states: &Array2<f32>, lengths: &[usize]) -> Array2<f32> {
        let (query, key, value) = (
            self.query.apply(states),
            self.key.apply(states),
            self.value.apply(states),
        );
        let width = states.ncols() / self.heads;
        let scale = (width as f32).sqrt().recip();
        let mut out = Array2::zeros(states.dim());
        let mut start = 0;
        for &length in lengths {
            let rows = start..start + length;
            let mut scores = Array2::zeros((length, length));
            for head in 0..self.heads {
                let part = s![rows.clone(), head * width..(head + 1) * width];
                general_mat_mul(
                    scale,
                    &query.slice(part),
                    &key.slice(part).t(),
                    0.0,
                    &mut scores,
                );
                softmax(&mut scores);
                general_mat_mul(
                    1.0,
                    &scores,
                    &value.slice(part),
                    0.0,
                    &mut out.slice_mut(part),
                );
            }
            start += length;
        }
        out
    }
}
