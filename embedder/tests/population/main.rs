//! The judge against servers drawn at random, each with limits, poison, outages
//! and manners that it does not know.

mod server;
mod world;

use proptest::{prelude::*, test_runner::Config};

use self::{server::arbitrary, world::World};

proptest! {
    #![proptest_config(Config { failure_persistence: None, ..Config::default() })]

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
