//! The catalogue: records by kind and name, changed in transactions.
//!
//! The trait is as narrow as can be, so that a server's database can take
//! SQLite's place: texts by kind and key, listed in the order of their making,
//! and transactions of which one at a time runs. [`conformance`] is what every
//! implementation must pass.

mod memory;
mod sqlite;

use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use memory::MemoryCatalogue;
pub use sqlite::SqliteCatalogue;

use crate::Error;

/// The kinds of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // the words of the design
pub enum Kind {
    BaseModel,
    CustomizedModel,
    CompleteModel,
    Saving,
    DeploymentEnvironment,
    Deployment,
    LiveModel,
    Task,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 8] = [
        Kind::BaseModel,
        Kind::CustomizedModel,
        Kind::CompleteModel,
        Kind::Saving,
        Kind::DeploymentEnvironment,
        Kind::Deployment,
        Kind::LiveModel,
        Kind::Task,
    ];

    /// As a person calls it.
    pub fn noun(self) -> &'static str {
        match self {
            Kind::BaseModel => "Base Model",
            Kind::CustomizedModel => "Customized Model",
            Kind::CompleteModel => "Complete Model",
            Kind::Saving => "Saving",
            Kind::DeploymentEnvironment => "Deployment Environment",
            Kind::Deployment => "deployment",
            Kind::LiveModel => "Live Model",
            Kind::Task => "task",
        }
    }
}

/// One record as the catalogue stores it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Unique within its kind, in whatever case it is written.
    pub key: String,
    /// When it was made; lists are in this order.
    pub created: Timestamp,
    /// Whether [`Which::Open`] lists it.
    pub open: bool,
    /// The record as JSON.
    pub body: String,
}

/// Which records to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// All.
    All,
    /// Those marked as open.
    Open,
}

/// Reading.
pub trait Reading {
    /// The record with a key.
    fn get(&self, kind: Kind, key: &str) -> Result<Option<String>, Error>;

    /// Bodies of all records of a kind, oldest first, then by key.
    fn list(&self, kind: Kind, which: Which) -> Result<Vec<String>, Error>;

    /// A number that is another after every change of a record of the kind, by whatever process: who
    /// keeps a list asks this, not for the list.
    fn revision(&self, kind: Kind) -> Result<u64, Error>;
}

/// Changing, within a transaction.
pub trait Changing: Reading {
    /// Adds a record. [`Error::Taken`] if the key is there.
    fn insert(&self, kind: Kind, row: Row) -> Result<(), Error>;

    /// Puts a record in the place of the one with its key. Whether there was one.
    fn replace(&self, kind: Kind, row: Row) -> Result<bool, Error>;

    /// Removes a record. Whether there was one.
    fn remove(&self, kind: Kind, key: &str) -> Result<bool, Error>;
}

/// What a transaction runs. An error undoes all its changes.
pub type Change<'a> = &'a mut dyn FnMut(&dyn Changing) -> Result<(), Error>;

/// A catalogue.
pub trait Catalogue: Reading + Send + Sync {
    /// Runs a change: all of it or nothing, durable when this returns, and no other transaction
    /// in any process meanwhile.
    fn transaction(&self, change: Change<'_>) -> Result<(), Error>;
}

/// A type that is kept in the catalogue.
pub trait Record: Serialize + DeserializeOwned {
    /// Its kind.
    const KIND: Kind;
    /// Its key.
    fn key(&self) -> String;
    /// When it was made.
    fn created(&self) -> Timestamp;
    /// Whether it is among the open ones.
    fn is_open(&self) -> bool {
        false
    }
}

fn row<R: Record>(record: &R) -> Row {
    let body = serde_json::to_string(record).expect("texts, numbers and lists always serialize");
    Row { key: record.key(), created: record.created(), open: record.is_open(), body }
}

fn parse<R: Record>(body: &str, key: &str) -> Result<R, Error> {
    serde_json::from_str(body).map_err(|source| Error::Record {
        what: R::KIND.noun(),
        name: key.to_string(),
        source,
    })
}

/// The record with a key, if it is there.
pub fn find<R: Record>(catalogue: &(impl Reading + ?Sized), key: &str) -> Result<Option<R>, Error> {
    catalogue.get(R::KIND, key)?.map(|body| parse(&body, key)).transpose()
}

/// All records of a type, oldest first.
pub fn all<R: Record>(catalogue: &(impl Reading + ?Sized), which: Which) -> Result<Vec<R>, Error> {
    catalogue.list(R::KIND, which)?.iter().map(|body| parse(body, "")).collect()
}

/// Adds a record.
pub fn insert<R: Record>(catalogue: &(impl Changing + ?Sized), record: &R) -> Result<(), Error> {
    catalogue.insert(R::KIND, row(record))
}

/// Puts a record in the place of the one with its key.
pub fn replace<R: Record>(catalogue: &(impl Changing + ?Sized), record: &R) -> Result<bool, Error> {
    catalogue.replace(R::KIND, row(record))
}

/// Checks that an empty catalogue does what the traits say. For tests of implementations.
///
/// # Panics
///
/// Where it does not.
#[allow(clippy::unwrap_used)] // a test
pub fn conformance(catalogue: &dyn Catalogue) {
    let kind = Kind::CompleteModel;
    let make = |key: &str, second: i64, open: bool| Row {
        key: key.into(),
        created: Timestamp::from_second(second).unwrap(),
        open,
        body: format!("{{\"key\":\"{key}\"}}"),
    };
    let body = |key: &str| make(key, 0, false).body;
    catalogue
        .transaction(&mut |change| {
            change.insert(kind, make("b", 2, true))?;
            change.insert(kind, make("a", 2, false))?;
            change.insert(kind, make("c", 1, false))?;
            assert_eq!(change.get(kind, "c")?, Some(body("c")), "a transaction sees its own changes");
            change.insert(Kind::BaseModel, make("a", 1, false))
        })
        .unwrap();
    assert_eq!(catalogue.list(kind, Which::All).unwrap(), [body("c"), body("a"), body("b")]);
    assert_eq!(catalogue.list(kind, Which::Open).unwrap(), [body("b")]);
    assert_eq!(catalogue.list(Kind::LiveModel, Which::All).unwrap(), [""; 0]);
    assert_eq!(catalogue.get(kind, "B").unwrap(), Some(body("b")), "case does not matter");
    let taken = catalogue.transaction(&mut |change| {
        change.remove(kind, "c")?;
        change.insert(kind, make("A", 3, false))
    });
    assert!(matches!(taken, Err(Error::Taken { .. })), "{taken:?}");
    assert_eq!(catalogue.get(kind, "c").unwrap(), Some(body("c")), "an error undoes what came before it");
    catalogue
        .transaction(&mut |change| {
            assert!(change.replace(kind, make("B", 9, false))?);
            assert!(!change.replace(kind, make("d", 9, false))?);
            assert!(change.remove(kind, "a")?);
            assert!(!change.remove(kind, "a")?);
            Ok(())
        })
        .unwrap();
    assert_eq!(catalogue.list(kind, Which::Open).unwrap(), [""; 0]);
    assert_eq!(catalogue.list(kind, Which::All).unwrap(), [body("c"), body("B")]);
    let seen = catalogue.revision(kind).unwrap();
    let change = |change: &mut dyn FnMut(&dyn Changing) -> Result<(), Error>| {
        let _ = catalogue.transaction(change);
        catalogue.revision(kind).unwrap()
    };
    assert_eq!(change(&mut |change| change.insert(Kind::LiveModel, make("l", 1, false))), seen);
    assert_eq!(change(&mut |change| change.insert(kind, make("c", 1, false))), seen, "nothing was added");
    let added = change(&mut |change| change.insert(kind, make("e", 1, false)));
    let changed = change(&mut |change| change.replace(kind, make("e", 2, false)).map(drop));
    let removed = change(&mut |change| change.remove(kind, "e").map(drop));
    assert!(seen != added && added != changed && changed != removed);
    assert_eq!(catalogue.list(Kind::BaseModel, Which::All).unwrap(), [body("a")]);
}
