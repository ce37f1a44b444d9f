//! Catalogs, opened.

use std::{collections::HashMap, env, fs, io, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc};

use iceberg::{Catalog, CatalogBuilder as _};
use iceberg_catalog_rest::{REST_CATALOG_PROP_URI, REST_CATALOG_PROP_WAREHOUSE, RestCatalogBuilder};
use iceberg_catalog_sql::{SqlBindStyle, SqlCatalogBuilder};

use crate::{
    config::{CatalogKind, Config},
    storage::{Stores, TableFiles},
};

/// Secrets of REST catalogs come from the environment, and what they are called there.
const SECRETS: [(&str, &str); 2] = [("FLOWLOG_CATALOG_TOKEN", "token"), ("FLOWLOG_CATALOG_CREDENTIAL", "credential")];

#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("cannot make `{path}`: {source}")]
    Folder { path: String, source: io::Error },
    #[error("cannot open the catalog {name}: {source}")]
    Catalog { name: String, source: Box<iceberg::Error> },
}

/// Opens the catalog of a configuration; a database that is not there is made.
///
/// # Errors
/// If it cannot be opened.
pub(crate) async fn catalog(config: &Config, stores: &Arc<Stores>) -> Result<Arc<dyn Catalog>, OpenError> {
    let files = Arc::new(TableFiles::new(stores.clone()));
    match &config.catalog {
        CatalogKind::Sqlite(path) => {
            if let Some(folder) = path.parent() {
                make_folder(folder)?;
            }
            let builder = SqlCatalogBuilder::default()
                .uri(format!("sqlite://{}?mode=rwc", path.display()))
                .warehouse_location(config.warehouse.clone().unwrap_or_default())
                .sql_bind_style(SqlBindStyle::QMark)
                .with_storage_factory(files);
            let opened = builder.load(&config.catalog_name, HashMap::new()).await;
            let catalog = opened
                .map_err(|source| OpenError::Catalog { name: path.display().to_string(), source: Box::new(source) })?;
            Ok(Arc::new(catalog))
        }
        CatalogKind::Rest { url, properties } => {
            let mut all = properties.clone();
            all.insert(REST_CATALOG_PROP_URI.to_owned(), url.clone());
            if let Some(warehouse) = &config.warehouse {
                all.insert(REST_CATALOG_PROP_WAREHOUSE.to_owned(), warehouse.clone());
            }
            for (variable, name) in SECRETS {
                if let Ok(value) = env::var(variable) {
                    all.insert(name.to_owned(), value);
                }
            }
            let opened =
                RestCatalogBuilder::default().with_storage_factory(files).load(&config.catalog_name, all).await;
            let catalog =
                opened.map_err(|source| OpenError::Catalog { name: url.clone(), source: Box::new(source) })?;
            Ok(Arc::new(catalog))
        }
    }
}

/// For its owner alone where it is made: addresses of objects name interfaces.
fn make_folder(folder: &Path) -> Result<(), OpenError> {
    if folder.is_dir() {
        return Ok(());
    }
    let failed = |source| OpenError::Folder { path: folder.display().to_string(), source };
    fs::create_dir_all(folder).map_err(failed)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o750)).map_err(failed)
}
