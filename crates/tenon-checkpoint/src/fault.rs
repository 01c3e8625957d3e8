//! Places where a test may have this process killed, or the disk full.
//!
//! Every step that changes the disk passes a [`point`]. Without the feature
//! `fault-injection` a point is nothing. With it, the environment variable
//! `TENON_FAULT` says what happens at which of them: `kill:17` ends the
//! process with `SIGKILL` at the 17th point it passes, `full:17` has the 17th
//! and all that follow fail as on a full disk, `wait:17` has each from the 17th
//! on take 200 ms, and `count:FILE` leaves the number of points passed so far
//! in a file.

use std::io;

/// A step that is about to change the disk; `step` is for the reader of a test's log.
#[cfg(not(feature = "fault-injection"))]
#[inline(always)]
pub fn point(step: &'static str) -> io::Result<()> {
    let _ = step;
    Ok(())
}

/// A step that is about to change the disk; `step` is for the reader of a test's log.
#[cfg(feature = "fault-injection")]
pub fn point(step: &'static str) -> io::Result<()> {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    enum Fault {
        Kill(u64),
        Full(u64),
        Wait(u64),
        Slow(String),
        Count(std::path::PathBuf),
    }
    static FAULT: OnceLock<Option<Fault>> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);
    let fault = FAULT.get_or_init(|| {
        let text = std::env::var("TENON_FAULT").ok()?;
        let (kind, argument) = text.split_once(':')?;
        Some(match kind {
            "kill" => Fault::Kill(argument.parse().ok()?),
            "full" => Fault::Full(argument.parse().ok()?),
            "wait" => Fault::Wait(argument.parse().ok()?),
            "slow" => Fault::Slow(argument.into()),
            "count" => Fault::Count(argument.into()),
            _ => return None,
        })
    });
    let number = PASSED.fetch_add(1, Ordering::SeqCst) + 1;
    match fault {
        Some(Fault::Kill(at)) if number == *at => {
            let me = rustix::process::getpid();
            let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
            // The signal is on its way.
            loop {
                std::thread::park();
            }
        }
        Some(Fault::Full(at)) if number >= *at => Err(io::Error::from(io::ErrorKind::StorageFull)),
        Some(Fault::Wait(at)) if number >= *at => {
            std::thread::sleep(std::time::Duration::from_millis(200));
            Ok(())
        }
        Some(Fault::Slow(name)) if name == step => {
            std::thread::sleep(std::time::Duration::from_millis(500));
            Ok(())
        }
        Some(Fault::Count(file)) => std::fs::write(file, number.to_string()),
        _ => Ok(()),
    }
}

/// That a digest of so many bytes was made.
#[cfg(not(feature = "fault-injection"))]
#[inline(always)]
pub(crate) fn hashed(bytes: u64) {
    let _ = bytes;
}

/// That a digest of so many bytes was made.
#[cfg(feature = "fault-injection")]
pub(crate) fn hashed(bytes: u64) {
    let Some(path) = std::env::var_os("TENON_HASHED") else { return };
    let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
    // One write, so that lines of several threads and processes stay apart.
    let line = format!("{bytes}\n");
    file.and_then(|mut file| io::Write::write_all(&mut file, line.as_bytes())).expect("the test's log");
}
