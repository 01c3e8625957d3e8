//! Commands of the user's that do what a server's API does not.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use crate::http::TICK;
use crate::{Environment, Error, Watch};

/// Lines of output that an error passes on.
const KEPT_LINES: usize = 20;
/// Bytes of a line that are kept.
const MAX_LINE: u64 = 4096;
/// How long output is waited for when the command itself has ended.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What may stand in braces.
const PLACES: [&str; 4] = ["model", "path", "source", "adapter"];

/// A program and its arguments, with places for what is known when it runs.
pub(crate) struct Command {
    option: &'static str,
    words: Vec<String>,
    timeout: Duration,
}

impl Command {
    /// Splits a line into words as a shell does, and nothing else that a shell does.
    pub(crate) fn parse(option: &str, line: &str, environment: &Environment) -> Result<Self, Error> {
        let bad = |expected: &str| Error::BadOption {
            option: option.into(),
            value: line.into(),
            expected: expected.into(),
        };
        let words = shlex::split(line).ok_or_else(|| bad("a command whose quotes are closed"))?;
        if words.is_empty() {
            return Err(bad("a program and its arguments"));
        }
        for word in &words {
            let mut rest = word.as_str();
            while let Some((_, after)) = rest.split_once('{') {
                let name = after.split('}').next().unwrap_or_default();
                let looks_like_a_place = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase());
                if looks_like_a_place && after.len() > name.len() && !PLACES.contains(&name) {
                    return Err(bad("no places but {model}, {path}, {source} and {adapter}"));
                }
                rest = after;
            }
        }
        let option = match option {
            "copy-command" => "copy-command",
            "start-command" => "start-command",
            "adapter-command" => "adapter-command",
            _ => "stop-command",
        };
        let timeout = environment.seconds("command-timeout", Duration::from_secs(3600))?;
        Ok(Self { option, words, timeout })
    }

    /// Runs it to its end. What it writes is told line by line.
    pub(crate) fn run(&self, places: &[(&str, &str)], watch: &dyn Watch) -> Result<(), Error> {
        let fill = |word: &String| {
            places
                .iter()
                .fold(word.clone(), |word, (name, value)| word.replace(&format!("{{{name}}}"), value))
        };
        let words: Vec<String> = self.words.iter().map(fill).collect();
        let failed = |reason: String, output: &[String]| Error::Command {
            option: self.option,
            reason,
            output: output.join("\n"),
        };
        let child = std::process::Command::new(&words[0])
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own: what it starts can be ended with it.
            .process_group(0)
            .spawn();
        let mut child =
            child.map_err(|error| failed(format!("{} cannot be started: {error}", words[0]), &[]))?;
        let (sender, lines) = channel();
        read_lines(child.stdout.take(), sender.clone());
        read_lines(child.stderr.take(), sender);
        let mut output = Vec::new();
        let begin = Instant::now();
        let status = loop {
            self.hear(&lines, TICK, &mut output, watch);
            match child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) => {}
                Err(error) => return Err(failed(format!("cannot be waited for: {error}"), &output)),
            }
            if watch.cancelled() {
                end(&mut child);
                return Err(Error::Cancelled);
            }
            if begin.elapsed() > self.timeout {
                end(&mut child);
                let reason = format!(
                    "has not ended within {:.0} s; a command that starts a server must leave it in the background",
                    self.timeout.as_secs_f64()
                );
                return Err(failed(reason, &output));
            }
        };
        // What it left running in the background may hold its output open for ever.
        let last = Instant::now() + LAST_WORDS;
        while Instant::now() < last && self.hear(&lines, TICK, &mut output, watch) {}
        if status.success() { Ok(()) } else { Err(failed(format!("ended with {status}"), &output)) }
    }

    /// Passes on what was written for a while; whether more may come.
    fn hear(
        &self,
        lines: &Receiver<String>,
        wait: Duration,
        output: &mut Vec<String>,
        watch: &dyn Watch,
    ) -> bool {
        let end = Instant::now() + wait;
        loop {
            match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    watch.said(&format!("{}: {line}", self.option));
                    output.push(line);
                    let surplus = output.len().saturating_sub(KEPT_LINES);
                    output.drain(..surplus);
                }
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => {
                    std::thread::sleep(
                        end.saturating_duration_since(Instant::now()).min(Duration::from_millis(10)),
                    );
                    return false;
                }
            }
        }
    }
}

fn end(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        // It may have ended by itself.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.wait();
}

fn read_lines(stream: Option<impl Read + Send + 'static>, to: Sender<String>) {
    let Some(stream) = stream else { return };
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        loop {
            let mut line = Vec::new();
            match (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {
                    let text = String::from_utf8_lossy(&line);
                    let text: String = text.trim_end().chars().filter(|c| !c.is_control()).collect();
                    if to.send(text).is_err() {
                        return;
                    }
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::EnvironmentKind;

    fn run(line: &str, watch: &dyn Watch) -> Result<(), Error> {
        let mut environment = Environment::new(EnvironmentKind::Vllm, "http://localhost:1");
        environment.options.insert("command-timeout".into(), "0.5".into());
        Command::parse("start-command", line, &environment)?
            .run(&[("model", "m; id"), ("path", "/a b")], watch)
    }

    #[derive(Default)]
    struct Heard(std::sync::Mutex<Vec<String>>);
    impl Watch for Heard {
        fn said(&self, line: &str) {
            self.0.lock().unwrap().push(line.into());
        }
    }

    #[test]
    fn words_and_places_but_no_shell() {
        let heard = Heard::default();
        run("printf '%s|' {model} {path} '$HOME' '*' {other thing}", &heard).unwrap();
        assert_eq!(*heard.0.lock().unwrap(), ["start-command: m; id|/a b|$HOME|*|{other|thing}|"]);
        assert!(matches!(run("echo 'open", &()), Err(Error::BadOption { .. })));
        assert!(matches!(run("echo {modle}", &()), Err(Error::BadOption { .. })));
        assert!(matches!(run("  ", &()), Err(Error::BadOption { .. })));
    }

    #[test]
    fn failures_tell_what_was_written() {
        let error = run("sh -c 'echo one; echo two >&2; exit 3'", &()).unwrap_err().to_string();
        assert!(
            error.contains("exit status: 3") && error.contains("one") && error.contains("two"),
            "{error}"
        );
        assert!(run("/no/such/program", &()).unwrap_err().to_string().contains("cannot be started"));
        assert!(run("sleep 20", &()).unwrap_err().to_string().contains("background"));
        // What stays behind does not keep it waiting.
        let begin = Instant::now();
        run("sh -c 'sleep 20 & echo started'", &()).unwrap();
        assert!(begin.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn cancelled_with_all_that_it_started() {
        struct Now;
        impl Watch for Now {
            fn cancelled(&self) -> bool {
                true
            }
        }
        assert!(run("sh -c 'sleep 20; true'", &Now).unwrap_err().is_cancelled());
    }
}
