//! The verbs over Deployment Environments: add, list, test, remove.

use serde::{Deserialize, Serialize};
use tenon_deploy::{Capabilities, Condition, Environment, Watch, backend};
use tenon_registry::catalogue::{Kind, Record};
use tenon_registry::{Deployment, Error as RegistryError, LiveModel, ModelName, Timestamp};

use crate::{Error, Tenon};

/// A configured server that serves models, as the catalogue keeps it. There is no key in it, only
/// where the key is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeploymentEnvironment {
    /// Its name.
    pub name: ModelName,
    /// When it was added.
    pub created: Timestamp,
    /// Which server, and how to reach it.
    #[serde(flatten)]
    pub environment: Environment,
    /// What the last test or deployment saw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tested: Option<EnvironmentTest>,
}

/// What a test of a Deployment Environment saw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EnvironmentTest {
    /// When.
    pub at: Timestamp,
    /// What the server is, if it answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<Condition>,
    /// Why it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What can be said of a Deployment Environment whose server answered.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EnvironmentReport {
    /// Its name.
    pub name: ModelName,
    /// What such a server can do.
    pub capabilities: Capabilities,
    /// What this one said.
    pub condition: Condition,
    /// What a person should know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl Record for DeploymentEnvironment {
    const KIND: Kind = Kind::DeploymentEnvironment;
    fn key(&self) -> String {
        self.name.to_string()
    }
    fn created(&self) -> Timestamp {
        self.created
    }
}

impl Tenon {
    /// Adds a Deployment Environment. The server is not asked; [`test_environment`](Self::test_environment) does.
    pub fn add_environment(
        &self,
        name: ModelName,
        environment: Environment,
    ) -> Result<DeploymentEnvironment, Error> {
        environment.validate()?;
        let record = DeploymentEnvironment { name, created: Timestamp::now(), environment, tested: None };
        self.registry.insert(&record)?;
        Ok(record)
    }

    /// The Deployment Environments, oldest first.
    pub fn environments(&self) -> Result<Vec<DeploymentEnvironment>, Error> {
        Ok(self.registry.all()?)
    }

    /// The one with a name.
    pub fn environment(&self, name: &str) -> Result<DeploymentEnvironment, Error> {
        Ok(self.registry.get(name)?)
    }

    /// Reaches a Deployment Environment and asks what it is; keeps what came of it.
    pub fn test_environment(&self, name: &str, watch: &dyn Watch) -> Result<EnvironmentReport, Error> {
        let record = self.environment(name)?;
        let warnings = record.environment.warnings();
        let asked = backend(&record.environment)
            .and_then(|backend| Ok((backend.capabilities(), backend.check(None, watch)?)));
        let test = match &asked {
            Ok((_, condition)) => {
                EnvironmentTest { at: Timestamp::now(), condition: Some(condition.clone()), reason: None }
            }
            Err(error) => {
                EnvironmentTest { at: Timestamp::now(), condition: None, reason: Some(error.to_string()) }
            }
        };
        self.registry.update(record.name.as_str(), &mut |record: &mut DeploymentEnvironment| {
            record.tested = Some(test.clone());
        })?;
        let (capabilities, condition) = asked?;
        Ok(EnvironmentReport { name: record.name, capabilities, condition, warnings })
    }

    /// Forgets a Deployment Environment; its server is not touched. Refused while a deployment to it is
    /// under way or it has Live Models.
    pub fn remove_environment(&self, name: &str) -> Result<DeploymentEnvironment, Error> {
        let record = self.environment(name)?;
        let in_use = |by: String| RegistryError::InUse {
            what: Kind::DeploymentEnvironment.noun(),
            name: record.name.clone(),
            by,
        };
        self.registry.transaction(&mut |change| {
            use tenon_registry::catalogue::{Which, all};
            let open: Vec<Deployment> = all(change, Which::Open)?;
            if let Some(deployment) = open.iter().find(|d| d.environment == record.name) {
                return Err(in_use(format!("deployment {} is {}", deployment.id, deployment.state.name())));
            }
            let live: Vec<LiveModel> = all(change, Which::All)?;
            if let Some(live) = live.iter().find(|live| live.environment == record.name) {
                return Err(in_use(format!(
                    "the Live Model {} is in it; tenon live remove comes first",
                    live.name()
                )));
            }
            change.remove(Kind::DeploymentEnvironment, record.name.as_str()).map(drop)
        })?;
        Ok(record)
    }
}
