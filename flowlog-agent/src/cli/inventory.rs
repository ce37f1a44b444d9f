//! `flowlog inventory`: what the running agent knows to be on this node.

use std::process::ExitCode;

use clap::Subcommand;
use flowlog_control::api::node::{InventoryList, Listed};
use flowlog_model::text::printable;

use super::{
    client::{ClientArgs, read, word},
    import,
    out::{self, say},
    status::Output,
    table::{Column, Table, cells},
};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  flowlog inventory list
  flowlog inventory list -o json")]
pub(super) struct InventoryArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// List NICs, NAT gateways and load balancers, and their flow logs.
    List(ClientArgs),
    /// Show what a source of the inventory would bring, or write it into a file: without an agent.
    Import(Box<import::ImportArgs>),
}

pub(super) fn run(args: InventoryArgs) -> anyhow::Result<ExitCode> {
    let agent = match args.what {
        What::Import(import) => return import::run(*import),
        What::List(agent) => agent,
    };
    let output = agent.output;
    let inventory = agent.client().get("inventory")?;
    if output == Output::Json {
        out::json(&inventory)?;
        return Ok(ExitCode::SUCCESS);
    }
    let InventoryList { resources, unowned, problems } = read(inventory)?;
    let mut table = Table::new(&[
        Column::whole("ID"),
        Column::cut("KIND"),
        Column::cut("CONTRACT"),
        Column::whole("SIDE").spare(),
        Column::cut("INTERFACES"),
        Column::cut("FLOW LOG"),
    ]);
    for Listed { resource: r, flow_log, selected_by } in resources {
        let interfaces: Vec<String> = r.interfaces.iter().map(|i| i.selector.to_string()).collect();
        let named = match (selected_by, flow_log) {
            (Some(name), _) => format!("{name} (by selection)"),
            (None, flow_log) => flow_log.map_or_else(|| "-".to_owned(), |f| f.name),
        };
        table.row(cells![r.id, word(&r.kind), r.contract, word(&r.side), interfaces.join(", "), named]);
    }
    out::text(&table.lines())?;
    for nic in unowned {
        say!("{}", printable(&nic.to_string()))?;
    }
    for problem in problems {
        say!("problem: {}", printable(&problem))?;
    }
    Ok(ExitCode::SUCCESS)
}
