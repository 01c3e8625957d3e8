//! A progress bar on a terminal, nothing when piped, and Ctrl-C.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tenon::Observer;

static CANCELLED: AtomicBool = AtomicBool::new(false);

/// Shows bytes, rate and time left on standard error; cancels at Ctrl-C.
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Something that takes a while, of which nobody knows how long.
    pub(crate) fn waiting(message: &str) -> Self {
        let progress = Self::over(0, message);
        progress.bar.set_style(spinner());
        progress
    }

    /// Begins anew over so many bytes; over none, nobody knows how long it takes.
    pub(crate) fn restart(&self, bytes: u64, message: &str) {
        self.bar.set_style(if bytes == 0 { spinner() } else { bar() });
        self.bar.set_message(message.to_string());
        self.bar.set_length(bytes);
        self.bar.reset();
    }

    /// Says something above the bar, where there is one.
    pub(crate) fn say(&self, line: &str) {
        if !self.bar.is_hidden() {
            self.bar.suspend(|| {
                // Nothing can be done when standard error is closed.
                let _ = writeln!(std::io::stderr(), "{line}");
            });
        }
    }

    /// Progress over so many bytes.
    pub(crate) fn over(bytes: u64, message: &str) -> Self {
        // Fails only when a handler is set already; then that one cancels.
        let _ = ctrlc::set_handler(|| {
            if CANCELLED.swap(true, Ordering::SeqCst) {
                // Asked twice: leave at once. What is left over is swept by the next merge to this target.
                std::process::exit(130);
            }
        });
        let target = if std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(bytes), target).with_message(message.to_string());
        bar.set_style(self::bar());
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { bar }
    }
}

fn bar() -> ProgressStyle {
    let template = "{msg} {wide_bar:.green/dim} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta} left";
    ProgressStyle::with_template(template).expect("the template is constant and valid")
}

fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("{spinner:.green} {msg} {elapsed}")
        .expect("the template is constant and valid")
}

/// Whether somebody pressed Ctrl-C.
pub(crate) fn is_cancelled() -> bool {
    CANCELLED.load(Ordering::Relaxed)
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Observer for Progress {
    fn advanced(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn cancelled(&self) -> bool {
        is_cancelled()
    }
}

impl tenon::Watch for Progress {
    fn said(&self, line: &str) {
        self.say(&crate::table::printable(line));
    }

    fn cancelled(&self) -> bool {
        is_cancelled()
    }
}
