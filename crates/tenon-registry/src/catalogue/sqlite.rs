//! The catalogue in one SQLite file, shared by any number of processes.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension, TransactionBehavior, params};

use super::{Catalogue, Change, Changing, Kind, Reading, Row, Which};
use crate::Error;

/// A catalogue in a file.
pub struct SqliteCatalogue {
    path: PathBuf,
    connection: Mutex<Connection>,
}

/// How long to wait for another process's transaction. They take milliseconds.
const BUSY: Duration = Duration::from_secs(60);

/// What brings a catalogue from each schema to the next; its number is in `user_version`.
const MIGRATIONS: [&str; 4] = [
    "
    CREATE TABLE base_models (name TEXT PRIMARY KEY COLLATE NOCASE, created TEXT NOT NULL, open INTEGER NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE customized_models (name TEXT PRIMARY KEY COLLATE NOCASE, created TEXT NOT NULL, open INTEGER NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE complete_models (name TEXT PRIMARY KEY COLLATE NOCASE, created TEXT NOT NULL, open INTEGER NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE savings (name TEXT PRIMARY KEY COLLATE NOCASE, created TEXT NOT NULL, open INTEGER NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE deployment_environments (name TEXT PRIMARY KEY COLLATE NOCASE, created TEXT NOT NULL, open INTEGER NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE live_models (name TEXT PRIMARY KEY COLLATE NOCASE, created TEXT NOT NULL, open INTEGER NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE INDEX open_savings ON savings (open) WHERE open;
",
    "
    CREATE TABLE deployments (name TEXT PRIMARY KEY COLLATE NOCASE, created TEXT NOT NULL, open INTEGER NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE INDEX open_deployments ON deployments (open) WHERE open;
",
    "CREATE TABLE revisions (kind TEXT PRIMARY KEY, revision INTEGER NOT NULL) WITHOUT ROWID;",
    "
    CREATE TABLE tasks (name TEXT PRIMARY KEY COLLATE NOCASE, created TEXT NOT NULL, open INTEGER NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE INDEX open_tasks ON tasks (open) WHERE open;
",
];

fn table(kind: Kind) -> &'static str {
    match kind {
        Kind::BaseModel => "base_models",
        Kind::CustomizedModel => "customized_models",
        Kind::CompleteModel => "complete_models",
        Kind::Saving => "savings",
        Kind::DeploymentEnvironment => "deployment_environments",
        Kind::Deployment => "deployments",
        Kind::LiveModel => "live_models",
        Kind::Task => "tasks",
    }
}

impl SqliteCatalogue {
    /// Opens or makes the catalogue, and brings an older one up to date. Also tells whether it was made.
    pub fn open(path: &Path) -> Result<(Self, bool), Error> {
        let error = |source| Error::Catalogue { path: path.to_path_buf(), source };
        let mut connection = Connection::open(path).map_err(error)?;
        connection.busy_timeout(BUSY).map_err(error)?;
        let known = MIGRATIONS.len() as u32;
        let version = |connection: &Connection| -> rusqlite::Result<u32> {
            connection.query_row("PRAGMA user_version", [], |row| row.get(0))
        };
        let mut found = version(&connection).map_err(error)?;
        let made = found == 0;
        if found < known {
            // Larger pages than usual: lists read whole tables.
            connection.pragma_update(None, "page_size", 16384).map_err(error)?;
            // Changing to WAL asks for the file alone; others may be at the same.
            retry_busy(|| connection.pragma_update(None, "journal_mode", "WAL")).map_err(error)?;
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(error)?;
            // Another process may have been first.
            found = version(&transaction).map_err(error)?;
            if found < known {
                for migration in &MIGRATIONS[found as usize..] {
                    transaction.execute_batch(migration).map_err(error)?;
                }
                transaction.pragma_update(None, "user_version", known).map_err(error)?;
                found = known;
            }
            transaction.commit().map_err(error)?;
        }
        if found > known {
            return Err(Error::NewerCatalogue { path: path.into(), found, known });
        }
        connection.pragma_update(None, "synchronous", "FULL").map_err(error)?;
        Ok((Self { path: path.into(), connection: Mutex::new(connection) }, made))
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, source: rusqlite::Error) -> Error {
        Error::Catalogue { path: self.path.clone(), source }
    }
}

fn retry_busy(mut run: impl FnMut() -> rusqlite::Result<()>) -> rusqlite::Result<()> {
    for _ in 0..500 {
        match run() {
            Err(e) if e.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other,
        }
    }
    run()
}

fn get(connection: &Connection, kind: Kind, key: &str) -> rusqlite::Result<Option<String>> {
    let sql = format!("SELECT body FROM {} WHERE name = ?1", table(kind));
    connection.prepare(&sql)?.query_row([key], |row| row.get(0)).optional()
}

fn list(connection: &Connection, kind: Kind, which: Which) -> rusqlite::Result<Vec<String>> {
    let only = if which == Which::Open { "WHERE open" } else { "" };
    let sql = format!("SELECT created, body FROM {} {only} ORDER BY name", table(kind));
    let mut statement = connection.prepare(&sql)?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let mut rows: Vec<(String, String)> = rows.collect::<Result<_, _>>()?;
    // Here and not in SQL: SQLite sorts thousands of bodies through a file. Rows come by name, in
    // any case, and the sort keeps them so where times are the same.
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(rows.into_iter().map(|(_, body)| body).collect())
}

fn revision(connection: &Connection, kind: Kind) -> rusqlite::Result<u64> {
    let mut statement = connection.prepare("SELECT revision FROM revisions WHERE kind = ?1")?;
    let revision = statement.query_row([table(kind)], |row| row.get::<_, i64>(0)).optional()?;
    Ok(revision.unwrap_or_default().cast_unsigned())
}

/// Sorts as time does: RFC 3339 with a fixed number of digits.
fn sortable(row: &Row) -> String {
    format!("{:.9}", row.created)
}

impl Reading for SqliteCatalogue {
    fn get(&self, kind: Kind, key: &str) -> Result<Option<String>, Error> {
        get(&self.lock(), kind, key).map_err(|e| self.error(e))
    }

    fn list(&self, kind: Kind, which: Which) -> Result<Vec<String>, Error> {
        list(&self.lock(), kind, which).map_err(|e| self.error(e))
    }

    fn revision(&self, kind: Kind) -> Result<u64, Error> {
        revision(&self.lock(), kind).map_err(|e| self.error(e))
    }
}

struct Transaction<'a> {
    catalogue: &'a SqliteCatalogue,
    connection: &'a Connection,
}

impl Reading for Transaction<'_> {
    fn get(&self, kind: Kind, key: &str) -> Result<Option<String>, Error> {
        get(self.connection, kind, key).map_err(|e| self.catalogue.error(e))
    }

    fn list(&self, kind: Kind, which: Which) -> Result<Vec<String>, Error> {
        list(self.connection, kind, which).map_err(|e| self.catalogue.error(e))
    }

    fn revision(&self, kind: Kind) -> Result<u64, Error> {
        revision(self.connection, kind).map_err(|e| self.catalogue.error(e))
    }
}

impl Transaction<'_> {
    /// Runs a change of records of a kind and counts it; tells how many it changed.
    fn change(&self, kind: Kind, sql: &str, params: impl rusqlite::Params) -> rusqlite::Result<usize> {
        let changed = self.connection.execute(sql, params)?;
        if changed > 0 {
            self.connection.execute(
                "INSERT INTO revisions VALUES (?1, 1) ON CONFLICT DO UPDATE SET revision = revision + 1",
                [table(kind)],
            )?;
        }
        Ok(changed)
    }
}

impl Changing for Transaction<'_> {
    fn insert(&self, kind: Kind, row: Row) -> Result<(), Error> {
        let sql = format!("INSERT INTO {} (name, created, open, body) VALUES (?1, ?2, ?3, ?4)", table(kind));
        match self.change(kind, &sql, params![row.key, sortable(&row), row.open, row.body]) {
            Ok(_) => Ok(()),
            Err(e) if e.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                Err(Error::Taken { what: kind.noun(), name: row.key })
            }
            Err(e) => Err(self.catalogue.error(e)),
        }
    }

    fn replace(&self, kind: Kind, row: Row) -> Result<bool, Error> {
        let sql = format!(
            "UPDATE {} SET name = ?1, created = ?2, open = ?3, body = ?4 WHERE name = ?1",
            table(kind)
        );
        let changed = self.change(kind, &sql, params![row.key, sortable(&row), row.open, row.body]);
        Ok(changed.map_err(|e| self.catalogue.error(e))? > 0)
    }

    fn remove(&self, kind: Kind, key: &str) -> Result<bool, Error> {
        let sql = format!("DELETE FROM {} WHERE name = ?1", table(kind));
        Ok(self.change(kind, &sql, [key]).map_err(|e| self.catalogue.error(e))? > 0)
    }
}

impl Catalogue for SqliteCatalogue {
    fn transaction(&self, change: Change<'_>) -> Result<(), Error> {
        let mut connection = self.lock();
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(|e| self.error(e))?;
        // Dropped without a commit, it is rolled back.
        change(&Transaction { catalogue: self, connection: &transaction })?;
        tenon_checkpoint::fault::point("commit").map_err(Error::io("write", &self.path))?;
        transaction.commit().map_err(|e| self.error(e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conforms() {
        let home = tempfile::tempdir().unwrap();
        let (catalogue, made) = SqliteCatalogue::open(&home.path().join("catalogue.db")).unwrap();
        assert!(made);
        super::super::conformance(&catalogue);
    }

    #[test]
    fn opened_again_it_has_what_was_there_and_a_newer_one_is_left_alone() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("catalogue.db");
        super::super::conformance(&SqliteCatalogue::open(&path).unwrap().0);
        let (catalogue, made) = SqliteCatalogue::open(&path).unwrap();
        assert!(!made);
        assert_eq!(catalogue.list(Kind::CompleteModel, Which::All).unwrap().len(), 2);
        catalogue.lock().pragma_update(None, "user_version", 99).unwrap();
        assert!(matches!(SqliteCatalogue::open(&path), Err(Error::NewerCatalogue { found: 99, .. })));
        std::fs::write(home.path().join("garbage.db"), "not a database, and long enough to be seen as none")
            .unwrap();
        assert!(matches!(
            SqliteCatalogue::open(&home.path().join("garbage.db")),
            Err(Error::Catalogue { .. })
        ));
    }
}
