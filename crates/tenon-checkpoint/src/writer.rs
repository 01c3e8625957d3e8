//! Streams any [`TensorSource`] into safetensors files, hashing on the way.
//!
//! The work is a sequence of tiles in the order of the output's bytes.
//! Workers take the next tile, have the source fill it, write it at its place
//! (where much is written, whoever hashes it hands it to [`Direct`]),
//! and queue it for hashing; since SHA-256 must see a file's bytes in order,
//! whichever worker finds the next tile in order ready hashes it before it
//! takes up another. Files that are to be hashed too (the inputs) are read and
//! hashed alongside, as [`Sha256::update_pair`] does two streams nearly for
//! the price of one. The number of tile buffers is fixed, so a worker that
//! runs ahead of the hash waits, and memory stays the same for any model.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FallocateFlags, fallocate};
use serde::{Deserialize, Serialize};

use crate::direct::{Appender, Direct, THREADS};
use crate::{Digest, Error, Rows, SafetensorsFile, Sha256, ShardLayout, TensorSource, fault};

/// Told of progress, asked whether to go on. Called from many threads.
pub trait Observer: Sync {
    /// So many more bytes are done.
    fn advanced(&self, bytes: u64) {
        let _ = bytes;
    }

    /// Whether to stop; asked once a tile.
    fn cancelled(&self) -> bool {
        false
    }

    /// A shard is whole and synced: after a crash, [`write_shards`] need not write it again.
    fn shard_finished(&self, shard: &WrittenFile) {
        let _ = shard;
    }
}

/// Watches nothing, never cancels.
impl Observer for () {}

/// How to write; none of it changes the bytes.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// Worker threads, at least 1.
    pub threads: usize,
    /// Bytes of a tile (a row block larger than this is still one tile).
    ///
    /// 1 MiB amortises a system call a thousandfold and, twice (input and
    /// output), still fits the L2 or L3 share of one core.
    pub tile_bytes: u64,
    /// Bytes to write from which on they go past the page cache, where the system has a way: less is read
    /// again soon.
    pub direct_from: u64,
}

impl Default for WriteOptions {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { threads, tile_bytes: 1 << 20, direct_from: 256 << 20 }
    }
}

/// A file that [`write_shards`] wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrittenFile {
    /// Name within the directory.
    pub name: String,
    /// Size in bytes.
    pub len: u64,
    /// SHA-256 of its bytes.
    pub digest: Digest,
}

/// Writes the shards of `layout` into `dir` and syncs them; hashes the files `alongside` in the
/// same pass. Gives all shards, and those files' digests.
///
/// The layout must have been made from `source.tensors()`. `finished` are the layout's first
/// shards where an earlier attempt left them whole; the others must not be there yet. The observer
/// is told of the bytes of the tensors written and of the files alongside.
pub fn write_shards(
    source: &dyn TensorSource,
    layout: &ShardLayout,
    dir: &Path,
    options: &WriteOptions,
    alongside: &[&SafetensorsFile],
    finished: &[WrittenFile],
    observer: &dyn Observer,
) -> Result<(Vec<WrittenFile>, Vec<Digest>), Error> {
    let files = create_files(layout, dir, finished.len())?;
    let first_shard = finished.len();
    let left: u64 = layout.shards[first_shard..].iter().map(|shard| shard.len).sum();
    let threads = options.threads.max(1);
    let direct = (left >= options.direct_from).then(|| Direct::new(&files)).filter(Direct::is_of_use);
    let pipeline = Pipeline {
        source,
        layout,
        files: &files,
        direct: direct.as_ref(),
        observer,
        rows_per_tile: rows_per_tile(source, options.tile_bytes),
        state: Mutex::new(State {
            cursor: Cursor { shard: first_shard, ..Cursor::default() },
            // Two a thread (one in work, one waiting for its hash) and some slack for reordering.
            free: (0..2 * threads + 2).map(|_| Vec::new()).collect(),
            ready: BTreeMap::new(),
            next_hash: 0,
            hashing: false,
            in_work: 0,
            unsynced: 0,
            to_sync: VecDeque::new(),
            finished: false,
            failed: None,
        }),
        hash: Mutex::new(HashLane {
            hasher: Sha256::new(),
            digests: finished.iter().map(|file| file.digest).collect(),
            alongside: Alongside::new(alongside, left),
            appender: Appender::default(),
        }),
        changed: Condvar::new(),
        flush: Condvar::new(),
    };
    std::thread::scope(|scope| {
        scope.spawn(|| pipeline.guarded(Pipeline::flush_behind));
        for direct in direct.iter().flat_map(|direct| std::iter::repeat_n(direct, THREADS)) {
            scope.spawn(|| direct.write_behind());
        }
        let workers: Vec<_> =
            (1..threads).map(|_| scope.spawn(|| pipeline.guarded(Pipeline::work))).collect();
        pipeline.guarded(Pipeline::work);
        for worker in workers {
            // A worker's panic is caught inside it and kept as the failure.
            let _ = worker.join();
        }
        pipeline.lock().finished = true;
        pipeline.flush.notify_all();
        direct.iter().for_each(Direct::end);
    });
    let state = pipeline.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = state.failed {
        return Err(error);
    }
    let lane = pipeline.hash.into_inner().unwrap_or_else(PoisonError::into_inner);
    let written = layout
        .shards
        .iter()
        .zip(lane.digests)
        .map(|(shard, digest)| WrittenFile { name: shard.name.clone(), len: shard.len, digest })
        .collect();
    Ok((written, lane.alongside.finish(observer)?))
}

fn create_files(layout: &ShardLayout, dir: &Path, finished: usize) -> Result<Vec<(File, PathBuf)>, Error> {
    layout
        .shards
        .iter()
        .enumerate()
        .map(|(number, shard)| {
            let path = dir.join(&shard.name);
            if number < finished {
                let file = File::open(&path).map_err(Error::io("open", &path))?;
                return Ok((file, path));
            }
            fault::point("create shard").map_err(Error::io("create", &path))?;
            let file = File::create_new(&path).map_err(Error::io("create", &path))?;
            // Claims the space now: a full disk shows before the work, not after it.
            match fallocate(&file, FallocateFlags::empty(), 0, shard.len) {
                Ok(()) => {}
                Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS | rustix::io::Errno::INVAL) => {}
                Err(e) => return Err(Error::io("reserve space for", &path)(e.into())),
            }
            file.write_all_at(&shard.header, 0).map_err(Error::io("write", &path))?;
            Ok((file, path))
        })
        .collect()
}

/// Bytes of one tensor's rows, and where they go.
struct Tile {
    /// Position in the order of the output's bytes.
    sequence: u64,
    shard: usize,
    tensor: usize,
    rows: Rows,
    offset: u64,
    len: usize,
    /// Whether the shard begins with this tile: its header is hashed before it.
    first: bool,
    /// Whether the shard ends with this tile.
    last: bool,
}

#[derive(Default)]
struct Cursor {
    sequence: u64,
    shard: usize,
    /// Position in the shard's list of tensors.
    place: usize,
    row: u64,
}

/// Rows of a tile of each tensor.
fn rows_per_tile(source: &dyn TensorSource, tile_bytes: u64) -> Vec<u64> {
    let cut = |tensor: &crate::TensorInfo| {
        let block = tensor.row_block.max(1);
        let rows = tile_bytes / tensor.row_bytes().max(1);
        (rows / block * block).max(block)
    };
    source.tensors().iter().map(cut).collect()
}

struct Pipeline<'a> {
    source: &'a dyn TensorSource,
    layout: &'a ShardLayout,
    files: &'a [(File, PathBuf)],
    direct: Option<&'a Direct<'a>>,
    observer: &'a dyn Observer,
    rows_per_tile: Vec<u64>,
    state: Mutex<State>,
    /// Held only by the worker that set `hashing`, so never contended.
    hash: Mutex<HashLane<'a>>,
    changed: Condvar,
    flush: Condvar,
}

struct State {
    cursor: Cursor,
    free: Vec<Vec<u8>>,
    /// Tiles written but not hashed, by sequence.
    ready: BTreeMap<u64, (Tile, Vec<u8>)>,
    next_hash: u64,
    hashing: bool,
    in_work: usize,
    /// Bytes written since the last flush.
    unsynced: u64,
    /// Shards written and hashed, by their number in the layout.
    to_sync: VecDeque<(usize, WrittenFile)>,
    finished: bool,
    failed: Option<Error>,
}

struct HashLane<'a> {
    hasher: Sha256,
    digests: Vec<Digest>,
    alongside: Alongside<'a>,
    appender: Appender,
}

/// Files that are read and hashed in step with what is written.
struct Alongside<'a> {
    files: &'a [&'a SafetensorsFile],
    /// Bytes to take for each byte written, so that both streams end together.
    ratio: f64,
    offset: u64,
    hasher: Sha256,
    buffer: Vec<u8>,
    digests: Vec<Digest>,
}

/// Bytes of a file alongside that are read at once, at most.
const ALONGSIDE_BYTES: u64 = 4 << 20;

impl<'a> Alongside<'a> {
    fn new(files: &'a [&'a SafetensorsFile], written: u64) -> Self {
        let total: u64 = files.iter().map(|file| file.len()).sum();
        let ratio = total as f64 / written.max(1) as f64;
        Self { files, ratio, offset: 0, hasher: Sha256::new(), buffer: Vec::new(), digests: Vec::new() }
    }

    /// Hashes the bytes written next with `hasher`, and the next bytes of the files beside them.
    fn hash_with(
        &mut self,
        hasher: &mut Sha256,
        written: &[u8],
        observer: &dyn Observer,
    ) -> Result<(), Error> {
        let Some(file) = self.files.get(self.digests.len()) else {
            hasher.update(written);
            return Ok(());
        };
        let wanted = (written.len() as f64 * self.ratio).ceil().min(ALONGSIDE_BYTES as f64) as u64;
        let len = wanted.min(file.len() - self.offset);
        self.buffer.resize(len as usize, 0);
        file.read_file_at(self.offset, &mut self.buffer)?;
        Sha256::update_pair(hasher, written, &mut self.hasher, &self.buffer);
        self.offset += len;
        if self.offset == file.len() {
            self.digests.push(std::mem::take(&mut self.hasher).finish());
            self.offset = 0;
        }
        observer.advanced(len);
        Ok(())
    }

    /// Hashes what the writing left over.
    fn finish(mut self, observer: &dyn Observer) -> Result<Vec<Digest>, Error> {
        while let Some(file) = self.files.get(self.digests.len()) {
            while self.offset < file.len() {
                if observer.cancelled() {
                    return Err(Error::Cancelled);
                }
                self.buffer.resize(ALONGSIDE_BYTES.min(file.len() - self.offset) as usize, 0);
                file.read_file_at(self.offset, &mut self.buffer)?;
                self.hasher.update(&self.buffer);
                self.offset += self.buffer.len() as u64;
                observer.advanced(self.buffer.len() as u64);
            }
            self.digests.push(std::mem::take(&mut self.hasher).finish());
            self.offset = 0;
        }
        Ok(self.digests)
    }
}

/// Bytes after which the flusher pushes written pages to the disk while the workers go on,
/// so that the final sync finds little left.
const FLUSH_BYTES: u64 = 256 << 20;

impl Pipeline<'_> {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state stays consistent when a holder panics: nothing in a critical section can.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a worker; its error or panic stops the others.
    fn guarded(&self, run: fn(&Self) -> Result<(), Error>) {
        let result = catch_unwind(AssertUnwindSafe(|| run(self))).unwrap_or_else(|panic| {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
            Err(Error::WorkerPanicked(text.unwrap_or_default()))
        });
        if let Err(error) = result {
            self.lock().failed.get_or_insert(error);
            self.changed.notify_all();
            self.flush.notify_all();
        }
    }

    fn work(&self) -> Result<(), Error> {
        let mut state = self.lock();
        loop {
            if state.failed.is_some() {
                return Ok(());
            }
            if !state.hashing {
                let next = state.next_hash;
                if let Some((tile, buffer)) = state.ready.remove(&next) {
                    state.hashing = true;
                    drop(state);
                    self.hash(&tile, &buffer)?;
                    self.observer.advanced(tile.len as u64);
                    state = self.lock();
                    state.hashing = false;
                    state.next_hash += 1;
                    state.free.push(buffer);
                    self.changed.notify_all();
                    continue;
                }
            }
            if !state.free.is_empty()
                && let Some(tile) = self.next_tile(&mut state.cursor)
            {
                let mut buffer = state.free.pop().expect("checked above");
                state.in_work += 1;
                drop(state);
                if self.observer.cancelled() {
                    return Err(Error::Cancelled);
                }
                buffer.resize(tile.len, 0);
                self.source.read_rows(tile.tensor, tile.rows.clone(), &mut buffer)?;
                let (file, path) = &self.files[tile.shard];
                fault::point("write tile").map_err(Error::io("write", path))?;
                let mut unsynced = 0;
                if self.direct.is_none() {
                    file.write_all_at(&buffer, tile.offset).map_err(Error::io("write", path))?;
                    unsynced = tile.len as u64;
                }
                state = self.lock();
                state.in_work -= 1;
                state.unsynced += unsynced;
                if state.unsynced >= FLUSH_BYTES {
                    self.flush.notify_one();
                }
                state.ready.insert(tile.sequence, (tile, buffer));
                self.changed.notify_all();
                continue;
            }
            if state.in_work == 0 && state.ready.is_empty() && !state.hashing {
                // Nothing can come any more: the cursor is at its end, or buffers would be free.
                return Ok(());
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The next tile in the order of the output's bytes. Empty tensors give none,
    /// except that a shard's last tile must exist to close its hash.
    fn next_tile(&self, cursor: &mut Cursor) -> Option<Tile> {
        let shard = self.layout.shards.get(cursor.shard)?;
        let Some(&(tensor, start)) = shard.tensors.get(cursor.place) else {
            // A shard without tensors: only its header is hashed.
            let tile = Tile {
                sequence: cursor.sequence,
                shard: cursor.shard,
                tensor: 0,
                rows: 0..0,
                offset: shard.len,
                len: 0,
                first: true,
                last: true,
            };
            *cursor = Cursor { sequence: cursor.sequence + 1, shard: cursor.shard + 1, place: 0, row: 0 };
            return Some(tile);
        };
        let info = &self.source.tensors()[tensor];
        let (total, row_bytes) = (info.rows(), info.row_bytes());
        let rows = cursor.row..total.min(cursor.row.saturating_add(self.rows_per_tile[tensor]));
        let tensor_ends = rows.end >= total;
        let shard_ends = tensor_ends && cursor.place + 1 == shard.tensors.len();
        let tile = Tile {
            sequence: cursor.sequence,
            shard: cursor.shard,
            tensor,
            offset: start + rows.start * row_bytes,
            len: ((rows.end - rows.start) * row_bytes) as usize,
            first: cursor.place == 0 && cursor.row == 0,
            last: shard_ends,
            rows: rows.clone(),
        };
        cursor.sequence += 1;
        if shard_ends {
            (cursor.shard, cursor.place, cursor.row) = (cursor.shard + 1, 0, 0);
        } else if tensor_ends {
            (cursor.place, cursor.row) = (cursor.place + 1, 0);
        } else {
            cursor.row = rows.end;
        }
        Some(tile)
    }

    fn hash(&self, tile: &Tile, bytes: &[u8]) -> Result<(), Error> {
        let mut lane = self.hash.lock().unwrap_or_else(PoisonError::into_inner);
        let HashLane { hasher, alongside, appender, .. } = &mut *lane;
        let header = &self.layout.shards[tile.shard].header;
        if let Some(direct) = self.direct {
            // First, so that the disk has it while it is hashed.
            if tile.first {
                direct.append(appender, tile.shard, header)?;
            }
            direct.append(appender, tile.shard, bytes)?;
        }
        if tile.first {
            hasher.update(header);
        }
        alongside.hash_with(hasher, bytes, self.observer)?;
        if tile.last {
            if let Some(direct) = self.direct {
                direct.finish(appender, tile.shard)?;
            }
            let digest = std::mem::take(&mut lane.hasher).finish();
            lane.digests.push(digest);
            let shard = &self.layout.shards[tile.shard];
            let written = WrittenFile { name: shard.name.clone(), len: shard.len, digest };
            self.lock().to_sync.push_back((tile.shard, written));
            self.flush.notify_one();
        }
        Ok(())
    }

    /// Syncs behind the workers: finished shards for good, the one in work from time to time.
    fn flush_behind(&self) -> Result<(), Error> {
        let mut state = self.lock();
        loop {
            if state.failed.is_some() {
                return Ok(());
            }
            if let Some((shard, written)) = state.to_sync.pop_front() {
                drop(state);
                let (file, path) = &self.files[shard];
                fault::point("sync shard").map_err(Error::io("sync", path))?;
                file.sync_all().map_err(Error::io("sync", path))?;
                self.observer.shard_finished(&written);
                state = self.lock();
            } else if state.finished {
                return Ok(());
            } else if state.unsynced >= FLUSH_BYTES {
                state.unsynced = 0;
                let shard = state.cursor.shard.min(self.files.len() - 1);
                drop(state);
                let (file, path) = &self.files[shard];
                file.sync_data().map_err(Error::io("sync", path))?;
                state = self.lock();
            } else {
                state = self.flush.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::{Checkpoint, Dtype, TensorInfo};

    /// Tensors whose bytes follow from their number and row.
    struct Made(Vec<TensorInfo>);

    impl TensorSource for Made {
        fn tensors(&self) -> &[TensorInfo] {
            &self.0
        }
        fn read_rows(&self, tensor: usize, rows: Rows, out: &mut [u8]) -> Result<(), Error> {
            let info = &self.0[tensor];
            if info.name == "fails" {
                return Err(Error::Source("no such row".into()));
            }
            assert_ne!(info.name, "panics");
            let start = rows.start * info.row_bytes();
            for (i, byte) in out.iter_mut().enumerate() {
                *byte = ((start + i as u64) * 31 + tensor as u64 * 7) as u8;
            }
            assert_eq!(out.len() as u64, (rows.end - rows.start) * info.row_bytes());
            assert!(rows.start.is_multiple_of(info.row_block));
            Ok(())
        }
    }

    fn made() -> Made {
        let mut blocky = TensorInfo::new("blocky", Dtype::F16, vec![12, 5, 3]);
        blocky.row_block = 5;
        Made(vec![
            TensorInfo::new("long", Dtype::F32, vec![999]),
            TensorInfo::new("none", Dtype::F32, vec![0, 4]),
            blocky,
            TensorInfo::new("scalar", Dtype::I64, vec![]),
            TensorInfo::new("matrix", Dtype::BF16, vec![70, 33]),
            TensorInfo::new("packed", Dtype::F4, vec![6, 7]),
            TensorInfo::new("none at the end", Dtype::U8, vec![0]),
        ])
    }

    #[test]
    fn the_same_bytes_for_any_threads_and_tiles_and_they_read_back() {
        let source = made();
        for limit in [1, 5000, u64::MAX] {
            let layout = ShardLayout::new(source.tensors(), limit);
            let mut first: Option<Vec<WrittenFile>> = None;
            let ways = [(1, 1), (2, 64), (7, 1000), (3, 1 << 20)];
            for (direct_from, (threads, tile_bytes)) in
                [0, u64::MAX].into_iter().flat_map(|direct_from| ways.map(|way| (direct_from, way)))
            {
                let dir = tempfile::tempdir().unwrap();
                let done = Counter::default();
                let options = WriteOptions { threads, tile_bytes, direct_from };
                let written =
                    write_shards(&source, &layout, dir.path(), &options, &[], &[], &done).unwrap().0;
                assert_eq!(done.0.load(Ordering::Relaxed), layout.total_size);
                for file in &written {
                    let bytes = std::fs::read(dir.path().join(&file.name)).unwrap();
                    assert_eq!((bytes.len() as u64, Digest::of(&bytes)), (file.len, file.digest));
                }
                assert_eq!(*first.get_or_insert_with(|| written.clone()), written);
                if let Some(index) = layout.index_json(source.tensors()) {
                    std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
                }
                let back = Checkpoint::open(dir.path()).unwrap();
                for (i, info) in source.tensors().iter().enumerate() {
                    let (found, there) = back.find(&info.name).unwrap();
                    assert_eq!((there.dtype, &there.shape), (info.dtype, &info.shape));
                    let mut expected = vec![0; info.bytes() as usize];
                    let mut bytes = expected.clone();
                    source.read_rows(i, 0..info.rows(), &mut expected).unwrap();
                    back.read_rows(found, 0..there.rows(), &mut bytes).unwrap();
                    assert_eq!(bytes, expected, "{}", info.name);
                }
            }
        }
    }

    #[derive(Default)]
    struct Counter(AtomicU64);

    impl Observer for Counter {
        fn advanced(&self, bytes: u64) {
            self.0.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    #[test]
    fn an_error_a_panic_or_a_cancel_ends_all_workers() {
        struct Cancelling;
        impl Observer for Cancelling {
            fn cancelled(&self) -> bool {
                true
            }
        }
        for name in ["fails", "panics", "fine"] {
            let mut tensors = made().0;
            tensors.insert(2, TensorInfo::new(name, Dtype::F32, vec![100, 10]));
            let source = Made(tensors);
            let layout = ShardLayout::new(source.tensors(), 1000);
            let observer: &dyn Observer = if name == "fine" { &Cancelling } else { &() };
            for direct_from in [0, u64::MAX] {
                let options = WriteOptions { threads: 4, tile_bytes: 100, direct_from };
                let dir = tempfile::tempdir().unwrap();
                let result = write_shards(&source, &layout, dir.path(), &options, &[], &[], observer);
                match name {
                    "fails" => assert!(matches!(result, Err(Error::Source(_)))),
                    "panics" => assert!(matches!(result, Err(Error::WorkerPanicked(_)))),
                    _ => assert!(matches!(result, Err(Error::Cancelled))),
                }
            }
        }
    }

    #[test]
    fn an_interrupted_writing_goes_on_after_its_finished_shards() {
        struct Finished(Mutex<Vec<WrittenFile>>);
        impl Observer for Finished {
            fn shard_finished(&self, shard: &WrittenFile) {
                self.0.lock().unwrap().push(shard.clone());
            }
        }
        let source = made();
        let layout = ShardLayout::new(source.tensors(), 3000);
        let whole = tempfile::tempdir().unwrap();
        let finished = Finished(Mutex::default());
        let options = WriteOptions { threads: 3, tile_bytes: 64, ..WriteOptions::default() };
        let (all, _) = write_shards(&source, &layout, whole.path(), &options, &[], &[], &finished).unwrap();
        assert!(all.len() > 2, "several shards");
        let finished = finished.0.into_inner().unwrap();
        assert_eq!(finished, all);
        for done in 0..=all.len() {
            let dir = tempfile::tempdir().unwrap();
            for shard in &all[..done] {
                std::fs::copy(whole.path().join(&shard.name), dir.path().join(&shard.name)).unwrap();
            }
            let again =
                write_shards(&source, &layout, dir.path(), &options, &[], &all[..done], &()).unwrap().0;
            assert_eq!(again, all);
            for shard in &all {
                let read = |dir: &Path| std::fs::read(dir.join(&shard.name)).unwrap();
                assert_eq!(read(dir.path()), read(whole.path()));
            }
        }
    }
}
