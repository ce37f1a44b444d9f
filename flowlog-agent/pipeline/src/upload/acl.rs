//! The bucket's owner can read what lands in its bucket, whoever wrote it: objects are put with the canned ACL
//! `bucket-owner-full-control` (S3 user guide, "Access control list overview"). `object_store` has no option for it
//! (apache/arrow-rs-object-store#447, closed), and the header must be signed. So a request that makes an object is given the header and
//! signed again.
//!
//! Some stores know no ACLs, and some credentials may put objects but no ACLs. Such a refusal may look like any other. So a request
//! that is refused with the header is sent again as it was: if it is taken then, the store is remembered as one without ACLs.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use object_store::{
    ClientOptions,
    aws::{AwsAuthorizer, AwsCredentialProvider},
    client::{HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService},
};

const HEADER: &str = "x-amz-acl";
const OWNER: &str = "bucket-owner-full-control";
/// Written by `object_store` into each signed request: the body's digest.
const DIGEST: &str = "x-amz-content-sha256";
/// What stands there where the body is not signed.
const UNSIGNED: &str = "UNSIGNED-PAYLOAD";
/// How a store refuses ACLs: it has none (400, `AccessControlListNotSupported`; 501, `NotImplemented`), or these credentials may set
/// none (403).
const REFUSALS: [u16; 3] = [400, 403, 501];

/// What signs requests to one bucket.
#[derive(Debug)]
pub(super) struct Acl {
    /// Known when the store has been made.
    credentials: OnceLock<AwsCredentialProvider>,
    region: String,
    bucket: String,
    /// The store takes objects without it only.
    refused: AtomicBool,
}

impl Acl {
    pub(super) fn new(bucket: &str, region: &str) -> Self {
        Self {
            credentials: OnceLock::new(),
            region: region.to_owned(),
            bucket: bucket.to_owned(),
            refused: AtomicBool::new(false),
        }
    }

    /// Who signs, from now on.
    pub(super) fn sign_with(&self, credentials: AwsCredentialProvider) {
        // A store is made once.
        let _ = self.credentials.set(credentials);
    }

    /// The same request with the ACL; `None`: it makes no object, or is not to have one.
    async fn with_acl(&self, request: &HttpRequest) -> object_store::Result<Option<HttpRequest>> {
        let Some(credentials) = self.credentials.get().filter(|_| makes_object(request)) else { return Ok(None) };
        if self.refused.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let credential = credentials.get_credential().await?;
        let mut signed = request.clone();
        let headers = signed.headers_mut();
        headers.remove("authorization");
        headers.insert(HEADER, OWNER.parse().expect("a header's value"));
        let digest = headers.get(DIGEST).and_then(|d| d.to_str().ok()).unwrap_or_default().to_owned();
        AwsAuthorizer::new(&credential, "s3", &self.region)
            .with_sign_payload(digest != UNSIGNED)
            .try_authorize(&mut signed, unhex(&digest).as_deref())?;
        Ok(Some(signed))
    }

    /// It is not asked for again.
    fn remember(&self) {
        if !self.refused.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                bucket = self.bucket,
                "objects are put without the ACL `{OWNER}`, which the store refuses: if the bucket is another account's, see \
                 that its owner may read them, or set `acl = false` for it"
            );
        }
    }
}

/// Whether a request puts an object, or begins to put one in parts. Its parts take no ACL.
fn makes_object(request: &HttpRequest) -> bool {
    let query = request.uri().query().unwrap_or_default();
    let signed = request.headers().contains_key("authorization") && request.headers().contains_key(DIGEST);
    let begins = query == "uploads" || query == "uploads=";
    signed && ((request.method() == "PUT" && query.is_empty()) || (request.method() == "POST" && begins))
}

/// The bytes of a SHA-256 in hexadecimal digits.
fn unhex(digits: &str) -> Option<Vec<u8>> {
    let pair = |i: usize| u8::from_str_radix(digits.get(i..i + 2)?, 16).ok();
    (digits.len() == 64).then(|| (0..64).step_by(2).map(pair).collect()).flatten()
}

/// Makes clients that send requests through those of another connector, with the ACL where it belongs.
#[derive(Debug)]
pub(super) struct WithAcl<C> {
    pub(super) inner: C,
    pub(super) acl: Arc<Acl>,
}

impl<C: HttpConnector> HttpConnector for WithAcl<C> {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Client { inner: self.inner.connect(options)?, acl: self.acl.clone() }))
    }
}

#[derive(Debug)]
struct Client {
    inner: HttpClient,
    acl: Arc<Acl>,
}

#[async_trait::async_trait]
impl HttpService for Client {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let signed = self.acl.with_acl(&request).await;
        let signed = signed.map_err(|e| HttpError::new(HttpErrorKind::Unknown, e))?;
        let Some(signed) = signed else { return self.inner.execute(request).await };
        let reply = self.inner.execute(signed).await?;
        if !REFUSALS.contains(&reply.status().as_u16()) {
            return Ok(reply);
        }
        let plain = self.inner.execute(request).await?;
        if plain.status().is_success() {
            self.acl.remember();
        }
        Ok(plain)
    }
}

#[cfg(test)]
mod tests {
    use object_store::client::HttpRequestBody;

    use super::*;

    fn request(method: &str, uri: &str) -> HttpRequest {
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.method_mut() = method.parse().expect("a method");
        *request.uri_mut() = uri.parse().expect("a URI");
        for (name, value) in [("authorization", "x"), (DIGEST, UNSIGNED)] {
            request.headers_mut().insert(name, value.parse().expect("a value"));
        }
        request
    }

    #[test]
    fn only_what_makes_an_object_gets_the_acl() {
        for (method, uri, makes) in [
            ("PUT", "http://s/flows/web/a.parquet", true),
            ("POST", "http://s/flows/web/a.parquet?uploads=", true),
            ("PUT", "http://s/flows/web/a.parquet?partNumber=1&uploadId=x", false),
            ("POST", "http://s/flows/web/a.parquet?uploadId=x", false),
            ("GET", "http://s/flows?list-type=2", false),
            ("DELETE", "http://s/flows/web/a.parquet?uploadId=x", false),
        ] {
            assert_eq!(makes_object(&request(method, uri)), makes, "{method} {uri}");
        }
        let mut unsigned = request("PUT", "http://169.254.169.254/latest/api/token");
        unsigned.headers_mut().remove("authorization");
        assert!(!makes_object(&unsigned), "what asks for credentials is left alone");
    }

    #[test]
    fn digests_are_read() {
        assert_eq!(unhex(&"0f".repeat(32)), Some(vec![15; 32]));
        for bad in ["", UNSIGNED, &"xy".repeat(32), &"é".repeat(32)] {
            assert_eq!(unhex(bad), None, "{bad}");
        }
    }
}
