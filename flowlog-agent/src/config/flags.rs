//! Flags that say keys, made from the table of keys.

use std::net::SocketAddr;

use clap::{
    Arg, ArgAction, ArgMatches, Command, FromArgMatches,
    builder::{PossibleValuesParser, TypedValueParser as _},
};
use flowlog_model::amount::{NoAmount, Secs, Size};
use toml::Value;

use super::keys::{ConfigKey, FLOW_LOG, Fallback, Flag, Form, KEYS};

/// What the flags say, by key.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Given(Vec<(&'static ConfigKey, Value)>);

impl Given {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static ConfigKey, &Value)> {
        self.0.iter().map(|(key, value)| (*key, value))
    }

    /// What is said of a key.
    #[must_use]
    pub(crate) fn get(&self, table: &str, name: &str) -> Option<&Value> {
        self.iter().find_map(|(key, value)| ((key.table, key.name) == (table, name)).then_some(value))
    }

    /// Whether interfaces are named.
    #[must_use]
    pub(crate) fn makes_a_flow_log(&self) -> bool {
        self.get(FLOW_LOG, "interfaces").is_some()
    }

    /// The same without interfaces that are named and have no target, which are only to be looked at; and these.
    #[must_use]
    pub(crate) fn without_looks(mut self) -> (Self, Vec<String>) {
        if self.get(FLOW_LOG, "target").is_some() {
            return (self, Vec::new());
        }
        let is_looked_at = |key: &ConfigKey| key.is_of_flow_log() && key.name == "interfaces";
        let looks = self.0.extract_if(.., |(key, _)| is_looked_at(key)).filter_map(|(_, value)| value.try_into().ok());
        let looks: Vec<String> = looks.flat_map(|names: Vec<String>| names).collect();
        (self, looks)
    }

    #[must_use]
    pub(crate) fn says(&self, key: &ConfigKey) -> bool {
        self.get(key.table, key.name).is_some()
    }

    fn read(matches: &ArgMatches, is_meant: fn(&ConfigKey) -> bool) -> Self {
        let mut given = Vec::new();
        for (key, flag) in flags(is_meant) {
            let mut values: Vec<Value> = matches.get_many(flag.name).into_iter().flatten().cloned().collect();
            let value =
                if key.form == Form::List && !values.is_empty() { Some(Value::Array(values)) } else { values.pop() };
            given.extend(value.map(|value| (key, value)));
        }
        Self(given)
    }
}

/// Flags of the commands that read a whole configuration.
#[derive(Clone, Debug, Default)]
pub(crate) struct CaptureFlags(pub Given);

/// Flags of the command that ends a capture: where it is, and how objects are delivered.
#[derive(Clone, Debug, Default)]
pub(crate) struct EndFlags(pub Given);

/// Flags of the command that reads objects: the way to the buckets.
#[derive(Clone, Debug, Default)]
pub(crate) struct StoreFlags(pub Given);

fn of_store(key: &ConfigKey) -> bool {
    // An ACL is of objects that are put.
    key.table == "s3" && key.name != "acl"
}

fn all(_: &ConfigKey) -> bool {
    true
}

fn of_end(key: &ConfigKey) -> bool {
    key.table == "s3" || ["state_dir", "pin_dir"].contains(&key.name)
}

fn flags(is_meant: fn(&ConfigKey) -> bool) -> impl Iterator<Item = (&'static ConfigKey, Flag)> {
    KEYS.iter().filter(move |key| is_meant(key)).filter_map(|key| Some((key, key.flag?)))
}

/// Flags in the order of their groups.
fn augment(command: Command, is_meant: fn(&ConfigKey) -> bool) -> Command {
    let mut sorted: Vec<_> = flags(is_meant).collect();
    sorted.sort_by_key(|(_, flag)| flag.group as u8);
    command.args(sorted.into_iter().map(|(key, flag)| arg(key, flag)))
}

fn arg(key: &'static ConfigKey, flag: Flag) -> Arg {
    let default = match key.default {
        Fallback::Is(value) if key.form != Form::Switch => format!(" [default: {value}]"),
        Fallback::Words(words) if words != "none" && !words.starts_with("needed") => format!(" [default: {words}]"),
        _ => String::new(),
    };
    let arg = Arg::new(flag.name)
        .long(flag.name)
        .value_name(flag.value)
        .help(format!("{}{default}", key.flag_help))
        .help_heading(flag.group.heading());
    let arg = match flag.short {
        Some(short) => arg.short(short),
        None => arg,
    };
    match key.form {
        Form::Switch => {
            let words = PossibleValuesParser::new(["true", "false"]);
            let parser = words.map(move |word| Value::Boolean((word == "true") != flag.is_negative));
            arg.num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .hide_possible_values(true)
                .value_parser(parser)
        }
        Form::Word(words) => {
            let parser = PossibleValuesParser::new(words).map(|word| Value::String(word.to_ascii_lowercase()));
            arg.ignore_case(true).value_parser(parser)
        }
        Form::List => arg.action(ArgAction::Append).value_parser(|text: &str| Ok::<_, String>(Value::from(text))),
        Form::Number => arg.value_parser(|text: &str| text.parse::<u32>().map(|n| Value::from(i64::from(n)))),
        Form::Time => arg.value_parser(|text: &str| text.parse::<Secs>().map(|_| Value::from(text))),
        Form::Size => arg.value_parser(|text: &str| text.parse::<Size>().map(|_| Value::from(text))),
        Form::Address => arg.value_parser(|text: &str| text.parse::<SocketAddr>().map(|_| Value::from(text))),
        Form::Text | Form::Path | Form::Table => arg.value_parser(|text: &str| Ok::<_, NoAmount>(Value::from(text))),
    }
}

macro_rules! args {
    ($flags:ident, $is_meant:ident) => {
        impl clap::Args for $flags {
            fn augment_args(command: Command) -> Command {
                augment(command, $is_meant)
            }

            fn augment_args_for_update(command: Command) -> Command {
                augment(command, $is_meant)
            }
        }

        impl FromArgMatches for $flags {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
                Ok(Self(Given::read(matches, $is_meant)))
            }

            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                self.0 = Given::read(matches, $is_meant);
                Ok(())
            }
        }
    };
}

args!(CaptureFlags, all);
args!(EndFlags, of_end);
args!(StoreFlags, of_store);
