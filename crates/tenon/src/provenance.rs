//! What the files of whole models are known by, without reading gigabytes only to hash them.
//!
//! In this order: a digest taken before, while the file's stamp is the same; the name that the Hub
//! cache gives its files, which is their SHA-256; the SHA-256 of a small file. What is left is known by
//! a sample, or hashed whole beside the merge where that is asked for.

use serde::Serialize;
use tenon_checkpoint::{Digest, Error as CheckpointError, SafetensorsFile, Sha256, Stamp};
use tenon_registry::ModelInput;

/// A model that went into a blend.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BlendInput {
    /// Absolute path at the time.
    pub path: String,
    /// Repository on the Hugging Face Hub, where the path tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// Its revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The files that were read.
    pub files: Vec<BlendInputFile>,
}

/// A file that went into a blend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BlendInputFile {
    /// Name within its directory.
    pub name: String,
    /// Size.
    pub bytes: u64,
    /// By what it is known.
    #[serde(flatten)]
    pub known_by: KnownBy,
}

/// By what a file is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KnownBy {
    /// SHA-256 of its bytes, which were read.
    Sha256(Digest),
    /// SHA-256 that the Hub cache has for it; its bytes were not read to check that.
    HubSha256(Digest),
    /// SHA-256 of its header and of the first 4 KiB of each tensor, in the order in which they lie. It
    /// tells models apart that somebody trained; it does not show that no other byte changed.
    SampledSha256(Digest),
}

/// Bytes of each tensor in a sample.
const SAMPLE: u64 = 4 << 10;

/// Files up to this are hashed whole: that takes hundredths of a second.
const SMALL: u64 = 64 << 20;

impl KnownBy {
    /// What a file is known by without reading it; nothing where it must be read.
    pub(crate) fn at_once(file: &SafetensorsFile, known: &[(Stamp, Digest)]) -> Option<Self> {
        let before = known.iter().find(|(stamp, _)| *stamp == file.stamp());
        before.map(|(_, digest)| KnownBy::Sha256(*digest)).or_else(|| Self::in_hub_cache(file))
    }

    /// Whether a file is to be hashed whole where nothing is known of it: a small one, or one of a format
    /// whose tensors cannot be told apart here.
    pub(crate) fn is_hashed(file: &SafetensorsFile) -> bool {
        file.len() <= SMALL || file.is_empty()
    }

    /// The digest in the name of a file in a Hub cache (`snapshots/<revision>/<name>` is a link to
    /// `blobs/<SHA-256>` for what Git LFS stores).
    fn in_hub_cache(file: &SafetensorsFile) -> Option<Self> {
        let blob = std::fs::canonicalize(file.path()).ok()?;
        let dir = blob.parent()?;
        let is_cache = dir.file_name()? == "blobs"
            && dir.parent()?.file_name()?.to_str()?.starts_with("models--")
            && file.path().file_name() != blob.file_name();
        let digest = blob.file_name()?.to_str()?.parse().ok();
        digest.filter(|_| is_cache).map(KnownBy::HubSha256)
    }

    pub(crate) fn sample(file: &SafetensorsFile) -> Result<Self, CheckpointError> {
        let mut hash = Sha256::new();
        let mut length = [0; 8];
        file.read_file_at(0, &mut length)?;
        // Opening the file has checked the length of its header.
        let mut bytes = vec![0; 8 + u64::from_le_bytes(length) as usize];
        file.read_file_at(0, &mut bytes)?;
        hash.update(&bytes);
        let entries = &file.header().entries;
        let mut order: Vec<usize> = (0..entries.len()).collect();
        order.sort_by_key(|entry| (entries[*entry].begin, entries[*entry].end));
        for entry in order {
            bytes.resize(SAMPLE.min(entries[entry].end - entries[entry].begin) as usize, 0);
            file.read_at(entry, 0, &mut bytes)?;
            hash.update(&bytes);
        }
        Ok(KnownBy::SampledSha256(hash.finish()))
    }
}

impl BlendInput {
    /// A directory whose files are known; `input` names it.
    pub(crate) fn new(input: ModelInput, mut files: Vec<BlendInputFile>) -> Self {
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Self { path: input.path, repository: input.repository, revision: input.revision, files }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of two tensors, of 10 000 bytes and of 3.
    fn write(path: &std::path::Path, change: usize) {
        let header = br#"{"b":{"dtype":"U8","shape":[3],"data_offsets":[10000,10003]},"a":{"dtype":"U8","shape":[10000],"data_offsets":[0,10000]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header);
        let data = bytes.len();
        bytes.resize(data + 10_003, 7);
        bytes[data + change] = 8;
        std::fs::write(path, bytes).unwrap();
    }

    #[test]
    fn a_sample_sees_the_beginning_of_each_tensor() {
        let dir = tempfile::tempdir().unwrap();
        let sample = |change: usize| {
            let path = dir.path().join("model.safetensors");
            write(&path, change);
            let file = SafetensorsFile::open(&path).unwrap();
            let KnownBy::SampledSha256(digest) = KnownBy::sample(&file).unwrap() else { panic!("a sample") };
            let bytes = std::fs::read(&path).unwrap();
            let data = bytes.len() - 10_003;
            let expected = [&bytes[..data + 4096], &bytes[data + 10_000..]].concat();
            assert_eq!(digest, Digest::of(&expected));
            digest
        };
        let first = sample(5000);
        assert_eq!(sample(9999), first);
        assert_ne!(sample(4095), first);
        assert_ne!(sample(10_002), first);
    }

    #[test]
    fn the_hub_cache_names_its_files_by_their_digests() {
        let dir = tempfile::tempdir().unwrap();
        let repository = dir.path().join("models--org--name");
        let (blobs, snapshot) = (repository.join("blobs"), repository.join("snapshots/abc"));
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::create_dir_all(&snapshot).unwrap();
        let digest = Digest::of(b"some file");
        write(&blobs.join(digest.to_string()), 0);
        std::os::unix::fs::symlink(format!("../../blobs/{digest}"), snapshot.join("model.safetensors"))
            .unwrap();
        let open = |path: &std::path::Path| SafetensorsFile::open(path).unwrap();
        let file = open(&snapshot.join("model.safetensors"));
        assert_eq!(KnownBy::at_once(&file, &[]), Some(KnownBy::HubSha256(digest)));
        // What was read before is better known.
        let read = Digest::of(b"read");
        assert_eq!(KnownBy::at_once(&file, &[(file.stamp(), read)]), Some(KnownBy::Sha256(read)));
        // A name alone says nothing.
        write(&dir.path().join(digest.to_string()), 0);
        assert_eq!(KnownBy::at_once(&open(&dir.path().join(digest.to_string())), &[]), None);
    }
}
