//! Settings that live in files and are read again when these change.
//!
//! The files are looked at rather than watched: how secrets reach a process
//! (a rename, a symbolic link turned around, a mount) differs from place to
//! place, and what is in them does not.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

type Read<T> = Box<dyn Fn(&[Vec<u8>]) -> anyhow::Result<T> + Send>;

/// What is read from files, as they last were in order.
pub(crate) struct Files<T> {
    /// The setting that names them, for whoever reads the log.
    setting: &'static str,
    paths: Vec<PathBuf>,
    read: Read<T>,
    /// What was in them at the last look, also when it was in no order.
    seen: Result<Vec<Vec<u8>>, String>,
    current: watch::Sender<Arc<T>>,
}

impl<T: Send + Sync + 'static> Files<T> {
    /// Reads the files for the first time. Fails, naming the setting, when they
    /// are not there or not in order.
    pub(crate) fn open(
        setting: &'static str,
        paths: Vec<PathBuf>,
        read: impl Fn(&[Vec<u8>]) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<Self> {
        let contents = contents(&paths);
        let value = contents
            .clone()
            .map_err(anyhow::Error::msg)
            .and_then(|contents| read(&contents))
            .with_context(|| setting.to_owned())?;
        Ok(Self {
            setting,
            paths,
            read: Box::new(read),
            seen: contents,
            current: watch::Sender::new(Arc::new(value)),
        })
    }

    /// What is in them, now and whenever it changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<T>> {
        self.current.subscribe()
    }

    /// Looks once. What is new and in order holds from now on; what is not is
    /// told once, and what was there before goes on to hold.
    pub(crate) fn step(&mut self) {
        let contents = contents(&self.paths);
        if contents == self.seen {
            return;
        }
        self.seen.clone_from(&contents);
        let value = contents.map_err(anyhow::Error::msg);
        match value.and_then(|contents| (self.read)(&contents)) {
            Ok(value) => {
                self.current.send_replace(Arc::new(value));
                tracing::info!(setting = self.setting, "Files were changed and read again.");
            }
            Err(error) => tracing::error!(
                setting = self.setting,
                error = format!("{error:#}"),
                "Files were changed and cannot be used; what was in them before goes on to hold."
            ),
        }
    }

    /// Looks every few seconds until told to stop.
    pub(crate) async fn keep(mut self, stop: CancellationToken) {
        while stop
            .run_until_cancelled(tokio::time::sleep(LOOK_EVERY))
            .await
            .is_some()
        {
            self.step();
        }
    }
}

impl<T> std::fmt::Debug for Files<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never what is in them.
        f.debug_struct("Files")
            .field("paths", &self.paths)
            .finish_non_exhaustive()
    }
}

fn contents(paths: &[PathBuf]) -> Result<Vec<Vec<u8>>, String> {
    let read = |path: &PathBuf| {
        std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
    };
    paths.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_file_leaves_what_held_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("number");
        let number = |parts: &[Vec<u8>]| Ok(std::str::from_utf8(&parts[0])?.parse::<i32>()?);
        let open = || Files::open("--number", vec![path.clone()], number);
        let missing = format!("{:#}", open().unwrap_err());
        assert!(missing.contains("--number: cannot read"), "{missing}");

        std::fs::write(&path, "1").unwrap();
        let mut files = open().unwrap();
        let mut held = files.subscribe();
        for (content, expected, changed) in [
            ("1", 1, false),
            ("x", 1, false),
            ("2", 2, true),
            ("2", 2, false),
        ] {
            std::fs::write(&path, content).unwrap();
            files.step();
            assert_eq!(held.has_changed().unwrap(), changed, "{content}");
            assert_eq!(**held.borrow_and_update(), expected, "{content}");
        }
        std::fs::remove_file(&path).unwrap();
        files.step();
        assert_eq!(**held.borrow_and_update(), 2);
    }
}
