//! Files for servers that take none over their API: put where the server reads
//! them, by a directory that both see or by a command of the user's.
//!
//! What lies in the shared directory is told by a record beside it, written last:
//! what it names is whole, and is not copied again.

mod command;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tenon_checkpoint::{Digest, Error as CheckpointError, StagingDir};

use self::command::Command;
use crate::{Environment, EnvironmentKind, Error, Order, Payload, SourceFile, Watch};

/// Bytes between two looks at whether to stop.
const PIECE: u64 = 8 << 20;

/// How the files of an environment's models get there.
pub(crate) struct Handover {
    /// Where files are put; without it the server reads them where they are.
    models_dir: Option<PathBuf>,
    /// The same directory as the server sees it.
    server_dir: Option<String>,
    copy: Option<Command>,
    start: Option<Command>,
    stop: Option<Command>,
    /// Has the server serve an adapter on its base.
    adapter: Option<Command>,
}

/// What was put somewhere.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Placed {
    files: Vec<PlacedFile>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PlacedFile {
    name: String,
    bytes: u64,
    sha256: Digest,
}

impl Placed {
    fn of(order: &Order) -> Self {
        let files = all(&order.payload).map(|file| PlacedFile {
            // A GGUF is named after the model there, whatever its name here.
            name: match order.payload {
                Payload::Gguf(_) => file_name(&order.model, &order.payload),
                Payload::Directory { .. } | Payload::Adapter { .. } => file.name.clone(),
            },
            bytes: file.bytes,
            sha256: file.sha256,
        });
        Self { files: files.collect() }
    }
}

impl Handover {
    pub(crate) fn new(environment: &Environment) -> Result<Self, Error> {
        let option = |name: &str| environment.options.get(name).map(String::as_str);
        let command = |name: &str| -> Result<Option<Command>, Error> {
            option(name).map(|line| Command::parse(name, line, environment)).transpose()
        };
        let models_dir = option("models-dir").map(PathBuf::from);
        if let Some(dir) = models_dir.as_ref().filter(|dir| !dir.is_absolute()) {
            return Err(Error::BadOption {
                option: "models-dir".into(),
                value: dir.display().to_string(),
                expected: "an absolute path".into(),
            });
        }
        Ok(Self {
            models_dir,
            server_dir: option("server-dir").map(|dir| dir.trim_end_matches('/').to_string()),
            copy: command("copy-command")?,
            start: command("start-command")?,
            stop: command("stop-command")?,
            adapter: command("adapter-command")?,
        })
    }

    pub(crate) fn has_start(&self) -> bool {
        self.start.is_some()
    }

    pub(crate) fn has_adapter_command(&self) -> bool {
        self.adapter.is_some()
    }

    /// Whether files can be taken away again, or the server be told to.
    pub(crate) fn removes(&self) -> bool {
        self.models_dir.is_some() || self.stop.is_some()
    }

    /// Bytes free where models are put.
    pub(crate) fn free_bytes(&self) -> Option<u64> {
        StagingDir::available_bytes(self.models_dir.as_ref()?).ok()
    }

    /// Whether files go to a directory, or somewhere by a command.
    pub(crate) fn moves_files(&self) -> bool {
        self.models_dir.is_some() || self.copy.is_some()
    }

    /// Where the server sees the directory of a model, if that does not depend on where it lies here.
    pub(crate) fn directory_there(&self, model: &str) -> Option<String> {
        let dir = self.models_dir.as_ref().map(|dir| dir.display().to_string());
        Some(format!("{}/{model}", self.server_dir.clone().or(dir)?))
    }

    /// Where files of a model may lie that was not served in the end, in words.
    pub(crate) fn stays(&self, model: &str) -> Option<String> {
        match &self.models_dir {
            Some(dir) => {
                let places = [record_path(dir, model), part_path(dir, model)];
                places.iter().any(|path| path.exists()).then(|| format!("in {}", dir.display()))
            }
            None => self.copy.as_ref().map(|_| "that copy-command brought there".into()),
        }
    }

    /// Where the server sees a model; of an adapter that goes with its base, the base.
    pub(crate) fn path_there(&self, model: &str, payload: &Payload) -> String {
        match payload.base() {
            [base, ..] => self.file_there(model, base),
            [] => self.seen_at(&file_name(model, payload), source(payload)),
        }
    }

    /// Where the server sees an adapter that goes with its base.
    pub(crate) fn adapter_there(&self, model: &str, payload: &Payload) -> Option<String> {
        let file = payload.files().first().filter(|_| !payload.base().is_empty())?;
        Some(self.file_there(model, file))
    }

    fn file_there(&self, model: &str, file: &SourceFile) -> String {
        self.seen_at(&format!("{model}/{}", file.name), &file.path)
    }

    /// Where the server sees what has this name in the shared directory, or lies here.
    fn seen_at(&self, name: &str, here: &Path) -> String {
        match (&self.server_dir, &self.models_dir) {
            (Some(dir), _) => format!("{dir}/{name}"),
            (None, Some(dir)) => dir.join(name).display().to_string(),
            (None, None) => here.display().to_string(),
        }
    }

    /// Puts the files there, those that are not there already.
    pub(crate) fn bring(&self, order: &Order, watch: &dyn Watch) -> Result<(), Error> {
        if self.copy.is_some() && self.models_dir.is_none() && !order.payload.base().is_empty() {
            return Err(Error::Unsupported {
                what: "copying an adapter with its base by copy-command".into(),
                kind: EnvironmentKind::LlamaServer,
                reason: "they lie in different places here; set models-dir, and they are brought together there first"
                    .into(),
            });
        }
        if let Some(dir) = &self.models_dir {
            place(dir, order, watch)?;
        }
        if let Some(copy) = &self.copy {
            self.run(copy, &order.model, &order.payload, watch)?;
        }
        if self.models_dir.is_none() {
            all(&order.payload).try_for_each(check)?;
            watch.advanced(order.payload.bytes(), 0);
        }
        Ok(())
    }

    /// Runs the command that makes the server serve the model. Whether there is one.
    pub(crate) fn start(&self, order: &Order, watch: &dyn Watch) -> Result<bool, Error> {
        let start = if order.payload.base().is_empty() { &self.start } else { &self.adapter };
        let Some(start) = start else { return Ok(false) };
        self.run(start, &order.model, &order.payload, watch)?;
        Ok(true)
    }

    fn run(&self, command: &Command, model: &str, payload: &Payload, watch: &dyn Watch) -> Result<(), Error> {
        let path = self.path_there(model, payload);
        let adapter = self.adapter_there(model, payload).unwrap_or_default();
        let source = match &self.models_dir {
            // Brought together there.
            Some(dir) if !adapter.is_empty() => dir.join(model),
            _ => source(payload).to_path_buf(),
        };
        let source = source.display().to_string();
        command.run(&[("model", model), ("path", &path), ("source", &source), ("adapter", &adapter)], watch)
    }

    /// Runs the command that ends a model there, and takes away what was put into the directory.
    /// Whether there was anything.
    pub(crate) fn remove(&self, model: &str, watch: &dyn Watch) -> Result<bool, Error> {
        let mut any = false;
        if let Some(stop) = &self.stop {
            let path = self.directory_there(model).unwrap_or_default();
            stop.run(&[("model", model), ("path", &path), ("source", ""), ("adapter", "")], watch)?;
            any = true;
        }
        Ok(self.take_away(model)? || any)
    }

    /// Takes away what was put into the directory for a model. Whether there was anything.
    pub(crate) fn take_away(&self, model: &str) -> Result<bool, Error> {
        let Some(dir) = &self.models_dir else { return Ok(false) };
        // Of a copy that was cut short.
        let part = part_path(dir, model);
        let _ = if part.is_dir() { fs::remove_dir_all(&part) } else { fs::remove_file(&part) };
        // Only what a record names as put there by Tenon.
        let Some(placed) = record(dir, model)? else { return Ok(false) };
        let single = dir.join(format!("{model}.gguf"));
        if single.is_file() {
            fs::remove_file(&single).map_err(CheckpointError::io("remove", &single))?;
        }
        let many = dir.join(model);
        if many.is_dir() {
            for file in placed.files.iter().filter(|file| is_plain(&file.name)) {
                let path = many.join(&file.name);
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(CheckpointError::io("remove", &path)(error).into());
                    }
                    _ => {}
                }
            }
            // What a server wrote beside stays, and then so does the directory.
            let _ = fs::remove_dir(&many);
        }
        let path = record_path(dir, model);
        fs::remove_file(&path).map_err(CheckpointError::io("remove", &path))?;
        Ok(true)
    }

    /// Digests of the weights that were put there for a model.
    pub(crate) fn weights(&self, model: &str) -> Result<Vec<Digest>, Error> {
        let Some(dir) = &self.models_dir else { return Ok(Vec::new()) };
        let placed = record(dir, model)?.map_or(Vec::new(), |placed| placed.files);
        let weights = placed
            .into_iter()
            .filter(|file| [".gguf", ".safetensors", ".lora"].iter().any(|end| file.name.ends_with(end)));
        Ok(weights.map(|file| file.sha256).collect())
    }
}

/// Its files and those of its base.
fn all(payload: &Payload) -> impl Iterator<Item = &SourceFile> {
    payload.base().iter().chain(payload.files())
}

/// What a payload is called in the shared directory.
fn file_name(model: &str, payload: &Payload) -> String {
    match payload {
        Payload::Gguf(_) => format!("{model}.gguf"),
        Payload::Directory { .. } | Payload::Adapter { .. } => model.to_string(),
    }
}

/// Where a payload is here.
fn source(payload: &Payload) -> &Path {
    match payload {
        Payload::Gguf(file) => &file.path,
        Payload::Directory { dir, .. } | Payload::Adapter { dir, .. } => dir,
    }
}

fn is_plain(name: &str) -> bool {
    Path::new(name).file_name().is_some_and(|plain| plain == name)
}

fn record_path(dir: &Path, model: &str) -> PathBuf {
    dir.join(format!(".{model}.tenon.json"))
}

fn part_path(dir: &Path, model: &str) -> PathBuf {
    dir.join(format!(".{model}.tenon-part"))
}

fn record(dir: &Path, model: &str) -> Result<Option<Placed>, Error> {
    let path = record_path(dir, model);
    if !path.is_file() {
        return Ok(None);
    }
    Ok(Some(tenon_checkpoint::read_json(&path)?))
}

fn check(file: &SourceFile) -> Result<(), Error> {
    let found = fs::metadata(&file.path).map_err(CheckpointError::io("examine", &file.path))?.len();
    if found == file.bytes {
        return Ok(());
    }
    Err(Error::FileChanged { path: file.path.clone(), expected: file.bytes, found })
}

fn place(dir: &Path, order: &Order, watch: &dyn Watch) -> Result<(), Error> {
    let model = &order.model;
    let files: Vec<_> = all(&order.payload).collect();
    let wanted = Placed::of(order);
    let target = dir.join(file_name(model, &order.payload));
    let is_dir = !matches!(order.payload, Payload::Gguf(_));
    let path_of = |at: &Path, file: &SourceFile| if is_dir { at.join(&file.name) } else { at.to_path_buf() };
    let there = |file: &SourceFile| {
        fs::metadata(path_of(&target, file)).is_ok_and(|found| found.is_file() && found.len() == file.bytes)
    };
    if record(dir, model).ok().flatten().as_ref() == Some(&wanted) && files.iter().all(|file| there(file)) {
        watch.advanced(order.payload.bytes(), 0);
        return Ok(());
    }
    if let Some(file) = files.iter().find(|file| !is_plain(&file.name)) {
        return Err(Error::BadModelName {
            name: file.name.clone(),
            reason: "a file with a path in its name".into(),
        });
    }
    let part = part_path(dir, model);
    let io = CheckpointError::io;
    StagingDir::need_bytes(dir, order.payload.bytes())?;
    // What a copy that was cut short left.
    if part.is_dir() {
        fs::remove_dir_all(&part).map_err(io("remove", &part))?;
    }
    if is_dir {
        fs::create_dir(&part).map_err(io("create", &part))?;
    }
    let copied = files.iter().try_for_each(|file| copy(file, &path_of(&part, file), watch));
    if let Err(error) = copied {
        let _ = if is_dir { fs::remove_dir_all(&part) } else { fs::remove_file(&part) };
        return Err(error);
    }
    // From here to the new record, what is there is not known to be whole.
    let record = record_path(dir, model);
    match fs::remove_file(&record) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io("remove", &record)(error).into());
        }
        _ => {}
    }
    if is_dir && target.is_dir() {
        fs::remove_dir_all(&target).map_err(io("remove", &target))?;
    }
    fs::rename(&part, &target).map_err(io("rename", &target))?;
    let text = serde_json::to_vec_pretty(&wanted).expect("names and digests are JSON");
    fs::write(&record, text).map_err(io("write", &record))?;
    let sync = File::open(dir).and_then(|dir| dir.sync_all());
    Ok(sync.map_err(CheckpointError::io("sync", dir))?)
}

fn copy(file: &SourceFile, to: &Path, watch: &dyn Watch) -> Result<(), Error> {
    check(file)?;
    let mut from = File::open(&file.path).map_err(CheckpointError::io("open", &file.path))?;
    let mut out = File::create(to).map_err(CheckpointError::io("create", to))?;
    let mut done = 0;
    while done < file.bytes {
        if watch.cancelled() {
            return Err(Error::Cancelled);
        }
        // The kernel copies, and shares blocks where the file system can.
        let piece =
            io::copy(&mut (&mut from).take(PIECE), &mut out).map_err(CheckpointError::io("write", to))?;
        if piece == 0 {
            return Err(Error::FileChanged { path: file.path.clone(), expected: file.bytes, found: done });
        }
        done += piece;
        watch.advanced(piece, piece);
    }
    Ok(out.sync_all().map_err(CheckpointError::io("sync", to))?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{EnvironmentKind, ModelSettings};

    fn order(dir: &Path, text: &str) -> Order {
        let path = dir.join("model.safetensors");
        fs::write(&path, text).unwrap();
        let file = SourceFile {
            name: "model.safetensors".into(),
            bytes: text.len() as u64,
            sha256: Digest::of(text.as_bytes()),
            path,
        };
        let payload = Payload::Directory { dir: dir.into(), files: vec![file] };
        Order {
            model: "m".into(),
            payload,
            quantize: None,
            made_before: vec![],
            settings: ModelSettings::default(),
        }
    }

    struct Counting(std::sync::atomic::AtomicU64);
    impl Watch for Counting {
        fn advanced(&self, _: u64, sent: u64) {
            self.0.fetch_add(sent, std::sync::atomic::Ordering::Relaxed);
        }
    }

    #[test]
    fn what_is_there_is_not_copied_again_and_what_is_not_ours_stays() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut environment = Environment::new(EnvironmentKind::Vllm, "http://localhost:1");
        environment.options.insert("models-dir".into(), there.path().display().to_string());
        let handover = Handover::new(&environment).unwrap();
        let counting = Counting(0.into());
        let sent = || counting.0.load(std::sync::atomic::Ordering::Relaxed);
        handover.bring(&order(here.path(), "first"), &counting).unwrap();
        handover.bring(&order(here.path(), "first"), &counting).unwrap();
        assert_eq!(sent(), 5);
        // As long as before, and another.
        handover.bring(&order(here.path(), "other"), &counting).unwrap();
        assert_eq!(sent(), 10);
        let target = there.path().join("m/model.safetensors");
        assert_eq!(fs::read_to_string(&target).unwrap(), "other");
        assert_eq!(handover.weights("m").unwrap(), [Digest::of(b"other")]);
        // A file that was shortened there is put there anew.
        fs::write(&target, "oth").unwrap();
        handover.bring(&order(here.path(), "other"), &counting).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "other");
        fs::write(there.path().join("m/cache"), "the server's").unwrap();
        assert!(handover.remove("m", &()).unwrap());
        assert!(there.path().join("m/cache").exists() && !target.exists());
        assert!(!handover.remove("m", &()).unwrap());
        // More than there is room for: nothing is begun.
        let mut large = order(here.path(), "large");
        if let Payload::Directory { files, .. } = &mut large.payload {
            files[0].bytes = 1 << 60;
        }
        let error = handover.bring(&large, &()).unwrap_err().to_string();
        assert!(error.contains("1152921504606846976"), "{error}");
        assert!(!there.path().join(".m.tenon-part").exists());
        assert!(handover.free_bytes().unwrap() > 0);
        // A source that is not what it was.
        let mut changed = order(here.path(), "longer");
        fs::write(here.path().join("model.safetensors"), "short").unwrap();
        assert!(matches!(handover.bring(&changed, &()), Err(Error::FileChanged { .. })));
        changed.model = "../m".into();
        assert!(handover.bring(&changed, &()).is_err());
    }
}
