//! Servers with OpenAI's embeddings API: `POST /v1/embeddings`.
//! <https://platform.openai.com/docs/api-reference/embeddings/create>

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    address::{addresses, shown},
    http::{Failure, Habits, Server},
    remote::Remote,
    vector::Vector,
    ways::{Fault, Way, Ways},
};
use crate::{Encoding, Profile, Role};

/// What is asked for: packed is a third of the bytes and no digits to read, but
/// not every server packs, and some take no such field.
type Format = Option<&'static str>;

/// A model on a server with OpenAI's API.
pub(super) struct OpenAi {
    server: Server,
    model: String,
    dimension: Option<usize>,
    /// Whether it is not settled how vectors are asked for.
    may_unpack: bool,
    ways: Ways<Format>,
}

#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    input: &'a [&'a str],
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding_format: Format,
    #[serde(flatten)]
    fields: &'a Map<String, Value>,
}

#[derive(Deserialize)]
struct Answer {
    data: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    index: Option<usize>,
    embedding: Vector,
}

impl OpenAi {
    pub(super) fn new(profile: &Profile, role: Role) -> anyhow::Result<Self> {
        let addresses = addresses(profile)?;
        let asked: Vec<String> = addresses.iter().map(shown).collect();
        let model = profile.served_name();
        let dimension = profile.dimension.filter(|_| profile.send_dimension);
        let habits = Habits {
            fields: dimension.map_or(Value::Null, |dimension| json!({"dimensions": dimension})),
            own: &["model", "input"],
            missing_hint: format!(
                "check that it serves the model {model:?}, and --embedder-url, which leads to {}",
                asked.join(" or ")
            ),
        };
        let server = Server::new(profile, role, &addresses, habits)?;
        let formats: &[Format] = match profile.encoding {
            _ if server.fields().contains_key("encoding_format") => &[None],
            Encoding::Auto => &[Some("base64"), Some("float"), None],
            Encoding::Base64 => &[Some("base64")],
            Encoding::Float => &[Some("float")],
            Encoding::Omit => &[None],
        };
        Ok(Self {
            server,
            model: model.to_owned(),
            dimension: profile.dimension.map(usize::from),
            may_unpack: formats.len() > 1,
            ways: Ways::new(addresses, |_| formats.to_vec()),
        })
    }

    /// Whether vectors that are packed are not of the dimension that they are to
    /// have: of numbers of eight bytes there seem to be twice as many.
    fn is_misread(&self, way: &Way<Format>, vectors: &[Vec<f32>]) -> bool {
        let is_other = |dimension| vectors.iter().any(|vector| vector.len() != dimension);
        self.may_unpack && way.form == Some("base64") && self.dimension.is_some_and(is_other)
    }

    fn bad_form(&self, what: &str) -> Failure {
        Failure::Other(Fault::Form, self.server.transient(what))
    }

    /// The vectors in the order of the texts.
    fn in_order(&self, mut data: Vec<Entry>) -> Result<Vec<Vec<f32>>, Failure> {
        // Some servers number nothing, and keep the order.
        if data.iter().any(|entry| entry.index.is_some()) {
            data.sort_by_key(|entry| entry.index);
            let numbers = data.iter().map(|entry| entry.index);
            if !numbers.eq((0..data.len()).map(Some)) {
                return Err(self.bad_form("numbered its vectors twice or with gaps"));
            }
        }
        Ok(data.into_iter().map(|entry| entry.embedding.0).collect())
    }
}

#[async_trait]
impl Remote for OpenAi {
    type Form = Format;

    fn server(&self) -> &Server {
        &self.server
    }

    fn ways(&self) -> &Ways<Format> {
        &self.ways
    }

    async fn ask(&self, way: &Way<Format>, texts: &[&str]) -> Result<Vec<Vec<f32>>, Failure> {
        let request = Request {
            model: &self.model,
            input: texts,
            encoding_format: way.form,
            fields: self.server.fields(),
        };
        let Answer { data } = self.server.post(&way.url, &request, texts.len()).await?;
        let vectors = self.in_order(data)?;
        if self.is_misread(way, &vectors) {
            return Err(self.bad_form("packed vectors of another dimension than its model has"));
        }
        Ok(vectors)
    }
}
