//! `flowlog rule export|import`: flow logs on their way from one store to another.

use std::{fs, path::Path, process::ExitCode};

use flowlog_control::flow_logs::{
    flow_log::FlowLog,
    store::export::{Exported, FORMAT, TakenOver},
};

use crate::cli::{
    client::{Client, read},
    exit::Failure,
    out::{self, say},
    status::Output,
};

/// Flow logs in one transaction: three parts each at most, and etcd takes 128 in one.
const BATCH_MAX: usize = 30;
/// Bytes of them in one request: less than what the API reads of a body.
const BATCH_BYTES_MAX: usize = 48 << 10;

pub(super) fn export(client: &Client) -> anyhow::Result<ExitCode> {
    out::json(&client.get("export")?)?;
    Ok(ExitCode::SUCCESS)
}

/// In batches, each of them all or none. One that is interrupted is repeated as a whole: what is there already is left alone.
pub(super) fn import(client: &Client, file: &Path, output: Output) -> anyhow::Result<ExitCode> {
    let wrong = |words: String| Failure::Wrong(format!("`{}`: {words}", file.display()));
    let bytes = fs::read(file).map_err(|e| wrong(e.to_string()))?;
    let Exported { format, flow_logs } = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
    if format != FORMAT {
        return Err(wrong(format!("format {format} is not known, this is format {FORMAT}")).into());
    }
    let mut sum = TakenOver::default();
    for batch in batches(flow_logs) {
        let taken: TakenOver =
            read(client.post("import", &serde_json::to_value(Exported { format, flow_logs: batch })?)?)?;
        sum.imported += taken.imported;
        sum.already += taken.already;
    }
    if output == Output::Json {
        out::json(&serde_json::to_value(sum)?)?;
    } else {
        say!("{} imported, {} here already", sum.imported, sum.already)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn batches(flow_logs: Vec<FlowLog>) -> Vec<Vec<FlowLog>> {
    let mut batches: Vec<Vec<FlowLog>> = Vec::new();
    let mut room = 0;
    for flow_log in flow_logs {
        let bytes = serde_json::to_vec(&flow_log).map_or(0, |json| json.len() + 1);
        match batches.last_mut() {
            Some(batch) if batch.len() < BATCH_MAX && bytes <= room => batch.push(flow_log),
            _ => {
                batches.push(vec![flow_log]);
                room = BATCH_BYTES_MAX;
            }
        }
        room = room.saturating_sub(bytes);
    }
    batches
}
