//! Ollama: `POST /api/embed`, or `POST /api/embeddings` where a server is too
//! old for it.
//! <https://docs.ollama.com/api/embed>

use async_trait::async_trait;
use reqwest::Url;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::{
    address::addresses,
    http::{Failure, Habits, Server},
    remote::Remote,
    vector::Vector,
    ways::{Fault, Way, Ways},
};
use crate::{Profile, Role};

/// What the server takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Many texts a call.
    New,
    /// One text a call.
    Old,
}

impl Form {
    fn of(url: &Url) -> Self {
        if url.path().trim_end_matches('/').ends_with("/embeddings") {
            Self::Old
        } else {
            Self::New
        }
    }
}

/// A model on an Ollama server.
pub(super) struct Ollama {
    server: Server,
    model: String,
    ways: Ways<Form>,
}

#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    input: &'a [&'a str],
    #[serde(flatten)]
    fields: &'a Map<String, Value>,
}

#[derive(Deserialize)]
struct Answer {
    embeddings: Vec<Vector>,
}

#[derive(Serialize)]
struct OldRequest<'a> {
    model: &'a str,
    prompt: &'a str,
    #[serde(flatten)]
    fields: &'a Map<String, Value>,
}

#[derive(Deserialize)]
struct OldAnswer {
    embedding: Vector,
}

impl Ollama {
    pub(super) fn new(profile: &Profile, role: Role) -> anyhow::Result<Self> {
        let model = profile.served_name();
        let habits = Habits {
            // A server that cuts what is longer than the model's context does
            // not say so: who shortens a text must know that it did.
            fields: json!({"truncate": false}),
            own: &["model", "input", "prompt"],
            missing_hint: format!("run `ollama pull {model}` there, and check --embedder-url"),
        };
        let addresses = addresses(profile)?;
        let server = Server::new(profile, role, &addresses, habits)?;
        Ok(Self {
            server,
            model: model.to_owned(),
            ways: Ways::new(addresses, |url| vec![Form::of(url)]),
        })
    }

    /// One text a call, for that is all the old route takes.
    async fn one_by_one(&self, way: &Way<Form>, texts: &[&str]) -> Result<Vec<Vec<f32>>, Failure> {
        let mut vectors = Vec::with_capacity(texts.len());
        for text in texts {
            let request = OldRequest {
                model: &self.model,
                prompt: text,
                fields: self.server.fields(),
            };
            let OldAnswer { embedding } = self.server.post(&way.url, &request, 1).await?;
            vectors.push(unit(embedding.0));
        }
        Ok(vectors)
    }
}

#[async_trait]
impl Remote for Ollama {
    type Form = Form;

    fn server(&self) -> &Server {
        &self.server
    }

    fn ways(&self) -> &Ways<Form> {
        &self.ways
    }

    async fn ask(&self, way: &Way<Form>, texts: &[&str]) -> Result<Vec<Vec<f32>>, Failure> {
        if way.form == Form::Old {
            let vectors = timeout(self.server.timeout(), self.one_by_one(way, texts)).await;
            let too_slow = |_| Err(Failure::Other(Fault::Server, self.server.too_slow()));
            return vectors.unwrap_or_else(too_slow);
        }
        let request = Request {
            model: &self.model,
            input: texts,
            fields: self.server.fields(),
        };
        let Answer { embeddings } = self.server.post(&way.url, &request, texts.len()).await?;
        Ok(embeddings.into_iter().map(|vector| vector.0).collect())
    }

    /// Where it is the model that is missing and not the route, the server says
    /// so in JSON.
    fn fault(&self, failure: &Failure) -> Fault {
        match failure.fault() {
            Fault::Address if failure.is_json() => Fault::Server,
            fault => fault,
        }
    }
}

/// Scales a vector to length 1, as the new route does. One that cannot be
/// scaled stays as it is, for whoever checks it.
fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if length.is_finite() && length > 0.0 {
        for number in &mut vector {
            *number /= length;
        }
    }
    vector
}
