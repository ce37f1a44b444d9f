//! Figures of a region's server, as they are written down.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};

use super::classic::CONTENT_TYPE;
use crate::fleet::region::RegionFigures;

/// Figures of this moment.
pub(super) type Counted = Arc<dyn Fn() -> RegionFigures + Send + Sync>;

pub(super) fn router(counted: Counted) -> Router {
    Router::new()
        .route("/metrics", get(figures))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(counted)
}

async fn figures(State(counted): State<Counted>) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], written(&counted())).into_response()
}

/// Whether changes can be made: who sends them here asks this.
async fn ready(State(counted): State<Counted>) -> Response {
    match counted() {
        RegionFigures { etcd_answers: false, .. } => {
            (StatusCode::SERVICE_UNAVAILABLE, "etcd does not answer\n").into_response()
        }
        RegionFigures { taken: Some(words), .. } => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{words}\n")).into_response()
        }
        _ => "ok\n".into_response(),
    }
}

fn written(figures: &RegionFigures) -> String {
    let RegionFigures { nodes, nodes_away, flow_logs, claimed_twice, etcd_answers, .. } = *figures;
    let gauges = [
        ("flowlog_region_nodes", "Nodes that have said what they have", nodes),
        ("flowlog_region_nodes_away", "Nodes that are not heard of", nodes_away),
        ("flowlog_region_flow_logs", "Flow logs", flow_logs),
        ("flowlog_region_claimed_twice", "NICs, gateways and balancers that several nodes have", claimed_twice),
        ("flowlog_region_etcd_up", "Whether etcd answers", usize::from(etcd_answers)),
    ];
    let text = |(name, help, value)| format!("# HELP {name} {help}.\n# TYPE {name} gauge\n{name} {value}\n");
    gauges.map(text).concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_region_are_gauges_with_help() {
        let text =
            written(&RegionFigures { nodes: 3, claimed_twice: 1, etcd_answers: true, ..RegionFigures::default() });
        for line in ["flowlog_region_nodes 3", "flowlog_region_claimed_twice 1", "flowlog_region_etcd_up 1"] {
            assert!(text.lines().any(|l| l == line), "{line}: {text}");
        }
        assert!(text.contains("# HELP flowlog_region_nodes_away"), "{text}");
    }
}
