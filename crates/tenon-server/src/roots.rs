//! The directories under which models may be named and made.
//!
//! A path that a client gives is followed to where it leads, links and all, and so is each entry of
//! the directory; all of it must lie under a directory that the server was started with. What lies
//! elsewhere and what does not exist get the same answer.

use std::path::{Path, PathBuf};

use tenon::{Home, ModelName, RegistryError};

use crate::problem::{Code, Problem};

/// Directories looked at for models, at most.
const MAX_VISITED: usize = 5000;
/// Models found, at most.
const MAX_FOUND: usize = 500;
/// How far below an allowed directory models are looked for: as deep as the Hub's cache has them.
const MAX_DEPTH: usize = 5;
/// Entries of a model's directory.
const MAX_ENTRIES: usize = 10_000;

/// The allowed directories, resolved.
#[derive(Debug)]
pub(crate) struct Roots {
    allowed: Vec<PathBuf>,
    /// The home, in which nothing may be named or made,
    home: PathBuf,
    /// but in here.
    results: PathBuf,
}

/// What a directory holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holds {
    Base,
    Adapter,
}

impl Roots {
    pub(crate) fn new(allowed: &[PathBuf], home: &Home) -> Self {
        let resolved = |dir: &Path| dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
        let allowed = allowed.iter().filter_map(|dir| dir.canonicalize().ok()).collect();
        Self { allowed, home: resolved(home.root()), results: resolved(&home.results()) }
    }

    /// Those that the server was started with.
    pub(crate) fn all(&self) -> &[PathBuf] {
        &self.allowed
    }

    /// The directory that a client names, resolved.
    pub(crate) fn resolve(&self, path: &str) -> Result<PathBuf, Problem> {
        let resolved = self.resolve_any(path)?;
        if resolved.is_dir() { Ok(resolved) } else { Err(refused(path)) }
    }

    /// The directory or file that a client names, resolved.
    pub(crate) fn resolve_any(&self, path: &str) -> Result<PathBuf, Problem> {
        let given = Path::new(path);
        if !given.is_absolute() || path.contains('\0') {
            return Err(refused(path));
        }
        let resolved = given.canonicalize().map_err(|_| refused(path))?;
        if !self.contains(&resolved) {
            return Err(refused(path));
        }
        if !resolved.is_dir() {
            return Ok(resolved);
        }
        for entry in std::fs::read_dir(&resolved).map_err(|_| refused(path))?.take(MAX_ENTRIES) {
            let target = entry.and_then(|entry| entry.path().canonicalize());
            if target.is_ok_and(|target| !self.contains(&target)) {
                return Err(refused(path));
            }
        }
        Ok(resolved)
    }

    /// Where something is to be made that a client names: a plain name is one in the home's results; a
    /// path lies in a directory that is there and allowed. A link there is not followed but refused.
    pub(crate) fn place(&self, out: &str) -> Result<PathBuf, Problem> {
        if !out.contains('/') {
            let name = ModelName::new(out).map_err(RegistryError::from)?;
            return Ok(self.results.join(name.as_str()));
        }
        let given = Path::new(out);
        if !given.is_absolute() || out.contains('\0') {
            return Err(refused(out));
        }
        let (Some(parent), Some(name)) = (given.parent(), given.file_name()) else {
            return Err(refused(out));
        };
        let parent = parent.canonicalize().map_err(|_| refused(out))?;
        let place = parent.join(name);
        let is_link = place.symlink_metadata().is_ok_and(|meta| meta.is_symlink());
        if !self.contains(&parent) || is_link || given.ends_with("..") {
            return Err(refused(out));
        }
        Ok(place)
    }

    fn contains(&self, resolved: &Path) -> bool {
        if resolved.starts_with(&self.home) {
            return resolved.starts_with(&self.results);
        }
        self.allowed.iter().any(|root| resolved.starts_with(root))
    }

    /// Directories that look like models, nearest first.
    pub(crate) fn find(&self, holds: Holds) -> Vec<PathBuf> {
        let mut found = vec![];
        let mut visited = 0;
        let mut level: Vec<PathBuf> = self.allowed.iter().chain([&self.results]).cloned().collect();
        for _ in 0..=MAX_DEPTH {
            let mut below = vec![];
            for dir in level {
                visited += 1;
                if visited > MAX_VISITED || found.len() >= MAX_FOUND {
                    return found;
                }
                let is_adapter = dir.join("adapter_config.json").is_file();
                let is = match holds {
                    Holds::Adapter => is_adapter,
                    Holds::Base => !is_adapter && dir.join("config.json").is_file() && has_weights(&dir),
                };
                if is {
                    found.push(dir.clone());
                }
                let Ok(entries) = std::fs::read_dir(&dir) else { continue };
                let dirs = entries.flatten().filter(|entry| {
                    let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
                    !hidden && entry.file_type().is_ok_and(|kind| kind.is_dir())
                });
                below.extend(dirs.map(|entry| entry.path()));
            }
            below.sort();
            level = below;
        }
        found
    }
}

fn refused(path: &str) -> Problem {
    let detail = format!("{path:?} does not lie under a path that the server was started with");
    Problem::new(Code::PathNotAllowed, detail)
        .hint("start the server with --allow-path DIR to let models under DIR be named")
}

fn has_weights(dir: &Path) -> bool {
    dir.join("model.safetensors").is_file() || dir.join("model.safetensors.index.json").is_file()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn paths_that_lead_out_are_refused_alike() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        for model in [inside.join("model"), inside.join("leaky"), outside.clone(), dir.path().join("in-no")] {
            std::fs::create_dir_all(&model).unwrap();
            std::fs::write(model.join("config.json"), "{}").unwrap();
        }
        std::fs::write(inside.join("model/model.safetensors"), "").unwrap();
        symlink(&outside, inside.join("link")).unwrap();
        symlink(outside.join("config.json"), inside.join("leaky/model.safetensors")).unwrap();
        let home = Home::create(&inside.join("home")).unwrap();
        let roots = Roots::new(&[inside.clone(), dir.path().join("not there")], &home);
        let text = |path: PathBuf| path.to_str().unwrap().to_string();
        assert_eq!(
            roots.resolve(&text(inside.join("model"))).unwrap(),
            inside.join("model").canonicalize().unwrap()
        );
        assert!(roots.resolve(&text(inside.join("model/../model"))).is_ok());
        for bad in [
            text(outside.clone()),
            text(inside.join("../out")),
            text(inside.join("link")),
            text(inside.join("leaky")),
            text(inside.join("missing")),
            text(inside.join("model/config.json")),
            text(dir.path().join("in-no")),
            "model".into(),
            "/".into(),
            "/etc".into(),
            "".into(),
            "/\0".into(),
        ] {
            assert_eq!(roots.resolve(&bad).unwrap_err().code(), Code::PathNotAllowed, "{bad:?}");
        }
        assert!(Roots::new(&[], &home).resolve("/").is_err());
        // What is made.
        assert_eq!(roots.place("out").unwrap(), home.results().canonicalize().unwrap().join("out"));
        let place = |path: PathBuf| roots.place(path.to_str().unwrap());
        assert!(place(inside.join("new")).is_ok() && place(home.results().join("new")).is_ok());
        for bad in [
            outside.join("new"),
            inside.join("link/new"),
            inside.join("leaky/model.safetensors"),
            inside.join("missing/new"),
            inside.join(".."),
            inside.join("home/new"),
            home.complete_models().join("new"),
            PathBuf::from("/"),
            PathBuf::from("./new"),
        ] {
            assert_eq!(place(bad.clone()).unwrap_err().code(), Code::PathNotAllowed, "{bad:?}");
        }
        for bad in ["..", ".", ".hidden", "a b", ""] {
            assert_eq!(roots.place(bad).unwrap_err().code(), Code::InvalidName, "{bad:?}");
        }
        // Complete Models are named by their names.
        assert!(roots.resolve(home.complete_models().to_str().unwrap()).is_err());
        assert!(roots.resolve(home.results().to_str().unwrap()).is_ok());
        assert_eq!(
            roots.find(Holds::Base).len(),
            1 + 1,
            "links are listed where they are files of the model"
        );
        assert!(roots.find(Holds::Adapter).is_empty());
    }
}
