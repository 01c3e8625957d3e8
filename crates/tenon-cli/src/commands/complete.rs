//! `tenon list`, `show`, `card`, `verify`, `path`, `delete`: Complete Models.

use std::io::{self, BufRead, IsTerminal, Write};

use clap::{Args, ValueEnum};
use serde_json::json;
use tenon::CompleteModel;

use crate::failure::Failure;
use crate::home::HomeArgument;
use crate::output;
use crate::progress::Progress;
use crate::table::{Table, facts};

/// List the Complete Models
#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

pub(crate) fn list(arguments: ListArguments, home: &HomeArgument) -> Result<(), Failure> {
    let models: Vec<CompleteModel> = home.open()?.registry().all().map_err(tenon::Error::from)?;
    let out = &mut io::BufWriter::new(io::stdout().lock());
    if arguments.json {
        return Ok(output::json(out, &models)?);
    }
    if models.is_empty() {
        writeln!(out, "There is no Complete Model. tenon save makes one.")?;
        return Ok(out.flush()?);
    }
    let mut table = Table::new(&["NAME", " PARAMETERS", "TYPE", " SIZE", "BASE", "SAVED"]);
    for model in &models {
        table.row(vec![
            model.name.to_string(),
            output::count(model.model.parameters),
            model.model.dtype.clone(),
            output::bytes(model.bytes),
            model.base.to_string(),
            output::time(model.created),
        ]);
    }
    table.write(out)?;
    Ok(out.flush()?)
}

/// A Complete Model's name, and how to print.
#[derive(Debug, Args)]
pub(crate) struct NameArguments {
    /// Name of the Complete Model
    complete: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn show(arguments: NameArguments, home: &HomeArgument) -> Result<(), Failure> {
    let tenon = home.open()?;
    let (model, manifest) = tenon.show(&arguments.complete)?;
    let path = tenon.registry().home().complete(&model.name);
    let out = &mut io::stdout().lock();
    if arguments.json {
        let mut object = serde_json::to_value(&manifest).map_err(io::Error::other)?;
        object["path"] = path.to_string_lossy().into();
        return Ok(output::json(out, &object)?);
    }
    let took = manifest
        .saving
        .as_ref()
        .map(|facts| output::duration(std::time::Duration::from_secs_f64(facts.seconds.max(0.0))));
    let tensors = &manifest.tensors;
    facts(
        out,
        &[
            ("name", model.name.to_string()),
            ("path", path.display().to_string()),
            (
                "model",
                format!(
                    "{}, {} parameters, {}",
                    model.model.architecture,
                    output::count(model.model.parameters),
                    model.model.dtype
                ),
            ),
            (
                "base",
                format!(
                    "{} ({})",
                    model.base,
                    manifest.base.repository.as_deref().unwrap_or(&manifest.base.path)
                ),
            ),
            ("customized", format!("{} ({})", model.customized, manifest.adapter.path)),
            ("method", manifest.parameters.peft_type.clone()),
            (
                "tensors",
                format!(
                    "{} edited, {} copied, {} converted, {} replaced, {} added",
                    tensors.edited, tensors.copied, tensors.converted, tensors.replaced, tensors.added
                ),
            ),
            (
                "saved",
                format!(
                    "{} in {}, by Tenon {}",
                    output::time(model.created),
                    took.unwrap_or_default(),
                    manifest.tenon
                ),
            ),
            ("saving", model.saving.to_string()),
            ("files", format!("{}, {}", manifest.outputs.len() + 1, output::bytes(model.bytes))),
        ],
    )?;
    writeln!(out)?;
    for file in &manifest.outputs {
        writeln!(out, "{}  {:>9}  {}", file.sha256, output::bytes(file.bytes), file.name)?;
    }
    Ok(())
}

/// Print a Complete Model's Model Card
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tenon card NAME\n  \
    tenon card NAME --format html > card.html")]
pub(crate) struct CardArguments {
    /// Name of the Complete Model
    complete: String,
    /// How to print it
    #[arg(long, value_enum, default_value = "md")]
    format: CardFormat,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CardFormat {
    /// Markdown with the Hub's front matter, as in README.md
    Md,
    /// A page of its own
    Html,
    /// The facts
    Json,
}

pub(crate) fn card(arguments: CardArguments, home: &HomeArgument) -> Result<(), Failure> {
    let card = home.open()?.card(&arguments.complete)?;
    let text = match arguments.format {
        CardFormat::Md => card.markdown(),
        CardFormat::Html => card.html(),
        CardFormat::Json => card.json(),
    };
    Ok(io::stdout().lock().write_all(text.as_bytes())?)
}

/// Compare a Complete Model's files with its manifest
#[derive(Debug, Args)]
pub(crate) struct VerifyArguments {
    /// Name of the Complete Model
    complete: String,
    /// Also merge again from adapter and base, and compare; writes nothing
    #[arg(long)]
    rebuild: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn verify(arguments: VerifyArguments, home: &HomeArgument) -> Result<(), Failure> {
    let tenon = home.open()?;
    let (model, manifest) = tenon.show(&arguments.complete)?;
    let progress = Progress::over(manifest.output_bytes(), "verifying");
    let report = tenon.verify(&arguments.complete, &progress)?;
    drop(progress);
    let rebuilt = if arguments.rebuild {
        let rebuild = tenon.plan_rebuild(&arguments.complete)?;
        let progress = Progress::over(rebuild.work_bytes(), "merging again");
        Some(rebuild.run(&progress)?)
    } else {
        None
    };
    let fine = report.is_intact() && rebuilt.as_ref().is_none_or(|rebuilt| rebuilt.is_same());
    let out = &mut io::stdout().lock();
    if arguments.json {
        output::json(
            out,
            &json!({ "name": model.name, "intact": fine, "files": report, "rebuild": rebuilt }),
        )?;
    } else {
        for (what, names) in
            [("changed", &report.changed), ("missing", &report.missing), ("extra", &report.extra)]
        {
            for name in names {
                writeln!(out, "{what:<8} {}", crate::table::printable(name))?;
            }
        }
        if let Some(rebuilt) = &rebuilt {
            for (what, names) in [
                ("other tensor", &rebuilt.changed_tensors),
                ("other file", &rebuilt.changed_files),
                ("other input", &rebuilt.changed_inputs),
            ] {
                for name in names {
                    writeln!(out, "{what:<12} {}", crate::table::printable(name))?;
                }
            }
        }
        let files = format!("{} of {} files are as they were saved", report.intact, manifest.outputs.len());
        let again = rebuilt.as_ref().map_or_else(String::new, |rebuilt| {
            let all = rebuilt.same_tensors + rebuilt.changed_tensors.len();
            format!("; merged again, {} of {all} tensors come out the same", rebuilt.same_tensors)
        });
        writeln!(out, "{}: {files} ({}){again}.", model.name, output::bytes(report.bytes))?;
    }
    if fine { Ok(()) } else { Err(Failure::Differs) }
}

/// A Complete Model's name.
#[derive(Debug, Args)]
pub(crate) struct PathArguments {
    /// Name of the Complete Model
    complete: String,
}

pub(crate) fn path(arguments: PathArguments, home: &HomeArgument) -> Result<(), Failure> {
    let path = home.open()?.path(&arguments.complete)?;
    Ok(writeln!(io::stdout(), "{}", path.display())?)
}

/// Remove a Complete Model for good
#[derive(Debug, Args)]
pub(crate) struct DeleteArguments {
    /// Name of the Complete Model
    complete: String,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub(crate) fn delete(arguments: DeleteArguments, home: &HomeArgument) -> Result<(), Failure> {
    let tenon = home.open()?;
    let model: CompleteModel = tenon.registry().get(&arguments.complete).map_err(tenon::Error::from)?;
    if !arguments.yes {
        if !io::stdin().is_terminal() {
            return Err(Failure::Usage("nobody is there to be asked; pass --yes to delete".into()));
        }
        let mut err = io::stderr().lock();
        write!(err, "Delete {} ({}) for good? [y/N] ", model.name, output::bytes(model.bytes))?;
        err.flush()?;
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer)?;
        if !["y", "yes"].contains(&answer.trim().to_lowercase().as_str()) {
            writeln!(err, "{} stays.", model.name)?;
            return Ok(());
        }
    }
    let model = tenon.delete(model.name.as_str())?;
    Ok(writeln!(io::stdout(), "{} is deleted; {} are free again.", model.name, output::bytes(model.bytes))?)
}
