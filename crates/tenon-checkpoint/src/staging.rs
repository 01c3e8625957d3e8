//! A directory that appears whole or not at all.
//!
//! Everything is written into a hidden sibling of the target. Publishing
//! syncs every file and directory, then renames. Whatever happens before the
//! rename, the target is as it was; dropping an unpublished staging directory
//! removes it, and what a killed process left is swept by the next one that
//! writes to the same target.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};

use crate::{Error, fault};

/// A directory being filled beside its final place.
#[derive(Debug)]
pub struct StagingDir {
    path: PathBuf,
    target: PathBuf,
    overwrite: bool,
    /// Locked while this process fills the directory, so that no other sweeps it.
    lock: File,
    published: bool,
}

impl StagingDir {
    /// Checks that `target` may be created (or, with `overwrite`, replaced), without creating anything.
    pub fn check_target(target: &Path, overwrite: bool) -> Result<(), Error> {
        parent_and_name(target)?;
        match fs::symlink_metadata(target) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::io("examine", target)(e)),
            Ok(_) if !overwrite => Err(Error::TargetExists { path: target.into() }),
            Ok(meta) => {
                // Never replace somebody's home directory because of a slip of the keyboard.
                let is_model = meta.is_dir()
                    && (["config.json", "tenon.json"].iter().any(|f| target.join(f).exists())
                        || fs::read_dir(target).map_err(Error::io("list", target))?.next().is_none());
                if is_model { Ok(()) } else { Err(Error::TargetNotAModel { path: target.into() }) }
            }
        }
    }

    /// Creates the staging directory beside `target` and sweeps what earlier, killed attempts left there.
    pub fn create(target: &Path, overwrite: bool) -> Result<Self, Error> {
        Self::check_target(target, overwrite)?;
        let (parent, name) = parent_and_name(target)?;
        fs::create_dir_all(&parent).map_err(Error::io("create directory", &parent))?;
        Self::make(parent, name, overwrite)
    }

    fn make(parent: PathBuf, name: String, overwrite: bool) -> Result<Self, Error> {
        let prefix = format!(".{name}.tenon-");
        sweep(&parent, &prefix);
        for attempt in 0u32.. {
            let path = parent.join(format!("{prefix}{}-{attempt}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => {
                    let Some(lock) = lock(&path)? else { continue };
                    let target = parent.join(&name);
                    return Ok(Self { path, target, overwrite, lock, published: false });
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && attempt < 1000 => continue,
                Err(e) => return Err(Error::io("create directory", &path)(e)),
            }
        }
        unreachable!("the loop ends by returning")
    }

    /// A staging directory beside `target`, a file that is to appear whole or not at all: see
    /// [`publish_file`](Self::publish_file). With `overwrite` a file may be there already that
    /// begins with `magic`.
    pub fn create_for_file(target: &Path, magic: &[u8], overwrite: bool) -> Result<Self, Error> {
        Self::check_file_target(target, magic, overwrite)?;
        let (parent, name) = parent_and_name(target)?;
        fs::create_dir_all(&parent).map_err(Error::io("create directory", &parent))?;
        Self::make(parent, name, overwrite)
    }

    /// Checks that a file may be made at `target` or replaced there, without making anything.
    pub fn check_file_target(target: &Path, magic: &[u8], overwrite: bool) -> Result<(), Error> {
        parent_and_name(target)?;
        match fs::symlink_metadata(target) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::io("examine", target)(e)),
            Ok(_) if !overwrite => Err(Error::TargetExists { path: target.into() }),
            Ok(meta) => {
                let mut found = vec![];
                let is_file = meta.is_file()
                    && File::open(target)
                        .and_then(|file| {
                            io::Read::read_to_end(&mut io::Read::take(file, magic.len() as u64), &mut found)
                        })
                        .is_ok();
                // Never replace somebody's diary because of a slip of the keyboard.
                if is_file && found == magic {
                    Ok(())
                } else {
                    Err(Error::TargetNotAModel { path: target.into() })
                }
            }
        }
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that the file system can still take from this user, which must be as many as are needed.
    ///
    /// # Errors
    /// [`Error::DiskFull`] where they are fewer.
    pub fn need_bytes(path: &Path, needed: u64) -> Result<u64, Error> {
        let available = Self::available_bytes(path)?;
        if available < needed {
            return Err(Error::DiskFull { path: path.into(), needed, available });
        }
        Ok(available)
    }

    /// Bytes that the file system can still take from this user.
    pub fn available_bytes(path: &Path) -> Result<u64, Error> {
        // The nearest ancestor that exists: the target's parents may be created later.
        let mut place = path;
        loop {
            match rustix::fs::statvfs(if place.as_os_str().is_empty() { Path::new(".") } else { place }) {
                Ok(stat) => return Ok(stat.f_bavail.saturating_mul(stat.f_frsize)),
                Err(rustix::io::Errno::NOENT) => match place.parent() {
                    Some(parent) => place = parent,
                    None => return Err(Error::BadTarget { path: path.into() }),
                },
                Err(e) => return Err(Error::io("examine", place)(e.into())),
            }
        }
    }

    /// Writes a small file and syncs it.
    pub fn write_file(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        Self::write_file_in(&self.path, name, bytes)
    }

    /// Writes a small file, which must not be there, into any directory and syncs it.
    pub fn write_file_in(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = dir.join(name);
        let write = || {
            fault::point("write file")?;
            let mut file = File::create_new(&path)?;
            io::Write::write_all(&mut file, bytes)?;
            file.sync_all()
        };
        write().map_err(Error::io("write", &path))
    }

    /// Makes the directory appear at its target: synced, then renamed in one step.
    ///
    /// The files in it must be synced already; [`write_shards`](crate::write_shards)
    /// and [`write_file`](Self::write_file) do so.
    pub fn publish(mut self) -> Result<(), Error> {
        fault::point("publish").map_err(Error::io("rename into place", &self.target))?;
        self.lock.sync_all().map_err(Error::io("sync", &self.path))?;
        let rename = |flags| renameat_with(CWD, &self.path, CWD, &self.target, flags);
        let mut replaced = None;
        match rename(RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) if self.overwrite => {
                Self::check_target(&self.target, true)?;
                match rename(RenameFlags::EXCHANGE) {
                    // Now the staging name holds the old directory.
                    Ok(()) => replaced = Some(self.path.clone()),
                    Err(_) => {
                        // A file system that cannot exchange: two renames, the old one kept until the new one is in.
                        let aside = self.path.with_extension("old");
                        fs::rename(&self.target, &aside).map_err(Error::io("move aside", &self.target))?;
                        if let Err(e) = fs::rename(&self.path, &self.target) {
                            // Best effort: the first error is the one to tell.
                            let _ = fs::rename(&aside, &self.target);
                            return Err(Error::io("rename into place", &self.target)(e));
                        }
                        replaced = Some(aside);
                    }
                }
            }
            Err(rustix::io::Errno::EXIST) => {
                return Err(Error::TargetExists { path: self.target.clone() });
            }
            // A file system without flags for rename. The plain one replaces an empty directory at most.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                Self::check_target(&self.target, false)?;
                fs::rename(&self.path, &self.target).map_err(Error::io("rename into place", &self.target))?;
            }
            Err(e) => return Err(Error::io("rename into place", &self.target)(e.into())),
        }
        self.published = true;
        if let Some(parent) = self.target.parent() {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            File::open(parent).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", parent))?;
        }
        if let Some(old) = replaced {
            fs::remove_dir_all(&old).map_err(Error::io("remove the replaced", &old))?;
        }
        Ok(())
    }
}

impl StagingDir {
    /// Makes one synced file of the directory appear at `target`, in one step.
    pub fn publish_file(&self, name: &str, target: &Path, overwrite: bool) -> Result<(), Error> {
        fault::point("publish file").map_err(Error::io("rename into place", target))?;
        let from = self.path.join(name);
        let flags = if overwrite { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        match renameat_with(CWD, &from, CWD, target, flags) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => return Err(Error::TargetExists { path: target.into() }),
            // A file system without flags for rename.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                if !overwrite && target.exists() {
                    return Err(Error::TargetExists { path: target.into() });
                }
                fs::rename(&from, target).map_err(Error::io("rename into place", target))?;
            }
            Err(e) => return Err(Error::io("rename into place", target)(e.into())),
        }
        let parent =
            target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", parent))
    }
}

impl Drop for StagingDir {
    fn drop(&mut self) {
        if !self.published {
            // What cannot be removed now is swept by the next attempt.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

fn parent_and_name(target: &Path) -> Result<(PathBuf, String), Error> {
    let bad = || Error::BadTarget { path: target.into() };
    let Some(Component::Normal(name)) = target.components().next_back() else { return Err(bad()) };
    let parent = target.parent().ok_or_else(bad)?;
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    Ok((parent.into(), name.to_str().ok_or_else(bad)?.into()))
}

/// Locks a directory for this process alone, until the file is closed; nothing if it is held or not there.
pub fn lock_dir(dir: &Path) -> Result<Option<File>, Error> {
    let file = match File::open(dir) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("open directory", dir)(e)),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(Error::io("lock", dir)(e.into())),
    }
}

/// Locks a directory that was just made; nothing if somebody who sweeps was faster.
fn lock(path: &Path) -> Result<Option<File>, Error> {
    let Some(lock) = lock_dir(path)? else { return Ok(None) };
    // Removed between the two: the lock is on what is no longer there.
    let locked = lock.metadata().map_err(Error::io("examine", path))?.ino();
    Ok(fs::metadata(path).is_ok_and(|there| there.ino() == locked).then_some(lock))
}

/// Removes staging directories of the same target whose process is gone (their lock is free).
fn sweep(parent: &Path, prefix: &str) {
    for left in abandoned(parent, |name| name.starts_with(prefix)) {
        left.remove();
    }
}

/// A staging directory whose process is gone. Nobody else sweeps it meanwhile.
#[derive(Debug)]
pub struct Abandoned {
    path: PathBuf,
    _lock: File,
}

impl Abandoned {
    /// Those in a directory, whatever their targets.
    pub fn all_in(parent: &Path) -> Vec<Self> {
        abandoned(parent, |name| name.starts_with('.') && name.contains(".tenon-"))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it.
    pub fn remove(self) {
        // Left over at worst; it is hidden and the next attempt tries again.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn abandoned(parent: &Path, is_one: impl Fn(&str) -> bool) -> Vec<Abandoned> {
    let Ok(entries) = fs::read_dir(parent) else { return vec![] };
    let paths = entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(&is_one));
    let free = |path: PathBuf| {
        let lock = path.is_dir().then(|| lock_dir(&path).ok().flatten())??;
        Some(Abandoned { path, _lock: lock })
    };
    paths.filter_map(|entry| free(entry.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn appears_whole_or_leaves_nothing() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("deep/er/model");
        let staging = StagingDir::create(&target, false).unwrap();
        staging.write_file("config.json", b"{}").unwrap();
        assert!(!target.exists());
        drop(staging);
        assert_eq!(names(&home.path().join("deep/er")), Vec::<String>::new());

        let staging = StagingDir::create(&target, false).unwrap();
        staging.write_file("config.json", b"{}").unwrap();
        staging.publish().unwrap();
        assert_eq!(names(&home.path().join("deep/er")), ["model"]);
        assert!(matches!(StagingDir::create(&target, false), Err(Error::TargetExists { .. })));
    }

    #[test]
    fn overwriting_swaps_and_removes_the_old() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("model");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("config.json"), "old").unwrap();
        let staging = StagingDir::create(&target, true).unwrap();
        staging.write_file("config.json", b"new").unwrap();
        assert_eq!(fs::read(target.join("config.json")).unwrap(), b"old");
        staging.publish().unwrap();
        assert_eq!(fs::read(target.join("config.json")).unwrap(), b"new");
        assert_eq!(names(home.path()), ["model"]);
    }

    #[test]
    fn only_a_model_is_overwritten() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("diary.txt"), "dear").unwrap();
        assert!(matches!(StagingDir::create(home.path(), true), Err(Error::TargetNotAModel { .. })));
        assert!(matches!(StagingDir::create(Path::new("/"), true), Err(Error::BadTarget { .. })));
        assert!(matches!(StagingDir::create(Path::new(".."), true), Err(Error::BadTarget { .. })));
    }

    #[test]
    fn what_a_killed_process_left_is_swept_but_not_what_a_live_one_fills() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("model");
        let left = home.path().join(".model.tenon-999999-0");
        fs::create_dir(&left).unwrap();
        assert_eq!(Abandoned::all_in(home.path()).iter().map(Abandoned::path).collect::<Vec<_>>(), [&left]);
        let live = StagingDir::create(&target, false).unwrap();
        let second = StagingDir::create(&target, false).unwrap();
        assert_eq!(names(home.path()).len(), 2);
        assert!(Abandoned::all_in(home.path()).is_empty());
        live.publish().unwrap();
        assert!(matches!(second.publish(), Err(Error::TargetExists { .. })));
        assert_eq!(names(home.path()), ["model"]);
    }
}
