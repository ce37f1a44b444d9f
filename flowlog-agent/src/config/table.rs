//! The table of keys is what is read, what flags say, and what documents have.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use clap::Parser;
use toml::{Table, Value};

use super::{
    CaptureFlags, Config, ConfigError, Layers, RawConfig,
    keys::{ConfigKey, FLOW_LOG, FLOW_LOG_DEFAULTS, Fallback, Form, KEYS, Takes},
    layers::Origin,
    shipped::understood,
};

/// The reference of all keys.
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
/// Least there must be of a flow log.
const LOG: &str = "[[flow_log]]\ninterfaces = ['eth7']\ntarget = 's3://flows'\n";

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    flags: CaptureFlags,
}

fn flags(args: &[String]) -> CaptureFlags {
    let args = [&["flowlog".to_owned()][..], args].concat();
    Cli::try_parse_from(args).unwrap_or_else(|error| panic!("{error}")).flags
}

/// What a file and flags come to.
struct Both {
    dir: tempfile::TempDir,
    layers: Layers,
}

impl Both {
    fn new(text: &str, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("flowlog.toml");
        fs::write(&file, text).expect("write");
        let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
        Self { layers: Layers { file: Some(file), given: flags(&args).0 }, dir }
    }

    fn read(&self) -> Result<super::Merged, ConfigError> {
        assert!(self.dir.path().exists());
        self.layers.read()
    }

    fn check(&self) -> Result<Config, String> {
        self.read().and_then(|merged| merged.raw.check()).map_err(|error| error.to_string())
    }

    /// Value and origin of a key.
    fn setting(&self, key: &str) -> (String, Origin) {
        let all = self.read().unwrap_or_else(|error| panic!("{error}")).settings(&[]);
        let found = all.into_iter().find(|s| s.key == key).unwrap_or_else(|| panic!("no {key}"));
        (found.value, found.origin)
    }
}

/// Two values of a form, as they are written in the file and behind a flag, and the second one as it is shown.
fn samples(key: &ConfigKey) -> [String; 3] {
    let of = |file: &str, flag: &str, shown: &str| [file.to_owned(), flag.to_owned(), shown.to_owned()];
    match key.form {
        Form::Number => of("16", "4096", "4096"),
        Form::Time => of("600", "1m", "\"1m\""),
        Form::Size => of("16384", "1MiB", "\"1MiB\""),
        Form::Word(words) => of(&format!("'{}'", words[0]), words[1], &format!("{:?}", words[1])),
        Form::Switch if key.flag.is_some_and(|f| f.is_negative) => of("true", "true", "false"),
        Form::Switch => of("false", "true", "true"),
        Form::Address => of("'127.0.0.1:1'", "127.0.0.1:2", "\"127.0.0.1:2\""),
        Form::Text | Form::Path | Form::List | Form::Table => of("'/file'", "/flag", "\"/flag\""),
    }
}

#[test]
fn a_flag_wins_over_the_file_whichever_key_it_is_of() {
    let mut tried = 0;
    for key in KEYS {
        let Some(flag) = key.flag.filter(|_| key.form != Form::List) else { continue };
        let [in_file, given, shown] = samples(key);
        let (head, rest, path) = match key.table {
            "" => (String::new(), LOG, key.name.to_owned()),
            FLOW_LOG => (LOG.replace("target = 's3://flows'\n", ""), "", format!("flow_log[0].{}", key.name)),
            table => (format!("[{table}]\n"), LOG, key.path()),
        };
        let target = if key.is_of_flow_log() && key.name != "target" { "target = 's3://flows'\n" } else { "" };
        let text = format!("{head}{} = {in_file}\n{target}{rest}", key.name);
        let alone = Both::new(&text, &[]);
        assert_eq!(alone.setting(&path).1, Origin::File, "{path}");
        let both = Both::new(&text, &[&format!("--{}={given}", flag.name)]);
        assert_eq!(both.setting(&path), (shown, Origin::Flag), "--{}", flag.name);
        // Nothing else is touched.
        let others = |both: &Both| -> Vec<_> {
            let all = both.read().expect("sound").settings(&[]);
            all.into_iter().filter(|s| s.key != path).collect()
        };
        assert_eq!(others(&both), others(&alone), "--{}", flag.name);
        tried += 1;
    }
    assert!(tried > 30, "{tried}");
}

#[test]
fn flags_of_a_flow_log_make_one_with_an_interface_and_say_a_key_of_all_without() {
    let two = format!("{LOG}window = 600\n[[flow_log]]\ninterfaces = ['eth8']\ntarget = './b'\n");
    let all = Both::new(&two, &["--window", "1m"]).check().expect("sound");
    assert_eq!(all.captures.iter().map(|c| c.rule.window_secs).collect::<Vec<_>>(), [60, 60]);
    let more = Both::new(&two, &["--window", "1m", "--interface", "eth9", "--target", "./c"]).check().expect("sound");
    assert_eq!(more.captures.iter().map(|c| c.rule.window_secs).collect::<Vec<_>>(), [600, 600, 60]);
    let managed = "[inventory]\nfile = '/x'\n";
    let defaults = Both::new(managed, &["--window", "1m"]).check().expect("sound").manage.expect("managed");
    assert_eq!(defaults.settings.window_secs, 60);
    for (text, args, words) in [
        (managed, &["--target", "./x"][..], "--target: `"),
        ("node_id = 'x'\n", &["--window", "1m"], "has no flow log that it could be of"),
        (LOG, &["--interface", "eth9"], "say with `--target` where its objects go"),
        ("no_pin = true\n", &["--pin-dir", "/x"], "give `--no-pin=false` too"),
        ("", &["--pin-dir", "/x", "--no-pin"], "exclude each other"),
    ] {
        let error = Both::new(text, args).check().expect_err(words);
        assert!(error.contains(words), "{error}");
    }
    assert!(Both::new(&format!("no_pin = true\n{LOG}"), &["--pin-dir", "/x", "--no-pin=false"]).check().is_ok());
    let twice = Both::new(LOG, &["-i", "eth7", "-t", "./x"]).check().expect_err("two");
    assert!(twice.contains("interface `eth7`: has two flow logs"), "{twice}");
}

#[test]
fn where_a_value_comes_from_is_said_of_each_flow_log_by_itself() {
    let file = format!("{LOG}window = 600\nname = 'a'\n[inventory]\nfile = '/x'\n[flow_log_defaults]\nwindow = '1m'\n");
    let origin = |both: &Both, key: &str| both.setting(key).1;
    let added = Both::new(&file, &["-i", "eth8", "-t", "./b", "--window", "1m"]);
    for (key, from) in [
        ("flow_log[0].interfaces", Origin::File),
        ("flow_log[0].target", Origin::File),
        ("flow_log[0].window", Origin::File),
        ("flow_log[0].hook", Origin::Default),
        ("flow_log[1].interfaces", Origin::Flag),
        ("flow_log[1].window", Origin::Flag),
        ("flow_log[1].name", Origin::Default),
        ("flow_log_defaults.window", Origin::File),
    ] {
        assert_eq!(origin(&added, key), from, "{key}");
    }
    // Without one of its own a flag is of all, though the file says the same.
    let changed = Both::new(&file, &["--window", "1m"]);
    for (key, from) in [
        ("flow_log[0].window", Origin::Flag),
        ("flow_log[0].target", Origin::File),
        ("flow_log_defaults.window", Origin::Flag),
        ("flow_log_defaults.hook", Origin::Default),
    ] {
        assert_eq!(origin(&changed, key), from, "{key}");
    }
}

#[test]
fn amounts_are_written_with_or_without_units_and_old_names_still_hold() {
    let of = |spool: &str| Both::new(&format!("{LOG}[spool]\n{spool}\n"), &[]).check();
    let limits = of("bytes_max = '2GiB'\nage_max = '12h'").expect("sound").spool;
    assert_eq!((limits.bytes_max, limits.age_secs_max), (2 << 30, 12 * 3_600));
    assert_eq!(of("bytes_max = 2147483648\nage_secs_max = 43200").expect("sound").spool, limits);
    let flag = Both::new(&format!("{LOG}[spool]\nage_secs_max = 1\n"), &["--spool-age-max", "2d"]).check();
    assert_eq!(flag.expect("sound").spool.age_secs_max, 172_800);
    for (text, words) in [
        ("bytes_max = '2G'", "`G` means 1000s to some"),
        ("age_max = 'soon'", "`soon`: use a length of time"),
        ("age_max = -1", "invalid value"),
        ("age_max = 1\nage_secs_max = 2", "duplicate field"),
    ] {
        let error = of(text).expect_err(words);
        assert!(error.contains(words) && !error.contains('\n'), "{error}");
    }
}

#[test]
fn what_may_be_secret_is_not_shown() {
    let text = format!("{LOG}[s3]\nendpoint = 'https://me:secret@s3.example.com/x'\n");
    let all = Both::new(&text, &[]).read().expect("sound").settings(&[]);
    assert!(all.iter().all(|s| !s.value.contains("secret")), "{all:?}");
    assert!(all.iter().any(|s| s.value.contains("https://…@s3.example.com/x")));
}

/// Keys of a table, by the table of keys.
fn listed(table: &str) -> BTreeSet<String> {
    KEYS.iter()
        .filter(|k| k.table == table)
        .flat_map(|k| [Some(k.name), k.old_name])
        .flatten()
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_table_has_every_key_that_is_read_and_no_other() {
    let tables: BTreeSet<&str> = KEYS.iter().map(|k| k.table).collect();
    for table in &tables {
        let head = match *table {
            "" => String::new(),
            FLOW_LOG => format!("[[{table}]]"),
            _ => format!("[{table}]"),
        };
        let mut known = listed(table);
        if table.is_empty() {
            known.extend(tables.iter().filter(|t| !t.is_empty()).map(|t| (*t).to_owned()));
        }
        assert_eq!(known, understood(&head), "{table}");
    }
}

#[test]
fn every_default_of_the_table_is_what_holds_where_nothing_is_written() {
    let mut table = Table::new();
    for key in KEYS.iter().filter(|k| !k.is_of_flow_log() && k.table != FLOW_LOG_DEFAULTS) {
        if let Some(value) = written(key) {
            let of = if key.table.is_empty() { &mut table } else { table_of(&mut table, key.table) };
            of.insert(key.name.to_owned(), value);
        }
    }
    let mut log: Table = toml::from_str("interfaces = ['eth7']\ntarget = 's3://flows'").expect("TOML");
    log.extend(KEYS.iter().filter(|k| k.is_of_flow_log()).filter_map(|k| Some((k.name.to_owned(), written(k)?))));
    let check = |table: Table| {
        let raw: RawConfig = Value::Table(table).try_into().expect("understood");
        raw.check().expect("sound")
    };
    table.insert(FLOW_LOG.to_owned(), Value::Array(vec![Value::Table(log)]));
    let nothing: Table = toml::from_str(LOG).expect("TOML");
    assert_eq!(check(table), check(nothing));
    let managed = "[inventory]\nfile = '/x'\n";
    let mut defaults: Table = toml::from_str(managed).expect("TOML");
    for key in KEYS.iter().filter(|k| k.table == FLOW_LOG_DEFAULTS) {
        let value = written(key).expect("each has one");
        table_of(&mut defaults, FLOW_LOG_DEFAULTS).insert(key.name.to_owned(), value);
    }
    assert_eq!(check(defaults), check(toml::from_str(managed).expect("TOML")));
}

fn table_of<'a>(table: &'a mut Table, name: &str) -> &'a mut Table {
    table.entry(name).or_insert_with(|| Value::Table(Table::new())).as_table_mut().expect("a table")
}

/// A default as TOML.
fn written(key: &ConfigKey) -> Option<Value> {
    let Fallback::Is(text) = key.default else { return None };
    let value = format!("x = {text}\n").parse::<Table>().or_else(|_| format!("x = {text:?}\n").parse::<Table>());
    value.expect("TOML").remove("x")
}

/// The rows of the document, one for each key.
fn rows() -> String {
    let mut rows =
        String::from("| key | flag | default | form | to change it | what it says |\n|---|---|---|---|---|---|\n");
    for key in KEYS {
        let flag = key.flag.map_or_else(String::new, |f| match f.short {
            Some(short) => format!("`-{short}`, `--{}`", f.name),
            None => format!("`--{}`", f.name),
        });
        let default = match key.default {
            Fallback::Is(value) => format!("`{value}`"),
            Fallback::Words(words) => words.to_owned(),
        };
        let form = match key.form {
            Form::Word(words) => words.iter().map(|w| format!("`{w}`")).collect::<Vec<_>>().join(", "),
            form => form.unit().to_owned(),
        };
        let change = key.takes.words();
        let _ = writeln!(rows, "| `{}` | {flag} | {default} | {form} | {change} | {} |", key.path(), key.help);
    }
    rows
}

#[test]
fn the_reference_has_every_key_with_flag_default_form_and_whether_a_reload_applies_it() {
    let document = fs::read_to_string(Path::new(DOCUMENT)).unwrap_or_default();
    let rows = rows();
    assert!(document.contains(&rows), "docs/configuration.md is to have:\n{rows}");
    assert!(KEYS.iter().any(|k| k.takes == Takes::Restart));
}
