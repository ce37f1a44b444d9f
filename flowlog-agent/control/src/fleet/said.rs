//! What a node says of itself: what it has, and how that is doing. Values are JSON, deflated: what a node says of hundreds of NICs is
//! alike.

use std::io::{Read as _, Write as _};

use flate2::{Compression, read::ZlibDecoder, write::ZlibEncoder};
use flowlog_model::status::{CaptureState, Leaving, RouteState, RuleStatus, Status};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::inventory::Resource;

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
}

impl NodeStatus {
    /// What of a status is the region's: flow logs of the configuration are the node's own.
    pub(super) fn of(status: &Status) -> Self {
        let rules = status.rules.iter().filter(|r| r.rule_id.is_some()).cloned().collect();
        Self { rules, leaving: status.leaving.clone(), trouble: status.trouble.clone() }
    }

    /// As much of it as is told at once when it changes: not what is counted.
    pub(super) fn shape(&self) -> Vec<(String, CaptureState, std::mem::Discriminant<RouteState>)> {
        let mut all: Vec<_> = self
            .rules
            .iter()
            .map(|r| (r.interface_id.clone(), r.capture.clone(), std::mem::discriminant(&r.delivery.state)))
            .collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }
}

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
    fn a_status_is_read_as_it_was_sent_and_counters_alone_do_not_change_its_shape() {
        let mut status = NodeStatus { rules: vec![RuleStatus::default(); 3], ..NodeStatus::default() };
        assert_eq!(read::<NodeStatus>(&sent(&status).expect("small")), Some(status.clone()));
        let before = status.shape();
        status.rules[1].counts.accepted_packets = 9;
        assert_eq!(status.shape(), before);
        status.rules[1].capture = CaptureState::Waiting { why: "gone".to_owned() };
        assert_ne!(status.shape(), before);
        assert_eq!(read::<NodeStatus>(b"no"), None);
    }
}
