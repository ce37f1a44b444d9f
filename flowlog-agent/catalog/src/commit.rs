//! One commit, and what became of it. The head of the program says why this is right.

use std::collections::HashMap;

use flowlog_host::fault;
use iceberg::{
    Catalog, ErrorKind, TableIdent,
    spec::{DataFile, Type},
    table::Table,
    transaction::{AddColumn, ApplyTransactionAction as _, Transaction},
};
use uuid::Uuid;

use crate::{
    footer::FooterColumn,
    pinned::{ANSWER_TIMEOUT, Pinned},
    roll::{NoRoll, PROPERTY, Roll},
    sheet::{self, SheetError},
};

/// Property of a snapshot of ours: which commit it is.
pub(crate) const COMMIT_ID: &str = "flowlog.commit-id";
/// What became of a commit.
#[derive(Debug)]
pub(crate) enum Fate {
    /// The table has it. This is the table.
    Landed(Box<Table>),
    /// Somebody else was faster. The table has changed, and what is to be taken may have.
    Conflict,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum CommitError {
    #[error(transparent)]
    Sheet(#[from] SheetError),
    #[error(transparent)]
    Roll(#[from] NoRoll),
    #[error(
        "the table has commits of flowlog-catalog and no property `{PROPERTY}`: nothing is taken until it is as it was in an earlier version of the table's metadata"
    )]
    RollGone,
    #[error("the catalog does not answer in {} s", ANSWER_TIMEOUT.as_secs())]
    Silent,
    #[error("cannot read table `{table}`: {source}")]
    Load { table: TableIdent, source: Box<iceberg::Error> },
    #[error("a commit to `{table}` was not carried out: {words}; the next round tries again")]
    NotCarriedOut { table: TableIdent, words: String },
    #[error("the table's columns cannot be changed: {0}")]
    Columns(Box<iceberg::Error>),
}

/// The roll that a table says it has.
///
/// # Errors
/// If it has something else in its place.
pub(crate) fn roll_of(table: &Table) -> Result<Option<Roll>, NoRoll> {
    table.metadata().properties().get(PROPERTY).map(|text| text.parse()).transpose()
}

/// The roll of a table; `None`: nothing of ours has been in it yet.
///
/// # Errors
/// If it has something else in its place, or somebody has taken it away.
pub(crate) fn roll_or_none(table: &Table) -> Result<Option<Roll>, CommitError> {
    let is_ours = || table.metadata().snapshots().any(|s| s.summary().additional_properties.contains_key(COMMIT_ID));
    match roll_of(table)? {
        None if is_ours() => Err(CommitError::RollGone),
        roll => Ok(roll),
    }
}

/// The table of this moment.
///
/// # Errors
/// If the catalog does not say.
pub(crate) async fn load(catalog: &dyn Catalog, name: &TableIdent) -> Result<Table, CommitError> {
    let load = |source| CommitError::Load { table: name.clone(), source: Box::new(source) };
    tokio::time::timeout(ANSWER_TIMEOUT, catalog.load_table(name))
        .await
        .map_err(|_late| CommitError::Silent)?
        .map_err(load)
}

/// Adds data files to a table, and their objects to its roll.
///
/// `objects` are those of the files, and any that the table has from elsewhere.
///
/// # Errors
/// If nothing was changed, as far as can be seen. It may still be changed later; then the next commit meets it.
pub(crate) async fn append(
    catalog: &dyn Catalog,
    table: &Table,
    files: Vec<DataFile>,
    objects: &[&str],
) -> Result<Fate, CommitError> {
    let id = Uuid::new_v4();
    let (roll, swallowed) = roll_of(table)?.unwrap_or_default().with(id, objects.len() as u64);
    fault::point("catalog_sheet");
    let swallowed: Vec<Uuid> = swallowed.iter().map(|sheet| sheet.id).collect();
    sheet::write(table, id, objects, &swallowed).await?;
    fault::point("catalog_manifest");
    let said = send(catalog, table, id, files, &roll).await;
    settle(catalog, table, id, said).await
}

async fn send(
    catalog: &dyn Catalog,
    table: &Table,
    id: Uuid,
    files: Vec<DataFile>,
    roll: &Roll,
) -> Result<(), Box<iceberg::Error>> {
    let transaction = Transaction::new(table);
    let append = transaction
        .fast_append()
        // The roll knows them all, and the manifests only those that are neither compacted nor expired.
        .with_check_duplicate(false)
        .set_commit_uuid(id)
        .set_snapshot_properties(HashMap::from([(COMMIT_ID.to_owned(), id.to_string())]))
        .add_data_files(files);
    let transaction = append.apply(transaction).map_err(Box::new)?;
    let property = transaction.update_table_properties().set(PROPERTY.to_owned(), roll.to_string());
    let transaction = property.apply(transaction).map_err(Box::new)?;
    try_once(catalog, table, transaction).await
}

/// What is said of a commit. None of it is believed.
async fn try_once(catalog: &dyn Catalog, table: &Table, transaction: Transaction) -> Result<(), Box<iceberg::Error>> {
    let pinned = Pinned { catalog, table: table.clone() };
    transaction.commit(&pinned).await.map(drop).map_err(Box::new)
}

/// Reads the table again, which knows.
async fn settle(
    catalog: &dyn Catalog,
    table: &Table,
    id: Uuid,
    said: Result<(), Box<iceberg::Error>>,
) -> Result<Fate, CommitError> {
    let now = load(catalog, table.identifier()).await?;
    if has(&now, id)? {
        if let Err(words) = &said {
            tracing::info!(table = %table.identifier(), commit = %id, %words, "the commit has landed, whatever was said");
        }
        return Ok(Fate::Landed(Box::new(now)));
    }
    match said {
        Err(error) if error.kind() == ErrorKind::CatalogCommitConflicts => Ok(Fate::Conflict),
        Err(words) => not_carried_out(table, words.to_string()),
        Ok(()) if now.metadata().current_snapshot_id() != table.metadata().current_snapshot_id() => Ok(Fate::Conflict),
        Ok(()) => not_carried_out(table, "the catalog said that it was done, and it is not".to_owned()),
    }
}

fn not_carried_out(table: &Table, words: String) -> Result<Fate, CommitError> {
    Err(CommitError::NotCarriedOut { table: table.identifier().clone(), words })
}

/// Whether a table has a commit: its sheet is in the roll, or its snapshot is there (another commit may have swallowed the sheet).
fn has(table: &Table, id: Uuid) -> Result<bool, NoRoll> {
    let text = id.to_string();
    let is_it = |said: Option<&String>| said == Some(&text);
    let mut snapshots = table.metadata().snapshots();
    Ok(roll_of(table)?.is_some_and(|roll| roll.has(id))
        || snapshots.any(|snapshot| is_it(snapshot.summary().additional_properties.get(COMMIT_ID))))
}

/// Adds columns to a table, under the numbers that objects have for them. `false`: the numbers are not free, and nothing was done.
///
/// # Errors
/// If the catalog does not do it.
pub(crate) async fn add_columns(
    catalog: &dyn Catalog,
    table: &Table,
    columns: &[FooterColumn],
) -> Result<bool, CommitError> {
    let numbers = table.metadata().last_column_id() + 1..;
    if !columns.iter().zip(numbers).all(|(column, number)| column.id == Some(number)) {
        return Ok(false);
    }
    let transaction = Transaction::new(table);
    let mut action = transaction.update_schema();
    for column in columns {
        let Some(of) = column.of.clone() else { return Ok(false) };
        action = action.add_column(AddColumn::optional(&column.name, Type::Primitive(of)));
    }
    let transaction = action.apply(transaction).map_err(|e| CommitError::Columns(Box::new(e)))?;
    match try_once(catalog, table, transaction).await {
        // Somebody else may have been faster: the table is looked at again in any case.
        Err(error) if error.kind() != ErrorKind::CatalogCommitConflicts => Err(CommitError::Columns(error)),
        _ => Ok(true),
    }
}
