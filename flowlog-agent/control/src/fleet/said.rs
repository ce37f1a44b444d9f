//! What a node says of itself: what it has, and how that is doing. Values are JSON, deflated: what a node says of hundreds of NICs is
//! alike.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
};

use flate2::{Compression, read::ZlibDecoder, write::ZlibEncoder};
use flowlog_model::{
    FlowLogId,
    status::{CaptureState, Leaving, RouteState, RuleStatus, Status},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::claim::Holder;
use crate::{flow_logs::store::understood::NotUnderstood, inventory::Resource};

/// Most that is made of a value: a node with 10,000 NICs says a tenth of it.
const BYTES_MAX: u64 = 64 << 20;
/// Largest value that is sent: etcd takes 1.5 MiB by default.
const SENT_MAX: usize = 1_400_000;

/// What a node has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NodeResources {
    pub resources: Vec<Resource>,
}

/// How a node is doing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct NodeStatus {
    /// Its flow logs, as far as they are the region's.
    pub rules: Vec<RuleStatus>,
    pub leaving: Vec<Leaving>,
    /// Why it cannot do all of its work.
    pub trouble: Option<String>,
    /// Which agent says so.
    #[serde(default)]
    pub holder: Option<Holder>,
}

/// A flow log whose value in etcd a node does not understand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Puzzle {
    pub why: NotUnderstood,
    /// The node has understood an earlier value, and goes on with that.
    pub is_known: bool,
}

impl Puzzle {
    /// In a sentence; `who` does not understand it.
    pub(super) fn words(&self, who: &str) -> String {
        let so = if self.is_known {
            "goes on with what was understood last"
        } else {
            "captures nothing of it, as nothing was ever understood"
        };
        format!("{}; {who} {so}", self.why.words())
    }
}

/// Such flow logs, by id.
pub(super) type Puzzles = BTreeMap<FlowLogId, Puzzle>;

impl NodeStatus {
    /// What of a status is the region's, as a node tells it: flow logs of the configuration are the node's own.
    pub(super) fn of(node: &str, status: &Status, puzzles: &Puzzles) -> Self {
        let who = format!("node {node}");
        let mut rules: Vec<RuleStatus> = status.rules.iter().filter(|r| r.rule_id.is_some()).cloned().collect();
        for rule in &mut rules {
            rule.not_understood = rule.rule_id.and_then(|id| Some(puzzles.get(&id)?.words(&who)));
        }
        let captured: BTreeSet<FlowLogId> = rules.iter().filter_map(|r| r.rule_id).collect();
        rules.extend(puzzles.iter().filter(|(id, _)| !captured.contains(id)).map(|(id, puzzle)| {
            let capture = CaptureState::Trouble { why: puzzle.words(&who) };
            RuleStatus { rule_id: Some(*id), capture, ..RuleStatus::default() }
        }));
        Self { rules, leaving: status.leaving.clone(), trouble: status.trouble.clone(), holder: None }
    }

    /// As much of it as is told at once when it changes: not what is counted.
    pub(super) fn shape(&self) -> Vec<Shape> {
        let of = |r: &RuleStatus| {
            let route = std::mem::discriminant(&r.delivery.state);
            ((r.rule_id, r.interface_id.clone()), r.capture.clone(), r.not_understood.clone(), route)
        };
        let mut all: Vec<Shape> = self.rules.iter().map(of).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }
}

/// A flow log and an interface, and what of it is told at once.
type Shape = ((Option<FlowLogId>, String), CaptureState, Option<String>, std::mem::Discriminant<RouteState>);

/// A value as it is sent; `None`: it is too large.
pub(super) fn sent(value: &impl Serialize) -> Option<Vec<u8>> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&serde_json::to_vec(value).ok()?).ok()?;
    encoder.finish().ok().filter(|bytes| bytes.len() <= SENT_MAX)
}

/// A value that was sent; `None`: it is not understood.
pub(super) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let mut json = Vec::new();
    ZlibDecoder::new(bytes).take(BYTES_MAX).read_to_end(&mut json).ok()?;
    serde_json::from_slice(&json).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_log_that_is_not_understood_is_said_whether_it_is_captured_or_not() {
        let id = |n| FlowLogId(uuid::Uuid::from_u128(n));
        let rule = |n| RuleStatus { rule_id: Some(id(n)), ..RuleStatus::default() };
        let status = Status { rules: vec![rule(1), rule(2)], ..Status::default() };
        let why = NotUnderstood { key: "rules/x".to_owned(), revision: 3, why: "`paused`".to_owned() };
        let puzzle = |is_known| Puzzle { why: why.clone(), is_known };
        let told = NodeStatus::of("n1", &status, &Puzzles::from([(id(2), puzzle(true)), (id(3), puzzle(false))]));
        assert_eq!((told.rules.len(), &told.rules[0].not_understood), (3, &None));
        let words = told.rules[1].not_understood.as_deref().expect("said");
        assert!(
            words.contains("`rules/x`") && words.contains("`paused`") && words.contains("node n1 goes on"),
            "{words}"
        );
        assert!(
            matches!(&told.rules[2].capture, CaptureState::Trouble { why } if why.contains("node n1 captures nothing"))
        );
    }

    #[test]
    fn a_status_is_read_as_it_was_sent_and_counters_alone_do_not_change_its_shape() {
        let mut status = NodeStatus { rules: vec![RuleStatus::default(); 3], ..NodeStatus::default() };
        assert_eq!(read::<NodeStatus>(&sent(&status).expect("small")), Some(status.clone()));
        let before = status.shape();
        status.rules[1].counts.accepted_packets = 9;
        assert_eq!(status.shape(), before);
        status.rules[1].capture = CaptureState::Waiting { why: "gone".to_owned() };
        assert_ne!(status.shape(), before);
        let before = status.shape();
        status.rules[2].not_understood = Some("why".to_owned());
        assert_ne!(status.shape(), before);
        assert_eq!(read::<NodeStatus>(b"no"), None);
    }
}
