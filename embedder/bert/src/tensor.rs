//! The layers that BERT is made of, over packed rows: one row a token.

use anyhow::{Context as _, bail, ensure};
use ndarray::linalg::general_mat_mul;
use ndarray::{Array1, Array2, ArrayRef2, Axis};
use safetensors::{Dtype, SafeTensors};

/// The weights of a model file, under a common prefix of names.
pub(crate) struct Weights<'a> {
    tensors: &'a SafeTensors<'a>,
    prefix: String,
}

impl<'a> Weights<'a> {
    pub(crate) fn new(tensors: &'a SafeTensors<'a>, prefix: &str) -> Self {
        Self {
            tensors,
            prefix: prefix.to_owned(),
        }
    }

    pub(crate) fn under(&self, name: &str) -> Self {
        Self {
            tensors: self.tensors,
            prefix: format!("{}{name}.", self.prefix),
        }
    }

    /// The numbers of a tensor, which must be f32 of this shape and finite.
    fn numbers(&self, name: &str, shape: &[usize]) -> anyhow::Result<Vec<f32>> {
        let name = format!("{}{name}", self.prefix);
        let tensor = self
            .tensors
            .tensor(&name)
            .with_context(|| format!("tensor {name}"))?;
        if tensor.dtype() != Dtype::F32 {
            bail!(
                "tensor {name} is {:?}; only F32 weights are supported",
                tensor.dtype()
            );
        }
        ensure!(
            tensor.shape() == shape,
            "tensor {name} has shape {:?}, expected {shape:?}",
            tensor.shape()
        );
        let (numbers, _) = tensor.data().as_chunks::<4>();
        let numbers: Vec<f32> = numbers
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect();
        ensure!(
            numbers.iter().all(|x| x.is_finite()),
            "tensor {name} holds NaN or infinity"
        );
        Ok(numbers)
    }

    pub(crate) fn matrix(
        &self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> anyhow::Result<Array2<f32>> {
        let numbers = self.numbers(name, &[rows, cols])?;
        Ok(Array2::from_shape_vec((rows, cols), numbers)?)
    }

    pub(crate) fn vector(&self, name: &str, len: usize) -> anyhow::Result<Array1<f32>> {
        Ok(Array1::from_vec(self.numbers(name, &[len])?))
    }
}

/// `rows · weightᵀ + bias`.
pub(crate) struct Linear {
    weight: Array2<f32>,
    bias: Array1<f32>,
}

impl Linear {
    pub(crate) fn load(
        weights: &Weights<'_>,
        inputs: usize,
        outputs: usize,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            weight: weights
                .matrix("weight", outputs, inputs)?
                .t()
                .as_standard_layout()
                .into_owned(),
            bias: weights.vector("bias", outputs)?,
        })
    }

    pub(crate) fn apply(&self, rows: &ArrayRef2<f32>) -> Array2<f32> {
        let mut out = Array2::zeros((rows.nrows(), self.bias.len()));
        out += &self.bias;
        general_mat_mul(1.0, rows, &self.weight, 1.0, &mut out);
        out
    }
}

/// Shifts and scales each row to mean 0 and variance 1, then by learned weights.
pub(crate) struct LayerNorm {
    weight: Array1<f32>,
    bias: Array1<f32>,
    epsilon: f32,
}

impl LayerNorm {
    pub(crate) fn load(weights: &Weights<'_>, len: usize, epsilon: f32) -> anyhow::Result<Self> {
        Ok(Self {
            weight: weights.vector("weight", len)?,
            bias: weights.vector("bias", len)?,
            epsilon,
        })
    }

    pub(crate) fn apply(&self, rows: &mut Array2<f32>) {
        let len = self.weight.len() as f32;
        for mut row in rows.axis_iter_mut(Axis(0)) {
            let mean = row.sum() / len;
            row -= mean;
            let variance = row.dot(&row) / len;
            row *= (variance + self.epsilon).sqrt().recip();
            row *= &self.weight;
            row += &self.bias;
        }
    }
}

/// Turns each row of scores into weights that sum to 1.
pub(crate) fn softmax(scores: &mut Array2<f32>) {
    for mut row in scores.axis_iter_mut(Axis(0)) {
        let max = row.fold(f32::NEG_INFINITY, |max, &x| max.max(x));
        row.mapv_inplace(|x| (x - max).exp());
        let sum = row.sum();
        row /= sum;
    }
}

/// The Gaussian error linear unit, `x · Φ(x)`.
pub(crate) fn gelu(rows: &mut Array2<f32>) {
    rows.mapv_inplace(|x| 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)));
}

/// The error function to within 2e-6, without a branch or a call, so that the
/// compiler computes several at a time (Abramowitz and Stegun, 7.1.28).
#[inline]
fn erf(x: f32) -> f32 {
    const COEFFICIENTS: [f32; 7] = [
        0.000_043_063_8,
        0.000_276_567_2,
        0.000_152_014_3,
        0.009_270_527,
        0.042_282_01,
        0.070_523_08,
        1.0,
    ];
    let size = x.abs();
    let sum = COEFFICIENTS.iter().fold(0.0, |sum, c| sum * size + c);
    let square = sum * sum;
    let fourth = square * square;
    let eighth = fourth * fourth;
    (1.0 - 1.0 / (eighth * eighth)).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_is_the_error_function() {
        // Values of the error function to seven digits.
        for (x, expected) in [
            (0.0, 0.0),
            (0.1, 0.112_462_9),
            (0.5, 0.520_499_9),
            (1.0, 0.842_700_8),
            (1.5, 0.966_105_1),
            (2.0, 0.995_322_3),
            (3.0, 0.999_977_9),
            (9.0, 1.0),
        ] {
            assert!((erf(x) - expected).abs() < 2e-6, "erf({x}) = {}", erf(x));
            assert!((erf(-x) + expected).abs() < 2e-6, "erf(-{x}) = {}", erf(-x));
        }
    }

    #[test]
    fn softmax_of_large_scores_stays_finite() {
        let mut scores = ndarray::array![[1000.0, 1000.0], [-1000.0, 1000.0]];
        softmax(&mut scores);
        assert_eq!(scores, ndarray::array![[0.5, 0.5], [0.0, 1.0]]);
    }
}
