//! `tenon serve`: the same over HTTP, and the pages.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use tenon_server::{Options, Server, Token};

use crate::failure::Failure;
use crate::home::HomeArgument;

/// Serve the home over HTTP: pages, REST, events.
///
/// On 127.0.0.1 everybody on this machine may do everything. On any other address a token is needed:
/// clients show it as Authorization: Bearer TOKEN, people sign in with it once.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tenon serve\n  \
    tenon serve --allow-path ~/models\n  \
    tenon serve --listen 0.0.0.0:7747 --token-file ~/.tenon-token --allow-host models.example.com")]
pub(crate) struct Arguments {
    /// Address and port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7747")]
    listen: SocketAddr,

    /// File with the token that clients must show; made, and its token shown this once, where it is missing
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// Directory under which models may be registered through the server; may be given several times
    #[arg(long, value_name = "DIR")]
    allow_path: Vec<PathBuf>,

    /// Name that the server goes by, besides localhost and IP addresses; may be given several times
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,

    /// Queue jobs, but leave the work to other processes
    #[arg(long)]
    no_work: bool,
}

pub(crate) fn run(arguments: Arguments, home: &HomeArgument) -> Result<(), Failure> {
    let mut err = io::stderr().lock();
    let token = match &arguments.token_file {
        None => None,
        Some(file) => {
            let (token, made) = Token::from_file(file).map_err(|error| Failure::Usage(error.to_string()))?;
            if let Some(text) = made {
                writeln!(err, "A token was made; it is in {} and is shown here this once:", file.display())?;
                writeln!(err, "\n  {text}\n")?;
            }
            Some(token)
        }
    };
    for dir in &arguments.allow_path {
        if !dir.is_dir() {
            return Err(Failure::Usage(format!(
                "--allow-path {}: there is no such directory",
                dir.display()
            )));
        }
    }
    let options = Options {
        token,
        any_address: !arguments.listen.ip().is_loopback(),
        allow_paths: arguments.allow_path,
        allow_hosts: arguments.allow_host,
        work: !arguments.no_work,
        ..Options::default()
    };
    drop(err);
    let tenon = home.open()?;
    tenon_server::log::init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let served: Result<(), Failure> = runtime.block_on(async {
        let server = Server::new(tenon, options);
        let listener =
            server.bind(arguments.listen).await.map_err(|error| Failure::Usage(error.to_string()))?;
        let address = listener.local_addr()?;
        let mut out = io::stdout().lock();
        writeln!(out, "Tenon serves http://{address}/")?;
        out.flush()?;
        drop(out);
        server.serve(listener, tenon_server::asked_to_stop()).await;
        Ok(())
    });
    // Threads that read for clients who are gone do not keep the process.
    runtime.shutdown_background();
    served
}
