//! Where the server's files are, and which process may use them.
//!
//! Each server has a *run directory* in the system's temporary directory, with
//! its socket and, for a temporary server, its data. Its owner holds a lock on
//! it, so that the next start can tell a run that is over, however it ended,
//! and remove what it left.

use std::{
    env,
    fs::{self, DirBuilder, File, TryLockError},
    io,
    os::unix::ffi::OsStrExt as _,
    os::unix::fs::{
        DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink,
    },
    path::{Path, PathBuf, absolute},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustix::fs::OFlags;

use super::user::{self, ServerUser, create_dir};

/// Longest path of a socket's directory. The kernel allows about 100 bytes for
/// the socket itself.
const MAX_SOCKET_DIR_BYTES: usize = 85;

/// The mode of a lock file.
const LOCK_MODE: u32 = 0o600;

/// How often a lock that another holds is tried, and how long apart.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Where root keeps what the server's user could not reach elsewhere.
const SYSTEM_DIR: &str = "/var/lib/weir";

/// A run directory; removed when dropped.
#[derive(Debug)]
pub(super) struct RunDir {
    path: PathBuf,
    _lock: File,
}

impl RunDir {
    /// Makes one, and removes those whose owners are gone.
    pub(super) fn create(user: ServerUser) -> Result<Self> {
        let base = base_dir(user)?;
        // Held until the new directory is locked, or another start might take
        // it for a leftover.
        let guard = open_lock(&base)?;
        guard
            .lock()
            .with_context(|| format!("cannot lock {}", base.display()))?;
        sweep(&base);
        let path = tempfile::Builder::new()
            .prefix("run-")
            .tempdir_in(&base)
            .with_context(|| format!("cannot create a directory in {}", base.display()))?
            .keep();
        set_mode(&path, user.mode_on_the_way())?;
        let lock = try_lock(&path)?.context("a new directory is locked already")?;
        user.create_private_dir(&path.join("socket"))?;
        Ok(Self { path, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.path.join("socket")
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        // What cannot be removed now is swept by a later start.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// A data directory that stays, locked for this process.
#[derive(Debug)]
pub(super) struct KeptDir {
    path: PathBuf,
    _lock: File,
}

impl KeptDir {
    /// Opens it, and creates it first where it is missing.
    ///
    /// Where the server's user could not reach it (root's own directories are
    /// often closed), it is created in `/var/lib/weir`, with a link from where
    /// it was asked for.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let dir = absolute(dir).with_context(|| format!("cannot resolve {}", dir.display()))?;
        if fs::symlink_metadata(&dir).is_err() {
            create_kept(&dir)?;
        }
        let path = fs::canonicalize(&dir)
            .with_context(|| format!("cannot open the data directory {}", dir.display()))?;
        // A child that is just being started has a copy of the lock until its program runs.
        for _ in 0..LOCK_TRIES {
            if let Some(lock) = try_lock(&path)? {
                return Ok(Self { path, _lock: lock });
            }
            thread::sleep(LOCK_PAUSE);
        }
        bail!(
            "the data directory {} is in use by another process: stop that one, or choose another \
             directory",
            path.display()
        )
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Fails with the reason when the server's user cannot get to `path`.
pub(super) fn check_reachable(user: ServerUser, path: &Path) -> Result<()> {
    let Some(barred) = user.barred_at(path)? else {
        return Ok(());
    };
    bail!(
        "Postgres runs as an unprivileged user, who cannot reach {}, because {} is closed to \
         others: choose another data directory, such as one below {SYSTEM_DIR}",
        path.display(),
        barred.display()
    )
}

/// Returns where the Postgres of `runtime` can be started from: there, or from
/// a copy in the run directory when the server's user cannot reach it there.
pub(super) fn reachable_runtime(user: ServerUser, runtime: &Path, run: &RunDir) -> Result<PathBuf> {
    if user.barred_at(runtime)?.is_none() {
        return fs::canonicalize(runtime)
            .with_context(|| format!("cannot resolve {}", runtime.display()));
    }
    let copy = run.path().join("postgres-runtime");
    copy_tree(runtime, &copy)
        .with_context(|| format!("cannot copy {} to {}", runtime.display(), copy.display()))?;
    Ok(copy)
}

fn create_kept(dir: &Path) -> Result<()> {
    let parent = dir
        .parent()
        .context("the root directory cannot hold the data")?;
    let user = ServerUser::choose(dir)?;
    DirBuilder::new()
        .recursive(true)
        .mode(user.mode_on_the_way())
        .create(parent)
        .with_context(|| format!("cannot create {}", parent.display()))?;
    if user.barred_at(parent)?.is_none() {
        create_dir(dir, user.mode_on_the_way())?;
        return Ok(());
    }
    let system = Path::new(SYSTEM_DIR);
    if !system.exists() {
        fs::create_dir_all(system).with_context(|| format!("cannot create {SYSTEM_DIR}"))?;
        set_mode(system, user.mode_on_the_way())?;
    }
    check_reachable(user, system)?;
    let real = tempfile::Builder::new()
        .prefix("data-")
        .tempdir_in(system)
        .with_context(|| format!("cannot create a directory in {SYSTEM_DIR}"))?
        .keep();
    set_mode(&real, user.mode_on_the_way())?;
    symlink(&real, dir).with_context(|| format!("cannot create {}", dir.display()))?;
    tracing::warn!(
        data_dir = %dir.display(),
        real_dir = %real.display(),
        "The data is kept where the user that Postgres runs as can reach it."
    );
    Ok(())
}

/// The directory of all run directories of this user.
fn base_dir(user: ServerUser) -> Result<PathBuf> {
    let own = rustix::process::geteuid().as_raw();
    let mut reasons = Vec::new();
    for temp in [env::temp_dir(), PathBuf::from("/tmp")] {
        match usable_base(user, &temp, own) {
            Ok(base) => return Ok(base),
            Err(error) => reasons.push(format!("{error:#}")),
        }
    }
    bail!(
        "found no temporary directory for the socket of Postgres: {}",
        reasons.join("; ")
    )
}

fn usable_base(user: ServerUser, temp: &Path, own: u32) -> Result<PathBuf> {
    let temp =
        fs::canonicalize(temp).with_context(|| format!("cannot resolve {}", temp.display()))?;
    let base = temp.join(format!("weir-{own}"));
    if base.join("run-XXXXXX/socket").as_os_str().as_bytes().len() > MAX_SOCKET_DIR_BYTES {
        bail!("{} is too long a path for a socket", temp.display());
    }
    check_reachable(user, &temp)?;
    if let Err(error) = create_dir(&base, user.mode_on_the_way())
        && fs::symlink_metadata(&base).is_err()
    {
        return Err(error);
    }
    // The temporary directory is everybody's: trust only what is ours.
    let meta =
        fs::symlink_metadata(&base).with_context(|| format!("cannot read {}", base.display()))?;
    if !meta.is_dir() || meta.uid() != own || meta.mode() & 0o022 != 0 {
        bail!(
            "{} is not a directory that only this user may write",
            base.display()
        );
    }
    if meta.mode() & 0o777 & !user.mode_on_the_way() != 0 {
        // One of an earlier version.
        set_mode(&base, user.mode_on_the_way())?;
    }
    Ok(base)
}

/// Removes the run directories whose owners are gone.
fn sweep(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else {
        return;
    };
    for entry in entries.flatten() {
        if !entry.file_name().as_bytes().starts_with(b"run-") {
            continue;
        }
        if let Ok(Some(_lock)) = try_lock(&entry.path()) {
            // A server that is still shutting down may get in the way; a later
            // start then does the rest.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    user::set_mode(path, mode)
        .with_context(|| format!("cannot change the mode of {}", path.display()))?;
    Ok(())
}

/// Opens the lock of a directory, for nobody else to open: whoever can open it
/// can hold it.
fn open_lock(dir: &Path) -> Result<File> {
    let path = dir.join("lock");
    let open = || -> io::Result<File> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(LOCK_MODE)
            .custom_flags(OFlags::NOFOLLOW.bits() as i32)
            .open(&path)?;
        let meta = file.metadata()?;
        // One of an earlier version; not what somebody linked here.
        if meta.mode() & 0o777 != LOCK_MODE && meta.is_file() && meta.nlink() == 1 {
            file.set_permissions(fs::Permissions::from_mode(LOCK_MODE))?;
        }
        Ok(file)
    };
    open().with_context(|| format!("cannot open {}", path.display()))
}

/// Locks a directory for this process, or returns nothing when another has it.
/// The lock ends with the process, however that ends.
fn try_lock(dir: &Path) -> Result<Option<File>> {
    let file = open_lock(dir)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", dir.display()))
        }
    }
}

fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if fs::metadata(entry.path())?.is_dir() {
            // Only compilers need the headers.
            if entry.file_name() != "include" {
                copy_tree(&entry.path(), &target)?;
            }
        } else {
            fs::copy(entry.path(), &target)?;
            let mode = fs::metadata(&target)?.permissions().mode();
            fs::set_permissions(&target, fs::Permissions::from_mode(mode | 0o444))?;
        }
    }
    Ok(())
}
