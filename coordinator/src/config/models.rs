//! The models that sources may use.

use std::{path::Path, str::FromStr};

use weir_embedder::ModelsFile;
use weir_proto::limits::MAX_DIMENSION;

/// What is to be known of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSettings {
    /// The name that sources and workers give it.
    pub name: String,
    /// Numbers in its vectors; `None` leaves it to the first vectors.
    pub dimension: Option<u16>,
    /// What comes before the text of a document, as part of its identity.
    pub document_prompt: String,
}

/// Reads the models of a file, in its order. How they are reached is not the
/// coordinator's to know; it is checked all the same.
pub(super) fn from_file(path: &Path) -> anyhow::Result<Vec<ModelSettings>> {
    let profiles = ModelsFile::read(path)?.profiles().into_iter();
    let settings = |profile: weir_embedder::Profile| ModelSettings {
        name: profile.name,
        dimension: profile.dimension,
        document_prompt: profile.document.prompt,
    };
    Ok(profiles.map(settings).collect())
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
        if name.contains('=') {
            return Err("a name cannot have a = in it".to_owned());
        }
        weir_embedder::model_name(name)?;
        Ok(Self {
            name: name.to_owned(),
            dimension,
            document_prompt: weir_embedder::document_prompt(name),
        })
    }
}

#[cfg(test)]
mod tests {
    use weir_proto::limits::MAX_MODEL_CHARS;

    use super::*;

    #[test]
    fn a_model_may_have_a_dimension() {
        let read = |text: &str| text.parse::<ModelSettings>();
        let model = |name: &str, dimension| ModelSettings {
            name: name.to_owned(),
            dimension,
            document_prompt: String::new(),
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

    #[test]
    fn a_model_that_is_known_has_its_prompt() {
        let model: ModelSettings = "nomic-ai/Nomic-Embed-Text-v1.5=768".parse().unwrap();
        assert_eq!(model.document_prompt, "search_document: ");
    }

    #[test]
    fn a_file_gives_names_dimensions_and_prompts_in_its_order() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let tables = "[\"z/nomic-embed-text:v1.5\"]\nurl = \"http://192.0.2.1\"\nkey-file = \"/nowhere\"\ndimension = 768\n\
                      [e5-large]\ndocument.prompt = \"\"\n[own]\n[own.document]\nprompt = \"doc: \"\n";
        std::fs::write(file.path(), tables).unwrap();
        let model = |name: &str, dimension, prompt: &str| ModelSettings {
            name: name.to_owned(),
            dimension,
            document_prompt: prompt.to_owned(),
        };
        let expected = [
            model("z/nomic-embed-text:v1.5", Some(768), "search_document: "),
            model("e5-large", None, ""),
            model("own", None, "doc: "),
        ];
        assert_eq!(from_file(file.path()).unwrap(), expected);

        std::fs::write(file.path(), "[m]\nprompt = \"a\"\n").unwrap();
        let error = format!("{:#}", from_file(file.path()).unwrap_err());
        for part in [
            "--models-file (WEIR_MODELS_FILE)",
            "\"m\"",
            "`prompt`",
            "`document`",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }
}
