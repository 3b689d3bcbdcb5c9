//! `SearchService`.

use tonic::{Request, Response, Status};
use weir_proto::v1::{self, search_service_server::SearchService};

use super::{Services, auth::Caller, convert::wire_struct, door::Door};
use crate::store::search::Search;

/// Finds the chunks nearest to a vector.
#[derive(Debug, Clone)]
pub(crate) struct Searches(pub(crate) Services);

#[tonic::async_trait]
impl SearchService for Searches {
    async fn search(
        &self,
        request: Request<v1::SearchRequest>,
    ) -> Result<Response<v1::SearchResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let mut door = Door::default();
        let namespace = door.namespace(request.namespace);
        let source = (!request.source.is_empty()).then(|| door.name("source", request.source));
        // The source's model need not be one that is served.
        let model = match source {
            Some(_) => door.any_model(request.model),
            None => door.model(request.model, &self.0.models),
        };
        let vector = door.vector("vector", &request.vector);
        // The cosine of an angle with nothing is not a number.
        if !vector.is_empty() && vector.iter().all(|number| *number == 0.0) {
            door.refuse("vector", "must not be all zero: it points nowhere");
        }
        let limit = door.number("limit", request.limit, 10, 1..=1_000);
        door.close()?;
        let namespace = caller.admit(namespace)?;
        let search = Search {
            namespace: &namespace,
            source: source.as_deref(),
            model: model.as_deref(),
            default_model: self.0.default_model(),
            vector,
            limit: limit.into(),
        };
        let hits = self
            .0
            .store
            .search(&search)
            .await?
            .into_iter()
            .map(|hit| v1::SearchHit {
                source: hit.source,
                item_id: hit.item_id,
                chunk_index: hit.chunk_index,
                text: hit.text,
                distance: hit.distance,
                metadata: hit.metadata.and_then(wire_struct),
            })
            .collect();
        Ok(Response::new(v1::SearchResponse { hits }))
    }
}
