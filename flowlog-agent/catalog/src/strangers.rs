//! Objects that somebody else has put into the table: by `add_files` of another program, or before there was a roll.

use std::collections::{BTreeSet, HashSet};

use iceberg::{
    Result,
    spec::{DataContentType, Operation, SnapshotRef},
    table::Table,
};
use uuid::Uuid;

use crate::{commit::COMMIT_ID, object_name, storage::Place};

/// What is known of a table's snapshots that are not ours.
#[derive(Debug, Default)]
pub(crate) struct Strangers {
    table: Option<Uuid>,
    /// Snapshots that have been looked at.
    seen: HashSet<i64>,
    /// Objects that they have added.
    pub(crate) objects: BTreeSet<String>,
}

impl Strangers {
    /// Looks at the snapshots that are new. A table without a roll has none that are ours: all of its files count.
    ///
    /// # Errors
    /// If a manifest cannot be read: what it adds would be taken again.
    pub(crate) async fn look(&mut self, table: &Table, has_roll: bool) -> Result<()> {
        let metadata = table.metadata();
        if self.table != Some(metadata.uuid()) {
            *self = Self { table: Some(metadata.uuid()), ..Self::default() };
        }
        for snapshot in metadata.snapshots() {
            if !self.seen.contains(&snapshot.snapshot_id()) {
                if is_strange(snapshot, has_roll) {
                    self.read(table, snapshot, has_roll).await?;
                }
                self.seen.insert(snapshot.snapshot_id());
            }
        }
        self.seen.retain(|id| metadata.snapshot_by_id(*id).is_some());
        Ok(())
    }

    async fn read(&mut self, table: &Table, snapshot: &SnapshotRef, has_roll: bool) -> Result<()> {
        let manifests = table.manifest_list_reader(snapshot).load().await?;
        let wanted = manifests.entries().iter().filter(|m| !has_roll || m.added_snapshot_id == snapshot.snapshot_id());
        for manifest in wanted {
            let manifest = manifest.load_manifest(table.file_io()).await?;
            let data = manifest.entries().iter().filter(|entry| entry.content_type() == DataContentType::Data);
            self.objects.extend(data.filter_map(|entry| ours(entry.file_path())));
        }
        Ok(())
    }
}

/// Compaction, which is `replace`, and deletions bring no objects.
fn is_strange(snapshot: &SnapshotRef, has_roll: bool) -> bool {
    let summary = snapshot.summary();
    !has_roll
        || (!summary.additional_properties.contains_key(COMMIT_ID)
            && matches!(summary.operation, Operation::Append | Operation::Overwrite))
}

/// An object's address as it is written here, whichever way somebody else has written it.
fn ours(uri: &str) -> Option<String> {
    object_name::window_start(uri)?;
    Some(match Place::of(uri).ok()? {
        Place::File(path) => format!("file://{}", path.display()),
        Place::Bucket { bucket, key } => format!("s3://{bucket}/{key}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_has_one_address_however_it_is_written() {
        let object = "n-eth0_20270115T080000Z_0.parquet";
        for scheme in ["", "file:", "file://"] {
            assert_eq!(ours(&format!("{scheme}/flows/{object}")), Some(format!("file:///flows/{object}")));
        }
        for scheme in ["s3", "s3a", "s3n"] {
            assert_eq!(ours(&format!("{scheme}://b/{object}")), Some(format!("s3://b/{object}")));
        }
        assert_eq!(ours("s3://b/data/00000-0-uuid.parquet"), None);
    }
}
