//! A bucket as `object_store` opens it, from the agent's options.

use std::{sync::Arc, time::Duration};

use flowlog_model::S3Options;
use object_store::{
    ClientOptions, ObjectStore, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
};

use super::{
    acl::{Acl, WithAcl},
    bucket::words,
    credentials::{FileCredentials, OfInstance, no_credentials},
    http::{Connector, REPLY_BYTES_MAX},
};

/// Time to get a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Retries inside one delivery; the uploader's own pauses follow.
const RETRIES: usize = 1;
/// The region where none is said (`object_store`'s own).
const REGION_DEFAULT: &str = "us-east-1";

/// With this the metadata service of an instance is not asked for credentials, as by the clouds' own tools.
const METADATA_DISABLED: &str = "AWS_EC2_METADATA_DISABLED";

/// A bucket to put objects into; does not reach out to it yet.
///
/// # Errors
/// With the option that is wrong.
pub(super) fn open(bucket: &str, o: &S3Options) -> Result<Arc<dyn ObjectStore>, String> {
    let builder = builder(bucket, o)?;
    let connector = Connector { reply_bytes_max: REPLY_BYTES_MAX };
    if !o.acl {
        return Ok(Arc::new(builder.with_http_connector(connector).build().map_err(|e| words(&e))?));
    }
    let region = builder.get_config_value(&AmazonS3ConfigKey::Region).unwrap_or_else(|| REGION_DEFAULT.to_owned());
    let acl = Arc::new(Acl::new(bucket, &region));
    let connector = WithAcl { inner: connector, acl: acl.clone() };
    let store = builder.with_http_connector(connector).build().map_err(|e| words(&e))?;
    acl.sign_with(store.credentials().clone());
    Ok(Arc::new(store))
}

/// The same to read from, in pieces of so many bytes at most.
///
/// # Errors
/// With the option that is wrong.
pub(super) fn open_to_read(
    bucket: &str,
    o: &S3Options,
    piece_bytes_max: usize,
) -> Result<Arc<dyn ObjectStore>, String> {
    let connector = Connector { reply_bytes_max: piece_bytes_max };
    Ok(Arc::new(builder(bucket, o)?.with_http_connector(connector).build().map_err(|e| words(&e))?))
}

fn builder(bucket: &str, o: &S3Options) -> Result<AmazonS3Builder, String> {
    let client = ClientOptions::new().with_connect_timeout(CONNECT_TIMEOUT);
    let retry = RetryConfig { max_retries: RETRIES, ..RetryConfig::default() };
    let mut builder = AmazonS3Builder::from_env()
        .with_client_options(client.with_allow_http(o.allow_http))
        .with_retry(retry)
        .with_bucket_name(bucket)
        .with_allow_http(o.allow_http)
        .with_virtual_hosted_style_request(!o.path_style);
    if let Some(endpoint) = &o.endpoint {
        if endpoint.starts_with("http://") && !o.allow_http {
            return Err(format!(
                "endpoint `{endpoint}`: plain http is off; use https, or allow it with `--s3-allow-http`"
            ));
        }
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(region) = &o.region {
        builder = builder.with_region(region);
    }
    with_credentials(builder, o)
}

/// Credentials of the file that is named, else of the environment, else of the instance.
fn with_credentials(builder: AmazonS3Builder, o: &S3Options) -> Result<AmazonS3Builder, String> {
    use AmazonS3ConfigKey as Key;
    if let Some(path) = &o.credentials_file {
        let provider = FileCredentials::new(path.clone());
        provider.current().map_err(|e| e.to_string())?;
        return Ok(builder.with_credentials(Arc::new(provider)));
    }
    let has = |keys: &[Key]| keys.iter().all(|key| builder.get_config_value(key).is_some());
    let skips = builder.get_config_value(&Key::SkipSignature).is_some_and(|value| value == "true");
    let ways: [&[Key]; 5] = [
        &[Key::AccessKeyId],
        &[Key::SecretAccessKey],
        &[Key::WebIdentityTokenFile, Key::RoleArn],
        &[Key::ContainerCredentialsRelativeUri],
        &[Key::ContainerCredentialsFullUri, Key::ContainerAuthorizationTokenFile],
    ];
    if skips || ways.into_iter().any(has) {
        return Ok(builder);
    }
    if std::env::var(METADATA_DISABLED).is_ok_and(|value| value.eq_ignore_ascii_case("true")) {
        return Err(no_credentials(&format!("{METADATA_DISABLED} is set, so the instance is not asked")));
    }
    let connector = Connector { reply_bytes_max: REPLY_BYTES_MAX };
    let instance = builder.clone().with_http_connector(connector).build().map_err(|e| words(&e))?;
    Ok(builder.with_credentials(Arc::new(OfInstance(instance.credentials().clone()))))
}
