//! How buckets are reached.

use std::path::PathBuf;

/// How to reach S3 buckets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    /// Put objects without the ACL that lets the bucket's owner read them.
    pub no_acl: bool,
}
