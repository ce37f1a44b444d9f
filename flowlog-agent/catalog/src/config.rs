//! What is wanted: from a file, and from flags, which win.

use std::{
    collections::HashMap,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use flowlog_model::{
    S3Options,
    amount::{NoAmount, Secs},
};
use iceberg::TableIdent;
use serde::Deserialize;

use crate::list::{ListError, Source};

/// Where everything is that is not said to be elsewhere.
pub(crate) const STATE_DIR: &str = "/var/lib/flowlog-catalog";
/// The table of objects that are given on the command line.
pub(crate) const TABLE: &str = "flowlog.flows";
/// Time between two rounds. A commit makes four small files, and every reader reads the list of all snapshots that there are.
const EVERY: &str = "1m";
/// The name that a SQL catalog has for its tables: several catalogs may share a database.
const CATALOG_NAME: &str = "lake";
/// Shortest time between rounds.
const EVERY_SECS_MIN: u64 = 1;
/// Longest: whoever wants them more seldom has a timer for `--once`.
const EVERY_SECS_MAX: u64 = 86_400;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read `{path}`: {source}")]
    File { path: String, source: io::Error },
    #[error("`{path}`: {source}")]
    Toml { path: String, source: Box<toml::de::Error> },
    #[error("every: {0}")]
    Every(NoAmount),
    #[error("every is {0} s: it must be between {EVERY_SECS_MIN} and {EVERY_SECS_MAX}")]
    EveryRange(u64),
    #[error(
        "no table: name objects on the command line, or tables in the configuration (`[[table]]` with `name` and `from`)"
    )]
    NoTable,
    #[error("table `{0}`: write NAMESPACE.NAME")]
    TableName(String),
    #[error("table `{0}` is there twice")]
    Twice(String),
    #[error("table `{table}`: {source}")]
    Source { table: String, source: ListError },
    #[error("table `{0}`: `from` is empty")]
    NoSource(String),
    #[error("catalog `{0}`: write `sqlite:///PATH`, or the `https://` URL of a REST catalog")]
    Catalog(String),
    #[error(
        "metrics_listen `{0}`: it must be a loopback address, such as 127.0.0.1:9478: nobody is asked who they are"
    )]
    Metrics(SocketAddr),
    #[error("a REST catalog over plain http is off: use https, or allow it with `rest.allow_http = true`")]
    PlainHttp,
}

/// The file, as it is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawConfig {
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) catalog: Option<String>,
    pub(crate) catalog_name: Option<String>,
    pub(crate) warehouse: Option<String>,
    pub(crate) every: Option<String>,
    pub(crate) metrics_listen: Option<SocketAddr>,
    pub(crate) s3: S3Options,
    pub(crate) rest: RawRest,
    pub(crate) table: Vec<RawTable>,
}

/// What a REST catalog needs besides its URL.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawRest {
    pub(crate) allow_http: bool,
    /// As the catalog's own documents call them: `oauth2-server-uri`, `scope`, `prefix`, …
    pub(crate) properties: HashMap<String, String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawTable {
    pub(crate) name: String,
    pub(crate) from: Vec<String>,
}

/// A catalog of tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CatalogKind {
    /// A file, which is made if it is not there.
    Sqlite(PathBuf),
    Rest {
        url: String,
        properties: HashMap<String, String>,
    },
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) catalog: CatalogKind,
    pub(crate) catalog_name: String,
    /// Where tables go. `None`: where the REST catalog wants them.
    pub(crate) warehouse: Option<String>,
    pub(crate) every_secs: u64,
    pub(crate) metrics_listen: Option<SocketAddr>,
    pub(crate) s3: S3Options,
    pub(crate) tables: Vec<(TableIdent, Vec<Source>)>,
}

impl RawConfig {
    /// # Errors
    /// If the file cannot be read or understood.
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        let name = || path.display().to_string();
        let text = fs::read_to_string(path).map_err(|source| ConfigError::File { path: name(), source })?;
        toml::from_str(&text).map_err(|source| ConfigError::Toml { path: name(), source: Box::new(source) })
    }

    /// # Errors
    /// With what is wrong.
    pub(crate) fn check(self) -> Result<Config, ConfigError> {
        let state_dir = self.state_dir.unwrap_or_else(|| STATE_DIR.into());
        #[allow(clippy::disallowed_methods, reason = "this is the configuration")]
        let state_dir = std::path::absolute(&state_dir)
            .map_err(|source| ConfigError::File { path: state_dir.display().to_string(), source })?;
        let every = self.every.as_deref().unwrap_or(EVERY).parse::<Secs>().map_err(ConfigError::Every)?.0;
        if !(EVERY_SECS_MIN..=EVERY_SECS_MAX).contains(&every) {
            return Err(ConfigError::EveryRange(every));
        }
        if let Some(address) = self.metrics_listen.filter(|address| !address.ip().is_loopback()) {
            return Err(ConfigError::Metrics(address));
        }
        let catalog = match self.catalog {
            None => CatalogKind::Sqlite(state_dir.join("catalog.db")),
            Some(text) => catalog(text, self.rest)?,
        };
        let warehouse = match (self.warehouse, &catalog) {
            (Some(place), _) => Some(place.trim_end_matches('/').to_owned()),
            (None, CatalogKind::Sqlite(_)) => Some(format!("file://{}", state_dir.join("warehouse").display())),
            (None, CatalogKind::Rest { .. }) => None,
        };
        Ok(Config {
            catalog,
            catalog_name: self.catalog_name.unwrap_or_else(|| CATALOG_NAME.to_owned()),
            warehouse,
            every_secs: every,
            metrics_listen: self.metrics_listen,
            s3: self.s3,
            tables: tables(&self.table)?,
        })
    }
}

fn catalog(text: String, rest: RawRest) -> Result<CatalogKind, ConfigError> {
    if let Some(path) = text.strip_prefix("sqlite://") {
        // pyiceberg writes four slashes for the same.
        let path = format!("/{}", path.trim_start_matches('/'));
        return if path == "/" { Err(ConfigError::Catalog(text)) } else { Ok(CatalogKind::Sqlite(path.into())) };
    }
    if text.starts_with("http://") && !rest.allow_http {
        return Err(ConfigError::PlainHttp);
    }
    if text.starts_with("https://") || text.starts_with("http://") {
        return Ok(CatalogKind::Rest { url: text.trim_end_matches('/').to_owned(), properties: rest.properties });
    }
    Err(ConfigError::Catalog(text))
}

fn tables(raw: &[RawTable]) -> Result<Vec<(TableIdent, Vec<Source>)>, ConfigError> {
    if raw.is_empty() {
        return Err(ConfigError::NoTable);
    }
    let mut tables: Vec<(TableIdent, Vec<Source>)> = Vec::new();
    for RawTable { name, from } in raw {
        let parts: Vec<&str> = name.split('.').collect();
        let bad = || ConfigError::TableName(name.clone());
        if parts.len() < 2 || parts.iter().any(|part| part.is_empty() || part.contains(['/', '\u{1f}'])) {
            return Err(bad());
        }
        let ident = TableIdent::from_strs(parts).ok().ok_or_else(bad)?;
        if tables.iter().any(|(other, _)| *other == ident) {
            return Err(ConfigError::Twice(name.clone()));
        }
        if from.is_empty() {
            return Err(ConfigError::NoSource(name.clone()));
        }
        let sources: Result<Vec<Source>, ListError> = from.iter().map(|text| text.parse()).collect();
        tables.push((ident, sources.map_err(|source| ConfigError::Source { table: name.clone(), source })?));
    }
    Ok(tables)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Config, String> {
        toml::from_str::<RawConfig>(text).map_err(|e| e.to_string())?.check().map_err(|e| e.to_string())
    }

    const ONE: &str = "[[table]]\nname = 'flowlog.flows'\nfrom = ['s3://flows/team-a', '/var/flows']\n";

    #[test]
    fn what_is_not_said_is_local() {
        let config = of(ONE).expect("a configuration");
        assert_eq!(config.catalog, CatalogKind::Sqlite("/var/lib/flowlog-catalog/catalog.db".into()));
        assert_eq!(config.warehouse.as_deref(), Some("file:///var/lib/flowlog-catalog/warehouse"));
        assert_eq!((config.every_secs, config.tables[0].1.len()), (60, 2));
        let rest = of(&format!("catalog = 'https://c/'\n{ONE}")).expect("a configuration");
        assert_eq!(rest.catalog, CatalogKind::Rest { url: "https://c".to_owned(), properties: HashMap::new() });
        assert_eq!(rest.warehouse, None);
        let four = of(&format!("catalog = 'sqlite:////a/b.db'\n{ONE}")).expect("a configuration");
        assert_eq!(four.catalog, CatalogKind::Sqlite("/a/b.db".into()));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, words) in [
            ("", "no table"),
            ("x = 1", "unknown field"),
            ("[[table]]\nname = 'flows'\nfrom = ['/a']", "NAMESPACE.NAME"),
            ("[[table]]\nname = 'a.b'\nfrom = []", "is empty"),
            ("[[table]]\nname = 'a.b'\nfrom = ['gs://x']", "table `a.b`: target `gs://x`"),
            (&format!("{ONE}{ONE}"), "twice"),
            (&format!("every = '0s'\n{ONE}"), "between"),
            (&format!("catalog = 'http://c'\n{ONE}"), "plain http"),
            (&format!("catalog = 'sqlite://'\n{ONE}"), "write `sqlite:///PATH`"),
            (&format!("metrics_listen = '0.0.0.0:1'\n{ONE}"), "loopback"),
        ] {
            let error = of(text).expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
