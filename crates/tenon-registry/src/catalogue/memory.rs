//! A catalogue that is gone with its process: for tests and trials.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Catalogue, Change, Changing, Kind, Reading, Row, Which};
use crate::Error;

type Rows = BTreeMap<(Kind, String), Row>;

/// A catalogue in memory.
#[derive(Debug, Default)]
pub struct MemoryCatalogue {
    rows: Mutex<Rows>,
    revisions: Mutex<BTreeMap<Kind, u64>>,
}

impl MemoryCatalogue {
    fn lock(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn revisions(&self) -> MutexGuard<'_, BTreeMap<Kind, u64>> {
        self.revisions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, kind: Kind) {
        *self.revisions().entry(kind).or_default() += 1;
    }
}

impl Reading for MemoryCatalogue {
    fn get(&self, kind: Kind, key: &str) -> Result<Option<String>, Error> {
        Ok(self.lock().get(&(kind, key.to_lowercase())).map(|row| row.body.clone()))
    }

    fn list(&self, kind: Kind, which: Which) -> Result<Vec<String>, Error> {
        let rows = self.lock();
        let mut rows: Vec<&Row> = rows
            .iter()
            .filter(|((of, _), row)| *of == kind && (which == Which::All || row.open))
            .map(|(_, row)| row)
            .collect();
        rows.sort_by_key(|row| (row.created, row.key.to_lowercase()));
        Ok(rows.into_iter().map(|row| row.body.clone()).collect())
    }

    fn revision(&self, kind: Kind) -> Result<u64, Error> {
        Ok(self.revisions().get(&kind).copied().unwrap_or_default())
    }
}

/// A copy that is changed and then takes the original's place.
struct Copied(MemoryCatalogue);

impl Reading for Copied {
    fn get(&self, kind: Kind, key: &str) -> Result<Option<String>, Error> {
        self.0.get(kind, key)
    }

    fn list(&self, kind: Kind, which: Which) -> Result<Vec<String>, Error> {
        self.0.list(kind, which)
    }

    fn revision(&self, kind: Kind) -> Result<u64, Error> {
        self.0.revision(kind)
    }
}

impl Changing for Copied {
    fn insert(&self, kind: Kind, row: Row) -> Result<(), Error> {
        let mut rows = self.0.lock();
        let key = (kind, row.key.to_lowercase());
        if rows.contains_key(&key) {
            return Err(Error::Taken { what: kind.noun(), name: row.key });
        }
        rows.insert(key, row);
        self.0.count(kind);
        Ok(())
    }

    fn replace(&self, kind: Kind, row: Row) -> Result<bool, Error> {
        let mut rows = self.0.lock();
        let there = rows.get_mut(&(kind, row.key.to_lowercase()));
        let found = there.is_some();
        if let Some(there) = there {
            *there = row;
            self.0.count(kind);
        }
        Ok(found)
    }

    fn remove(&self, kind: Kind, key: &str) -> Result<bool, Error> {
        let found = self.0.lock().remove(&(kind, key.to_lowercase())).is_some();
        if found {
            self.0.count(kind);
        }
        Ok(found)
    }
}

impl Catalogue for MemoryCatalogue {
    fn transaction(&self, change: Change<'_>) -> Result<(), Error> {
        let mut rows = self.lock();
        let revisions = Mutex::new(self.revisions().clone());
        let copied = Copied(MemoryCatalogue { rows: Mutex::new(rows.clone()), revisions });
        change(&copied)?;
        *rows = copied.0.lock().clone();
        *self.revisions() = copied.0.revisions().clone();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conforms() {
        super::super::conformance(&MemoryCatalogue::default());
    }
}
