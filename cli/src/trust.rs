//! Whose programs are run: those of a folder that was found, and not named,
//! only where nobody else could have put them there.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

/// The user that this process runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct User {
    uid: u32,
    gid: u32,
}

/// Why somebody else could change a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    /// It belongs to this user.
    Owner(u32),
    /// Its group may write it.
    Group(u32),
    /// Everybody may.
    World,
}

/// What of a file decides who may change it.
#[derive(Debug, Clone, Copy)]
struct Rights {
    uid: u32,
    gid: u32,
    mode: u32,
}

impl From<&Metadata> for Rights {
    fn from(metadata: &Metadata) -> Self {
        Self {
            uid: metadata.uid(),
            gid: metadata.gid(),
            mode: metadata.mode(),
        }
    }
}

impl Rights {
    /// Why another user than this one and root could change it, if one could.
    fn flaw(self, own: User) -> Option<Flaw> {
        // Many systems give each user a group of the same number.
        let own_group = self.gid == own.gid && own.gid == own.uid;
        if self.uid != own.uid && self.uid != 0 {
            Some(Flaw::Owner(self.uid))
        } else if self.mode & 0o002 != 0 {
            Some(Flaw::World)
        } else if self.mode & 0o020 != 0 && self.gid != 0 && !own_group {
            Some(Flaw::Group(self.gid))
        } else {
            None
        }
    }

    /// The same of a folder on the way: in one like `/tmp` everybody may make
    /// files, and nobody may replace those of others.
    fn flaw_on_the_way(self, own: User) -> Option<Flaw> {
        let sticky = self.mode & 0o1000 != 0;
        self.flaw(own)
            .filter(|flaw| !sticky || matches!(flaw, Flaw::Owner(_)))
    }
}

/// Returns the runtime folder's own place, links resolved, if only this user
/// and root could have put programs there. Fails with the file that is another's
/// and what to do.
pub(crate) fn own_runtime(dir: &Path) -> Result<PathBuf> {
    let own = User {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
    };
    let dir = fs::canonicalize(dir).with_context(|| format!("cannot resolve {}", dir.display()))?;
    check_way(&dir, own)?;
    check_tree(&dir.join("postgres"), own)?;
    Ok(dir)
}

/// A path without links, and every folder that it is in.
fn check_way(path: &Path, own: User) -> Result<()> {
    for dir in path.ancestors().skip(1) {
        refuse(dir, rights(dir)?.flaw_on_the_way(own), own)?;
    }
    refuse(path, rights(path)?.flaw(own), own)
}

/// A folder, and all there is in it; nothing where it is missing.
fn check_tree(dir: &Path, own: User) -> Result<()> {
    let mut open = vec![dir.to_owned()];
    while let Some(path) = open.pop() {
        let metadata = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && path == dir => return Ok(()),
            other => other.with_context(|| format!("cannot read {}", path.display()))?,
        };
        if metadata.is_symlink() {
            let target = fs::canonicalize(&path)
                .with_context(|| format!("cannot resolve {}", path.display()))?;
            if !target.starts_with(dir) {
                check_way(&target, own)?;
                if target.is_dir() {
                    open.push(target);
                }
            }
            continue;
        }
        refuse(&path, Rights::from(&metadata).flaw(own), own)?;
        if metadata.is_dir() {
            let entries =
                fs::read_dir(&path).with_context(|| format!("cannot read {}", path.display()))?;
            for entry in entries {
                open.push(entry?.path());
            }
        }
    }
    Ok(())
}

fn rights(path: &Path) -> Result<Rights> {
    let metadata = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Rights::from(&metadata))
}

fn refuse(path: &Path, flaw: Option<Flaw>, own: User) -> Result<()> {
    let Some(flaw) = flaw else { return Ok(()) };
    let shown = path.display();
    let (whose, mend) = match flaw {
        Flaw::Owner(uid) => (
            format!("belongs to user {uid}, and this is user {}", own.uid),
            "run `make runtime` in a folder of your own".to_owned(),
        ),
        Flaw::Group(gid) => (
            format!("can be written by group {gid}"),
            format!("run `chmod go-w {shown}`"),
        ),
        Flaw::World => (
            "can be written by everybody".to_owned(),
            format!("run `chmod go-w {shown}`"),
        ),
    };
    bail!(
        "the programs that were found are not run, for somebody else could have put them there: \
         {shown} {whose}; {mend}, or name the folder with --runtime-dir (WEIR_RUNTIME_DIR) if you \
         trust whoever can write to it"
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use super::*;

    const OWN: User = User {
        uid: 1_000,
        gid: 1_000,
    };

    fn rights(uid: u32, gid: u32, mode: u32) -> Rights {
        Rights { uid, gid, mode }
    }

    #[test]
    fn own_files_and_those_of_root_are_trusted_if_nobody_else_may_write_them() {
        for (rights, flaw) in [
            (rights(1_000, 1_000, 0o755), None),
            (rights(0, 0, 0o755), None),
            // A group of one's own, as many systems give it, and that of root.
            (rights(1_000, 1_000, 0o775), None),
            (rights(0, 0, 0o775), None),
            (rights(1_001, 1_000, 0o755), Some(Flaw::Owner(1_001))),
            (rights(1_001, 1_001, 0o700), Some(Flaw::Owner(1_001))),
            (rights(1_000, 100, 0o775), Some(Flaw::Group(100))),
            (rights(0, 100, 0o775), Some(Flaw::Group(100))),
            (rights(1_000, 1_000, 0o757), Some(Flaw::World)),
            (rights(0, 0, 0o1777), Some(Flaw::World)),
        ] {
            assert_eq!(rights.flaw(OWN), flaw, "{rights:?}");
        }
        let shared_group = User {
            uid: 1_000,
            gid: 100,
        };
        let staff = rights(1_000, 100, 0o775);
        assert_eq!(staff.flaw(shared_group), Some(Flaw::Group(100)));
    }

    #[test]
    fn a_folder_like_tmp_may_be_on_the_way() {
        assert_eq!(rights(0, 0, 0o1777).flaw_on_the_way(OWN), None);
        assert_eq!(rights(0, 0, 0o777).flaw_on_the_way(OWN), Some(Flaw::World));
        let theirs = rights(1_001, 0, 0o1777).flaw_on_the_way(OWN);
        assert_eq!(theirs, Some(Flaw::Owner(1_001)));
    }

    /// A folder with `.runtime` in it, and the program of the latter.
    fn project() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let project = tempfile::tempdir().unwrap();
        let runtime = project.path().join(".runtime");
        let bin = runtime.join("postgres/bin");
        fs::create_dir_all(&bin).unwrap();
        let program = bin.join("postgres");
        fs::write(&program, "#!/bin/sh\n").unwrap();
        for path in runtime
            .ancestors()
            .take(2)
            .chain(program.ancestors().take(3))
        {
            set_mode(path, 0o755);
        }
        (project, runtime, program)
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// Checks that the folder is refused by naming this file and these words.
    fn assert_refused(runtime: &Path, path: &Path, words: &str) {
        let error = own_runtime(runtime).unwrap_err().to_string();
        let path = fs::canonicalize(path).unwrap();
        assert!(error.contains(&format!("{} ", path.display())), "{error}");
        assert!(error.contains(words), "{error}");
        assert!(error.contains("WEIR_RUNTIME_DIR"), "{error}");
    }

    #[test]
    fn a_runtime_that_others_may_write_is_refused_with_what_to_do() {
        let (project, runtime, program) = project();
        assert_eq!(
            own_runtime(&runtime).unwrap(),
            fs::canonicalize(&runtime).unwrap()
        );
        for path in [
            project.path(),
            &runtime,
            program.parent().unwrap(),
            &program,
        ] {
            set_mode(path, 0o757);
            assert_refused(&runtime, path, "chmod go-w");
            set_mode(path, 0o755);
        }
        // Others may add files to it, which a program may load.
        set_mode(program.parent().unwrap(), 0o1777);
        assert_refused(&runtime, program.parent().unwrap(), "everybody");
        set_mode(program.parent().unwrap(), 0o755);
        own_runtime(&runtime).unwrap();
    }

    #[test]
    fn a_runtime_of_somebody_else_is_refused() {
        let (project, runtime, program) = project();
        for path in [project.path(), &runtime, &program] {
            if chown(path, Some(65_533), None).is_err() {
                // Only root may give files away; the pure tests hold for all.
                return;
            }
            assert_refused(&runtime, path, "belongs to user 65533");
            chown(path, Some(rustix::process::geteuid().as_raw()), None).unwrap();
        }
        own_runtime(&runtime).unwrap();
    }

    #[test]
    fn links_lead_to_what_is_looked_at() {
        let (theirs, runtime, program) = project();
        let ours = tempfile::tempdir().unwrap();
        let link = ours.path().join(".runtime");
        symlink(&runtime, &link).unwrap();
        assert_eq!(
            own_runtime(&link).unwrap(),
            fs::canonicalize(&runtime).unwrap()
        );
        set_mode(theirs.path(), 0o777);
        assert_refused(&link, theirs.path(), "everybody");
        set_mode(theirs.path(), 0o755);

        let elsewhere = tempfile::tempdir().unwrap();
        let library = elsewhere.path().join("vector.so");
        fs::write(&library, "").unwrap();
        set_mode(&library, 0o646);
        symlink(&library, program.with_file_name("vector.so")).unwrap();
        assert_refused(&link, &library, "everybody");
        set_mode(&library, 0o644);
        own_runtime(&link).unwrap();
        // A link to nothing is no program.
        fs::remove_file(&library).unwrap();
        assert!(own_runtime(&link).is_err());
    }

    #[test]
    fn a_runtime_without_a_postgres_has_nothing_to_run() {
        let empty = tempfile::tempdir().unwrap();
        own_runtime(empty.path()).unwrap();
        assert!(own_runtime(&empty.path().join("none")).is_err());
    }
}
