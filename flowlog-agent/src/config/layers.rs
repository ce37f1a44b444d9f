//! From a file and flags to one configuration: what a flag says wins over the file, and what is in neither is a default.
//!
//! Flags of a flow log make one with `--interface`, beside those of the file. Without, each says its key in every flow log of the file, and
//! in the defaults of those that customers make. A flag that could change nothing is refused.

use std::path::{Path, PathBuf};

use flowlog_host::trust::{self, Kind, TrustError};
use toml::{Table, Value};

use super::{
    CONFIG_BYTES_MAX, ConfigError, RawConfig,
    flags::Given,
    keys::{ConfigKey, FLOW_LOG, FLOW_LOG_DEFAULTS, Fallback, KEYS, key},
};

/// Where systemd wants a service to keep its state.
const STATE_DIRECTORY: &str = "STATE_DIRECTORY";
/// Where systemd puts credentials (`LoadCredential=s3:…`), and what ours is called.
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";
const CREDENTIAL: &str = "s3";

/// Where a configuration comes from. A reload reads it again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layers {
    pub file: Option<PathBuf>,
    pub given: Given,
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Origin {
    Default,
    File,
    Environment,
    Flag,
}

impl Origin {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::File => "file",
            Self::Environment => "environment",
            Self::Flag => "flag",
        }
    }
}

/// A key with its value in force.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Setting {
    pub key: String,
    pub value: String,
    pub origin: Origin,
}

/// All layers in one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Merged {
    pub raw: RawConfig,
    /// As it would be written.
    table: Table,
    /// As it is in the file.
    file: Table,
    given: Given,
}

impl Merged {
    /// A value that breaks a rule is the command line's fault if a flag has said it.
    pub(crate) fn blame(&self, error: anyhow::Error) -> anyhow::Error {
        match error.downcast_ref() {
            Some(ConfigError::Field(wrong)) if self.given.iter().any(|(key, _)| key.is_called(&wrong.field)) => {
                ConfigError::Flag(wrong.to_string()).into()
            }
            _ => error,
        }
    }
}

impl Layers {
    /// Reads the file, and what flags and environment say.
    ///
    /// # Errors
    /// If the file cannot be read or is wrong, or a flag could change nothing.
    pub(crate) fn read(&self) -> Result<Merged, ConfigError> {
        let file = self.file.as_deref().map(read).transpose()?.unwrap_or_default();
        let mut table = file.clone();
        self.overlay(&mut table)?;
        add_environment(&mut table);
        let raw = Value::Table(table.clone()).try_into().map_err(|error| self.wrong(&error))?;
        Ok(Merged { raw, table, file, given: self.given.clone() })
    }

    /// What the file says has been read before without an error, and flags have the form of their keys.
    fn wrong(&self, error: &toml::de::Error) -> ConfigError {
        ConfigError::Flag(format!("{}: {}", self.name(), error.message()))
    }

    /// What to call the file.
    fn name(&self) -> String {
        self.file.as_deref().map_or_else(|| "the flags".to_owned(), |file| format!("`{}`", file.display()))
    }

    fn overlay(&self, table: &mut Table) -> Result<(), ConfigError> {
        let of_flow_log: Vec<(&ConfigKey, &Value)> =
            self.given.iter().filter(|(key, _)| key.is_of_flow_log()).collect();
        for (key, value) in self.given.iter().filter(|(key, _)| !key.is_of_flow_log()) {
            set(table, key, value);
        }
        if self.given.get("", "pin_dir").is_some() && table.get("no_pin").and_then(Value::as_bool) == Some(true) {
            let words = if self.given.get("", "no_pin").is_some() {
                "--pin-dir and --no-pin exclude each other".to_owned()
            } else {
                format!("--pin-dir: {} has `no_pin`, so nothing is pinned; give `--no-pin=false` too", self.name())
            };
            return Err(ConfigError::Flag(words));
        }
        if self.given.makes_a_flow_log() { self.add(table, &of_flow_log) } else { self.change(table, &of_flow_log) }
    }

    /// Flags make one more flow log.
    fn add(&self, table: &mut Table, of_flow_log: &[(&ConfigKey, &Value)]) -> Result<(), ConfigError> {
        if self.given.get(FLOW_LOG, "target").is_none() {
            let words = "--interface makes a flow log: say with `--target` where its objects go";
            return Err(ConfigError::Flag(words.to_owned()));
        }
        let log = of_flow_log.iter().map(|(key, value)| (key.name.to_owned(), (*value).clone())).collect();
        let logs = table.entry(FLOW_LOG).or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(logs) = logs {
            logs.push(Value::Table(log));
        }
        Ok(())
    }

    /// Flags say a key of every flow log, and of those that customers make.
    fn change(&self, table: &mut Table, of_flow_log: &[(&ConfigKey, &Value)]) -> Result<(), ConfigError> {
        for (of_log, value) in of_flow_log {
            let mut has_effect = false;
            for log in table.get_mut(FLOW_LOG).and_then(Value::as_array_mut).into_iter().flatten() {
                if let Value::Table(log) = log {
                    log.insert(of_log.name.to_owned(), (*value).clone());
                    has_effect = true;
                }
            }
            if let Some(default) = key(FLOW_LOG_DEFAULTS, of_log.name).filter(|_| table.contains_key("inventory")) {
                set(table, default, value);
                has_effect = true;
            }
            if !has_effect {
                let flag = of_log.flag.map_or(of_log.name, |flag| flag.name);
                let words = match &self.file {
                    Some(_) => {
                        format!("{} has no flow log that it could be of; name one with `--interface`", self.name())
                    }
                    None => "is of no flow log; name one with `--interface`, or a file with `--config`".to_owned(),
                };
                return Err(ConfigError::Flag(format!("--{flag}: {words}")));
            }
        }
        Ok(())
    }
}

/// Reads a TOML file that nobody but its owner may write. Unknown keys are refused, old names are replaced.
fn read(path: &Path) -> Result<Table, ConfigError> {
    let file = |problem: String| ConfigError::File { path: path.to_owned(), problem };
    let text = trust::read_named(path, Kind::Orders, CONFIG_BYTES_MAX).map_err(|error| match error {
        TrustError::Unreadable(source) => ConfigError::Unreadable { path: path.to_owned(), source },
        other => file(other.to_string()),
    })?;
    // First as what it is to be: then an error has its line.
    toml::from_str::<RawConfig>(&text).map_err(|e| file(flowlog_control::toml_error(&text, &e)))?;
    let mut table: Table = toml::from_str(&text).map_err(|e| file(flowlog_control::toml_error(&text, &e)))?;
    for key in KEYS {
        let Some(old) = key.old_name else { continue };
        if let Some(Value::Table(of)) = table.get_mut(key.table)
            && let Some(value) = of.remove(old)
        {
            of.insert(key.name.to_owned(), value);
        }
    }
    Ok(table)
}

fn set(table: &mut Table, key: &ConfigKey, value: &Value) {
    let of = if key.table.is_empty() {
        table
    } else {
        match table.entry(key.table).or_insert_with(|| Value::Table(Table::new())) {
            Value::Table(of) => of,
            // Has been refused when the file was read.
            _ => return,
        }
    };
    of.insert(key.name.to_owned(), value.clone());
}

fn get<'a>(table: &'a Table, key: &ConfigKey) -> Option<&'a Value> {
    if key.table.is_empty() { table.get(key.name) } else { table.get(key.table)?.get(key.name) }
}

/// What systemd says, where neither file nor flags do.
fn add_environment(table: &mut Table) {
    let mut add = |table_name: &str, name: &str, path: Option<PathBuf>| {
        let (Some(key), Some(path)) = (key(table_name, name), path.and_then(|p| p.to_str().map(str::to_owned))) else {
            return;
        };
        if get(table, key).is_none() {
            set(table, key, &Value::String(path));
        }
    };
    add("", "state_dir", std::env::var_os(STATE_DIRECTORY).filter(|dir| !dir.is_empty()).map(PathBuf::from));
    let credential = std::env::var_os(CREDENTIALS_DIRECTORY).map(|dir| PathBuf::from(dir).join(CREDENTIAL));
    add("s3", "credentials_file", credential.filter(|file| file.is_file()));
}

impl Merged {
    /// Every key with its value in force, in the order of the shipped file. `made` are those whose defaults
    /// are of this machine.
    #[must_use]
    pub(crate) fn settings(&self, made: &[(&str, String)]) -> Vec<Setting> {
        let mut all: Vec<Setting> = KEYS
            .iter()
            .filter(|key| !key.is_of_flow_log())
            .map(|key| {
                let said = get(&self.table, key);
                let origin = match said {
                    None => Origin::Default,
                    Some(_) if self.is_of_flag(key) => Origin::Flag,
                    Some(_) if get(&self.file, key).is_some() => Origin::File,
                    Some(_) => Origin::Environment,
                };
                let of_machine = made.iter().find(|(name, _)| said.is_none() && *name == key.path());
                let value = of_machine.map_or_else(|| shown(said, key), |(_, value)| value.clone());
                Setting { key: key.path(), value, origin }
            })
            .collect();
        let logs = |table: &Table| table.get(FLOW_LOG).and_then(Value::as_array).cloned().unwrap_or_default();
        let of_file = logs(&self.file).len();
        for (at, log) in logs(&self.table).iter().enumerate() {
            for key in KEYS.iter().filter(|key| key.is_of_flow_log()) {
                let said = log.get(key.name);
                let origin = match said {
                    None => Origin::Default,
                    Some(_) if at >= of_file => Origin::Flag,
                    // Flags that make a flow log change no other.
                    Some(_) if self.given.says(key) && !self.given.makes_a_flow_log() => Origin::Flag,
                    Some(_) => Origin::File,
                };
                all.push(Setting { key: format!("{FLOW_LOG}[{at}].{}", key.name), value: shown(said, key), origin });
            }
        }
        all
    }

    /// Whether a flag says it; one of a flow log says it in the defaults, too, if it makes none.
    fn is_of_flag(&self, key: &ConfigKey) -> bool {
        let of_flow_log = key.table == FLOW_LOG_DEFAULTS && !self.given.makes_a_flow_log();
        self.given.says(key) || (of_flow_log && self.given.get(FLOW_LOG, key.name).is_some())
    }

    /// Keys whose values differ from those of `other`, flow logs aside.
    #[must_use]
    pub(crate) fn changed(&self, other: &Self) -> Vec<&'static ConfigKey> {
        KEYS.iter().filter(|key| !key.is_of_flow_log() && get(&self.table, key) != get(&other.table, key)).collect()
    }
}

/// A value as it would be written; without what may be secret in it.
fn shown(value: Option<&Value>, key: &ConfigKey) -> String {
    match (value, key.default) {
        (Some(Value::String(text)), _) => format!("{:?}", without_secrets(text)),
        (Some(value), _) => value.to_string(),
        (None, Fallback::Is(written))
            if written.starts_with(|c: char| c.is_ascii_digit()) || ["true", "false", "[]"].contains(&written) =>
        {
            written.to_owned()
        }
        (None, Fallback::Is(written)) => format!("{written:?}"),
        (None, Fallback::Words(words)) => format!("({words})"),
    }
}

/// A URL may name who asks, and a password.
fn without_secrets(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let authority = rest.find('/').unwrap_or(rest.len());
    match rest[..authority].rfind('@') {
        Some(at) => format!("{scheme}://…{}", &rest[at..]),
        None => text.to_owned(),
    }
}
