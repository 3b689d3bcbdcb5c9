//! Going through the states.

use std::collections::{HashMap, hash_map::Entry};

use stateright::{Checker, HasDiscoveries, Model};

use crate::{step::Protocol, system::System};

/// Goes through all states, in all of which the laws must hold. Answers their
/// number.
pub(crate) fn exhaust(protocol: Protocol) -> usize {
    let checker = protocol.checker().threads(2).spawn_bfs().join();
    checker.assert_properties();
    assert!(checker.is_done(), "the search was cut short");
    checker.unique_state_count()
}

/// The shortest history that breaks a law.
#[expect(clippy::print_stderr, reason = "how a flaw shows is worth seeing")]
pub(crate) fn assert_breaks(protocol: Protocol, law: &'static str) {
    let flaws = protocol.flaws;
    let checker = protocol
        .checker()
        .finish_when(HasDiscoveries::AllOf([law].into()))
        .spawn_bfs()
        .join();
    let history = checker
        .discovery(law)
        .unwrap_or_else(|| panic!("{flaws:?} breaks no law: {law}"))
        .into_actions();
    eprintln!(
        "{flaws:?} breaks the law that {law}, in {} steps: {history:?}",
        history.len()
    );
}

/// Of all states, those from which the work can never be done, whatever happens.
pub(crate) fn dead_ends(protocol: &Protocol) -> (usize, Vec<System>) {
    let mut numbers: HashMap<System, usize> = HashMap::new();
    let mut states: Vec<System> = Vec::new();
    let mut before: Vec<Vec<usize>> = Vec::new();
    for state in protocol.init_states() {
        numbers.insert(state.clone(), states.len());
        states.push(state);
        before.push(Vec::new());
    }
    let mut at = 0;
    while at < states.len() {
        for next in protocol.next_states(&states[at]) {
            let number = match numbers.entry(next) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(new) => {
                    states.push(new.key().clone());
                    before.push(Vec::new());
                    *new.insert(states.len() - 1)
                }
            };
            before[number].push(at);
        }
        at += 1;
    }
    let mut hopeful: Vec<bool> = states.iter().map(System::is_done).collect();
    let mut open: Vec<usize> = (0..states.len()).filter(|at| hopeful[*at]).collect();
    while let Some(at) = open.pop() {
        for &earlier in &before[at] {
            if !hopeful[earlier] {
                hopeful[earlier] = true;
                open.push(earlier);
            }
        }
    }
    let count = states.len();
    let dead = states.into_iter().zip(hopeful);
    (
        count,
        dead.filter(|(_, hopeful)| !hopeful)
            .map(|(state, _)| state)
            .collect(),
    )
}
