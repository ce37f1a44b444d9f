//! A catalog that shows a table as it was read, and tries a commit once.
//!
//! `iceberg` tries a commit that met another one again, with the same data files on the newer table. What is to be taken has changed by then:
//! the other one may have been a second `flowlog-catalog`. So a conflict must come out, and the table must be the one that was looked at.

use std::{collections::HashMap, time::Duration};

use async_trait::async_trait;
use flowlog_host::fault;
use iceberg::{
    Catalog, Error, ErrorKind, Namespace, NamespaceIdent, Result, TableCommit, TableCreation, TableIdent, table::Table,
};

/// Time for a catalog to answer. What it does later than that is found when the table is read again, or meets the next commit.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_mins(1);

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Pinned<'a> {
    pub(crate) catalog: &'a dyn Catalog,
    pub(crate) table: Table,
}

/// A commit asks for nothing else.
fn never<T>() -> Result<T> {
    Err(Error::new(ErrorKind::FeatureUnsupported, "a commit loads and updates its table, and nothing else"))
}

#[async_trait]
impl Catalog for Pinned<'_> {
    async fn load_table(&self, _: &TableIdent) -> Result<Table> {
        Ok(self.table.clone())
    }

    async fn update_table(&self, commit: TableCommit) -> Result<Table> {
        fault::point("catalog_commit");
        let updated = tokio::time::timeout(ANSWER_TIMEOUT, self.catalog.update_table(commit)).await;
        fault::point("catalog_committed");
        let silent = |_late| Error::new(ErrorKind::Unexpected, format!("no answer in {} s", ANSWER_TIMEOUT.as_secs()));
        updated.map_err(silent)?.map_err(|error| error.with_retryable(false))
    }

    async fn list_namespaces(&self, _: Option<&NamespaceIdent>) -> Result<Vec<NamespaceIdent>> {
        never()
    }

    async fn create_namespace(&self, _: &NamespaceIdent, _: HashMap<String, String>) -> Result<Namespace> {
        never()
    }

    async fn get_namespace(&self, _: &NamespaceIdent) -> Result<Namespace> {
        never()
    }

    async fn namespace_exists(&self, _: &NamespaceIdent) -> Result<bool> {
        never()
    }

    async fn update_namespace(&self, _: &NamespaceIdent, _: HashMap<String, String>) -> Result<()> {
        never()
    }

    async fn drop_namespace(&self, _: &NamespaceIdent) -> Result<()> {
        never()
    }

    async fn list_tables(&self, _: &NamespaceIdent) -> Result<Vec<TableIdent>> {
        never()
    }

    async fn create_table(&self, _: &NamespaceIdent, _: TableCreation) -> Result<Table> {
        never()
    }

    async fn drop_table(&self, _: &TableIdent) -> Result<()> {
        never()
    }

    async fn purge_table(&self, _: &TableIdent) -> Result<()> {
        never()
    }

    async fn table_exists(&self, _: &TableIdent) -> Result<bool> {
        never()
    }

    async fn rename_table(&self, _: &TableIdent, _: &TableIdent) -> Result<()> {
        never()
    }

    async fn register_table(&self, _: &TableIdent, _: String) -> Result<Table> {
        never()
    }
}
