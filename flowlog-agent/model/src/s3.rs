//! How buckets are reached.

use std::path::PathBuf;

use serde::Deserialize;

/// How to reach S3 buckets: `[s3]` of the configuration, `[buckets]` of an inventory.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct S3Options {
    /// URL of the server; AWS itself if absent.
    pub endpoint: Option<String>,
    /// Region; `us-east-1` if absent.
    pub region: Option<String>,
    /// Bucket in the path instead of the host name.
    pub path_style: bool,
    /// Allow endpoints without TLS (`http://`).
    pub allow_http: bool,
    /// File with credentials in the AWS format; the environment if absent.
    pub credentials_file: Option<PathBuf>,
    /// Put objects with the ACL that lets the bucket's owner read them.
    pub acl: bool,
}

impl Default for S3Options {
    fn default() -> Self {
        Self { endpoint: None, region: None, path_style: false, allow_http: false, credentials_file: None, acl: true }
    }
}
