//! Hugging Face checkpoints: directories of safetensors files, read as a
//! [`TensorSource`] and written from one.
//!
//! * [`SafetensorsFile`] is one file, its header believed only after every
//!   offset in it was checked.
//! * [`Checkpoint`] is a model directory: one file, or shards and their index.
//! * [`TensorSource`] is what a checkpoint, a merge plan or anything else with
//!   tensors is read through, a few rows at a time.
//! * [`ShardLayout`] decides which tensor goes where, and [`write_shards`]
//!   streams any source into files laid out so, hashing them on the way.
//! * [`StagingDir`] makes a directory appear whole or not at all.
//!
//! Nothing here knows what an adapter is.
//!
//! ```
//! use tenon_checkpoint::{Checkpoint, TensorSource};
//! # let base = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/kjv-llama/base");
//! let checkpoint = Checkpoint::open(base)?;
//! let (index, norm) = checkpoint.find("model.norm.weight").expect("a Llama has a final norm");
//! let mut bytes = vec![0; norm.bytes() as usize];
//! checkpoint.read_rows(index, 0..norm.rows(), &mut bytes)?;
//! # Ok::<(), tenon_checkpoint::Error>(())
//! ```

mod checkpoint;
mod digest;
mod direct;
mod dtype;
mod error;
pub mod fault;
mod header;
mod json;
mod layout;
mod sha256;
mod source;
mod staging;
mod writer;

pub use checkpoint::{Checkpoint, SafetensorsFile, Stamp};
pub use digest::{Digest, hash_file, hash_files};
pub use dtype::{Dtype, UnknownDtype};
pub use error::{Error, HeaderFault, IndexFault};
pub use header::{Header, HeaderEntry, MAX_HEADER_BYTES};
pub use json::{MAX_JSON_BYTES, read_json, read_text};
pub use layout::{Shard, ShardLayout};
pub use sha256::Sha256;
pub use source::{FileRange, Rows, TensorInfo, TensorSource};
pub use staging::{Abandoned, StagingDir, lock_dir};
pub use writer::{Observer, WriteOptions, WrittenFile, write_shards};
