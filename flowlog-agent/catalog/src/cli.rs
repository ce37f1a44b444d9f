//! The command line.

use std::{
    io::{self, IsTerminal as _, Write as _},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser};
use clap_complete::Shell;
use flowlog_model::S3Options;
use tokio_rustls::rustls;
use tracing_subscriber::EnvFilter;

use crate::{
    config::{ConfigError, RawConfig, RawTable, TABLE},
    metrics::{self, Metrics},
    open,
    round::Feed,
    service::Rounds,
    storage::Stores,
};

/// Exit codes of `sysexits.h`, as those of the agent.
const EX_TEMPFAIL: u8 = 75;
const EX_SOFTWARE: u8 = 70;
const EX_CONFIG: u8 = 78;
/// What has directives for logs, as for the agent.
const LOG_VARIABLE: &str = "FLOWLOG_LOG";

/// Delivered objects of flow logs as tables of Apache Iceberg: lists objects, takes those that the table does not have, and appends them in
/// one commit. Objects are not rewritten, and none is deleted.
#[derive(Parser)]
#[command(
    name = "flowlog-catalog",
    version,
    after_help = "\
Exit codes: 0 done; 2 the command line is wrong; 70 the system refused; 75 not all could be done, try again; 78 the configuration is wrong.

Examples:
  flowlog-catalog --once --state-dir ./catalog ./flows
  flowlog-catalog --once --table flowlog.web s3://flows/team-a/web
  flowlog-catalog --config /etc/flowlog-catalog/catalog.toml"
)]
struct Args {
    /// Where objects are: directories, or `s3://bucket[/folder]`. They go into one table.
    from: Vec<String>,
    /// One round, and no more.
    #[arg(long)]
    once: bool,
    /// Tables, catalog and the way to buckets. Flags win over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The table that objects on the command line go into.
    #[arg(long, value_name = "NAMESPACE.NAME", default_value = TABLE)]
    table: String,
    /// Where catalog and tables are if nothing else is said [default: /var/lib/flowlog-catalog]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// `sqlite:///PATH`, or the URL of a REST catalog [default: `catalog.db` in the state directory]
    #[arg(long, value_name = "URL")]
    catalog: Option<String>,
    /// Where new tables go: `file:///DIR` or `s3://BUCKET/FOLDER` [default: `warehouse` in the state directory, or what the REST catalog says]
    #[arg(long, value_name = "URL")]
    warehouse: Option<String>,
    /// Time between rounds [default: 1m]
    #[arg(long, value_name = "TIME")]
    every: Option<String>,
    /// Serve metrics on this loopback address.
    #[arg(long, value_name = "ADDRESS")]
    metrics_listen: Option<SocketAddr>,
    #[command(flatten)]
    s3: S3Args,
    /// Say more: -v debug, -vv everything. `FLOWLOG_LOG` chooses levels for parts.
    #[arg(long, short, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Write the manual page to standard output.
    #[arg(long, hide = true)]
    manual: bool,
    /// Write a shell's completions to standard output.
    #[arg(long, hide = true, value_name = "SHELL")]
    completions: Option<Shell>,
}

/// The same flags as those of the agent.
#[derive(clap::Args)]
#[allow(clippy::struct_field_names, reason = "flags have their names from the fields")]
#[command(next_help_heading = "Object store")]
struct S3Args {
    /// URL of the S3 server [default: AWS]
    #[arg(long, value_name = "URL")]
    s3_endpoint: Option<String>,
    /// S3 region [default: us-east-1]
    #[arg(long, value_name = "REGION")]
    s3_region: Option<String>,
    /// Bucket in the path, not in the host name.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
    s3_path_style: Option<bool>,
    /// Allow an http:// endpoint.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
    s3_allow_http: Option<bool>,
    /// File with S3 credentials in the AWS format; read again when it changes [default: `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`]
    #[arg(long, value_name = "FILE")]
    s3_credentials: Option<PathBuf>,
}

impl S3Args {
    fn over(self, file: S3Options) -> S3Options {
        S3Options {
            endpoint: self.s3_endpoint.or(file.endpoint),
            region: self.s3_region.or(file.region),
            path_style: self.s3_path_style.unwrap_or(file.path_style),
            allow_http: self.s3_allow_http.unwrap_or(file.allow_http),
            credentials_file: self.s3_credentials.or(file.credentials_file),
            acl: file.acl,
        }
    }
}

/// Runs what the command line says.
pub(crate) fn main() -> ExitCode {
    #[cfg(feature = "faults")]
    if let Err(error) = flowlog_host::fault::arm() {
        eprintln!("error: {error}");
        return ExitCode::from(EX_CONFIG);
    }
    let args = Args::parse();
    if args.manual || args.completions.is_some() {
        return documents(&args);
    }
    log(args.verbose);
    match run(args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(if error.downcast_ref::<ConfigError>().is_some() { EX_CONFIG } else { EX_SOFTWARE })
        }
    }
}

fn documents(args: &Args) -> ExitCode {
    let mut command = Args::command();
    let mut text = Vec::new();
    let made = match args.completions {
        Some(shell) => {
            clap_complete::generate(shell, &mut command, "flowlog-catalog", &mut text);
            Ok(())
        }
        None => clap_mangen::Man::new(command).render(&mut text),
    };
    match made.and_then(|()| io::stdout().write_all(&text)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(EX_SOFTWARE),
    }
}

fn log(verbose: u8) {
    let level = match verbose {
        0 => "info",
        1 => "debug",
        _ => "trace",
    };
    // What a catalog's client has to say is for those who ask: this program says what it comes to.
    let ours = format!("warn,flowlog_catalog={level}");
    let said = std::env::var(LOG_VARIABLE).ok().filter(|said| verbose == 0 && !said.trim().is_empty());
    let filter = EnvFilter::try_new(said.as_deref().unwrap_or(&ours)).unwrap_or_else(|_| EnvFilter::new(ours));
    let is_terminal = io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(is_terminal);
    // The system's journal has times of its own.
    if std::env::var_os("JOURNAL_STREAM").is_some() { builder.without_time().init() } else { builder.init() }
}

fn run(args: Args) -> anyhow::Result<ExitCode> {
    let once = args.once;
    let config = raw(args)?.check()?;
    // The clients of catalogs take the process's default.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let stores = Arc::new(Stores::new(config.s3.clone()));
        let catalog = open::catalog(&config, &stores).await?;
        let metrics = Arc::new(Metrics::new());
        if let Some(address) = config.metrics_listen {
            let listener =
                metrics::listen(address).await.with_context(|| format!("cannot serve metrics on {address}"))?;
            tokio::spawn(metrics::serve(listener, metrics.clone()));
        }
        let feeds = config.tables.into_iter().map(|(name, sources)| Feed::new(name, sources)).collect();
        let mut rounds = Rounds { catalog, stores, feeds, metrics };
        if !once {
            rounds.until_stopped(Duration::from_secs(config.every_secs)).await?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut code = ExitCode::SUCCESS;
        for (table, outcome, result) in rounds.all().await {
            let refused: u64 = outcome.refused.values().sum();
            println!("{table}: {} objects, {} of them new, {refused} refused", outcome.in_table, outcome.taken);
            if result.is_err() {
                code = ExitCode::from(EX_TEMPFAIL);
            }
        }
        Ok(code)
    })
}

/// The configuration with what the command line says.
fn raw(args: Args) -> Result<RawConfig, ConfigError> {
    let mut raw = match &args.config {
        Some(path) => RawConfig::read(path)?,
        None => RawConfig::default(),
    };
    if !args.from.is_empty() {
        raw.table = vec![RawTable { name: args.table, from: args.from }];
    }
    raw.state_dir = args.state_dir.or(raw.state_dir);
    raw.catalog = args.catalog.or(raw.catalog);
    raw.warehouse = args.warehouse.or(raw.warehouse);
    raw.every = args.every.or(raw.every);
    raw.metrics_listen = args.metrics_listen.or(raw.metrics_listen);
    raw.s3 = args.s3.over(raw.s3);
    Ok(raw)
}
