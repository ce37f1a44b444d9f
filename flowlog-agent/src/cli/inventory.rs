//! `flowlog inventory list`: what the running agent knows to be on this node.

use std::process::ExitCode;

use clap::Subcommand;
use flowlog_control::api::node::{InventoryList, Listed};

use super::{
    client::{ClientArgs, read, word},
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
    let InventoryList { resources, problems } = read(out::for_people(inventory))?;
    say!("{:<36}  {:<25} {:<12} {:<6} {:<28} FLOW LOG", "ID", "KIND", "CONTRACT", "SIDE", "INTERFACES")?;
    for Listed { resource, flow_log } in resources {
        let interfaces: Vec<String> = resource.interfaces.iter().map(|i| i.selector.to_string()).collect();
        say!(
            "{:<36}  {:<25} {:<12} {:<6} {:<28} {}",
            resource.id.to_string(),
            word(&resource.kind),
            resource.contract.to_string(),
            word(&resource.side),
            interfaces.join(", "),
            flow_log.map_or_else(|| "-".to_owned(), |f| f.name),
        )?;
    }
    for problem in problems {
        say!("problem: {problem}")?;
    }
    Ok(ExitCode::SUCCESS)
}
