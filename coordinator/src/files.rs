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

/// What was read of the files.
pub(crate) struct Read<T> {
    /// What is to hold.
    pub(crate) value: T,
    /// What of the files does not, where part of them can be used.
    pub(crate) fault: Option<anyhow::Error>,
}

impl<T> From<T> for Read<T> {
    fn from(value: T) -> Self {
        Self { value, fault: None }
    }
}

/// Reads the contents; what holds already is given where there is something.
type Reader<T> = Box<dyn Fn(&[Vec<u8>], Option<&T>) -> anyhow::Result<Read<T>> + Send>;

/// What is read from files, as they last were in order.
pub(crate) struct Files<T> {
    /// The setting that names them, for whoever reads the log.
    setting: &'static str,
    paths: Vec<PathBuf>,
    read: Reader<T>,
    /// What was in them at the last look, also when it was in no order.
    seen: Result<Vec<Vec<u8>>, String>,
    current: watch::Sender<Arc<T>>,
    /// Whether all that is in them holds.
    in_force: bool,
}

impl<T: Send + Sync + 'static> Files<T> {
    /// Reads the files for the first time. Fails, naming the setting, when they
    /// are not there or not in order.
    pub(crate) fn open(
        setting: &'static str,
        paths: Vec<PathBuf>,
        read: impl Fn(&[Vec<u8>], Option<&T>) -> anyhow::Result<Read<T>> + Send + 'static,
    ) -> anyhow::Result<Self> {
        let contents = contents(&paths);
        let value = contents
            .clone()
            .map_err(anyhow::Error::msg)
            .and_then(|contents| read(&contents, None))
            .and_then(|Read { value, fault }| fault.map_or(Ok(value), Err))
            .with_context(|| setting.to_owned())?;
        Ok(Self {
            setting,
            paths,
            read: Box::new(read),
            seen: contents,
            current: watch::Sender::new(Arc::new(value)),
            in_force: true,
        })
    }

    /// What is in them, now and whenever it changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<T>> {
        self.current.subscribe()
    }

    /// Looks once. What is new and in order holds from now on; what is not is
    /// told once, and what was there before goes on to hold. Returns whether all
    /// that is in the files holds.
    pub(crate) fn step(&mut self) -> bool {
        let contents = contents(&self.paths);
        if contents == self.seen {
            return self.in_force;
        }
        self.seen.clone_from(&contents);
        let held = Arc::clone(&self.current.borrow());
        let contents = contents.map_err(anyhow::Error::msg);
        let fault = match contents.and_then(|contents| (self.read)(&contents, Some(&held))) {
            Ok(Read { value, fault }) => {
                self.current.send_replace(Arc::new(value));
                let what =
                    "Files were changed, and part of them cannot be used; the rest of them holds.";
                fault.map(|fault| (fault, what))
            }
            Err(fault) => {
                let what = "Files were changed and cannot be used; what was in them before goes on to hold.";
                Some((fault, what))
            }
        };
        self.in_force = fault.is_none();
        match fault {
            None => tracing::info!(setting = self.setting, "Files were changed and read again."),
            Some((fault, what)) => {
                tracing::error!(
                    setting = self.setting,
                    error = format!("{fault:#}"),
                    "{what}"
                );
            }
        }
        self.in_force
    }

    /// Looks every few seconds until told to stop, and reports each time whether
    /// all that is in the files holds.
    pub(crate) async fn keep(mut self, stop: CancellationToken, report: impl Fn(bool)) {
        report(self.in_force);
        while stop
            .run_until_cancelled(tokio::time::sleep(LOOK_EVERY))
            .await
            .is_some()
        {
            report(self.step());
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
        // An odd one is in order, but for a part of it.
        let number = |parts: &[Vec<u8>], held: Option<&i32>| {
            let value = std::str::from_utf8(&parts[0])?.parse::<i32>()?;
            assert!(held.is_none_or(|held| *held != value));
            let fault = (value % 2 == 1).then(|| anyhow::anyhow!("odd"));
            Ok(Read { value, fault })
        };
        let open = || Files::open("--number", vec![path.clone()], number);
        let missing = format!("{:#}", open().unwrap_err());
        assert!(missing.contains("--number: cannot read"), "{missing}");

        std::fs::write(&path, "1").unwrap();
        let odd = format!("{:#}", open().unwrap_err());
        assert!(odd.contains("--number: odd"), "{odd}");
        std::fs::write(&path, "0").unwrap();
        let mut files = open().unwrap();
        let mut held = files.subscribe();
        for (content, expected, changed, in_force) in [
            ("0", 0, false, true),
            ("x", 0, false, false),
            ("x", 0, false, false),
            ("2", 2, true, true),
            ("2", 2, false, true),
            ("3", 3, true, false),
            ("4", 4, true, true),
        ] {
            std::fs::write(&path, content).unwrap();
            assert_eq!(files.step(), in_force, "{content}");
            assert_eq!(held.has_changed().unwrap(), changed, "{content}");
            assert_eq!(**held.borrow_and_update(), expected, "{content}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(!files.step());
        assert_eq!(**held.borrow_and_update(), 4);
    }
}
