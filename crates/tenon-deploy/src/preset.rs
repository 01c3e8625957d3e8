//! The INI file of a llama-server that routes (`--models-preset`): a section a model, with arguments that its
//! process is started with. Tenon writes sections of its own into it, and leaves all others as they are.
//!
//! Source: `common/preset.cpp` of llama.cpp, build 10488.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use tenon_checkpoint::Error as CheckpointError;

use crate::Error;

/// Behind the header of a section of Tenon's.
const MARK: &str = "; by Tenon";

/// A preset file.
pub(crate) struct Preset {
    path: PathBuf,
}

impl Preset {
    pub(crate) fn new(path: &str) -> Result<Self, Error> {
        let path = PathBuf::from(path);
        if path.is_absolute() && path.file_name().is_some() {
            return Ok(Self { path });
        }
        Err(Error::BadOption {
            option: "models-preset".into(),
            value: path.display().to_string(),
            expected: "the absolute path of a file".into(),
        })
    }

    /// Writes the section of a model, in place of the one before.
    pub(crate) fn set(&self, model: &str, values: &[(&str, &str)]) -> Result<(), Error> {
        // A comment begins there, and a comma ends the name of an adapter.
        if let Some((name, value)) =
            values.iter().find(|(_, value)| value.contains([';', '#', ',', '\n', '\r']))
        {
            return Err(Error::BadOption {
                option: (*name).into(),
                value: (*value).into(),
                expected: "a path without ; # or comma, which mean something else in models-preset".into(),
            });
        }
        let lines: String = values.iter().map(|(name, value)| format!("{name} = {value}\n")).collect();
        self.change(|text| {
            let mut text = without(text, model);
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            text + &format!("[{model}] {MARK}\n{lines}")
        })
    }

    /// Takes the section of a model out.
    pub(crate) fn remove(&self, model: &str) -> Result<(), Error> {
        if !self.path.exists() {
            return Ok(());
        }
        self.change(|text| without(text, model))
    }

    /// Reads, changes and replaces the file while nobody else of Tenon's does.
    fn change(&self, change: impl FnOnce(&str) -> String) -> Result<(), Error> {
        let io = CheckpointError::io;
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        let lock = File::open(dir).map_err(io("open", dir))?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|error| io("lock", dir)(error.into()))?;
        let text = match fs::read_to_string(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            text => text.map_err(io("read", &self.path))?,
        };
        let changed = change(&text);
        if changed == text && self.path.exists() {
            return Ok(());
        }
        let part = self.path.with_extension("tenon-part");
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&part)?;
            file.write_all(changed.as_bytes())?;
            file.sync_all()?;
            fs::rename(&part, &self.path)
        };
        write().map_err(io("write", &self.path))?;
        Ok(lock.sync_all().map_err(io("sync", dir))?)
    }
}

/// A file without the section that Tenon wrote for a model. One of somebody else's stays, and llama-server takes
/// both together.
fn without(text: &str, model: &str) -> String {
    let mut is_in = false;
    let mut kept = String::new();
    for line in text.split_inclusive('\n') {
        let header = line.trim().strip_prefix('[').and_then(|rest| rest.split_once(']'));
        if let Some((name, rest)) = header {
            is_in = name.trim() == model && rest.trim() == MARK;
        }
        if !is_in {
            kept.push_str(line);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn its_own_sections_come_and_go_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("models.ini");
        let preset = Preset::new(path.to_str().unwrap()).unwrap();
        let text = || fs::read_to_string(&path).unwrap();
        preset.remove("m").unwrap();
        preset.set("m", &[("model", "/a b/m"), ("lora", "/l")]).unwrap();
        assert_eq!(text(), "[m] ; by Tenon\nmodel = /a b/m\nlora = /l\n");
        let theirs = "version = 1\n\n[*]\nctx-size = 512\n[ m ] ; theirs\nn-predict = 3";
        fs::write(&path, theirs).unwrap();
        preset.set("m", &[("lora", "/1")]).unwrap();
        preset.set("n", &[("lora", "/n")]).unwrap();
        preset.set("m", &[("lora", "/2")]).unwrap();
        assert_eq!(text(), format!("{theirs}\n[n] ; by Tenon\nlora = /n\n[m] ; by Tenon\nlora = /2\n"));
        preset.remove("n").unwrap();
        preset.remove("m").unwrap();
        assert_eq!(text(), format!("{theirs}\n"));
        for path in ["/a;b", "/a,b", "/a#", "/a\n[other]"] {
            assert!(preset.set("m", &[("lora", path)]).is_err(), "{path}");
        }
        assert!(Preset::new("models.ini").is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }
}
