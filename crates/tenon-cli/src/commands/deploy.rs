//! `tenon deploy`: a Complete Model becomes a Live Model.

use std::io::{self, Write};

use clap::Args;
use serde_json::json;
use tenon::{
    Deployment, DeploymentObserver, DeploymentPlan, DeploymentRequest, LiveModel, Quantization, QuantizeOn,
    QueuedDeployment, Tenon,
};

use crate::failure::Failure;
use crate::home::HomeArgument;
use crate::output;
use crate::progress::{Progress, is_cancelled};
use crate::table::{facts, printable};

/// Deploy a Complete Model to a Deployment Environment.
///
/// Sends what the server does not have yet, has it make a model, and sees that the model answers:
/// then there is a Live Model. A Customized Model is saved first, or sent as the adapter that it is.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tenon deploy Llama-3.2-1B_my-lora_20260309_1a2b_s_3c4d --env local --quantization q4_K_M\n  \
    tenon deploy Llama-3.2-1B_my-lora_20260309_1a2b_s_3c4d --env local --quantization q8_0 --as my-model\n  \
    tenon deploy Llama-3.2-1B_my-lora_20260309_1a2b --env gpu --quantization no_quantization --detach\n  \
    tenon deploy Llama-3.2-1B_my-lora_20260309_1a2b --env gpu --quantization no_quantization --as-adapter")]
pub(crate) struct Arguments {
    /// Name of a Complete Model, or of a Customized Model
    model: String,

    /// Name of the Deployment Environment
    #[arg(long = "env", value_name = "NAME")]
    environment: String,

    /// no_quantization, q8_0, q4_K_M or q4_K_S
    #[arg(long, value_name = "Q")]
    quantization: Quantization,

    /// Who quantizes: tenon, so that only the quantized bytes are sent, or the server
    #[arg(long, value_name = "WHO", default_value = "tenon", value_parser = ["tenon", "server"])]
    quantize_on: String,

    /// Name of the model there [default: its own, with the quantization]
    #[arg(long = "as", value_name = "MODEL_NAME")]
    name: Option<String>,

    /// Replace a model there that has the name already
    #[arg(long)]
    replace: bool,

    /// Send the adapter of a Customized Model, for the server to apply it to the base (ollama, vllm)
    #[arg(long)]
    as_adapter: bool,

    /// Return at once; tenon jobs shows how far it is
    #[arg(long, conflicts_with = "dry_run")]
    detach: bool,

    /// Print what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: Arguments, home: &HomeArgument) -> Result<(), Failure> {
    let tenon = home.open()?;
    let request = DeploymentRequest {
        model: arguments.model,
        environment: arguments.environment,
        quantization: arguments.quantization,
        quantize_on: if arguments.quantize_on == "server" { QuantizeOn::Server } else { QuantizeOn::Tenon },
        name: arguments.name,
        replace: arguments.replace,
        as_adapter: arguments.as_adapter,
    };
    let plan = tenon.plan_deployment(&request)?;
    if arguments.dry_run {
        let out = &mut io::stdout().lock();
        return if arguments.json { Ok(output::json(out, &plan)?) } else { Ok(show_plan(out, &plan)?) };
    }
    let queued = tenon.queue_deployment(&request)?;
    for note in &plan.notes {
        let _ = writeln!(io::stderr(), "note: {}", printable(note));
    }
    follow(&tenon, home, queued, arguments.detach, arguments.json)
}

/// Leaves a deployment to a worker, or works on it and tells what came of it.
pub(crate) fn follow(
    tenon: &Tenon,
    home: &HomeArgument,
    queued: QueuedDeployment,
    detach: bool,
    json: bool,
) -> Result<(), Failure> {
    let deployment = queued.deployment.clone();
    let shown =
        format!("{} will be {} on {}", deployment.subject(), deployment.model, deployment.environment);
    let _ = writeln!(io::stderr(), "{}", printable(&shown));
    let out = &mut io::stdout().lock();
    if detach {
        // The worker takes the deployment over from this process.
        drop(queued);
        home.start_worker_for_deployment(deployment.id)?;
        if json {
            return Ok(output::json(out, &deployment_json(&deployment))?);
        }
        writeln!(out, "Deployment {} is queued.", deployment.id)?;
        return Ok(writeln!(out, "\nNext: tenon jobs --watch")?);
    }
    if crate::home::was_interrupted(tenon) {
        home.start_worker(None)?;
    }
    let live = work_on(tenon, queued)?;
    let ended = tenon.deployment(deployment.id)?;
    if json {
        let mut object = serde_json::to_value(&live).map_err(io::Error::other)?;
        object["sent_bytes"] = ended.sent_bytes.into();
        object["state"] = ended.state.name().into();
        return Ok(output::json(out, &object)?);
    }
    Ok(summary(out, &live, ended.sent_bytes)?)
}

pub(crate) fn work_on(tenon: &Tenon, queued: QueuedDeployment) -> Result<LiveModel, Failure> {
    let bar = Progress::over(0, "waiting");
    Ok(tenon.run_deployment(queued, &Shown { bar })?)
}

/// A bar for each state.
struct Shown {
    bar: Progress,
}

impl DeploymentObserver for Shown {
    fn entered(&self, deployment: &Deployment) {
        self.bar.restart(deployment.course.total_bytes, deployment.state.name());
    }

    fn advanced(&self, bytes: u64) {
        tenon::Observer::advanced(&self.bar, bytes);
    }

    fn said(&self, line: &str) {
        self.bar.say(&printable(line));
    }

    fn cancelled(&self) -> bool {
        is_cancelled()
    }
}

fn show_plan(out: &mut dyn Write, plan: &DeploymentPlan) -> io::Result<()> {
    let model = plan.complete.as_ref().unwrap_or(&plan.customized);
    let who = match (plan.quantization, plan.quantize_on) {
        (Quantization::None, _) => "",
        (_, QuantizeOn::Tenon) => ", made by Tenon",
        (_, QuantizeOn::Server) => ", made by the server",
    };
    let mut lines = vec![
        ("model", model.to_string()),
        ("environment", format!("{} ({} at {})", plan.environment, plan.kind, plan.url)),
        ("name there", plan.model.clone()),
        ("quantization", format!("{}{who}", plan.quantization)),
        (
            "sends",
            match plan.bytes {
                Some(bytes) => format!("{}, {} at most", plan.sends, output::bytes(bytes)),
                None => plan.sends.into(),
            },
        ),
        ("template", plan.template.clone().unwrap_or_default()),
    ];
    lines.extend(plan.notes.iter().map(|note| ("note", note.clone())));
    facts(out, &lines)?;
    writeln!(out, "\nNothing was done.")
}

fn summary(out: &mut dyn Write, live: &LiveModel, sent: u64) -> io::Result<()> {
    writeln!(out, "{} is live.\n", printable(&live.model))?;
    facts(
        out,
        &[
            ("  environment", format!("{} ({} at {})", live.environment, live.kind, live.url)),
            ("  model", format!("{}, {}", super::live::subject(live), live.quantization)),
            ("  digest", live.digest.clone().unwrap_or_default()),
            ("  sent", format!("{} of {}", output::bytes(sent), output::bytes(live.bytes))),
        ],
    )?;
    writeln!(out, "\nNext: tenon live check {}", live.name())
}

/// A deployment as JSON.
pub(crate) fn deployment_json(deployment: &Deployment) -> serde_json::Value {
    let mut object = serde_json::to_value(deployment).unwrap_or_else(|_| json!({}));
    object["share"] = json!(deployment.course.share());
    object
}
