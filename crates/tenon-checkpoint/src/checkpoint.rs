//! A model directory in Hugging Face layout, and the safetensors files in it.
//!
//! Tensors are read with positioned reads into the caller's tile rather than
//! through a memory map: a file that another program truncates gives an error
//! instead of a SIGBUS, resident memory stays at the tiles in use, and a tile
//! that fits the L2 cache costs no more to copy than to map.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    Error, FileRange, Header, HeaderFault, IndexFault, MAX_HEADER_BYTES, Rows, TensorInfo, TensorSource,
    read_json,
};

/// One safetensors file with its checked header.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    file: File,
    len: u64,
    stamp: Stamp,
    /// Where the tensors' bytes begin.
    data: u64,
    header: Header,
}

/// What the file system says of a file that changes when somebody writes to it.
///
/// While it is the same, so is the file; a digest taken before need not be taken again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Size.
    pub bytes: u64,
    /// Time of the last write: seconds and nanoseconds.
    pub modified: (i64, i64),
    /// Time of the last change of the inode, which no program can set.
    pub changed: (i64, i64),
    /// Number of the inode.
    pub inode: u64,
}

impl Stamp {
    /// The stamp of an open file.
    pub fn of(file: &File, path: &Path) -> Result<Self, Error> {
        let meta = file.metadata().map_err(Error::io("examine", path))?;
        Ok(Self {
            bytes: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
            inode: meta.ino(),
        })
    }
}

impl SafetensorsFile {
    /// Opens a file and checks its header. No tensor byte is read.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        let meta = file.metadata().map_err(Error::io("examine", &path))?;
        if !meta.is_file() {
            return Err(Error::io("read", &path)(io::Error::other("not a regular file")));
        }
        let stamp = Stamp::of(&file, &path)?;
        let len = stamp.bytes;
        let lie = |fault| Error::Header { path: path.clone(), fault };
        if len < 8 {
            return Err(lie(HeaderFault::TooShort { found: len }));
        }
        let mut prefix = [0; 8];
        file.read_exact_at(&mut prefix, 0).map_err(Error::io("read", &path))?;
        let claimed = u64::from_le_bytes(prefix);
        if claimed > len - 8 {
            return Err(lie(HeaderFault::PastEnd { claimed, available: len - 8 }));
        }
        if claimed > MAX_HEADER_BYTES {
            return Err(lie(HeaderFault::TooLarge { claimed, limit: MAX_HEADER_BYTES }));
        }
        let mut json = vec![0; claimed as usize];
        file.read_exact_at(&mut json, 8).map_err(Error::io("read", &path))?;
        let header = Header::parse(&json, len - 8 - claimed).map_err(lie)?;
        Ok(Self { path, file, len, stamp, data: 8 + claimed, header })
    }

    /// A file of another format, of which nothing is known here: no tensors, but watched and hashed as
    /// those that have some.
    pub fn foreign(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        let stamp = Stamp::of(&file, &path)?;
        Ok(Self { path, file, len: stamp.bytes, stamp, data: 0, header: Header::default() })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Its size in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it holds no tensor.
    pub fn is_empty(&self) -> bool {
        self.header.entries.is_empty()
    }

    /// The checked header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Reads bytes of tensor number `entry`, starting `offset` bytes into it.
    pub fn read_at(&self, entry: usize, offset: u64, out: &mut [u8]) -> Result<(), Error> {
        let entry = &self.header.entries[entry];
        assert!(offset + out.len() as u64 <= entry.end - entry.begin, "read past the end of {}", entry.name);
        self.read_file_at(self.data + entry.begin + offset, out)
    }

    /// Reads bytes of the file, its header included.
    pub fn read_file_at(&self, offset: u64, out: &mut [u8]) -> Result<(), Error> {
        self.file.read_exact_at(out, offset).map_err(|e| {
            if e.kind() == io::ErrorKind::UnexpectedEof {
                Error::Changed { path: self.path.clone() }
            } else {
                Error::io("read", &self.path)(e)
            }
        })
    }

    /// Its stamp when it was opened.
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Fails if somebody wrote to the file since it was opened.
    pub fn check_unchanged(&self) -> Result<(), Error> {
        let now = Stamp::of(&self.file, &self.path)?;
        // Links to it may come and go meanwhile, which changes the inode and not the bytes.
        if (now.bytes, now.modified) == (self.stamp.bytes, self.stamp.modified) {
            Ok(())
        } else {
            Err(Error::Changed { path: self.path.clone() })
        }
    }
}

/// A model directory: all its tensors, wherever they lie.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    files: Vec<SafetensorsFile>,
    tensors: Vec<TensorInfo>,
    /// File and entry of each tensor.
    places: Vec<(usize, usize)>,
    by_name: HashMap<String, usize>,
}

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

impl Checkpoint {
    /// Opens `dir/model.safetensors`, or the shards that `dir/model.safetensors.index.json` lists.
    ///
    /// Where both exist the single file counts, as in transformers. Symbolic
    /// links are followed, so a snapshot of the Hub's cache opens too.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, Error> {
        let dir = dir.into();
        std::fs::read_dir(&dir).map_err(Error::io("open directory", &dir))?;
        if exists(&dir.join(SINGLE))? {
            let file = SafetensorsFile::open(dir.join(SINGLE))?;
            return Self::from_files(dir, vec![file]);
        }
        let index = dir.join(INDEX);
        if exists(&index)? {
            let files = open_shards(&dir, &index)?;
            return Self::from_files(dir, files);
        }
        for file in ["pytorch_model.bin", "pytorch_model.bin.index.json", "model.ckpt.index", "tf_model.h5"] {
            if exists(&dir.join(file))? {
                return Err(Error::PickleOnly { dir, file: file.into() });
            }
        }
        Err(Error::NoModel { dir })
    }

    /// A checkpoint of one safetensors file under any name.
    pub fn open_file(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let file = SafetensorsFile::open(path)?;
        let dir = file.path().parent().map(Path::to_path_buf).unwrap_or_default();
        Self::from_files(dir, vec![file])
    }

    /// A checkpoint of one file of another format, without tensors: see [`SafetensorsFile::foreign`].
    pub fn foreign_file(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let file = SafetensorsFile::foreign(path)?;
        let dir = file.path().parent().map(Path::to_path_buf).unwrap_or_default();
        Self::from_files(dir, vec![file])
    }

    fn from_files(dir: PathBuf, files: Vec<SafetensorsFile>) -> Result<Self, Error> {
        let mut tensors = Vec::new();
        let mut places = Vec::new();
        for (f, file) in files.iter().enumerate() {
            for (e, entry) in file.header.entries.iter().enumerate() {
                tensors.push(TensorInfo::new(entry.name.clone(), entry.dtype, entry.shape.clone()));
                places.push((f, e));
            }
        }
        let mut by_name = HashMap::with_capacity(tensors.len());
        for (index, tensor) in tensors.iter().enumerate() {
            if by_name.insert(tensor.name.clone(), index).is_some() {
                let fault = IndexFault::DuplicateTensor { tensor: tensor.name.clone() };
                return Err(Error::Index { path: dir.join(INDEX), fault });
            }
        }
        Ok(Self { dir, files, tensors, places, by_name })
    }

    /// The directory it was opened from.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The safetensors files, in the order of their names.
    pub fn files(&self) -> &[SafetensorsFile] {
        &self.files
    }

    /// Number and facts of the tensor with this name.
    pub fn find(&self, name: &str) -> Option<(usize, &TensorInfo)> {
        let index = *self.by_name.get(name)?;
        Some((index, &self.tensors[index]))
    }

    /// Number of the file that a tensor lies in.
    pub fn file_of(&self, tensor: usize) -> usize {
        self.places[tensor].0
    }

    /// Reads bytes of a tensor, starting `offset` bytes into it.
    ///
    /// # Panics
    /// When they end past the tensor's end.
    pub fn read_bytes(&self, tensor: usize, offset: u64, out: &mut [u8]) -> Result<(), Error> {
        let (file, entry) = self.places[tensor];
        self.files[file].read_at(entry, offset, out)
    }

    /// Sum of all tensors' bytes.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.iter().map(TensorInfo::bytes).sum()
    }

    /// Fails if somebody wrote to one of the files since they were opened.
    pub fn check_unchanged(&self) -> Result<(), Error> {
        self.files.iter().try_for_each(SafetensorsFile::check_unchanged)
    }
}

impl TensorSource for Checkpoint {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn read_rows(&self, tensor: usize, rows: Rows, out: &mut [u8]) -> Result<(), Error> {
        let (file, entry) = self.places[tensor];
        self.files[file].read_at(entry, rows.start * self.tensors[tensor].row_bytes(), out)
    }

    fn lies_at(&self, tensor: usize) -> Option<FileRange<'_>> {
        let (file, entry) = self.places[tensor];
        let file = &self.files[file];
        let entry = &file.header.entries[entry];
        Some(FileRange { file: &file.file, offset: file.data + entry.begin, len: entry.end - entry.begin })
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: Option<BTreeMap<String, String>>,
}

fn open_shards(dir: &Path, index: &Path) -> Result<Vec<SafetensorsFile>, Error> {
    let lie = |fault| Error::Index { path: index.into(), fault };
    let map = read_json::<Index>(index)?.weight_map.ok_or_else(|| lie(IndexFault::NoWeightMap))?;
    let mut shards: BTreeMap<&str, usize> = BTreeMap::new();
    for (tensor, shard) in &map {
        if !is_plain_name(shard) {
            return Err(lie(IndexFault::ShardName { tensor: tensor.clone(), shard: shard.clone() }));
        }
        *shards.entry(shard).or_default() += 1;
    }
    let mut files = Vec::with_capacity(shards.len());
    for (&shard, &listed) in &shards {
        let file = SafetensorsFile::open(dir.join(shard))?;
        let mut found = 0;
        for entry in &file.header.entries {
            if map.get(&entry.name).map(String::as_str) != Some(shard) {
                return Err(lie(IndexFault::UnlistedTensor {
                    tensor: entry.name.clone(),
                    shard: shard.into(),
                }));
            }
            found += 1;
        }
        if found != listed {
            let has = |name: &String| file.header.entries.iter().any(|entry| entry.name == *name);
            let missing = map.iter().find(|(name, place)| *place == shard && !has(name));
            let tensor = missing.map(|(name, _)| name.clone()).unwrap_or_default();
            return Err(lie(IndexFault::MissingTensor { tensor, shard: shard.into() }));
        }
        files.push(file);
    }
    Ok(files)
}

/// Whether joining `name` to a directory stays directly in it.
fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
        && !name.contains(['/', '\\', '\0'])
}

fn exists(path: &Path) -> Result<bool, Error> {
    // A dangling link of a Hub cache exists as far as the user can see; opening it says what is wrong.
    match std::fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::io("examine", path)(e)),
    }
}
