//! The user that the server runs as: Postgres refuses to run as root.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{
        DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown,
    },
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use rustix::fs::OFlags;

/// The user and group of the server's processes and files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ServerUser {
    uid: u32,
    gid: u32,
    /// Whether this is another user than ours, which takes root.
    other: bool,
}

impl ServerUser {
    /// Chooses the user: our own; as root the owner of the database files
    /// where they exist, else `postgres`, else `nobody`.
    pub(super) fn choose(pgdata: &Path) -> Result<Self> {
        let own = rustix::process::geteuid();
        let owner = match fs::metadata(pgdata) {
            Ok(meta) => Some((meta.uid(), meta.gid())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", pgdata.display()));
            }
        };
        if own.is_root() {
            let (uid, gid) = match owner.filter(|(uid, _)| *uid != 0) {
                Some(ids) => ids,
                None => unprivileged(&fs::read_to_string("/etc/passwd").unwrap_or_default())?,
            };
            return Ok(Self {
                uid,
                gid,
                other: true,
            });
        }
        if let Some((uid, _)) = owner
            && uid != own.as_raw()
        {
            bail!(
                "{} belongs to user {uid}, and this is user {}: run as that user or as root, or \
                 use another data directory",
                pgdata.display(),
                own.as_raw()
            );
        }
        Ok(Self {
            uid: own.as_raw(),
            gid: rustix::process::getegid().as_raw(),
            other: false,
        })
    }

    /// A command that runs as this user, from `/` and without our environment,
    /// whose `PG…` variables would change what the server does.
    pub(super) fn command(self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .current_dir("/");
        if self.other {
            command.uid(self.uid).gid(self.gid);
        }
        command
    }

    /// Creates a directory that only this user (and root) may enter.
    pub(super) fn create_private_dir(self, path: &Path) -> Result<()> {
        let dir = create_dir(path, 0o700)?;
        if self.other {
            fchown(&dir, Some(self.uid), Some(self.gid))
                .with_context(|| format!("cannot give {} to user {}", path.display(), self.uid))?;
        }
        Ok(())
    }

    /// The mode of a directory of ours that holds what belongs to this user:
    /// another user may pass through it, but not list it.
    pub(super) fn mode_on_the_way(self) -> u32 {
        if self.other { 0o711 } else { 0o700 }
    }

    /// Returns the directory that keeps this user from getting to `path`, if
    /// one does. `path` is an existing directory.
    pub(super) fn barred_at(self, path: &Path) -> Result<Option<PathBuf>> {
        if !self.other {
            return Ok(None);
        }
        let path =
            fs::canonicalize(path).with_context(|| format!("cannot resolve {}", path.display()))?;
        for dir in path.ancestors() {
            let meta =
                fs::metadata(dir).with_context(|| format!("cannot read {}", dir.display()))?;
            if !self.may_enter(meta.mode(), meta.uid(), meta.gid()) {
                return Ok(Some(dir.to_path_buf()));
            }
        }
        Ok(None)
    }

    fn may_enter(self, mode: u32, owner: u32, group: u32) -> bool {
        let bit = match (owner == self.uid, group == self.gid) {
            (true, _) => 0o100,
            (false, true) => 0o010,
            (false, false) => 0o001,
        };
        mode & bit != 0
    }
}

/// Creates a directory with exactly this mode, whatever the umask, and opens
/// it. What somebody puts in its place meanwhile is left alone.
pub(super) fn create_dir(path: &Path, mode: u32) -> Result<File> {
    DirBuilder::new()
        .mode(0o700)
        .create(path)
        .and_then(|()| set_mode(path, mode))
        .with_context(|| format!("cannot create {}", path.display()))
}

/// Gives a directory this mode, and opens it. Fails where it is a link.
pub(super) fn set_mode(path: &Path, mode: u32) -> io::Result<File> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let dir = File::options()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path)?;
    dir.set_permissions(fs::Permissions::from_mode(mode))?;
    Ok(dir)
}

/// Finds `postgres`, else `nobody`, in the text of a passwd file.
fn unprivileged(passwd: &str) -> Result<(u32, u32)> {
    let find = |name: &str| {
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next()? == name).then_some(())?;
            // Some systems write the id of nobody as -2.
            let mut id = || fields.next()?.parse::<i64>().ok().map(|id| id as u32);
            let _password = id();
            Some((id()?, id()?))
        })
    };
    find("postgres")
        .or_else(|| find("nobody"))
        .filter(|(uid, _)| *uid != 0)
        .context(
            "Postgres does not run as root, and this system has neither a user `postgres` nor \
         `nobody` to run it as: run Weir as another user, or name a server in WEIR_DATABASE_URL",
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn postgres_comes_before_nobody() {
        let passwd = "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65533:::\npostgres:x:101:104:::\n";
        assert_eq!(unprivileged(passwd).unwrap(), (101, 104));
        assert_eq!(
            unprivileged("nobody:*:-2:-2:::").unwrap(),
            (u32::MAX - 1, u32::MAX - 1)
        );
        assert!(unprivileged("root:x:0:0::/root:/bin/sh\npostgres:broken").is_err());
        assert!(unprivileged("postgres:x:0:0:::").is_err());
    }

    #[test]
    fn the_most_specific_permission_counts() {
        let user = ServerUser {
            uid: 5,
            gid: 6,
            other: true,
        };
        assert!(user.may_enter(0o700, 5, 0));
        assert!(!user.may_enter(0o700, 0, 0));
        assert!(user.may_enter(0o711, 0, 0));
        assert!(user.may_enter(0o710, 0, 6));
        assert!(!user.may_enter(0o701, 0, 6));
        assert!(!user.may_enter(0o077, 5, 6));
    }

    #[test]
    fn the_closed_directory_is_named() {
        let user = ServerUser {
            uid: 5,
            gid: 6,
            other: true,
        };
        let root = tempfile::tempdir().unwrap();
        let closed = root.path().join("closed");
        create_dir(&closed, 0o700).unwrap();
        create_dir(&closed.join("inner"), 0o755).unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let barred = user.barred_at(&closed.join("inner")).unwrap();
        assert_eq!(barred, Some(fs::canonicalize(&closed).unwrap()));
        assert_eq!(user.barred_at(root.path()).unwrap(), None);
    }
}
