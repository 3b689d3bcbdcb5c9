//! The models that sources may use.

use std::str::FromStr;

use weir_proto::limits::{MAX_DIMENSION, MAX_MODEL_CHARS};

/// What is to be known of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSettings {
    /// The name that sources and workers give it.
    pub name: String,
    /// Numbers in its vectors; `None` leaves it to the first vectors.
    pub dimension: Option<u16>,
}

impl FromStr for ModelSettings {
    type Err = String;

    /// Reads `name` or `name=dimension`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, dimension) = match text.rsplit_once('=') {
            None => (text, None),
            Some((name, number)) => {
                let dimension = number.parse().ok().filter(|it| {
                    number.bytes().all(|byte| byte.is_ascii_digit())
                        && (1..=MAX_DIMENSION).contains(&usize::from(*it))
                });
                let Some(dimension) = dimension else {
                    return Err(format!(
                        "after the = comes the dimension of the model's vectors, 1 to {MAX_DIMENSION}, as in \
                         nomic-embed-text=768"
                    ));
                };
                (name, Some(dimension))
            }
        };
        if name.trim() != name || name.is_empty() {
            return Err("the name is blank or has white space around it".to_owned());
        }
        if name.contains('=') {
            return Err("a name cannot have a = in it".to_owned());
        }
        if name.chars().count() > MAX_MODEL_CHARS {
            return Err(format!(
                "the name is longer than {MAX_MODEL_CHARS} characters"
            ));
        }
        Ok(Self {
            name: name.to_owned(),
            dimension,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_may_have_a_dimension() {
        let read = |text: &str| text.parse::<ModelSettings>();
        let model = |name: &str, dimension| ModelSettings {
            name: name.to_owned(),
            dimension,
        };
        assert_eq!(read("all-minilm:l6"), Ok(model("all-minilm:l6", None)));
        assert_eq!(read("org/m=768"), Ok(model("org/m", Some(768))));
        assert_eq!(read("m=16000"), Ok(model("m", Some(16_000))));
        let long = "m".repeat(MAX_MODEL_CHARS + 1);
        for bad in [
            "", " m", "m ", "=768", "m=", "m=0", "m=16001", "m=-1", "m=+3", "m=7.5", "m=a", "m= 3",
            "a=b=3", &long,
        ] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }
}
