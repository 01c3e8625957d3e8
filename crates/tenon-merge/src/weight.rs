//! The weight of an adapter: how much of what it adds is added.
//!
//! `W + w (W' - W)`, with `W'` the merged weight: for all methods whose update
//! is added, that is the update times `w`, as PEFT has it with its scale times
//! `w`. What an adapter multiplies or replaces has no such half.

use std::sync::Arc;

use crate::edit::{Edit, PreparedEdit, Tile, ValueRows};
use crate::method::delta::FULL_DELTA;
use crate::plan::Sorted;
use crate::{Adapter, Error, saved};

/// The methods that add an update.
const ADDING: [&str; 24] = [
    "LORA",
    "ADALORA",
    "LOHA",
    "LOKR",
    "MISS",
    "BONE",
    "SHIRA",
    "VERA",
    "PVERA",
    "RANDLORA",
    "VBLORA",
    "FOURIERFT",
    "WAVEFT",
    "C3A",
    "DELORA",
    "GRALORA",
    "HIRA",
    "UNILORA",
    "SUPERTUNING",
    "BEFT",
    "TINYLORA",
    "PEANUT",
    "ADAMSS",
    FULL_DELTA,
];

/// Fails unless an adapter can be merged with a weight.
pub(crate) fn check(adapter: &Adapter, weight: f64, sorted: &Sorted) -> Result<(), Error> {
    let cannot = |why: String| Err(Error::Weight { dir: adapter.dir().into(), weight, why });
    if !weight.is_finite() {
        return cannot("a weight is a number".into());
    }
    let config = adapter.config();
    let peft_type = config.peft_type()?;
    if !ADDING.contains(&peft_type) {
        return cannot(format!("{peft_type} does not add an update that could be scaled"));
    }
    if config.flag("use_dora")? {
        return cannot(
            "the magnitudes of DoRA take the place of the base's, and there is no part of that".into(),
        );
    }
    let mut trained = sorted.whole.iter().filter(|(_, name)| !saved::is_the_bases(config, name));
    if let Some((_, name)) = trained.next().or(sorted.tokens.first()) {
        return cannot(format!("it holds {name} whole, which takes the place of the base's"));
    }
    Ok(())
}

/// What an edit adds, times a weight.
#[derive(Debug)]
pub(crate) struct Weighted {
    pub(crate) edit: Arc<dyn Edit>,
    pub(crate) weight: f64,
}

struct PreparedWeighted {
    edit: Box<dyn PreparedEdit>,
    weight: f64,
}

impl Edit for Weighted {
    fn needs_whole_rows(&self) -> bool {
        self.edit.needs_whole_rows()
    }

    fn held_bytes(&self) -> u64 {
        self.edit.held_bytes()
    }

    fn prepare(&self, adapter: &Adapter, before: &dyn ValueRows) -> Result<Box<dyn PreparedEdit>, Error> {
        let edit = self.edit.prepare(adapter, before)?;
        Ok(Box::new(PreparedWeighted { edit, weight: self.weight }))
    }
}

impl PreparedEdit for PreparedWeighted {
    fn apply(&self, tile: &mut Tile<'_>) {
        let before = tile.values.to_vec();
        self.edit.apply(tile);
        for (value, before) in tile.values.iter_mut().zip(before) {
            *value = before + self.weight * (*value - before);
        }
    }

    fn effective_rank(&self) -> Option<f64> {
        self.edit.effective_rank()
    }
}
