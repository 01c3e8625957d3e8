//! The verbs over Live Models: list, show, check, remove.

use tenon_deploy::{Backend, Error as DeployError, Found, Watch, backend};
use tenon_registry::catalogue::Record;
use tenon_registry::{Error as RegistryError, LiveCondition, LiveModel, Timestamp};

use crate::{Error, Tenon};

impl Tenon {
    /// The Live Models, oldest first.
    pub fn live_models(&self) -> Result<Vec<LiveModel>, Error> {
        Ok(self.registry.all()?)
    }

    /// The one with a name, `environment/model`; the model alone will do where only one environment has it.
    pub fn live_model(&self, name: &str) -> Result<LiveModel, Error> {
        if let Some(live) = self.registry.find(name)? {
            return Ok(live);
        }
        let all = self.live_models()?;
        let is_called = |live: &LiveModel| {
            [live.model.clone(), live.name()].iter().any(|known| {
                known.eq_ignore_ascii_case(name) || known.eq_ignore_ascii_case(&format!("{name}:latest"))
            })
        };
        let mut called = all.iter().filter(|live| is_called(live));
        match (called.next(), called.next()) {
            (Some(live), None) => Ok(live.clone()),
            (Some(live), Some(_)) => Err(RegistryError::NotFound {
                what: "single Live Model",
                name: name.into(),
                nearest: Some(live.name()),
            }
            .into()),
            // Says which name is near.
            (None, _) => Ok(self.registry.get(name)?),
        }
    }

    /// Asks the environment whether a Live Model is still there, the same, and answers; keeps what it said.
    ///
    /// That it is not is no error but its [`condition`](LiveModel::condition).
    pub fn check_live(&self, name: &str, watch: &dyn Watch) -> Result<LiveModel, Error> {
        let live = self.live_model(name)?;
        let environment = self.environment(live.environment.as_str())?;
        let seen = backend(&environment.environment).and_then(|backend| look(&*backend, &live, watch));
        let (condition, note) = match seen {
            Ok(seen) => seen,
            Err(error) if error.is_cancelled() => return Err(error.into()),
            Err(error) => (LiveCondition::Unreachable, Some(error.to_string())),
        };
        self.registry.update(&live.key(), &mut |live: &mut LiveModel| {
            (live.checked, live.condition, live.note) = (Timestamp::now(), condition, note.clone());
        })?;
        Ok(self.registry.get(&live.key())?)
    }

    /// Drops the entry of a Live Model; with `from_environment`, removes it there first. Whether it
    /// was there to be removed.
    pub fn remove_live(
        &self,
        name: &str,
        from_environment: bool,
        watch: &dyn Watch,
    ) -> Result<(LiveModel, bool), Error> {
        let live = self.live_model(name)?;
        let mut removed = false;
        if from_environment {
            let environment = self.environment(live.environment.as_str())?;
            let backend = backend(&environment.environment)?;
            // Another model that took its name is not this one's to remove.
            if let Some(found) = backend.find(&live.model, watch)?
                && found.digest != live.digest
            {
                return Err(Error::NotTheSame { name: live.name() });
            }
            removed = backend.remove(&live.model, watch)?;
        }
        self.registry.remove::<LiveModel>(&live.key())?;
        Ok((live, removed))
    }
}

/// What a person should know who asks the server something.
pub(crate) fn called(found: &Found) -> Option<String> {
    found.called.as_ref().map(|name| format!("the server calls it {name}"))
}

fn look(
    backend: &dyn Backend,
    live: &LiveModel,
    watch: &dyn Watch,
) -> Result<(LiveCondition, Option<String>), DeployError> {
    let Some(found) = backend.find(&live.model, watch)? else {
        return Ok((LiveCondition::Missing, None));
    };
    if found.digest != live.digest || found.weights != live.weights {
        let of = |digest: &Option<String>| digest.clone().unwrap_or_else(|| "none".into());
        let note = format!("its digest there is {}, it was {}", of(&found.digest), of(&live.digest));
        return Ok((LiveCondition::Changed, Some(note)));
    }
    match backend.answers(&live.model, watch) {
        Ok(_) => Ok((LiveCondition::Live, called(&found))),
        Err(error @ DeployError::NoAnswer { .. }) => Ok((LiveCondition::Silent, Some(error.to_string()))),
        Err(error) => Err(error),
    }
}
