//! All of it, once, for one table.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use iceberg::{Catalog, ErrorKind, TableIdent, spec::DataFile, table::Table};

use crate::{
    commit::{self, CommitError, Fate},
    data_file,
    footer::{Footer, FooterColumn, TAIL_BYTES, Tail},
    list::{self, Found, ListError, Listing, Source},
    object_name,
    plan::{COMMIT_OBJECTS_MAX, Plan, plan},
    schema::{self, Misfit},
    sheet::Taken,
    storage::{StorageError, Stores},
    strangers::Strangers,
};

/// Footers that are read at the same time: what takes long is the way.
const FOOTERS_AT_ONCE: usize = 32;
/// So often somebody else may be faster, before the next round tries again.
const CONFLICTS_MAX: u32 = 10;
/// Pause after the first conflict; each further one is twice as long, up to the longest.
const CONFLICT_PAUSE: Duration = Duration::from_millis(100);
const CONFLICT_PAUSE_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub(crate) enum RoundError {
    /// What can be listed has been taken.
    #[error("{}", join(.0))]
    Lists(Vec<ListError>),
    #[error(transparent)]
    Commit(#[from] CommitError),
    #[error("cannot make table `{table}`: {source}")]
    Create { table: TableIdent, source: Box<iceberg::Error> },
    #[error("cannot see what others have added to `{table}`: {source}")]
    Strangers { table: TableIdent, source: Box<iceberg::Error> },
    #[error("others were faster {CONFLICTS_MAX} times in a row; the next round tries again")]
    Conflicts,
    #[error("{0} objects cannot be read at the moment; first: {1}")]
    Objects(usize, String),
}

/// What came of a round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Objects that were taken in this round.
    pub(crate) taken: u64,
    pub(crate) commits: u64,
    pub(crate) conflicts: u64,
    /// Objects in the table's roll.
    pub(crate) in_table: u64,
    /// Objects that are there, and not taken: refused ones are not among them.
    pub(crate) waiting: u64,
    /// Objects that do not fit, by reason.
    pub(crate) refused: HashMap<&'static str, u64>,
    /// Parquet files that are no objects.
    pub(crate) others: u64,
    /// Begin of the newest window in the listing, Unix seconds.
    pub(crate) newest_window: Option<i64>,
}

/// A table, and what is known of it from round to round. All of it can be found again.
pub(crate) struct Feed {
    pub(crate) name: TableIdent,
    pub(crate) sources: Vec<Source>,
    taken: Taken,
    strangers: Strangers,
    /// Objects that do not fit: their footers are read once.
    refused: HashMap<String, &'static str>,
}

/// Footers of a commit's objects.
#[derive(Default)]
struct Read<'a> {
    fits: Vec<(&'a Found, Box<Footer>)>,
    /// What could not be read now, and why.
    failed: Vec<String>,
}

impl Feed {
    pub(crate) fn new(name: TableIdent, sources: Vec<Source>) -> Self {
        Self { name, sources, taken: Taken::default(), strangers: Strangers::default(), refused: HashMap::new() }
    }

    /// Takes all that is there; what was committed before an error is in the table.
    pub(crate) async fn round(
        &mut self,
        catalog: &dyn Catalog,
        stores: &Arc<Stores>,
    ) -> (Outcome, Result<(), RoundError>) {
        let mut outcome = Outcome::default();
        let result = self.take_all(catalog, stores, &mut outcome).await;
        (outcome, result)
    }

    async fn take_all(
        &mut self,
        catalog: &dyn Catalog,
        stores: &Arc<Stores>,
        outcome: &mut Outcome,
    ) -> Result<(), RoundError> {
        let mut listing = list::list(&self.sources, stores).await;
        let unlisted = std::mem::take(&mut listing.failed);
        outcome.others = listing.others;
        outcome.newest_window = listing.objects.last().map(|o| o.window_start);
        let mut table = self.load_or_create(catalog).await?;
        let (mut conflicts, mut changes) = (0, 0);
        let mut failed: Vec<String> = Vec::new();
        let mut skipped: HashSet<String> = HashSet::new();
        loop {
            let roll = commit::roll_or_none(&table)?;
            let has_roll = roll.is_some();
            let roll = roll.unwrap_or_default();
            self.taken.read(&table, &roll).await.map_err(CommitError::from)?;
            let strange = |source| RoundError::Strangers { table: self.name.clone(), source: Box::new(source) };
            self.strangers.look(&table, has_roll).await.map_err(strange)?;
            outcome.in_table = roll.objects();
            let Plan { take, waiting } = self.plan(&listing, &skipped);
            self.count(&listing, waiting + skipped.len(), outcome);
            if take.is_empty() && self.unwritten().next().is_none() {
                break;
            }
            let mut read = self.read(&take, stores).await;
            skipped.extend(read.unread(&take, &self.refused));
            failed.append(&mut read.failed);
            if let Some(columns) = self.columns_to_add(&table, &read.fits) {
                changes += 1;
                if changes > CONFLICTS_MAX || !commit::add_columns(catalog, &table, &columns).await? {
                    self.refuse_those_with(&columns, &read.fits);
                }
                table = commit::load(catalog, &self.name).await?;
                continue;
            }
            let files = self.data_files(&table, &read.fits);
            if files.is_empty() && self.unwritten().next().is_none() {
                continue;
            }
            match self.commit(catalog, &table, files).await? {
                (Fate::Landed(now), objects) => {
                    outcome.taken += objects;
                    outcome.commits += 1;
                    conflicts = 0;
                    table = *now;
                }
                (Fate::Conflict, _) => {
                    outcome.conflicts += 1;
                    conflicts += 1;
                    if conflicts > CONFLICTS_MAX {
                        return Err(RoundError::Conflicts);
                    }
                    pause(conflicts).await;
                    table = commit::load(catalog, &self.name).await?;
                }
            }
        }
        match failed.first() {
            Some(first) => Err(RoundError::Objects(failed.len(), first.clone())),
            None if !unlisted.is_empty() => Err(RoundError::Lists(unlisted)),
            None => Ok(()),
        }
    }

    fn plan<'a>(&self, listing: &'a Listing, skipped: &HashSet<String>) -> Plan<'a> {
        let is_done = |object: &Found| {
            let uri = &object.uri;
            self.taken.has(object.hash)
                || self.refused.contains_key(uri)
                || self.strangers.objects.contains(uri)
                || skipped.contains(uri)
        };
        plan(&listing.objects, is_done, COMMIT_OBJECTS_MAX)
    }

    /// Objects that somebody else has added, and the roll does not have yet: they must be in it before their snapshots are expired.
    fn unwritten(&self) -> impl Iterator<Item = &str> {
        self.strangers.objects.iter().map(String::as_str).filter(|uri| !self.taken.has(object_name::hash(uri)))
    }

    fn count(&mut self, listing: &Listing, waiting: usize, outcome: &mut Outcome) {
        // What is no longer there need not be remembered.
        if !self.refused.is_empty() {
            let there: HashSet<&str> = listing.objects.iter().map(|o| o.uri.as_str()).collect();
            self.refused.retain(|uri, _| there.contains(uri.as_str()));
        }
        outcome.waiting = waiting as u64;
        outcome.refused = Misfit::REASONS.iter().map(|reason| (*reason, 0)).collect();
        for reason in self.refused.values() {
            *outcome.refused.entry(reason).or_default() += 1;
        }
    }

    async fn load_or_create(&self, catalog: &dyn Catalog) -> Result<Table, RoundError> {
        match commit::load(catalog, &self.name).await {
            Err(CommitError::Load { source, .. })
                if [ErrorKind::TableNotFound, ErrorKind::NamespaceNotFound].contains(&source.kind()) => {}
            loaded => return Ok(loaded?),
        }
        let failed = |source| RoundError::Create { table: self.name.clone(), source: Box::new(source) };
        let namespace = self.name.namespace();
        // Two may begin at the same time: what the other one has made is as good.
        if !catalog.namespace_exists(namespace).await.map_err(failed)? {
            match catalog.create_namespace(namespace, HashMap::new()).await {
                Err(e) if e.kind() != ErrorKind::NamespaceAlreadyExists => return Err(failed(e)),
                _ => {}
            }
        }
        let creation = schema::creation(self.name.name()).map_err(failed)?;
        let made = catalog.create_table(namespace, creation).await;
        // Whatever it says: if the table is there, it is.
        match (commit::load(catalog, &self.name).await, made) {
            (Err(CommitError::Load { .. }), Err(source)) => Err(failed(source)),
            (loaded, made) => {
                // Of two that begin at the same time one has made it.
                if made.is_ok() {
                    tracing::info!(table = %self.name, "made the table");
                }
                Ok(loaded?)
            }
        }
    }

    /// The footers of objects. Those that are none of ours, or of another time, are refused.
    async fn read<'a>(&mut self, take: &[&'a Found], stores: &Arc<Stores>) -> Read<'a> {
        let mut waiting = Vec::with_capacity(take.len());
        for found in take.iter().copied() {
            let stores = stores.clone();
            waiting.push(async move { (found, read_footer(found, &stores).await) });
        }
        let mut footers: Vec<_> = stream::iter(waiting).buffer_unordered(FOOTERS_AT_ONCE).collect().await;
        footers.sort_by(|(a, _), (b, _)| (a.window_start, &a.uri).cmp(&(b.window_start, &b.uri)));
        let mut read = Read::default();
        for (found, footer) in footers {
            match footer {
                Ok(Ok(footer)) => match data_file::check(&found.uri, &footer, self.name.name()) {
                    Ok(()) => read.fits.push((found, footer)),
                    Err(misfit) => self.refuse(found, &misfit),
                },
                Ok(Err(misfit)) => self.refuse(found, &misfit),
                Err(error) => read.failed.push(error.to_string()),
            }
        }
        read
    }

    fn refuse(&mut self, found: &Found, misfit: &Misfit) {
        tracing::warn!(table = %self.name, object = found.uri, why = %misfit, "an object is not taken");
        self.refused.insert(found.uri.clone(), misfit.reason());
    }

    /// Columns that objects have, and the table does not; objects whose columns are other ones there are refused.
    fn columns_to_add(&mut self, table: &Table, fits: &[(&Found, Box<Footer>)]) -> Option<Vec<FooterColumn>> {
        let schema = table.current_schema_ref();
        let mut columns: Vec<FooterColumn> = Vec::new();
        for (found, footer) in fits {
            match schema::missing(footer, &schema) {
                Ok(missing) => {
                    for column in missing {
                        if !columns.iter().any(|c| c.id == column.id) {
                            columns.push(column.clone());
                        }
                    }
                }
                Err(misfit) => self.refuse(found, &misfit),
            }
        }
        columns.sort_by_key(|column| column.id);
        (!columns.is_empty()).then_some(columns)
    }

    /// The numbers of these columns are not the table's next ones.
    fn refuse_those_with(&mut self, columns: &[FooterColumn], fits: &[(&Found, Box<Footer>)]) {
        for (found, footer) in fits {
            let Some(column) = columns.iter().find(|c| c.id.is_some_and(|id| footer.column(id).is_some())) else {
                continue;
            };
            let misfit = Misfit::NoPlace { id: column.id.unwrap_or_default(), name: column.name.clone() };
            self.refuse(found, &misfit);
        }
    }

    fn data_files<'a>(&mut self, table: &Table, fits: &[(&'a Found, Box<Footer>)]) -> Vec<(&'a Found, DataFile)> {
        let (schema, spec) = (table.current_schema_ref(), table.metadata().default_partition_spec().clone());
        let mut files = Vec::with_capacity(fits.len());
        for (found, footer) in
            fits.iter().filter(|(found, _)| !self.refused.contains_key(&found.uri)).collect::<Vec<_>>()
        {
            match data_file::data_file(&found.uri, found.bytes, footer, &schema, &spec) {
                Ok(file) => files.push((*found, file)),
                Err(misfit) => self.refuse(found, &misfit),
            }
        }
        files
    }

    /// Adds files, if there are any; and writes down what others have added.
    async fn commit(
        &self,
        catalog: &dyn Catalog,
        table: &Table,
        files: Vec<(&Found, DataFile)>,
    ) -> Result<(Fate, u64), RoundError> {
        let (found, files): (Vec<&Found>, Vec<DataFile>) = files.into_iter().unzip();
        let objects: Vec<&str> = found.iter().map(|f| f.uri.as_str()).chain(self.unwritten()).collect();
        let fate = commit::append(catalog, table, files, &objects).await?;
        Ok((fate, found.len() as u64))
    }
}

impl Read<'_> {
    /// Objects that were to be read, and neither were nor are refused.
    fn unread(&self, take: &[&Found], refused: &HashMap<String, &'static str>) -> Vec<String> {
        let read: HashSet<&str> = self.fits.iter().map(|(found, _)| found.uri.as_str()).collect();
        let unread = take.iter().filter(|f| !read.contains(f.uri.as_str()) && !refused.contains_key(&f.uri));
        unread.map(|f| f.uri.clone()).collect()
    }
}

/// Those that are named one by one; a bucket that has gone may have taken thousands of folders with it.
const NAMED_MAX: usize = 5;

fn join(failed: &[ListError]) -> String {
    let named: Vec<String> = failed.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    let more = failed.len().saturating_sub(NAMED_MAX);
    if more == 0 { named.join("; ") } else { format!("{}; and {more} more", named.join("; ")) }
}

async fn pause(conflicts: u32) {
    let pause = CONFLICT_PAUSE.saturating_mul(1 << conflicts.min(6)).min(CONFLICT_PAUSE_MAX);
    // Two that meet each time would meet again.
    let share = f64::from(uuid::Uuid::new_v4().as_bytes()[0]) / 255.0;
    tokio::time::sleep(pause.mul_f64(0.5 + share / 2.0)).await;
}

async fn read_footer(found: &Found, stores: &Stores) -> Result<Result<Box<Footer>, Misfit>, StorageError> {
    let unreadable = |e: &dyn std::error::Error| Misfit::Unreadable(e.to_string());
    let mut range = found.bytes.saturating_sub(TAIL_BYTES)..found.bytes;
    loop {
        let tail = stores.read(&found.uri, range).await?;
        match Footer::read(&tail, found.bytes) {
            Ok(Tail::Whole(footer)) => return Ok(Ok(footer)),
            Ok(Tail::Needs(more)) => range = more,
            Err(e) => return Ok(Err(unreadable(&e))),
        }
    }
}
