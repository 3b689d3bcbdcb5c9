//! The judge against servers drawn at random, each with limits, poison, outages
//! and manners that it does not know.

mod server;
mod world;

use proptest::{
    prelude::*,
    test_runner::{Config, RngSeed},
};

use self::{server::arbitrary, world::World};

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
