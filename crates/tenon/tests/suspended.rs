//! A process that has to stop puts its jobs back; the next one goes on where it was.

use std::path::Path;

use tenon::{
    Deployment, DeploymentObserver, DeploymentRequest, DeploymentState, Environment, EnvironmentKind,
    GgufOptions, GgufSource, JobState, LogStep, Observer, Quantization, QuantizeOn, Saving, Task,
    TaskRequest, Tenon,
};
use tenon_standin::{Act, StandIn};

/// Suspends the home when a shard is finished.
struct Suspending<'a>(&'a Tenon);

impl Observer for Suspending<'_> {
    fn advanced(&self, _bytes: u64) {}

    fn shard_finished(&self, _shard: &tenon::WrittenFile) {
        self.0.suspend();
    }
}

#[test]
fn a_suspended_saving_is_queued_again_and_keeps_its_shards() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/kjv-llama");
    let home = tempfile::tempdir().unwrap();
    let open = || Tenon::open(home.path()).unwrap().max_shard_size(400_000);
    let tenon = open();
    let (base, _) = tenon.base_at(&fixtures.join("base")).unwrap();
    let (customized, _) = tenon.customized_at(&fixtures.join("adapter-lora"), &base).unwrap();
    let queued = tenon.queue(customized.name.as_str()).unwrap();
    let id = queued.saving.id;
    let error = tenon.run_saving(queued, &Suspending(&tenon)).unwrap_err();
    assert!(error.is_cancelled(), "{error}");
    let saving: Saving = tenon.registry().get(&id.to_string()).unwrap();
    assert_eq!((saving.state, saving.course.attempts, saving.course.pid), (JobState::Queued, 0, None));
    drop(tenon);

    let tenon = open();
    assert!(tenon.recovered().is_empty(), "{:?}", tenon.recovered());
    let queued = tenon.adopt(None).unwrap().expect("it waits in the queue");
    let saved = tenon.run_saving(queued, &()).unwrap();
    assert!(saved.resumed_shards > 0);
    assert!(tenon.verify(saved.model.name.as_str(), &()).unwrap().is_intact());
    // The log tells of both processes.
    let log = tenon.job_log(id).unwrap();
    let steps: Vec<_> = log.iter().map(|line| line.step).collect();
    let shards = steps.iter().filter(|step| **step == LogStep::Shard).count();
    assert_eq!(shards, saved.manifest.outputs.iter().filter(|f| f.name.ends_with(".safetensors")).count());
    let others: Vec<_> = steps.into_iter().filter(|step| *step != LogStep::Shard).collect();
    use LogStep::{Done, Interrupted, Queued, Resumed, Started};
    assert_eq!(others, [Queued, Started, Interrupted, Started, Resumed, Done]);
}

#[test]
fn one_that_was_cancelled_stays_so_in_a_suspended_home() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/kjv-llama");
    let home = tempfile::tempdir().unwrap();
    let tenon = Tenon::open(home.path()).unwrap();
    let (base, _) = tenon.base_at(&fixtures.join("base")).unwrap();
    let (customized, _) = tenon.customized_at(&fixtures.join("adapter-lora"), &base).unwrap();
    let queued = tenon.queue(customized.name.as_str()).unwrap();
    let id = queued.saving.id;
    tenon.registry().cancel::<tenon::Saving>(id).unwrap();
    tenon.suspend();
    tenon.run_saving(queued, &()).unwrap_err();
    let saving: Saving = tenon.registry().get(&id.to_string()).unwrap();
    assert_eq!(saving.state, JobState::Cancelled);
}

/// Suspends the home when a deployment enters a state.
struct SuspendingIn<'a>(&'a Tenon, DeploymentState);

impl DeploymentObserver for SuspendingIn<'_> {
    fn entered(&self, deployment: &Deployment) {
        if deployment.state == self.1 {
            self.0.suspend();
        }
    }
}

#[test]
fn a_suspended_deployment_is_queued_again_in_whatever_state_it_was() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/kjv-llama");
    let home = tempfile::tempdir().unwrap();
    let server = StandIn::start().unwrap();
    let open = || Tenon::open(home.path()).unwrap();
    let tenon = open();
    let (base, _) = tenon.base_at(&fixtures.join("base")).unwrap();
    tenon.set_template_text(base.name.as_str(), "Modelfile".into(), "{{ .Prompt }}".into()).unwrap();
    let (customized, _) = tenon.customized_at(&fixtures.join("adapter-lora"), &base).unwrap();
    let saved = tenon.run_saving(tenon.queue(customized.name.as_str()).unwrap(), &()).unwrap();
    let environment = Environment::new(EnvironmentKind::Ollama, server.url());
    tenon.add_environment("workshop".parse().unwrap(), environment).unwrap();
    drop(tenon);
    // The server is silent where it is asked in that state; each time there is a file that it does not have.
    use DeploymentState::{Checking, Creating, Uploading, Verifying};
    for (on, state, quantization) in [
        ("GET /api/version", Checking, Quantization::Q8_0),
        ("POST /api/blobs", Uploading, Quantization::None),
        ("POST /api/create", Creating, Quantization::Q4KM),
        ("POST /api/generate", Verifying, Quantization::Q4KS),
    ] {
        server.rule(on, None, Act::Hang);
        let tenon = open();
        let request = DeploymentRequest {
            model: saved.model.name.to_string(),
            environment: "workshop".into(),
            quantization,
            quantize_on: QuantizeOn::Tenon,
            name: Some(format!("{state:?}").to_lowercase()),
            replace: false,
            as_adapter: false,
        };
        let queued = tenon.queue_deployment(&request).unwrap();
        let id = queued.deployment.id;
        let error = tenon.run_deployment(queued, &SuspendingIn(&tenon, state)).unwrap_err();
        assert!(error.is_cancelled(), "{state:?}: {error}");
        let put_back = tenon.deployment(id).unwrap();
        assert_eq!((put_back.state, put_back.course.attempts), (DeploymentState::Queued, 0), "{state:?}");
        assert_eq!((put_back.course.pid, put_back.course.finished), (None, None), "{state:?}");
        drop(tenon);
        server.behave();

        let tenon = open();
        assert!(tenon.recovered().is_empty(), "{state:?}: {:?}", tenon.recovered());
        let queued = tenon.adopt_deployment(None).unwrap().expect("it waits in the queue");
        let live = tenon.run_deployment(queued, &()).unwrap();
        assert_eq!(live.deployment, id, "{state:?}");
        let steps: Vec<_> = tenon.job_log(id).unwrap().into_iter().map(|line| line.step).collect();
        assert!(steps.contains(&LogStep::Interrupted) && steps.last() == Some(&LogStep::Done), "{steps:?}");
    }
}

#[test]
fn a_suspended_task_is_queued_again_and_leaves_nothing_half_done() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/kjv-llama");
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("results/whole.gguf");
    let request = TaskRequest::Gguf {
        model: GgufSource::Merged {
            base: fixtures.join("base"),
            adapters: vec![(fixtures.join("adapter-lora"), 1.0)],
            combination: None,
        },
        out: Some(out.clone()),
        quantization: Quantization::None,
        options: GgufOptions::default(),
        overwrite: false,
    };
    let tenon = Tenon::open(home.path()).unwrap();
    let queued = tenon.queue_task(&request).unwrap();
    let id = queued.task.id;
    tenon.suspend();
    assert!(tenon.run_task(queued, &()).unwrap_err().is_cancelled());
    let task: Task = tenon.registry().get(&id.to_string()).unwrap();
    assert_eq!((task.state, task.course.attempts), (JobState::Queued, 0));
    assert!(!out.exists());
    drop(tenon);

    let tenon = Tenon::open(home.path()).unwrap();
    let result = tenon.run_task(tenon.adopt_task().unwrap().expect("it waits"), &()).unwrap();
    assert_eq!(result["path"], out.to_str().unwrap());
    assert_eq!(result["bytes"], out.metadata().unwrap().len());
    // What is there already is a mistake that shows before there is a job.
    assert!(tenon.queue_task(&request).is_err());
}
