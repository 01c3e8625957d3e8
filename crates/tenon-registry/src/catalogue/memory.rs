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
}

impl MemoryCatalogue {
    fn lock(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
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
}

impl Changing for Copied {
    fn insert(&self, kind: Kind, row: Row) -> Result<(), Error> {
        let mut rows = self.0.lock();
        let key = (kind, row.key.to_lowercase());
        if rows.contains_key(&key) {
            return Err(Error::Taken { what: kind.noun(), name: row.key });
        }
        rows.insert(key, row);
        Ok(())
    }

    fn replace(&self, kind: Kind, row: Row) -> Result<bool, Error> {
        let mut rows = self.0.lock();
        let there = rows.get_mut(&(kind, row.key.to_lowercase()));
        let found = there.is_some();
        if let Some(there) = there {
            *there = row;
        }
        Ok(found)
    }

    fn remove(&self, kind: Kind, key: &str) -> Result<bool, Error> {
        Ok(self.0.lock().remove(&(kind, key.to_lowercase())).is_some())
    }
}

impl Catalogue for MemoryCatalogue {
    fn transaction(&self, change: Change<'_>) -> Result<(), Error> {
        let mut rows = self.lock();
        let copied = Copied(MemoryCatalogue { rows: Mutex::new(rows.clone()) });
        change(&copied)?;
        *rows = copied.0.lock().clone();
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
