//! The one map from [`Error`] to gRPC statuses with google.rpc details.

use std::collections::HashMap;
use std::time::Duration;

use nestd_proto::ERROR_DOMAIN;
use nestd_proto::v1::ErrorReason;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::api::{REQUEST_ID, bounded};
use crate::types::{Detail, Error};

/// The status for an error. `ErrorInfo` carries the reason and the numbers, `RetryInfo` the time to try
/// again, `BadRequest` the field, `QuotaFailure` the limit.
pub(super) fn status(error: &Error) -> Status {
    with_metadata(error, HashMap::new())
}

/// The status that ends a request that was accepted: its metadata has the request's number, too.
pub(super) fn failed(error: &Error, request_id: u64) -> Status {
    with_metadata(error, HashMap::from([(REQUEST_ID.to_owned(), request_id.to_string())]))
}

fn with_metadata(error: &Error, mut metadata: HashMap<String, String>) -> Status {
    let (code, reason) = code_and_reason(error);
    let details = error.details().into_iter().map(|(key, value)| {
        let value = match value {
            Detail::Number(number) => number.to_string(),
            Detail::Text(text) => bounded(text),
        };
        (key.to_owned(), value)
    });
    metadata.extend(details);
    let mut details = ErrorDetails::with_error_info(reason.as_str_name(), ERROR_DOMAIN, metadata);
    if let Some(retry_after_ms) = error.retry_after_ms() {
        details.set_retry_info(Some(Duration::from_millis(retry_after_ms)));
    }
    match error {
        Error::InvalidArgument { field, problem } => {
            let field = bounded(field.clone());
            details.add_bad_request_violation(field, bounded(problem.clone()));
        }
        Error::QueueFull { limit, .. } => {
            details.add_quota_failure_violation("queue", format!("{limit} places"));
        }
        Error::OverQuota { what, .. } => {
            details.add_quota_failure_violation("client", what);
        }
        _ => {}
    }
    Status::with_error_details(code, bounded(error.to_string()), details)
}

/// One line for each error, shared with the D-Bus map through the reason.
pub(crate) fn code_and_reason(error: &Error) -> (Code, ErrorReason) {
    match error {
        Error::InvalidArgument { .. } => (Code::InvalidArgument, ErrorReason::InvalidArgument),
        Error::Unsupported { .. } => (Code::Unimplemented, ErrorReason::Unsupported),
        Error::ContextTooLong { .. } => (Code::OutOfRange, ErrorReason::ContextTooLong),
        Error::QueueFull { .. } => (Code::ResourceExhausted, ErrorReason::QueueFull),
        Error::OverQuota { .. } => (Code::ResourceExhausted, ErrorReason::OverQuota),
        Error::SessionNotFound { .. } => (Code::NotFound, ErrorReason::SessionNotFound),
        Error::Busy { .. } => (Code::Unavailable, ErrorReason::Busy),
        Error::ModelNotLoaded { .. } => (Code::FailedPrecondition, ErrorReason::ModelNotLoaded),
        Error::ModelNotFound { .. } => (Code::NotFound, ErrorReason::ModelNotFound),
        Error::ModelInvalid { .. } => (Code::FailedPrecondition, ErrorReason::ModelInvalid),
        Error::InsufficientMemory { .. } => {
            (Code::ResourceExhausted, ErrorReason::InsufficientMemory)
        }
        Error::NotAllowed { .. } => (Code::PermissionDenied, ErrorReason::NotAllowed),
        Error::Lagged { .. } => (Code::Aborted, ErrorReason::Lagged),
        Error::ShuttingDown => (Code::Unavailable, ErrorReason::ShuttingDown),
        Error::Internal(_) => (Code::Internal, ErrorReason::Internal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metrics_name_errors_as_the_contract_does() {
        let text = String::new;
        let all = [
            Error::invalid("x", "y"),
            Error::unsupported("x", "y"),
            Error::ContextTooLong { prompt_tokens: 1, max_tokens: 1, context_tokens: 1 },
            Error::QueueFull { limit: 1, retry_after_ms: 1 },
            Error::Busy { why: text(), retry_after_ms: 1 },
            Error::ModelNotLoaded { problem: text() },
            Error::ModelNotFound { model: text() },
            Error::ModelInvalid { model: text(), problem: text() },
            Error::InsufficientMemory {
                model: text(),
                size: text(),
                need_mib: 1,
                available_mib: 1,
            },
            Error::NotAllowed { what: text() },
            Error::Lagged { buffer_bytes: 1 },
            Error::ShuttingDown,
            Error::Internal(text()),
        ];
        for error in all {
            let (_, reason) = code_and_reason(&error);
            assert_eq!(reason.as_str_name().to_ascii_lowercase(), error.name());
        }
    }
}
