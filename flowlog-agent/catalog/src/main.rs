//! `flowlog-catalog`: delivered objects as tables of Iceberg. A program of its own: the agent neither links it nor knows of it.
//!
//! ```text
//! list -> which of them are not taken (roll) -> footer -> data file -> commit -> settled
//! ```
//!
//! # Each object once
//!
//! Which objects a table has taken is part of the table. Its property [`roll::PROPERTY`], the **roll**, names a few **sheets**: files
//! beside the table's own, each a list of objects. A commit does three things, in this order:
//!
//! 1. it writes a sheet with the objects it is about to take, under a name that nobody has used (the commit's id);
//! 2. it writes the manifests, as every commit of Iceberg does;
//! 3. it asks the catalog for *one* change: the new snapshot, which has the commit's id among its properties, *and* the roll with the new
//!    sheet in it; provided that the table's newest snapshot is still the one that was read.
//!
//! So objects and the knowledge of them arrive together or not at all:
//!
//! * killed before 3, there are files that nobody names; after it, everything is there. Nothing has to be cleaned up or remembered, and
//!   nothing of it is on this machine's disk;
//! * an answer that does not come, or says anything but "conflict", settles nothing; and neither does one that says "done"
//!   (`iceberg-catalog-sql` 0.10 says so even if its database refused). The table is read again: it has the commit's id, or it has not;
//! * a commit that lands later than that finds another snapshot in its way, or is found by the next one: of two that began with the same
//!   snapshot, one wins. The same holds for a second `flowlog-catalog`;
//! * compaction replaces objects by other files, and expiry forgets the snapshots that named them. The roll is neither a snapshot nor a data
//!   file: both leave it alone. Its folder begins with `_`, which is where Spark's `remove_orphan_files` does not look;
//! * what somebody else has added to the table (`add_files`) is found in the snapshots that are not ours, and comes into the next sheet;
//! * nothing is taken for older than something else: a window that comes days late is an object that is not in the roll.
//!
//! # Where what is
//!
//! * [`config`], [`cli`]: what is wanted; [`open`]: catalogs, and the files of tables ([`storage`]);
//! * [`list`], [`object_name`]: which objects there are; [`footer`]: what one says of itself;
//! * [`schema`], [`data_file`]: what the table must know of it;
//! * [`roll`], [`sheet`]: what is taken; [`strangers`]: what others have added; [`plan`]: what is to be done;
//! * [`commit`], with [`pinned`]: one commit, and what became of it; [`round`]: all of it, once, for one table;
//! * [`service`], [`metrics`]: again and again, and how it is doing.
#![forbid(unsafe_code)]

mod cli;
mod commit;
mod config;
mod data_file;
mod footer;
mod list;
mod metrics;
mod object_name;
mod open;
mod pinned;
mod plan;
mod roll;
mod round;
mod schema;
#[cfg(test)]
mod scripted;
mod service;
mod sheet;
mod storage;
mod strangers;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
