//! The figures of all runs: medians with their spread, and ratios.

use std::{collections::HashMap, fmt};

use serde_json::json;

/// What was measured, in the order it was first measured in.
#[derive(Debug, Default)]
pub struct Report {
    order: Vec<(String, &'static str)>,
    values: HashMap<String, Vec<f64>>,
}

impl Report {
    /// Nothing yet.
    pub fn new() -> Self {
        Self {
            order: Vec::new(),
            values: HashMap::new(),
        }
    }

    /// Notes one value of a figure.
    pub fn note(&mut self, name: impl Into<String>, unit: &'static str, value: f64) {
        let name = name.into();
        if !self.values.contains_key(&name) {
            self.order.push((name.clone(), unit));
        }
        self.values.entry(name).or_default().push(value);
    }

    /// All values, with what was measured and where.
    pub fn to_json(&self, commit: &str, circumstances: &[(String, String)]) -> String {
        let circumstances: HashMap<_, _> = circumstances.iter().cloned().collect();
        let figures = self.order.iter().map(|(name, unit)| {
            let values = &self.values[name];
            json!({ "name": name, "unit": unit, "median": median(values), "values": values })
        });
        let figures: Vec<_> = figures.collect();
        json!({ "commit": commit, "circumstances": circumstances, "figures": figures }).to_string()
    }
}

/// The middle of some values.
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

/// The value that this part of them does not exceed.
pub fn percentile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = ((sorted.len() as f64 * part).ceil() as usize).clamp(1, sorted.len().max(1));
    sorted.get(place - 1).copied().unwrap_or_default()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self
            .order
            .iter()
            .map(|(name, _)| name.len())
            .max()
            .unwrap_or(0);
        for (name, unit) in &self.order {
            let values = &self.values[name];
            let (low, high) = (percentile(values, 0.0), percentile(values, 1.0));
            writeln!(
                f,
                "{name:width$}  {:>12}  {:>12} … {:<12} {unit}",
                round(median(values)),
                round(low),
                round(high),
            )?;
        }
        Ok(())
    }
}

/// Three digits that count.
fn round(value: f64) -> String {
    if value.abs() >= 100.0 {
        format!("{value:.0}")
    } else if value.abs() >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}
