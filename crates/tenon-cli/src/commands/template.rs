//! `tenon base template`: how conversations are put to a model.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;

use clap::{ArgGroup, Args};
use tenon::{Agreement, Suggestion, Tenon};

use crate::failure::Failure;
use crate::home::HomeArgument;
use crate::output;

/// Attach, propose, show, check or remove the Deployment Template File of a Base Model
///
/// A Go template, or a Modelfile with TEMPLATE, SYSTEM, PARAMETER, LICENSE, MESSAGE, RENDERER, PARSER
/// and REQUIRES. It is checked before it is attached, and again before each deployment; Ollama is not
/// deployed to without one.
#[derive(Debug, Args)]
#[command(
    group(ArgGroup::new("what").required(true).args(["file", "set", "suggest", "show", "check", "remove"])),
    after_help = "Examples:\n  \
    tenon base template llama-1b --suggest\n  \
    tenon base template llama-1b --set llama.modelfile\n  \
    tenon base template llama-1b --check\n\n\
    --suggest and --check exit with 6 where the template and the model's own chat_template disagree."
)]
pub(crate) struct Arguments {
    /// Name of the Base Model
    name: String,
    /// A Go template or a Modelfile, as --set takes it
    file: Option<PathBuf>,
    /// Attach this file
    #[arg(long, value_name = "FILE")]
    set: Option<PathBuf>,
    /// Propose one from the model's own chat_template, and attach it if you agree
    #[arg(long)]
    suggest: bool,
    /// Print the one that is attached
    #[arg(long)]
    show: bool,
    /// Check the one that is attached, and compare it with the model's own chat_template
    #[arg(long)]
    check: bool,
    /// Take it off
    #[arg(long)]
    remove: bool,
    /// With --suggest: attach it without a question, if it agrees with the model's own
    #[arg(long, short, requires = "suggest")]
    yes: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: Arguments, home: &HomeArgument, out: &mut dyn Write) -> Result<(), Failure> {
    let tenon = home.open()?;
    let name = &arguments.name;
    if let Some(file) = arguments.file.as_ref().or(arguments.set.as_ref()) {
        let base = tenon.set_template(name, file)?;
        let (_, read) = tenon.template(name)?;
        let mut err = io::stderr().lock();
        for warning in &read.warnings {
            writeln!(err, "warning: {}:{warning}", file.display())?;
        }
        if arguments.json {
            return Ok(output::json(out, &base)?);
        }
        writeln!(out, "Base Model {} has the Deployment Template File {} now.", base.name, file.display())?;
    } else if arguments.suggest {
        return suggest(&tenon, &arguments, out);
    } else if arguments.show {
        let (template, read) = tenon.template(name)?;
        if arguments.json {
            return Ok(output::json(out, &read)?);
        }
        write!(out, "{}", template.text)?;
        if !template.text.ends_with('\n') {
            writeln!(out)?;
        }
    } else if arguments.check {
        let (template, read) = tenon.template(name)?;
        let agreement = tenon.template_agreement(name)?;
        let agrees = agreement.iter().flatten().all(|compared| compared.agrees || !compared.plain);
        if arguments.json {
            let found = serde_json::json!({
                "file": template.file, "warnings": read.warnings, "agreement": agreement, "agrees": agrees});
            output::json(out, &found)?;
        } else {
            writeln!(out, "{} is right.", template.file)?;
            for warning in &read.warnings {
                writeln!(out, "warning: {}:{warning}", template.file)?;
            }
            match agreement {
                Some(agreement) => show_agreement(&agreement, out)?,
                None => writeln!(out, "There is no chat_template of the model to compare it with.")?,
            }
        }
        if !agrees {
            return Err(Failure::Differs);
        }
    } else {
        let there_was = tenon.remove_template(name)?;
        if arguments.json {
            return Ok(output::json(out, &serde_json::json!({"removed": there_was}))?);
        }
        let words = if there_was {
            "has no Deployment Template File any more"
        } else {
            "had no Deployment Template File"
        };
        writeln!(out, "Base Model {name} {words}.")?;
    }
    Ok(())
}

/// Never attached silently: a person says yes, or a script said `--yes` and the two agree.
fn suggest(tenon: &Tenon, arguments: &Arguments, out: &mut dyn Write) -> Result<(), Failure> {
    let suggestion = tenon.suggest_template(&arguments.name)?;
    let mut attach = false;
    if arguments.json {
        attach = arguments.yes && suggestion.agrees();
        let found = serde_json::json!({
            "modelfile": suggestion.modelfile, "agreement": suggestion.agreement, "notes": suggestion.notes,
            "agrees": suggestion.agrees(), "attached": attach});
        output::json(out, &found)?;
    } else {
        show(&suggestion, out)?;
        let mut err = io::stderr().lock();
        if !suggestion.agrees() {
            writeln!(err, "It differs from the model's own chat_template and is not attached.")?;
            writeln!(
                err,
                "  hint: save it, mend it, and attach it with tenon base template {} --set FILE",
                arguments.name
            )?;
        } else if arguments.yes {
            attach = true;
        } else if io::stdin().is_terminal() {
            write!(err, "Attach it to {}? [y/N] ", arguments.name)?;
            err.flush()?;
            let mut answer = String::new();
            io::stdin().lock().read_line(&mut answer)?;
            attach = ["y", "yes"].contains(&answer.trim().to_lowercase().as_str());
        } else {
            writeln!(err, "Not attached: nobody is there to be asked; --yes attaches it.")?;
        }
    }
    if attach {
        let base = tenon.set_template_text(
            &arguments.name,
            "suggested.modelfile".into(),
            suggestion.modelfile.clone(),
        )?;
        if !arguments.json {
            writeln!(out, "Base Model {} has this Deployment Template File now.", base.name)?;
        }
    }
    if suggestion.agrees() { Ok(()) } else { Err(Failure::Differs) }
}

fn show(suggestion: &Suggestion, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{}", suggestion.modelfile)?;
    show_agreement(&suggestion.agreement, out)?;
    for note in &suggestion.notes {
        writeln!(out, "note: {note}")?;
    }
    Ok(())
}

fn show_agreement(agreement: &[Agreement], out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "Compared with the model's own chat_template:")?;
    for compared in agreement {
        let word = match (compared.agrees, &compared.model) {
            (true, _) => "same prompt",
            (false, Err(_)) => "refused by the model's own",
            (false, Ok(_)) => "DIFFERENT",
        };
        writeln!(out, "  {:<36} {word}", compared.conversation)?;
        if compared.agrees {
            continue;
        }
        // Escaped: a prompt has line breaks and whatever a model's files hold.
        match &compared.model {
            Ok(prompt) => writeln!(out, "    chat_template: {prompt:?}")?,
            Err(reason) => writeln!(out, "    chat_template: {reason:?}")?,
        }
        match &compared.template {
            Ok(prompt) => writeln!(out, "    this template: {prompt:?}")?,
            Err(reason) => writeln!(out, "    this template fails: {reason}")?,
        }
    }
    Ok(())
}
