//! A progress bar on a terminal, nothing when piped, and Ctrl-C.

use std::io::IsTerminal;
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
        let template = "{msg} {wide_bar:.green/dim} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta} left";
        bar.set_style(ProgressStyle::with_template(template).expect("the template is constant and valid"));
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { bar }
    }
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
        CANCELLED.load(Ordering::Relaxed)
    }
}
