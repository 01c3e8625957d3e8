//! A process that has to stop puts its Savings back; the next one goes on where it was.

use std::path::Path;

use tenon::{Observer, Saving, SavingState, Tenon};

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
    assert_eq!((saving.state, saving.attempts, saving.pid), (SavingState::Queued, 0, None));
    drop(tenon);

    let tenon = open();
    assert!(tenon.recovered().is_empty(), "{:?}", tenon.recovered());
    let queued = tenon.adopt(None).unwrap().expect("it waits in the queue");
    let saved = tenon.run_saving(queued, &()).unwrap();
    assert!(saved.resumed_shards > 0);
    assert!(tenon.verify(saved.model.name.as_str(), &()).unwrap().is_intact());
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
    tenon.registry().cancel(id).unwrap();
    tenon.suspend();
    tenon.run_saving(queued, &()).unwrap_err();
    let saving: Saving = tenon.registry().get(&id.to_string()).unwrap();
    assert_eq!(saving.state, SavingState::Cancelled);
}
