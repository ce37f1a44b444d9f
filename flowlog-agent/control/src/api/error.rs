//! Errors as the cloud API has them: always JSON, never empty.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::flow_logs::{Refused, editor::Patch, flow_log::Properties};

/// Codes that clients of the cloud API know.
const CODE_INVALID: &str = "100";
const CODE_NOT_FOUND: &str = "309";
const CODE_UNAUTHORIZED: &str = "315";
const CODE_FORBIDDEN: &str = "322";
const CODE_CONFLICT: &str = "323";
const CODE_RATE: &str = "329";
const CODE_INTERNAL: &str = "500";

/// Body of every answer whose status is an error.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ErrorBody {
    /// HTTP status of the answer, 400 or above.
    pub http_status: u16,
    /// What is wrong. If several fields are, each has an entry.
    pub messages: Vec<ErrorMessage>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ErrorMessage {
    /// Code as in the cloud API: `100` invalid request, `309` not found, `315` unauthorized, `322` forbidden, `323` conflict or wrong
    /// version, `329` too many requests, `500` failure of the node.
    pub error_code: String,
    /// What is wrong, for people to read. Its words may change; programs should use `errorCode`.
    pub message: String,
}

/// An error on its way out.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    code: &'static str,
    messages: Vec<String>,
    retry_after_secs: Option<u64>,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, messages: vec![message.into()], retry_after_secs: None }
    }

    #[must_use]
    pub(crate) fn unauthorized() -> Self {
        let words = "Unauthorized: give Basic or Bearer credentials that this node knows";
        Self::new(StatusCode::UNAUTHORIZED, CODE_UNAUTHORIZED, words)
    }

    /// Its status, what is wrong, and after how many seconds to try again.
    #[must_use]
    pub(crate) fn told(&self) -> (StatusCode, &[String], Option<u64>) {
        (self.status, &self.messages, self.retry_after_secs)
    }

    #[must_use]
    pub(crate) fn forbidden(words: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, CODE_FORBIDDEN, words)
    }

    #[must_use]
    pub(crate) fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, CODE_NOT_FOUND, format!("Resource does not exist: {what}"))
    }

    #[must_use]
    pub(crate) fn method() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            CODE_INVALID,
            "this resource does not take this method; see /openapi.json",
        )
    }

    #[must_use]
    pub(crate) fn slow() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, CODE_INVALID, "the request's body did not come in time")
    }

    #[must_use]
    pub(crate) fn too_large(max: usize) -> Self {
        let words = format!("the request's body is larger than {max} bytes, or was cut off");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, CODE_INVALID, words)
    }

    #[must_use]
    pub(crate) fn too_many(words: impl Into<String>, retry_after_secs: u64) -> Self {
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, CODE_RATE, words);
        Self { retry_after_secs: Some(retry_after_secs.max(1)), ..error }
    }

    /// 400 for what is no JSON, 422 for JSON of another form.
    #[must_use]
    pub(crate) fn not_understood(error: &serde_json::Error) -> Self {
        let status = if error.is_data() { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::BAD_REQUEST };
        Self::new(status, CODE_INVALID, format!("body: {error}"))
    }

    #[must_use]
    pub(crate) fn invalid(messages: Vec<String>) -> Self {
        Self { messages, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, CODE_INVALID, "") }
    }
}

/// Refuses a change of nothing: whoever sent it meant something.
///
/// # Errors
/// 422.
pub(crate) fn ensure_any(patch: &Patch) -> Result<(), ApiError> {
    if *patch != Patch::default() {
        return Ok(());
    }
    let [a, b, c, d] = Properties::FIELDS;
    let words = format!("[(root)] names no field that can be changed; there are `{a}`, `{b}`, `{c}` and `{d}`");
    Err(ApiError::invalid(vec![words]))
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::NotFound(what) => Self::not_found(&what),
            Refused::Forbidden(words) => Self::forbidden(words),
            Refused::Invalid(problems) => {
                Self::invalid(problems.iter().map(|p| format!("[(root).properties.{}] {p}", p.field)).collect())
            }
            Refused::Conflict(words) => Self::new(StatusCode::CONFLICT, CODE_CONFLICT, words),
            Refused::Stale(words) => Self::new(StatusCode::PRECONDITION_FAILED, CODE_CONFLICT, words),
            Refused::TooMany(words) => Self::too_many(words, 60),
            Refused::FlowLogStore(error) => {
                tracing::error!(%error, "a request failed");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, CODE_INTERNAL, error.to_string())
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let message = |message: String| ErrorMessage { error_code: self.code.to_owned(), message };
        let messages = self.messages.into_iter().map(message).collect();
        let body = ErrorBody { http_status: self.status.as_u16(), messages };
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        if let Some(secs) = self.retry_after_secs {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(secs));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"flowlog\", Bearer"));
        }
        response
    }
}
