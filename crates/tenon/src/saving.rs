//! The verb `save`: a Customized Model becomes a Complete Model, as a job that survives its caller.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tenon_card::Card;
use tenon_checkpoint::{
    Digest, Error as CheckpointError, Observer, StagingDir, WrittenFile, hash_file, read_text,
};
use tenon_merge::{FULL_DELTA, TensorMeasure};
use tenon_registry::{
    BaseModel, CompleteModel, CustomizedFacts, CustomizedModel, JobState, KnownFile, Manifest, OutputFile,
    Saving, SavingFacts, Timestamp, Uuid, Workplace,
};

use crate::heart::Heart;
use crate::home::known_digests;
use crate::joblog::LogStep;
use crate::{Error, Merge, Plan, Tenon, facts};

/// A Saving in the queue that this process will work on. Dropped, it stays queued for another.
#[derive(Debug)]
pub struct QueuedSaving {
    /// Its record when it was queued.
    pub saving: Saving,
    workplace: Workplace,
}

/// What a Saving left.
#[derive(Debug, Clone)]
pub struct Saved {
    /// The Complete Model.
    pub model: CompleteModel,
    /// What is in it: also there as `tenon.json`.
    pub manifest: Manifest,
    /// Shards that an earlier, interrupted attempt had finished.
    pub resumed_shards: usize,
    /// The method, such as `LoRA`.
    pub method: String,
}

/// How often a Saving that waits asks for its turn.
const TURN: Duration = Duration::from_millis(150);

impl Tenon {
    /// Queues a Saving of a Customized Model, which must fit its base and the disk.
    pub fn queue(&self, customized: &str) -> Result<QueuedSaving, Error> {
        let customized: CustomizedModel = self.registry.get(customized)?;
        let base: BaseModel = self.registry.get(customized.base.as_str())?;
        // Mistakes show before there is a job.
        let plan = self.plan_saving(&base, &customized)?;
        if plan.available_bytes() < plan.output_bytes() {
            return Err(CheckpointError::DiskFull {
                path: self.registry.home().root().into(),
                needed: plan.output_bytes(),
                available: plan.available_bytes(),
            }
            .into());
        }
        let (saving, workplace) = self.registry.queue_saving(&customized.name)?;
        Ok(QueuedSaving { saving, workplace })
    }

    /// Takes up a Saving that is queued and that no process holds: the one with this id, or the oldest.
    pub fn adopt(&self, id: Option<Uuid>) -> Result<Option<QueuedSaving>, Error> {
        let workplace = match id {
            Some(id) => self.registry.adopt(id)?,
            None => self.registry.adopt_next()?,
        };
        let Some(workplace) = workplace else { return Ok(None) };
        let saving = self.registry.get(&workplace.id().to_string())?;
        Ok(Some(QueuedSaving { saving, workplace }))
    }

    /// Bytes that the observer of [`run_saving`](Self::run_saving) will be told of.
    pub fn saving_bytes(&self, queued: &QueuedSaving) -> Result<u64, Error> {
        let (base, customized) = self.inputs(&queued.saving)?;
        Ok(self.plan_saving(&base, &customized)?.work_bytes())
    }

    /// Waits for the Saving's turn, merges, and publishes. If this fails or is cancelled, nothing is
    /// left but the Saving's record, which tells why.
    pub fn run_saving(&self, queued: QueuedSaving, observer: &dyn Observer) -> Result<Saved, Error> {
        let QueuedSaving { saving, workplace } = queued;
        match self.work_on(&saving, &workplace, observer) {
            Ok((manifest, resumed_shards, method)) => {
                let model = CompleteModel::of(&manifest).expect("the manifest of a Saving");
                match self.registry.publish(&workplace, &model) {
                    Ok(()) => Ok(Saved { model, manifest, resumed_shards, method }),
                    Err(error) => Err(self.give_up(workplace, error.into())),
                }
            }
            Err(error) => Err(self.give_up(workplace, error)),
        }
    }

    fn give_up(&self, workplace: Workplace, error: Error) -> Error {
        let id = workplace.id();
        if error.is_cancelled()
            && self.suspended.load(Ordering::Acquire)
            && !self.registry.is_cancelled::<Saving>(id).unwrap_or(false)
        {
            self.note(id, LogStep::Interrupted, "");
            // Whatever becomes of the record, the lock goes and the next process takes it up.
            let _ = self.registry.put_back(workplace);
            return error;
        }
        let (state, reason) = if error.is_cancelled() {
            (JobState::Cancelled, None)
        } else {
            (JobState::Failed, Some(error.to_string()))
        };
        match self.registry.give_up(workplace, state, reason.as_deref()) {
            Ok(()) => error,
            // The first error is the one to tell; the Saving's lock is free, so the next process sweeps it.
            Err(second) => Error::NotSwept { id, error: Box::new(error), second: Box::new(second.into()) },
        }
    }

    fn inputs(&self, saving: &Saving) -> Result<(BaseModel, CustomizedModel), Error> {
        let customized: CustomizedModel = self.registry.get(saving.customized.as_str())?;
        Ok((self.registry.get(customized.base.as_str())?, customized))
    }

    fn plan_saving(&self, base: &BaseModel, customized: &CustomizedModel) -> Result<Plan, Error> {
        let known = known_digests(&base.files).chain(known_digests(&customized.files)).collect();
        Merge::new(&base.path, &customized.path, self.registry.home().root())
            .delta(customized.peft_type == FULL_DELTA)
            .known_digests(known)
            .max_shard_size(self.max_shard_size)
            .measure(true)
            .plan_anywhere()
    }

    fn work_on(
        &self,
        saving: &Saving,
        workplace: &Workplace,
        observer: &dyn Observer,
    ) -> Result<(Manifest, usize, String), Error> {
        let (base, customized) = self.inputs(saving)?;
        let plan = self.plan_saving(&base, &customized)?;
        self.wait_for_turn(workplace, &plan, observer)?;
        let (started, clock) = (Timestamp::now(), Instant::now());
        let dir = workplace.model();
        let (journal, finished) = Journal::open(&workplace.journal(), &dir, &plan)?;
        let attempts = self.registry.get::<Saving>(&saving.id.to_string())?.course.attempts;
        self.note(saving.id, LogStep::Started, format!("attempt {attempts}"));
        if !finished.is_empty() {
            self.note(saving.id, LogStep::Resumed, format!("{} shards kept", finished.len()));
        }
        // What was finished before counts as done.
        let before: u64 = finished.iter().map(|(shard, _)| shard.len).sum();
        observer.advanced(before);
        let watch = Watch {
            tenon: self,
            id: saving.id,
            observer,
            plan: &plan,
            journal: Mutex::new(journal),
            heart: Heart::new(self, before),
        };
        let shards: Vec<_> = finished.iter().map(|(shard, _)| shard.clone()).collect();
        let note =
            |done| self.registry.note(saving.id, &mut |saving: &mut Saving| saving.course.done_bytes = done);
        let mut manifest = watch.heart.beat(note, || plan.write_into(&dir, &shards, &watch))?;
        self.check_inputs(&base.files, &manifest.base.files, base.name.as_str(), &base.path)?;
        self.check_inputs(
            &customized.files,
            &manifest.adapter.files,
            customized.name.as_str(),
            &customized.path,
        )?;
        let summary = facts::summary(
            plan.config(),
            tenon_checkpoint::TensorSource::tensors(plan.source()),
            plan.shards().map(|(_, bytes)| bytes).sum(),
        );
        let facts = SavingFacts {
            id: saving.id,
            name: saving.model.clone(),
            customized: CustomizedFacts {
                name: customized.name.clone(),
                train_name: customized.train_name.clone(),
                training_id: customized.training_id,
                created: customized.created,
            },
            base: base.name.clone(),
            started,
            finished: Timestamp::now(),
            seconds: clock.elapsed().as_secs_f64(),
            model: summary,
        };
        let mut measures: Vec<TensorMeasure> =
            finished.into_iter().flat_map(|(_, measures)| measures).collect();
        measures.extend(plan.measures());
        let card = facts::card(&plan, &manifest, &facts, &measures);
        manifest.saving = Some(facts);
        let texts = [
            (Card::MARKDOWN_FILE, Some(card.markdown())),
            (Card::JSON_FILE, Some(card.json())),
            (Card::CHART_FILE, card.chart()),
        ];
        for (name, text) in texts {
            let Some(text) = text else { continue };
            StagingDir::write_file_in(&dir, name, text.as_bytes())?;
            let (bytes, sha256) = (text.len() as u64, Digest::of(text.as_bytes()));
            manifest.outputs.push(OutputFile { name: name.into(), bytes, sha256 });
        }
        manifest.outputs.sort_by(|a, b| a.name.cmp(&b.name));
        StagingDir::write_file_in(&dir, Manifest::FILE, manifest.to_text().as_bytes())?;
        if observer.cancelled() || self.registry.is_cancelled::<Saving>(saving.id)? {
            return Err(CheckpointError::Cancelled.into());
        }
        self.remember(&base, &plan, &manifest)?;
        Ok((manifest, shards.len(), plan.method()))
    }

    fn wait_for_turn(
        &self,
        workplace: &Workplace,
        plan: &Plan,
        observer: &dyn Observer,
    ) -> Result<(), Error> {
        let mut asked = 0u32;
        while self.registry.start(workplace, plan.output_bytes(), plan.work_bytes())?.is_none() {
            if observer.cancelled() || self.suspended.load(Ordering::Acquire) {
                return Err(CheckpointError::Cancelled.into());
            }
            std::thread::sleep(TURN);
            asked += 1;
            // Those ahead may have died.
            if asked.is_multiple_of(20) {
                self.recover()?;
            }
        }
        Ok(())
    }

    /// Fails when an input is not what was registered: another model would come out under this name.
    fn check_inputs(
        &self,
        registered: &[KnownFile],
        read: &[tenon_registry::InputFile],
        name: &str,
        dir: &Path,
    ) -> Result<(), Error> {
        for file in read {
            let then = registered.iter().find(|known| known.name == file.name).and_then(|known| known.sha256);
            if let Some(expected) = then.filter(|then| *then != file.sha256) {
                return Err(Error::InputChanged {
                    name: name.into(),
                    file: dir.join(&file.name),
                    expected,
                    found: file.sha256,
                });
            }
        }
        Ok(())
    }

    /// Keeps the digests of the base's files, so that they need not be hashed the next time.
    fn remember(&self, base: &BaseModel, plan: &Plan, manifest: &Manifest) -> Result<(), Error> {
        let mut files = base.files.clone();
        for file in plan.input_files() {
            let name = file.path().file_name().unwrap_or_default().to_string_lossy();
            let digest = manifest.base.files.iter().find(|read| read.name == name).map(|read| read.sha256);
            if let Some(known) = files.iter_mut().find(|known| known.name == name)
                && digest.is_some()
            {
                (known.stamp, known.sha256) = (Some(file.stamp()), digest);
            }
        }
        if files != base.files {
            self.registry.update_base(&base.name, &mut |base| base.files = files.clone())?;
        }
        Ok(())
    }
}

/// Passes progress on to the caller, the journal and the catalogue.
struct Watch<'a> {
    tenon: &'a Tenon,
    id: Uuid,
    observer: &'a dyn Observer,
    plan: &'a Plan,
    journal: Mutex<Journal>,
    heart: Heart<'a>,
}

impl Observer for Watch<'_> {
    fn advanced(&self, bytes: u64) {
        self.heart.advanced(bytes);
        self.observer.advanced(bytes);
    }

    fn cancelled(&self) -> bool {
        self.heart.is_stopped() || self.observer.cancelled()
    }

    fn shard_finished(&self, shard: &WrittenFile) {
        let measures = self.plan.measures_of(&shard.name);
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        // Without the line, a later attempt writes the shard again: no harm.
        let _ = journal.add(&Line::Shard { shard: shard.clone(), measures });
        self.tenon.note(self.id, LogStep::Shard, format!("{}, {} bytes", shard.name, shard.len));
        self.observer.shard_finished(shard);
    }
}

/// Notes in the staging directory on what is finished, a line each, synced.
struct Journal {
    file: std::fs::File,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    /// What the notes are about: the same inputs, parameters and version make the same shards.
    Plan(Digest),
    /// A shard that is whole and synced, and what was measured of its tensors.
    Shard { shard: WrittenFile, measures: Vec<TensorMeasure> },
}

type FinishedShard = (WrittenFile, Vec<TensorMeasure>);

impl Journal {
    /// Opens the notes of an earlier attempt at the same plan, keeping the shards that still are what
    /// the notes say and removing all else; or begins new ones.
    fn open(path: &Path, dir: &Path, plan: &Plan) -> Result<(Self, Vec<FinishedShard>), Error> {
        let finished = Self::finished(path, dir, plan)?;
        if dir.exists() {
            for entry in std::fs::read_dir(dir).map_err(CheckpointError::io("list", dir))? {
                let path = entry.map_err(CheckpointError::io("list", dir))?.path();
                let keep = path
                    .file_name()
                    .is_some_and(|name| finished.iter().any(|(shard, _)| *shard.name == *name));
                if !keep {
                    std::fs::remove_file(&path).map_err(CheckpointError::io("remove", &path))?;
                }
            }
        } else {
            std::fs::create_dir(dir).map_err(CheckpointError::io("create directory", dir))?;
        }
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).open(path);
        let mut journal = Self { file: file.map_err(CheckpointError::io("write", path))? };
        let begin = |journal: &mut Self| {
            journal.add(&Line::Plan(fingerprint(plan)))?;
            for (shard, measures) in &finished {
                journal.add(&Line::Shard { shard: shard.clone(), measures: measures.clone() })?;
            }
            Ok(())
        };
        begin(&mut journal).map_err(CheckpointError::io("write", path))?;
        Ok((journal, finished))
    }

    fn add(&mut self, line: &Line) -> std::io::Result<()> {
        tenon_checkpoint::fault::point("journal")?;
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        self.file.write_all(text.as_bytes())?;
        self.file.sync_data()
    }

    /// The plan's first shards as far as an earlier attempt left them whole.
    fn finished(path: &Path, dir: &Path, plan: &Plan) -> Result<Vec<FinishedShard>, Error> {
        let Ok(text) = read_text(path) else { return Ok(vec![]) };
        // The last line may be cut short.
        let mut lines = text.lines().map_while(|line| serde_json::from_str::<Line>(line).ok());
        if !matches!(lines.next(), Some(Line::Plan(digest)) if digest == fingerprint(plan)) {
            return Ok(vec![]);
        }
        let mut finished = vec![];
        for (line, expected) in lines.zip(&plan.layout().shards) {
            let Line::Shard { shard, measures } = line else { break };
            let path = dir.join(&expected.name);
            let Ok(file) = std::fs::File::open(&path) else { break };
            // Trusted as little as any file: it is read through.
            if shard.name != expected.name || hash_file(&file, &path, &())? != shard.digest {
                break;
            }
            finished.push((shard, measures));
        }
        Ok(finished)
    }
}

/// Of everything that decides about the bytes of the shards.
fn fingerprint(plan: &Plan) -> Digest {
    let inputs: Vec<_> = plan.input_files().map(|file| (file.path(), file.stamp())).collect();
    let shards: Vec<_> = plan
        .layout()
        .shards
        .iter()
        .map(|shard| (&shard.name, shard.len, Digest::of(&shard.header)))
        .collect();
    let all = serde_json::json!({
        "tenon": crate::VERSION, "inputs": inputs, "shards": shards,
        "config": plan.config(), "adapter": plan.adapter_config(),
    });
    Digest::of(all.to_string().as_bytes())
}
