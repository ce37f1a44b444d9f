//! What a reload changes around the captures: where the API and figures are served, and where inventory and principals are read. A node's
//! agent has it, and a region's server, which has nothing else.

use flowlog_control::{
    inventory::watch::{Again, Folders},
    metrics::{self, Endpoint, MetricsListener},
    serve::Relisten,
};
use tokio::sync::mpsc;

use super::{error::AgentError, managed::Place};
use crate::config::Config;

/// It has been found sound, and listens already; nothing is served there yet.
pub(super) struct Around {
    api: Option<Relisten>,
    metrics: Metrics,
    /// Where inventory and principals are to be read, if that is elsewhere.
    place: Option<(Folders, Place)>,
}

/// Where figures are served.
enum Metrics {
    /// Where they are.
    Stay,
    /// There, or nowhere.
    Move(Option<MetricsListener>, Option<Endpoint>),
}

impl Around {
    /// Checks everything that can be, and listens where it is to be served. The error says why it cannot be; `restart` is what to do about
    /// what is decided at the start.
    pub(super) fn prepare(old: &Config, new: &Config, restart: &str) -> Result<Self, String> {
        if new.manage.is_some() != old.manage.is_some() {
            return Err(format!("api: whether it is served is decided at the start; {restart}"));
        }
        let of = |config: &Config| config.manage.as_ref().map(|m| m.sources.clone()).unwrap_or_default();
        if of(new) != of(old) {
            return Err(format!("inventory.source: {restart}"));
        }
        let place = moved(old, new).map_err(|e| e.to_string())?;
        let metrics = if new.metrics == old.metrics {
            Metrics::Stay
        } else {
            let listening = new.metrics.as_ref().map(metrics::listen).transpose().map_err(|e| e.to_string())?;
            Metrics::Move(listening, new.metrics.clone())
        };
        let changed = new.manage.as_ref().zip(old.manage.as_ref()).filter(|(new, old)| new.api != old.api);
        let api = match changed.map(|(new, old)| Relisten::prepare(&old.api, &new.api)).transpose() {
            Ok(api) => api,
            Err(error) => {
                metrics.forget();
                return Err(error.to_string());
            }
        };
        Ok(Self { api, metrics, place })
    }

    /// It stays as it was.
    pub(super) fn abandon(self) {
        self.metrics.forget();
        if let Some(api) = self.api {
            api.abandon();
        }
    }

    /// Is in force from now on: whoever serves the API, serves figures, and reads files is told. `old` is what held before.
    pub(super) fn apply(
        self,
        old: &Config,
        api: Option<&mpsc::Sender<Relisten>>,
        again: Option<&Again<Place>>,
        serve_figures: impl FnOnce(Option<MetricsListener>) -> Result<(), AgentError>,
    ) {
        if let Metrics::Move(listening, _) = self.metrics {
            if let Err(error) = serve_figures(listening) {
                tracing::error!(%error, "figures are served where they were");
            } else if let Some(Endpoint::Socket(path)) = &old.metrics {
                let _ = std::fs::remove_file(path);
            }
        }
        if let Some((relisten, sender)) = self.api.zip(api) {
            // There is room: reloads come one after the other.
            let _ = sender.try_send(relisten);
        }
        if let Some(((folders, place), again)) = self.place.zip(again) {
            again.move_to(folders, place);
        }
    }
}

impl Metrics {
    /// Removes the socket of a listener that is not to be.
    fn forget(&self) {
        if let Self::Move(Some(_), Some(Endpoint::Socket(path))) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Where inventory and principals are to be read, if that is elsewhere than before; what they say is another matter.
fn moved(old: &Config, new: &Config) -> Result<Option<(Folders, Place)>, AgentError> {
    let Some((new, old)) = new.manage.as_ref().zip(old.manage.as_ref()) else { return Ok(None) };
    if (&new.places, &new.principals) == (&old.places, &old.principals) {
        return Ok(None);
    }
    let place = Place::of(new)?;
    Ok(Some((place.prepare()?, place)))
}
