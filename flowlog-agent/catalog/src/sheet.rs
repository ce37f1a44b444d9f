//! Sheets: lists of objects that a table has taken, as files (`zstdcat` shows one). And what is kept of them in memory.

use std::{
    collections::HashSet,
    io::{self, BufRead as _},
};

use bytes::Bytes;
use iceberg::table::Table;
use uuid::Uuid;

use crate::{
    object_name::hash,
    roll::{FOLDER, Roll},
};

/// First word of a sheet, with the version of its form.
const HEAD: &str = "flowlog-sheet 1";
/// Addresses of objects repeat each other nearly whole: a low level finds that.
const ZSTD_LEVEL: i32 = 3;
#[derive(Debug, thiserror::Error)]
pub(crate) enum SheetError {
    #[error(
        "the list of objects that the table has taken cannot be read: {path}: {source}; nothing is taken without it. Put the file back, or see docs/iceberg.md (A lost sheet)"
    )]
    Unreadable { path: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("{path} has {found} objects, the table says {said}; nothing is taken until it is as it was written")]
    Other { path: String, found: u64, said: u64 },
    #[error("cannot write down which objects are to be taken: {path}: {source}")]
    NotWritten { path: String, source: Box<iceberg::Error> },
}

/// The objects that a table has taken, as far as its roll says.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    table: Option<Uuid>,
    sheets: HashSet<Uuid>,
    objects: HashSet<u128>,
}

impl Taken {
    /// Whether it has an object, by the [`hash`] of its address.
    pub(crate) fn has(&self, object: u128) -> bool {
        self.objects.contains(&object)
    }

    /// Reads the sheets of a table's roll that have not been read yet. What was once in a roll of a table stays in it.
    ///
    /// # Errors
    /// If one cannot be read, or is not what the roll says.
    pub(crate) async fn read(&mut self, table: &Table, roll: &Roll) -> Result<(), SheetError> {
        if self.table != Some(table.metadata().uuid()) {
            *self = Self { table: Some(table.metadata().uuid()), ..Self::default() };
        }
        for sheet in roll.sheets() {
            if self.sheets.contains(&sheet.id) {
                continue;
            }
            let path = path(table, sheet.id);
            let mut found = 0;
            for uri in load(table, &path).await? {
                self.objects.insert(hash(&uri));
                found += 1;
            }
            if found != sheet.objects {
                return Err(SheetError::Other { path, found, said: sheet.objects });
            }
            self.sheets.insert(sheet.id);
        }
        Ok(())
    }
}

/// Where a sheet lies.
fn path(table: &Table, id: Uuid) -> String {
    format!("{}/{FOLDER}/{id}.zst", table.metadata().location().trim_end_matches('/'))
}

/// Writes the sheet of a commit: its own objects, and those of sheets that it swallows.
///
/// # Errors
/// If one of these cannot be read, or the new one not written.
pub(crate) async fn write(table: &Table, id: Uuid, own: &[&str], swallowed: &[Uuid]) -> Result<(), SheetError> {
    let mut all: Vec<String> = own.iter().map(|uri| (*uri).to_owned()).collect();
    for old in swallowed {
        all.extend(load(table, &path(table, *old)).await?);
    }
    all.sort_unstable();
    let path = path(table, id);
    let failed = |source: iceberg::Error| SheetError::NotWritten { path: path.clone(), source: Box::new(source) };
    let bytes =
        encode(id, &all).map_err(|e| failed(iceberg::Error::new(iceberg::ErrorKind::Unexpected, e.to_string())))?;
    let output = table.file_io().new_output(&path).map_err(failed)?;
    output.write(bytes).await.map_err(failed)
}

async fn load(table: &Table, path: &str) -> Result<Vec<String>, SheetError> {
    let unreadable =
        |source: Box<dyn std::error::Error + Send + Sync>| SheetError::Unreadable { path: path.to_owned(), source };
    let input = table.file_io().new_input(path).map_err(|e| unreadable(e.into()))?;
    let bytes = input.read().await.map_err(|e| unreadable(e.into()))?;
    decode(&bytes).map_err(|e| unreadable(e.into()))
}

fn encode(id: Uuid, uris: &[String]) -> io::Result<Bytes> {
    let mut text = format!("{HEAD} {id}\n");
    for uri in uris {
        text.push_str(uri);
        text.push('\n');
    }
    Ok(zstd::encode_all(text.as_bytes(), ZSTD_LEVEL)?.into())
}

fn decode(bytes: &[u8]) -> io::Result<Vec<String>> {
    let mut lines = io::BufReader::new(zstd::Decoder::new(bytes)?).lines();
    let head = lines.next().transpose()?.unwrap_or_default();
    if !head.starts_with(HEAD) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no sheet, or one of a newer flowlog-catalog"));
    }
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sheet_says_what_was_written_and_a_damaged_one_says_nothing() {
        let uris: Vec<String> =
            (0..5_000).map(|n| format!("s3://flows/web/hour=08/n-eth0_20270115T08{n:04}Z_0.parquet")).collect();
        let bytes = encode(Uuid::from_u128(7), &uris).expect("bytes");
        assert_eq!(decode(&bytes).expect("lines"), uris);
        assert!(bytes.len() < uris.len() * 6, "{} bytes", bytes.len());
        assert!(decode(&bytes[..bytes.len() / 2]).is_err(), "cut short");
        assert!(decode(&zstd::encode_all(&b"other 1\nx\n"[..], 1).expect("bytes")).is_err());
        assert!(decode(b"").is_err());
    }
}
