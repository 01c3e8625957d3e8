//! Writing past the page cache.
//!
//! A model's worth of pages costs the kernel more time to find, fill and write
//! back than a disk takes to store them, and drives out whatever was cached
//! before. So bytes in their order are gathered into blocks that lie as
//! `O_DIRECT` wants them, and a few threads hand these to the disk while the
//! next are made. Where a file system does not take that, or at a file's ragged
//! end, bytes are written as usual.

use std::collections::VecDeque;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::Error;

/// What offset, length and address of a write are multiples of: what disks and file systems ask at most.
const ALIGNMENT: usize = 4096;

/// Bytes of a block.
const BLOCK: usize = 1 << 20;

/// Threads that write. They wait for the disk, which is busiest with some blocks at once: one writes at
/// three quarters of the speed of four.
pub(crate) const THREADS: usize = 4;

/// Blocks there are: those being written, as many that wait, one that is filled.
const BLOCKS: usize = 2 * THREADS + 1;

/// A file that is there, to be written past the page cache, where its file system has that.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn open_direct(path: &Path) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;

    let flag = rustix::fs::OFlags::DIRECT.bits() as i32;
    std::fs::OpenOptions::new().write(true).custom_flags(flag).open(path).ok()
}

/// Other systems have no such flag.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn open_direct(_: &Path) -> Option<File> {
    None
}

/// Bytes on their way to the disk.
struct Block {
    room: Vec<u8>,
    start: usize,
    len: usize,
}

impl Block {
    fn new() -> Self {
        let room = vec![0; BLOCK + ALIGNMENT];
        // Where nothing can be said of addresses, the kernel refuses and bytes are written as usual.
        let start = room.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self { room, start, len: 0 }
    }

    fn bytes(&self) -> &[u8] {
        &self.room[self.start..self.start + self.len]
    }

    /// Takes as many bytes as it has room for; gives the rest.
    fn fill<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (now, later) = bytes.split_at(bytes.len().min(BLOCK - self.len));
        let end = self.start + self.len;
        self.room[end..end + now.len()].copy_from_slice(now);
        self.len += now.len();
        later
    }
}

/// A file to be written, and the same past the page cache.
struct Target<'a> {
    file: &'a File,
    path: &'a PathBuf,
    direct: Option<File>,
}

/// The files of one writing, and the blocks between who makes bytes and who writes them.
pub(crate) struct Direct<'a> {
    targets: Vec<Target<'a>>,
    /// A file system took no block: not tried again.
    refused: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    free: Vec<Block>,
    /// File, offset, bytes.
    waiting: VecDeque<(usize, u64, Block)>,
    in_work: usize,
    ended: bool,
    failed: Option<Error>,
}

/// Appends to one file after the other.
#[derive(Default)]
pub(crate) struct Appender {
    block: Option<Block>,
    offset: u64,
}

impl<'a> Direct<'a> {
    /// Opens the files a second time.
    pub(crate) fn new(files: &'a [(File, PathBuf)]) -> Self {
        let target = |(file, path)| Target { file, path, direct: open_direct(path) };
        let state = State {
            free: (0..BLOCKS).map(|_| Block::new()).collect(),
            waiting: VecDeque::new(),
            in_work: 0,
            ended: false,
            failed: None,
        };
        Self {
            targets: files.iter().map(|(file, path)| target((file, path))).collect(),
            refused: AtomicBool::new(false),
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// Whether any of the files can be written so.
    pub(crate) fn is_of_use(&self) -> bool {
        self.targets.iter().any(|target| target.direct.is_some())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends bytes to a file, from `appender` on.
    pub(crate) fn append(&self, appender: &mut Appender, file: usize, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let mut block = match appender.block.take() {
                Some(block) => block,
                None => self.free_block()?,
            };
            bytes = block.fill(bytes);
            if block.len == BLOCK {
                self.submit(appender, file, block);
            } else {
                appender.block = Some(block);
            }
        }
        Ok(())
    }

    /// Waits until all of a file is written.
    pub(crate) fn finish(&self, appender: &mut Appender, file: usize) -> Result<(), Error> {
        if let Some(block) = appender.block.take() {
            self.submit(appender, file, block);
        }
        appender.offset = 0;
        let mut state = self.lock();
        while state.failed.is_none() && (state.in_work > 0 || !state.waiting.is_empty()) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.failed.take().map_or(Ok(()), Err)
    }

    fn free_block(&self) -> Result<Block, Error> {
        let mut state = self.lock();
        loop {
            if let Some(error) = state.failed.take() {
                return Err(error);
            }
            if let Some(block) = state.free.pop() {
                return Ok(block);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn submit(&self, appender: &mut Appender, file: usize, block: Block) {
        let offset = appender.offset;
        appender.offset += block.len as u64;
        self.lock().waiting.push_back((file, offset, block));
        self.changed.notify_all();
    }

    /// What a thread that writes does until [`end`](Self::end).
    pub(crate) fn write_behind(&self) {
        let mut state = self.lock();
        loop {
            if let Some((file, offset, mut block)) = state.waiting.pop_front() {
                state.in_work += 1;
                drop(state);
                let result = self.write(file, offset, block.bytes());
                block.len = 0;
                state = self.lock();
                state.in_work -= 1;
                state.free.push(block);
                if let Err(error) = result {
                    state.failed.get_or_insert(error);
                }
                self.changed.notify_all();
            } else if state.ended {
                return;
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Nothing will be appended any more.
    pub(crate) fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    fn write(&self, file: usize, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let target = &self.targets[file];
        let mut done = 0;
        if let Some(direct) = target.direct.as_ref().filter(|_| !self.refused.load(Ordering::Relaxed)) {
            let whole = bytes.len() / ALIGNMENT * ALIGNMENT;
            match direct.write_all_at(&bytes[..whole], offset) {
                Ok(()) => done = whole,
                Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => {
                    self.refused.store(true, Ordering::Relaxed);
                }
                Err(error) => return Err(Error::io("write", target.path)(error)),
            }
        }
        let rest = target.file.write_all_at(&bytes[done..], offset + done as u64);
        rest.map_err(Error::io("write", target.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_appended_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let lengths = [0, 1, 4095, 4096, BLOCK - 1, BLOCK + 1, 3 * BLOCK + 12345];
        let files: Vec<(File, PathBuf)> = (0..lengths.len())
            .map(|number| {
                let path = dir.path().join(number.to_string());
                (File::create_new(&path).unwrap(), path)
            })
            .collect();
        let content = |number: usize| -> Vec<u8> {
            (0..lengths[number]).map(|i| (i * 31 + i / 4096 + number) as u8).collect()
        };
        for refused in [false, true] {
            let direct = Direct::new(&files);
            direct.refused.store(refused, Ordering::Relaxed);
            std::thread::scope(|scope| {
                (0..THREADS).for_each(|_| drop(scope.spawn(|| direct.write_behind())));
                let mut appender = Appender::default();
                for (number, (_, path)) in files.iter().enumerate() {
                    for piece in content(number).chunks(70_001) {
                        direct.append(&mut appender, number, piece).unwrap();
                    }
                    direct.finish(&mut appender, number).unwrap();
                    assert!(std::fs::read(path).unwrap() == content(number));
                }
                direct.end();
            });
            files.iter().for_each(|(file, _)| file.set_len(0).unwrap());
        }
    }

    #[test]
    fn an_error_of_the_disk_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        File::create_new(&path).unwrap();
        // Opened to be read, and by another name gone: what is written past the page cache cannot be.
        let files = [(File::open(&path).unwrap(), path.clone())];
        std::fs::remove_file(&path).unwrap();
        let direct = Direct::new(&files);
        std::thread::scope(|scope| {
            scope.spawn(|| direct.write_behind());
            let mut appender = Appender::default();
            let all = vec![7; 20 * BLOCK];
            let result = direct.append(&mut appender, 0, &all).and(direct.finish(&mut appender, 0));
            direct.end();
            assert!(matches!(result, Err(Error::Io { .. })), "{result:?}");
        });
    }
}
