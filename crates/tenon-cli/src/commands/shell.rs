//! `tenon completions` and `tenon man`: what packagers and shells ask for.

use std::io;
use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

use crate::failure::Failure;

/// Print the completions of a shell
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tenon completions bash > ~/.local/share/bash-completion/completions/tenon\n  \
    tenon completions fish > ~/.config/fish/completions/tenon.fish")]
pub(crate) struct CompletionArguments {
    /// The shell
    shell: Shell,
}

pub(crate) fn completions(arguments: CompletionArguments, mut command: clap::Command) -> Result<(), Failure> {
    let mut text = vec![];
    clap_complete::generate(arguments.shell, &mut command, "tenon", &mut text);
    Ok(io::Write::write_all(&mut io::stdout(), &text)?)
}

/// Write the man pages
#[derive(Debug, Args)]
pub(crate) struct ManArguments {
    /// Directory to write them to
    dir: PathBuf,
}

pub(crate) fn man(arguments: ManArguments, command: clap::Command) -> Result<(), Failure> {
    std::fs::create_dir_all(&arguments.dir)?;
    Ok(clap_mangen::generate_to(command, &arguments.dir)?)
}
