//! `flowlog rule …`: flow logs of the running agent.

mod moving;

use std::{collections::BTreeSet, fmt::Write as _, path::PathBuf, process::ExitCode, time::Duration};

use clap::Subcommand;
use flowlog_control::{
    api::{
        model::{RequestStatus, RequestStatusMetadata, date},
        node::{AuditLog, Draft, Selection},
    },
    flow_logs::{
        editor::Patch,
        flow_log::{FlowLog, Properties, State},
        request::Progress,
        store::AuditEntry,
        summary::{Mark, Summary},
    },
};
use flowlog_host::clock;
use flowlog_model::{
    amount::parse_duration,
    rule::{Action, Directions, Name},
    status::{CaptureState, Counts, RuleStatus},
};
use hyper::Method;
use serde_json::Value;
use uuid::Uuid;

use super::{
    client::{Client, ClientArgs, ClientError, read, word},
    complete,
    exit::Failure,
    out::{self, for_people, say},
    status::{self, Output},
    table::{self, Cell, Colour, Column, Table, cells},
};

/// How long an answer takes at most that nothing is waited for.
const AT_ONCE: Duration = Duration::from_secs(5);

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  flowlog rule add --resource 5c1b7c1e-0000-4000-8000-000000000001 --name web --bucket flows/team-a
  flowlog rule validate web
  flowlog rule provision
  flowlog rule list
  flowlog rule show web -o json
  flowlog rule export > rules.json
  flowlog rule import rules.json")]
pub(super) struct RuleArgs {
    #[command(flatten)]
    agent: ClientArgs,
    /// Longest that an answer, or the end of what was asked for, is waited for: 90, 30s, 5m. What is asked for goes on without.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "2m", global = true)]
    timeout: Duration,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Write a draft down; it captures nothing.
    Add {
        /// NIC, NAT gateway or load balancer: its id in the inventory.
        #[arg(long, value_name = "UUID", add = complete::resources())]
        resource: Uuid,
        /// Name; begins every object key after the prefix.
        #[arg(long)]
        name: String,
        /// Which way, as the owner of the interface sees it.
        #[arg(long, value_parser = Directions::ALL.map(Directions::as_str), default_value = Directions::default().as_str())]
        direction: String,
        /// Packets by what became of them.
        #[arg(long, value_parser = Action::ALL.map(Action::as_str), default_value = Action::default().as_str())]
        action: String,
        /// bucket[/prefix].
        #[arg(long)]
        bucket: String,
    },
    /// Check a draft: everything that must hold before it can capture.
    Validate {
        /// Its id or name.
        #[arg(add = complete::flow_logs())]
        rule: String,
    },
    /// List flow logs.
    List,
    /// Sum one up.
    Show {
        /// Its id or name.
        #[arg(add = complete::flow_logs())]
        rule: String,
    },
    /// Activate drafts, all or none: these, or all there are.
    Provision {
        /// Their ids or names.
        #[arg(add = complete::flow_logs())]
        rules: Vec<String>,
        /// All drafts of this contract.
        #[arg(long, conflicts_with = "rules")]
        contract: Option<String>,
    },
    /// Give it another name. Its object keys stay where they are.
    Rename {
        /// Its id or name.
        #[arg(add = complete::flow_logs())]
        rule: String,
        /// The new name.
        name: String,
    },
    /// End its capture and remove it; delivered objects stay.
    Delete {
        /// Its id or name.
        #[arg(add = complete::flow_logs())]
        rule: String,
    },
    /// Wait for the end of a request that a command did not wait for.
    Request {
        /// Its id.
        id: Uuid,
    },
    /// Who did what.
    Audit,
    /// Print all flow logs as JSON, for `import` into another store: from a node's file to a region's etcd, or back.
    Export,
    /// Take flow logs over that were exported elsewhere, with their ids and states. What is here already is left as it is.
    Import {
        /// What `export` has printed.
        file: PathBuf,
    },
}

pub(super) fn run(args: RuleArgs) -> anyhow::Result<ExitCode> {
    let RuleArgs { agent, timeout, what } = args;
    let output = agent.output;
    let client = agent.client().with_patience(timeout);
    match what {
        What::Add { resource, name, direction, action, bucket } => {
            let properties = Properties { name, direction, action, bucket };
            let draft = serde_json::to_value(Draft { resource, properties })?;
            shown(&client.post("flowlogs", &draft)?, output)
        }
        What::Validate { rule } => {
            let id = find(&client, &rule)?;
            let checked = client.post(&format!("flowlogs/{id}/validate"), &Value::Null)?;
            shown(&checked, output)?;
            let ready = read::<Summary>(checked)?.flow_log.state == State::Validated;
            Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        What::List => listed(client.get("flowlogs")?, output),
        What::Show { rule } => shown(&client.get(&format!("flowlogs/{}", find(&client, &rule)?))?, output),
        What::Provision { rules, contract } => provision((&client, timeout), &rules, contract.as_deref(), output),
        What::Rename { rule, name } => {
            let path = format!("flowlogs/{}", find(&client, &rule)?);
            shown(
                &client.ask(
                    Method::PATCH,
                    &path,
                    Some(&serde_json::to_value(Patch { name: Some(name), ..Patch::default() })?),
                )?,
                output,
            )
        }
        What::Delete { rule } => {
            let path = format!("flowlogs/{}", find(&client, &rule)?);
            let request = client.ask(Method::DELETE, &path, None)?;
            finished((&client, timeout), request_id(&request)?, "deleted", output)
        }
        What::Request { id } => finished((&client, timeout), id, "done", output),
        What::Audit => audited(client.get("audit")?, output),
        What::Export => moving::export(&client),
        What::Import { file } => moving::import(&client, &file, output),
    }
}

/// The id of a flow log that is named by id or name.
fn find(client: &Client, rule: &str) -> anyhow::Result<Uuid> {
    if let Ok(id) = rule.parse() {
        return Ok(id);
    }
    let all: Vec<Summary> = read(client.get("flowlogs")?)?;
    let named = all.iter().map(|s| &s.flow_log).filter(|f| f.properties.name == rule);
    match named.map(|f| f.id.0).collect::<Vec<_>>().as_slice() {
        [id] => Ok(*id),
        [] => Err(Failure::NotThere(format!("no flow log has the name or id `{rule}`; see `rule list`")).into()),
        many => {
            let words = format!("{} flow logs have the name `{rule}`; use an id of `rule list`", many.len());
            Err(Failure::Wrong(words).into())
        }
    }
}

fn provision(
    (client, timeout): (&Client, Duration),
    rules: &[String],
    contract: Option<&str>,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let flow_logs = rules.iter().map(|r| find(client, r)).collect::<anyhow::Result<Vec<Uuid>>>()?;
    let contract = match contract {
        None if flow_logs.is_empty() => only_contract(client)?,
        other => other.map(str::to_owned),
    };
    let request = client.post("provision", &serde_json::to_value(Selection { flow_logs, contract })?)?;
    finished((client, timeout), request_id(&request)?, "provisioned", output)
}

/// The contract of all drafts, if they are of one: so that the operator need not name it.
fn only_contract(client: &Client) -> anyhow::Result<Option<String>> {
    let all: Vec<Summary> = read(client.get("flowlogs")?)?;
    let pending = all.iter().map(|s| &s.flow_log).filter(|f| matches!(f.state, State::Draft | State::Validated));
    let contracts: BTreeSet<String> = pending.map(|f| f.contract.to_string()).collect();
    if contracts.len() > 1 {
        let words = format!("there are drafts of {} contracts; name one with `--contract`", contracts.len());
        return Err(Failure::Wrong(words).into());
    }
    Ok(contracts.into_iter().next())
}

/// The id of the request that an answer is about.
fn request_id(answer: &Value) -> anyhow::Result<Uuid> {
    let RequestStatus { id, .. } = read(answer.clone())?;
    Ok(id.trim_end_matches("/status").parse()?)
}

/// Waits until a request is over, or for so long.
fn finished((client, patience): (&Client, Duration), id: Uuid, done: &str, output: Output) -> anyhow::Result<ExitCode> {
    let begun = clock::now().mono;
    loop {
        let so_far = Duration::from_nanos(clock::now().mono.0.saturating_sub(begun.0));
        // Asked once at least.
        let left = patience.saturating_sub(so_far).max(Duration::from_millis(1));
        let answer = match client.get_within(left, &format!("requests/{id}/status")) {
            Err(error) if matches!(error.downcast_ref(), Some(ClientError::Late { .. })) => {
                return Err(under_way(client, id, patience));
            }
            answer => answer?,
        };
        let RequestStatusMetadata { status, message, .. } = read::<RequestStatus>(answer.clone())?.metadata;
        match status {
            Progress::Done if output == Output::Json => out::json(&answer)?,
            Progress::Done => say!("{done}")?,
            Progress::Failed => return Err(ClientError::Failed(format!("not {done}: {message}")).into()),
            // The agent has answered because it takes long: asked again.
            Progress::Queued | Progress::Running => continue,
        }
        return Ok(ExitCode::SUCCESS);
    }
}

/// What is still being done, and how to ask for it.
fn under_way(client: &Client, id: Uuid, patience: Duration) -> anyhow::Error {
    // The cloud's API answers at once.
    let now = client.get_within(AT_ONCE, &format!("/cloudapi/v6/requests/{id}/status"));
    let so_far = match now.and_then(read::<RequestStatus>) {
        Ok(RequestStatus { metadata, .. }) => format!("is {}", word(&metadata.status)),
        Err(error) => format!("cannot be asked for now ({error})"),
    };
    let secs = patience.as_secs_f64();
    let words = format!("after {secs} s request {id} {so_far}, and goes on; `flowlog rule request {id}` waits for it");
    Failure::NotNow(words).into()
}

/// A mark, as a word and in a colour.
fn mark(mark: Mark) -> (&'static str, Colour) {
    match mark {
        Mark::Green => ("● green", Colour::Green),
        Mark::Yellow => ("● yellow", Colour::Yellow),
        Mark::Red => ("● red", Colour::Red),
    }
}

/// In the words of the command line; the API has the cloud's. What is wrong in a draft is shown as it was given.
fn direction(of: &Properties) -> String {
    of.direction.parse().map_or_else(|_| of.direction.clone(), |d: Directions| d.as_str().to_owned())
}

/// As [`direction`].
fn action(of: &Properties) -> String {
    of.action.parse().map_or_else(|_| of.action.clone(), |a: Action| a.as_str().to_owned())
}

fn listed(all: Value, output: Output) -> anyhow::Result<ExitCode> {
    if output == Output::Json {
        out::json(&all)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&[
        Column::cut("NAME"),
        Column::whole("STATE"),
        Column::whole("MARK"),
        Column::whole("DIRECTION").spare(),
        Column::whole("ACTION").spare(),
        Column::cut("BUCKET"),
        Column::cut("INTERFACE"),
        Column::cut("RESOURCE").spare(),
        Column::whole("ID").spare(),
        Column::cut("CONTRACT").spare(),
    ]);
    for s in read::<Vec<Summary>>(all)? {
        let FlowLog { id, state, properties: p, parent, contract, .. } = &s.flow_log;
        let interfaces = s.captures.iter().map(|c| c.interface.as_str()).collect::<Vec<_>>().join(" ");
        let (marked, colour) = mark(s.mark);
        let mut row = cells![p.name, word(state)];
        row.push(Cell::coloured(marked, colour));
        let resource = format!("{} {}", word(&parent.kind), parent.id);
        row.extend(cells![direction(p), action(p), p.bucket, interfaces, resource, id, contract]);
        table.row(row);
    }
    out::text(&table.lines())?;
    Ok(ExitCode::SUCCESS)
}

/// A mark where there is no table.
fn painted(of: Mark) -> String {
    let (words, colour) = mark(of);
    table::painted(words, colour)
}

fn shown(summary: &Value, output: Output) -> anyhow::Result<ExitCode> {
    if output == Output::Json {
        out::json(summary)?;
    } else {
        out::text(&table(&read(for_people(summary.clone()))?))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table(s: &Summary) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<14} {value}");
    };
    let f = &s.flow_log;
    let p = &s.flow_log.properties;
    line("state", format!("{}  {}", word(&f.state), painted(s.mark)));
    s.why.iter().for_each(|why| line("", why.clone()));
    line("id", f.id.to_string());
    line("name", p.name.clone());
    line("direction", direction(p));
    line("action", action(p));
    line("bucket", p.bucket.clone());
    if let Some(name) = f.key_name.as_ref().map(Name::as_str).filter(|name| *name != p.name) {
        line("keys begin", format!("{name} (the name it was activated with)"));
    }
    line("attached to", format!("{} {}", word(&f.parent.kind), f.parent.id));
    line("contract", f.contract.to_string());
    line("created by", f.created.by.clone());
    let now_secs = clock::now().wall.secs();
    for of in &s.captures {
        let RuleStatus { capture, counts, delivery, xdp, hiding, .. } = of;
        match capture {
            CaptureState::Attached { interface, ifindex, netns } => {
                let netns = netns.as_ref().map(|n| format!(", in network namespace {n}")).unwrap_or_default();
                line("interface", format!("{interface} (index {ifindex}{netns})"));
            }
            CaptureState::Waiting { why } | CaptureState::Trouble { why } => line("interface", why.clone()),
            CaptureState::Unknown => line("interface", "-".to_owned()),
        }
        for words in status::progress_words(of, now_secs) {
            line("", words);
        }
        let Counts { accepted_packets, rejected_packets, lost_packets, .. } = counts;
        line("packets", format!("{accepted_packets} accepted, {rejected_packets} rejected, {lost_packets} lost"));
        if let Some(words) = status::xdp_words(xdp, counts) {
            line("xdp", words);
        }
        for words in status::hiding_words(hiding) {
            line("hidden", words);
        }
        let or_none = |words: Option<&str>| words.unwrap_or("-").to_owned();
        line("last object", or_none(delivery.last_object.as_ref().map(|o| o.key.as_str())));
        line("delivered", format!("{}, {} waiting", delivery.delivered, delivery.waiting));
        line("last error", or_none(delivery.state.error()));
    }
    line("lag", format!("{} s", s.lag_secs));
    out
}

fn audited(log: Value, output: Output) -> anyhow::Result<ExitCode> {
    if output == Output::Json {
        out::json(&log)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&[
        Column::whole("TIME"),
        Column::cut("WHO"),
        Column::cut("CONTRACT").spare(),
        Column::cut("FLOW LOG"),
        Column::cut("WHAT"),
    ]);
    for AuditEntry { stamp, contract, flow_log, what } in read::<AuditLog>(log)?.entries {
        table.row(cells![date(stamp.at_secs), stamp.by, contract, flow_log, what]);
    }
    out::text(&table.lines())?;
    Ok(ExitCode::SUCCESS)
}
