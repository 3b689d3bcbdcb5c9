//! What is asked of an embedder, what it is sent, and what is learned of it.

use std::collections::{HashMap, HashSet};

use tokio::task::AbortHandle;
use weir_embedder::{
    Probe,
    judge::{CallId, Judge, TextId},
    pace::Concurrency,
};

use super::{Settings, request::Requests, settle::Rests, silence::Patience};

/// What is asked, sent and learned.
pub(super) struct State {
    pub(super) judge: Judge,
    pub(super) requests: Requests,
    pub(super) concurrency: Concurrency,
    /// What the embedder said of itself at the last probe that passed.
    pub(super) said: Option<Probe>,
    pub(super) under_way: HashMap<CallId, UnderWay>,
    pub(super) rests: Rests,
    pub(super) patience: Patience,
}

/// A call whose answer is awaited.
pub(super) struct UnderWay {
    pub(super) texts: Vec<TextId>,
    pub(super) task: AbortHandle,
}

impl State {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            judge: Judge::new(settings.judge),
            requests: Requests::default(),
            concurrency: Concurrency::new(settings.calls),
            said: None,
            under_way: HashMap::new(),
            rests: Rests::default(),
            patience: Patience::new(),
        }
    }

    /// Ends the calls that nobody waits for any more.
    pub(super) fn end_unawaited(&mut self) {
        let requests = &self.requests;
        let unawaited = self.under_way.extract_if(|_, call| {
            let mut texts = call.texts.iter();
            !call.texts.is_empty() && !texts.any(|text| requests.contains(*text))
        });
        for (id, UnderWay { task, .. }) in unawaited {
            task.abort();
            self.judge.cancelled(id);
        }
    }

    /// Gives back the parts of which nothing is under way.
    pub(super) fn give_back_idle(&mut self, reason: &str) {
        let texts = self.under_way.values().flat_map(|call| &call.texts);
        let busy: HashSet<u64> = texts.filter_map(|text| self.requests.of(*text)).collect();
        for name in self.requests.names() {
            if !busy.contains(&name) {
                self.give_back(name, reason);
            }
        }
    }

    /// Answers a part with what there is of it.
    pub(super) fn give_back(&mut self, name: u64, reason: &str) {
        for text in self.requests.give_back(name, reason) {
            self.judge.remove(text);
        }
    }
}
