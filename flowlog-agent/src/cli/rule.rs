//! `flowlog rule …`: flow logs of the running agent.

use std::{fmt::Write as _, process::ExitCode};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use hyper::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    client::{Client, ClientArgs},
    status::Output,
};
#[derive(clap::Args)]
pub(super) struct RuleArgs {
    #[command(flatten)]
    agent: ClientArgs,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Write a draft down; it captures nothing.
    Add {
        /// NIC, NAT gateway or load balancer: its id in the inventory.
        #[arg(long, value_name = "UUID")]
        resource: Uuid,
        /// Name; begins every object key after the prefix.
        #[arg(long)]
        name: String,
        /// ingress, egress or bidirectional.
        #[arg(long, default_value = "bidirectional")]
        direction: String,
        /// accepted, rejected or all.
        #[arg(long, default_value = "all")]
        action: String,
        /// bucket[/prefix].
        #[arg(long)]
        bucket: String,
    },
    /// Check a draft: everything that must hold before it can capture.
    Validate {
        /// Its id or name.
        rule: String,
    },
    /// List flow logs.
    List,
    /// Sum one up.
    Show {
        /// Its id or name.
        rule: String,
    },
    /// Activate drafts, all or none: these, or all there are.
    Provision {
        /// Their ids or names.
        rules: Vec<String>,
        /// All drafts of this contract.
        #[arg(long, conflicts_with = "rules")]
        contract: Option<String>,
    },
    /// Give it another name. Its object keys stay where they are.
    Rename {
        /// Its id or name.
        rule: String,
        /// The new name.
        name: String,
    },
    /// End its capture and remove it; delivered objects stay.
    Delete {
        /// Its id or name.
        rule: String,
    },
    /// Who did what.
    Audit,
}

pub(super) fn run(args: RuleArgs) -> anyhow::Result<ExitCode> {
    let RuleArgs { agent, what } = args;
    let (output, client) = (agent.output, agent.client());
    match what {
        What::Add { resource, name, direction, action, bucket } => {
            let draft =
                json!({"resource": resource, "name": name, "direction": direction, "action": action, "bucket": bucket});
            shown(&client.post("flowlogs", &draft)?, output)
        }
        What::Validate { rule } => {
            let id = find(&client, &rule)?;
            let checked = client.post(&format!("flowlogs/{id}/validate"), &Value::Null)?;
            shown(&checked, output)?;
            let ready = checked["state"] == "validated";
            Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        What::List => listed(&client.get("flowlogs")?, output),
        What::Show { rule } => shown(&client.get(&format!("flowlogs/{}", find(&client, &rule)?))?, output),
        What::Provision { rules, contract } => provision(&client, &rules, contract.as_deref(), output),
        What::Rename { rule, name } => {
            let path = format!("flowlogs/{}", find(&client, &rule)?);
            shown(&client.ask(Method::PATCH, &path, Some(&json!({"name": name})))?, output)
        }
        What::Delete { rule } => {
            let path = format!("flowlogs/{}", find(&client, &rule)?);
            let request = client.ask(Method::DELETE, &path, None)?;
            finished(&client, &request, "deleted", output)
        }
        What::Audit => audited(&client.get("audit")?, output),
    }
}

/// The id of a flow log that is named by id or name.
fn find(client: &Client, rule: &str) -> anyhow::Result<Uuid> {
    if let Ok(id) = rule.parse() {
        return Ok(id);
    }
    let all = client.get("flowlogs")?;
    let named = all.as_array().into_iter().flatten().filter(|f| f["properties"]["name"] == rule);
    let ids: Vec<Uuid> = named.filter_map(|f| f["id"].as_str()?.parse().ok()).collect();
    match ids.as_slice() {
        [id] => Ok(*id),
        [] => bail!("no flow log has the name or id `{rule}`; see `rule list`"),
        many => bail!("{} flow logs have the name `{rule}`; use an id of `rule list`", many.len()),
    }
}

fn provision(client: &Client, rules: &[String], contract: Option<&str>, output: Output) -> anyhow::Result<ExitCode> {
    let ids = rules.iter().map(|r| find(client, r)).collect::<anyhow::Result<Vec<Uuid>>>()?;
    let contract = match contract {
        None if ids.is_empty() => only_contract(client)?,
        other => other.map(str::to_owned),
    };
    let request = client.post("provision", &json!({"flow_logs": ids, "contract": contract}))?;
    finished(client, &request, "provisioned", output)
}

/// The contract of all drafts, if they are of one: so that the operator need not name it.
fn only_contract(client: &Client) -> anyhow::Result<Option<String>> {
    let all = client.get("flowlogs")?;
    let pending = |f: &&Value| f["state"] == "draft" || f["state"] == "validated";
    let of = all.as_array().into_iter().flatten().filter(pending).filter_map(|f| f["contract"].as_str());
    let contracts: std::collections::BTreeSet<&str> = of.collect();
    if contracts.len() > 1 {
        bail!("there are drafts of {} contracts; name one with `--contract`", contracts.len());
    }
    Ok(contracts.first().map(|c| (*c).to_owned()))
}

/// Waits until a request is over.
fn finished(client: &Client, request: &Value, done: &str, output: Output) -> anyhow::Result<ExitCode> {
    let id = request["id"].as_str().context("the agent's answer has no id")?.to_owned();
    loop {
        let status = client.get(&format!("requests/{id}"))?;
        let metadata = &status["metadata"];
        let message = metadata["message"].as_str().unwrap_or_default();
        match metadata["status"].as_str() {
            Some("DONE") if output == Output::Json => println!("{}", serde_json::to_string_pretty(&status)?),
            Some("DONE") => println!("{done}"),
            Some("FAILED") => bail!("not {done}: {message}"),
            // The agent has answered because it takes long: asked again.
            _ => continue,
        }
        return Ok(ExitCode::SUCCESS);
    }
}

fn text(v: &Value) -> String {
    match v {
        Value::String(s) => s.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

/// A mark, in colour where that is seen.
fn mark(summary: &Value) -> String {
    let (colour, word) = match summary["mark"].as_str() {
        Some("green") => ("32", "● green"),
        Some("yellow") => ("33", "● yellow"),
        _ => ("31", "● red"),
    };
    if std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        format!("\x1b[{colour}m{word}\x1b[0m")
    } else {
        word.to_owned()
    }
}

fn listed(all: &Value, output: Output) -> anyhow::Result<ExitCode> {
    if output == Output::Json {
        println!("{}", serde_json::to_string_pretty(all)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "{:<36}  {:<20} {:<12} {:<9} {:<12} {:<22} INTERFACE",
        "ID", "NAME", "STATE", "MARK", "CONTRACT", "BUCKET"
    );
    for f in all.as_array().into_iter().flatten() {
        let interfaces: Vec<String> =
            f["captures"].as_array().into_iter().flatten().map(|c| text(&c["interface"])).collect();
        println!(
            "{:<36}  {:<20} {:<12} {:<9} {:<12} {:<22} {}",
            text(&f["id"]),
            text(&f["properties"]["name"]),
            text(&f["state"]),
            mark(f),
            text(&f["contract"]),
            text(&f["properties"]["bucket"]),
            interfaces.join(" "),
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn shown(summary: &Value, output: Output) -> anyhow::Result<ExitCode> {
    if output == Output::Json {
        println!("{}", serde_json::to_string_pretty(summary)?);
    } else {
        print!("{}", table(summary));
    }
    Ok(ExitCode::SUCCESS)
}

fn table(s: &Value) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<14} {value}");
    };
    let (p, parent) = (&s["properties"], &s["parent"]);
    line("state", format!("{}  {}", text(&s["state"]), mark(s)));
    for why in s["why"].as_array().into_iter().flatten() {
        line("", text(why));
    }
    line("id", text(&s["id"]));
    line("name", text(&p["name"]));
    line("direction", text(&p["direction"]));
    line("action", text(&p["action"]));
    line("bucket", text(&p["bucket"]));
    if s["key_name"].is_string() && s["key_name"] != p["name"] {
        line("keys begin", format!("{} (the name it was activated with)", text(&s["key_name"])));
    }
    line("attached to", format!("{} {}", text(&parent["kind"]), text(&parent["id"])));
    line("contract", text(&s["contract"]));
    line("created by", text(&s["created"]["by"]));
    for c in s["captures"].as_array().into_iter().flatten() {
        let capture = &c["capture"];
        match capture["state"].as_str() {
            Some("attached") => {
                let netns =
                    capture["netns"].as_str().map(|n| format!(", in network namespace {n}")).unwrap_or_default();
                line("interface", format!("{} (index {}{netns})", text(&capture["interface"]), capture["ifindex"]));
            }
            _ => line("interface", text(&capture["why"])),
        }
        let counts = ["accepted_packets", "rejected_packets", "lost_packets"].map(|f| c[f].to_string());
        line("packets", format!("{} accepted, {} rejected, {} lost", counts[0], counts[1], counts[2]));
        let delivery = &c["delivery"];
        line("last object", text(&delivery["last_key"]));
        line("delivered", format!("{}, {} waiting", delivery["delivered"], delivery["waiting"]));
        line("last error", text(&delivery["error"]));
    }
    line("lag", format!("{} s", s["lag_secs"]));
    out
}

fn audited(log: &Value, output: Output) -> anyhow::Result<ExitCode> {
    if output == Output::Json {
        println!("{}", serde_json::to_string_pretty(log)?);
        return Ok(ExitCode::SUCCESS);
    }
    for e in log["entries"].as_array().into_iter().flatten() {
        let at = flowlog_control::api::model::date(e["stamp"]["at_secs"].as_i64().unwrap_or(0));
        println!(
            "{at}  {:<20} {:<12} {}  {}",
            text(&e["stamp"]["by"]),
            text(&e["contract"]),
            text(&e["flow_log"]),
            text(&e["what"])
        );
    }
    Ok(ExitCode::SUCCESS)
}
