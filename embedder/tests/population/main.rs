//! The judge against servers drawn at random, each with limits, poison, outages
//! and manners that it does not know.

mod server;
mod world;

use proptest::{
    prelude::*,
    test_runner::{Config, RngSeed},
};

use self::{
    server::{Server, Symptom, Word, arbitrary},
    world::World,
};

/// Draws the same servers in each run, unless `PROPTEST_RNG_SEED` and
/// `PROPTEST_CASES` ask for others and for more.
fn config() -> Config {
    let config = Config::default();
    Config {
        failure_persistence: None,
        rng_seed: match config.rng_seed {
            RngSeed::Random => RngSeed::Fixed(1),
            fixed @ RngSeed::Fixed(_) => fixed,
        },
        ..config
    }
}

proptest! {
    #![proptest_config(config())]

    /// Every healthy text is embedded, exactly the poison is rejected, nobody is
    /// charged while the server embeds nothing, and few calls are made.
    #[test]
    fn every_server_is_understood(server in arbitrary(true)) {
        World::new(server).run(1.35)?;
    }

    /// The same holds when nothing that the server says is understood.
    #[test]
    fn no_words_are_needed(server in arbitrary(false)) {
        World::new(server).run(1.6)?;
    }
}

proptest! {
    #![proptest_config(Config { cases: config().cases / 8, ..config() })]

    /// Both hold where many calls fail for nothing, which most of the others are
    /// spared.
    #[test]
    fn no_text_is_blamed_for_a_whim(server in any::<bool>().prop_flat_map(arbitrary)) {
        World::new(server.unsteady()).run(1.6)?;
    }
}

/// What is proved of one text in a hundred costs little where nothing else is
/// wrong: 250 and 63 calls are needed if all are good.
#[test]
fn plain_poison_costs_few_calls() {
    let most = [
        (8, Word::Unknown, Symptom::Fails, 400),
        (32, Word::Unknown, Symptom::Fails, 320),
        (8, Word::Right, Symptom::Fails, 360),
        (32, Word::Right, Symptom::Fails, 220),
        (8, Word::Unknown, Symptom::Flawed, 310),
        (32, Word::Unknown, Symptom::Flawed, 125),
    ];
    for (ceiling, word, symptom, most) in most {
        let calls = World::new(Server::plain(ceiling, word, symptom)).run(1.35);
        let calls = calls.expect("every server is understood");
        assert!(
            calls <= most,
            "{calls} calls of {ceiling}, {word:?}, {symptom:?}"
        );
    }
}
