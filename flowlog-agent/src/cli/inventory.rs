//! `flowlog inventory list`: what the running agent knows to be on this node.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::Value;

use super::{
    client::ClientArgs,
    out::{self, say},
    status::Output,
};

#[derive(clap::Args)]
pub(super) struct InventoryArgs {
    #[command(flatten)]
    agent: ClientArgs,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// List NICs, NAT gateways and load balancers, and their flow logs.
    List,
}

pub(super) fn run(args: InventoryArgs) -> anyhow::Result<ExitCode> {
    let InventoryArgs { agent, what: What::List } = args;
    let output = agent.output;
    let inventory = agent.client().get("inventory")?;
    if output == Output::Json {
        out::json(&inventory)?;
        return Ok(ExitCode::SUCCESS);
    }
    let inventory = out::for_people(inventory);
    let text = |v: &Value| v.as_str().unwrap_or("-").to_owned();
    say!("{:<36}  {:<25} {:<12} {:<6} {:<28} FLOW LOG", "ID", "KIND", "CONTRACT", "SIDE", "INTERFACES")?;
    for r in inventory["resources"].as_array().into_iter().flatten() {
        let selector = |i: &Value| {
            let pairs = i["selector"].as_object().into_iter().flatten();
            pairs.map(|(by, v)| format!("{by} {}", v.to_string().trim_matches('"'))).collect::<Vec<_>>().join(" ")
        };
        let interfaces: Vec<String> = r["interfaces"].as_array().into_iter().flatten().map(selector).collect();
        say!(
            "{:<36}  {:<25} {:<12} {:<6} {:<28} {}",
            text(&r["id"]),
            text(&r["kind"]),
            text(&r["contract"]),
            text(&r["side"]),
            interfaces.join(", "),
            text(&r["flow_log"]["name"]),
        )?;
    }
    for problem in inventory["problems"].as_array().into_iter().flatten() {
        say!("problem: {}", text(problem))?;
    }
    Ok(ExitCode::SUCCESS)
}
