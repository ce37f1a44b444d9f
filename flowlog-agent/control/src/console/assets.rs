//! Style, scripts and icon. They are in the binary, compressed, under names that have a hash of what is in them: a browser asks once.

use std::io::Read as _;

use axum::{
    body::Bytes,
    extract::Path,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use flate2::read::GzDecoder;

/// One file.
pub(super) struct Asset {
    /// Name of the file.
    pub name: &'static str,
    /// Where it is.
    pub url: &'static str,
    hash: &'static str,
    media_type: &'static str,
    gzip: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/assets.rs"));

/// All of it together, compressed: a page is there at once on a slow line, too.
const ASSETS_BYTES_MAX: usize = 150 << 10;
const _: () = {
    let mut bytes = 0;
    let mut n = 0;
    while n < ASSETS.len() {
        bytes += ASSETS[n].gzip.len();
        n += 1;
    }
    assert!(bytes < ASSETS_BYTES_MAX, "the console's assets are too large");
};

/// Nothing under such a name ever changes.
const FOR_EVER: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");

/// Where a file is.
#[must_use]
pub(super) fn url(name: &str) -> &'static str {
    ASSETS.iter().find(|a| a.name == name).map_or("", |a| a.url)
}

/// GET of one.
pub(super) async fn get(Path((hash, name)): Path<(String, String)>, headers: HeaderMap) -> Response {
    let Some(asset) = ASSETS.iter().find(|a| a.name == name && a.hash == hash) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let media_type = HeaderValue::from_static(asset.media_type);
    let mut response = if takes_gzip(&headers) {
        ([(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"))], Bytes::from_static(asset.gzip)).into_response()
    } else {
        let mut plain = Vec::new();
        // It was compressed when this was built.
        if GzDecoder::new(asset.gzip).read_to_end(&mut plain).is_err() {
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
        plain.into_response()
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, media_type);
    headers.insert(header::CACHE_CONTROL, FOR_EVER);
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    response
}

/// Whether a browser says that it takes gzip (RFC 9110, section 12.5.3), by name and not with a weight of 0.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = weight.trim().strip_prefix("q=").unwrap_or("1").trim_end_matches(['0', '.']);
        name.trim().eq_ignore_ascii_case("gzip") && !weight.is_empty()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_takes_gzip_gets_it_and_others_get_the_same_file() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let ask = |accepts: &'static str, hash: &str, name: &str| {
            let headers = HeaderMap::from_iter([(header::ACCEPT_ENCODING, HeaderValue::from_static(accepts))]);
            let path = Path((hash.to_owned(), name.to_owned()));
            let response = runtime.block_on(get(path, headers));
            let (parts, body) = response.into_parts();
            let bytes = runtime.block_on(axum::body::to_bytes(body, usize::MAX)).expect("a body");
            (parts.status, parts.headers.get(header::CONTENT_ENCODING).cloned(), bytes)
        };
        for asset in &ASSETS {
            let source = ["assets/", "assets/vendor/"].map(|dir| std::fs::read(format!("{dir}{}", asset.name)));
            let source = source.into_iter().find_map(Result::ok).expect("its source");
            let (status, encoding, packed) = ask("br, gzip;q=0.5", asset.hash, asset.name);
            assert!(status.is_success() && encoding.is_some_and(|e| e == "gzip") && packed == asset.gzip);
            for accepts in ["", "br", "gzip;q=0", "gzip;q=0.0, br", "xgzip"] {
                let (status, encoding, plain) = ask(accepts, asset.hash, asset.name);
                assert!(status.is_success() && encoding.is_none() && plain == source, "{} {accepts}", asset.name);
            }
            assert_eq!(ask("gzip", "0000000000000000", asset.name).0, StatusCode::NOT_FOUND);
        }
    }
}
