//! Tokens, as the coordinator itself draws them.

use std::{fs, path::PathBuf, process::Command};

use crate::cluster::binary;

/// A tokens file, and the tokens in it.
#[derive(Debug)]
pub struct Tokens {
    folder: tempfile::TempDir,
}

impl Tokens {
    /// A file without any.
    pub fn new() -> Self {
        let tokens = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        tokens.write("tokens.toml", "");
        tokens
    }

    /// Where the file is.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("tokens.toml")
    }

    /// Writes a file of the same folder anew.
    pub fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// Draws a token with the program itself, and adds its table.
    pub fn add(&self, name: &str, role: &str, namespaces: &[&str]) -> String {
        let drawn = Command::new(binary("weir-coordinator"))
            .args(["token", name, role])
            .args(namespaces)
            .output()
            .unwrap();
        assert!(drawn.status.success(), "{drawn:?}");
        let table = String::from_utf8(drawn.stderr).unwrap();
        let token = String::from_utf8(drawn.stdout).unwrap().trim().to_owned();
        assert!(!table.contains(&token), "{table}");
        let file = fs::read_to_string(self.path()).unwrap();
        self.write("tokens.toml", &format!("{file}{table}"));
        token
    }
}

impl Default for Tokens {
    fn default() -> Self {
        Self::new()
    }
}
