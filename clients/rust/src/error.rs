//! The one error type of this crate, and how each transport's failures become it: a gRPC status with
//! `google.rpc` details, or a D-Bus error named `org.nestd.Error.<Name>`. The same failure of the
//! daemon gives equal values on both.

use std::{collections::BTreeMap, collections::HashMap, io, time::Duration};

use nestd_proto::{
    ERROR_DOMAIN,
    dbus::{ERROR_PREFIX, NAME},
    error_reason,
    v1::ErrorReason,
};
use tokio_rustls::rustls;
use tonic_types::StatusExt;
use zbus::{OwnedVariant, Variant, fdo};

use crate::grpc::Place;

/// Why a call or a stream failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// The daemon refused the call, or failed in it.
    #[error("{0}")]
    Failed(Failure),
    /// There is no daemon to talk to. The sentence says where it was looked for, and what to do.
    #[error("{0}")]
    Unreachable(String),
    /// The daemon or the bus went away in the middle of a call.
    #[error("{0}")]
    Disconnected(String),
    /// Something came back that this version does not understand.
    #[error("{0}")]
    Unexpected(String),
}

/// What the daemon says of a failure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The kind of failure; `Unspecified` for one that is newer than this crate.
    pub reason: ErrorReason,
    /// A sentence for a person, which says what to do.
    pub message: String,
    /// The numbers and names in the sentence, by name, such as `limit` or `field`.
    pub details: BTreeMap<String, String>,
    /// When it makes sense to try again, for failures that pass by themselves.
    pub retry_after: Option<Duration>,
}

/// The detail that says when to try again.
const RETRY_AFTER_MS: &str = "retry_after_ms";
/// The detail that names the bad value.
const FIELD: &str = "field";

impl Error {
    /// The daemon's reason, if the daemon is the one that failed the call.
    #[must_use]
    pub fn reason(&self) -> Option<ErrorReason> {
        match self {
            Self::Failed(failure) => Some(failure.reason),
            _ => None,
        }
    }

    /// When it makes sense to try again, if the failure passes by itself.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Failed(failure) => failure.retry_after,
            _ => None,
        }
    }

    pub(crate) fn failed(
        reason: ErrorReason,
        message: impl Into<String>,
        details: BTreeMap<String, String>,
    ) -> Self {
        let retry_after = details
            .get(RETRY_AFTER_MS)
            .and_then(|text| text.parse().ok())
            .map(Duration::from_millis);
        Self::Failed(Failure { reason, message: message.into(), details, retry_after })
    }

    pub(crate) fn disconnected() -> Self {
        Self::Disconnected(
            "nestd went away in the middle of the call: `journalctl -u nestd` may say why".into(),
        )
    }

    /// What a failed connection to the daemon means.
    pub(crate) fn from_connect(error: &io::Error, place: &Place) -> Self {
        use io::ErrorKind::{ConnectionRefused, NotFound, PermissionDenied};
        match place {
            Place::Socket(socket) => {
                let socket = socket.display();
                match error.kind() {
                    NotFound | ConnectionRefused => Self::Unreachable(format!(
                        "nestd is not running at {socket}: start it with `systemctl start nestd`"
                    )),
                    PermissionDenied => Self::not_allowed(format!(
                        "this user may not use {socket}: add it to the group that owns the socket"
                    )),
                    _ => Self::Unreachable(format!(
                        "{socket} cannot be connected to ({error}): see that it is nestd's socket"
                    )),
                }
            }
            Place::Tcp(url) => match tls_error(error) {
                Some(rustls::Error::AlertReceived(_)) => Self::not_allowed(format!(
                    "{url} does not take this certificate ({error}): it must come from an authority \
                     in tcp.client_ca of nestd's settings"
                )),
                Some(_) => Self::Unreachable(format!(
                    "{url} cannot be trusted ({error}): see that its certificate comes from the \
                     authority that was given, and is for that name"
                )),
                None if error.kind() == ConnectionRefused => Self::Unreachable(format!(
                    "nothing listens at {url}: see tcp.listen in nestd's settings"
                )),
                None => Self::Unreachable(format!("{url} cannot be connected to: {error}")),
            },
        }
    }

    /// The connection has ended. With TLS 1.3 a client's certificate is refused after the connection is made,
    /// and tonic does not hand the reason on.
    fn lost(place: &Place) -> Self {
        match place {
            Place::Socket(_) => Self::disconnected(),
            Place::Tcp(url) => Self::Disconnected(format!(
                "{url} has closed the connection: nestd went away, or does not take this certificate \
                 (its log says why)"
            )),
        }
    }

    fn not_allowed(message: String) -> Self {
        Self::failed(ErrorReason::NotAllowed, message, BTreeMap::new())
    }

    /// What a status means that a call to the daemon ended with.
    pub(crate) fn from_status(status: &tonic::Status, place: &Place) -> Self {
        if let Some(info) = status.get_details_error_info()
            && info.domain == ERROR_DOMAIN
        {
            let mut details: BTreeMap<_, _> = info.metadata.into_iter().collect();
            if let Some(delay) = status.get_details_retry_info().and_then(|info| info.retry_delay) {
                details
                    .entry(RETRY_AFTER_MS.into())
                    .or_insert_with(|| delay.as_millis().to_string());
            }
            if let Some(bad) = status.get_details_bad_request()
                && let Some(violation) = bad.field_violations.into_iter().next()
            {
                details.entry(FIELD.into()).or_insert(violation.field);
            }
            let reason = ErrorReason::from_str_name(&info.reason).unwrap_or_default();
            return Self::failed(reason, status.message(), details);
        }
        if let Some(error) = io_error(status) {
            return match error.kind() {
                io::ErrorKind::NotFound
                | io::ErrorKind::ConnectionRefused
                | io::ErrorKind::PermissionDenied => Self::from_connect(error, place),
                _ if tls_error(error).is_some() => Self::from_connect(error, place),
                _ => Self::lost(place),
            };
        }
        match status.code() {
            tonic::Code::Unimplemented => Self::failed(
                ErrorReason::Unsupported,
                "this nestd does not know the call: it is older than this program",
                BTreeMap::new(),
            ),
            // The limit on a message, which the daemon's gRPC library checks before the daemon.
            tonic::Code::OutOfRange => Self::failed(
                ErrorReason::InvalidArgument,
                format!("the request is too large: {}", status.message()),
                BTreeMap::new(),
            ),
            // What tonic makes of a connection that ended.
            tonic::Code::Unavailable | tonic::Code::Cancelled | tonic::Code::Unknown => {
                Self::lost(place)
            }
            _ if std::error::Error::source(status).is_some() => Self::lost(place),
            code => Self::Unexpected(format!("nestd answered {code:?}: {}", status.message())),
        }
    }

    /// What a named D-Bus error means: of a method call, or in `Failed` and `Outcome`.
    pub(crate) fn from_named(
        name: &str,
        message: String,
        details: &HashMap<String, OwnedVariant>,
    ) -> Self {
        let Some(short) = name.strip_prefix(ERROR_PREFIX) else {
            return Self::Unexpected(format!("nestd answered {name}: {message}"));
        };
        let details = details.iter().map(|(key, value)| (key.clone(), plain(value))).collect();
        Self::failed(error_reason(short).unwrap_or_default(), message, details)
    }
}

impl From<zbus::Error> for Error {
    fn from(error: zbus::Error) -> Self {
        match error {
            zbus::Error::MethodError(name, message, reply) => {
                let (message, details) = reply
                    .body()
                    .deserialize::<(String, HashMap<String, OwnedVariant>)>()
                    .unwrap_or_else(|_| (message.unwrap_or_default(), HashMap::new()));
                Self::from_named(name.as_str(), message, &details)
            }
            zbus::Error::FDO(error) => from_fdo(*error),
            zbus::Error::InputOutput(_) => Self::disconnected(),
            error => Self::Unexpected(format!("D-Bus: {error}")),
        }
    }
}

/// What the bus itself says.
fn from_fdo(error: fdo::Error) -> Error {
    match error {
        fdo::Error::ServiceUnknown(_)
        | fdo::Error::NameHasNoOwner(_)
        | fdo::Error::SpawnFailed(_)
        | fdo::Error::SpawnChildExited(_) => Error::Unreachable(format!(
            "nestd is not on this bus ({NAME} has no owner): start it with `systemctl start nestd`"
        )),
        fdo::Error::NoReply(_) | fdo::Error::Disconnected(_) => Error::disconnected(),
        // nestd itself refuses to tell all properties of an object with this error; else it is the bus.
        fdo::Error::AccessDenied(message) if message.starts_with("not allowed: ") => {
            Error::not_allowed(message)
        }
        fdo::Error::AccessDenied(message) => {
            Error::not_allowed(format!("the bus does not let this user call nestd: {message}"))
        }
        fdo::Error::UnknownMethod(_)
        | fdo::Error::UnknownInterface(_)
        | fdo::Error::UnknownObject(_) => Error::failed(
            ErrorReason::Unsupported,
            "this nestd does not know the call: it is older than this program",
            BTreeMap::new(),
        ),
        fdo::Error::ZBus(error) => error.into(),
        error => Error::Unexpected(format!("D-Bus: {error}")),
    }
}

/// The first I/O error below a status.
fn io_error(status: &tonic::Status) -> Option<&io::Error> {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref() {
            return Some(error);
        }
        source = error.source();
    }
    None
}

/// What TLS has to say, where that is what failed.
fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// A detail as gRPC's metadata writes it.
fn plain(value: &Variant<'_>) -> String {
    match value {
        Variant::Str(text) => text.to_string(),
        Variant::U8(number) => number.to_string(),
        Variant::U16(number) => number.to_string(),
        Variant::U32(number) => number.to_string(),
        Variant::U64(number) => number.to_string(),
        Variant::I16(number) => number.to_string(),
        Variant::I32(number) => number.to_string(),
        Variant::I64(number) => number.to_string(),
        Variant::F64(number) => number.to_string(),
        Variant::Bool(yes) => yes.to_string(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    fn place() -> Place {
        Place::Socket("/run/nestd/nestd.sock".into())
    }

    fn details<const N: usize>(pairs: [(&str, &str); N]) -> HashMap<String, String> {
        pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect()
    }

    fn over_grpc(code: tonic::Code, message: &str, details: ErrorDetails) -> Error {
        let status = tonic::Status::with_error_details(code, message, details);
        Error::from_status(&status, &place())
    }

    fn over_dbus(name: &str, message: &str, details: &[(&str, Variant<'static>)]) -> Error {
        let call = zbus::Message::method_call("/", "Generate").unwrap_call();
        let details: HashMap<&str, &Variant<'_>> =
            details.iter().map(|(key, value)| (*key, value)).collect();
        zbus::Error::from(
            zbus::Message::error(&call.header(), name).build(&(message, details)).unwrap(),
        )
        .into()
    }

    trait Call {
        fn unwrap_call(self) -> zbus::Message;
    }

    impl Call for zbus::message::Builder<'_> {
        fn unwrap_call(self) -> zbus::Message {
            self.destination(":1.2").build(&()).unwrap()
        }
    }

    #[test]
    fn both_transports_give_the_same_value() {
        let mut queue_full = ErrorDetails::with_error_info(
            "QUEUE_FULL",
            ERROR_DOMAIN,
            details([("limit", "8"), ("retry_after_ms", "250")]),
        );
        queue_full.set_retry_info(Some(Duration::from_millis(250)));
        let grpc = over_grpc(tonic::Code::ResourceExhausted, "all taken", queue_full);
        let dbus = over_dbus(
            "org.nestd.Error.QueueFull",
            "all taken",
            &[("limit", 8_u32.into()), ("retry_after_ms", 250_u64.into())],
        );
        assert_eq!(grpc, dbus);
        assert_eq!(grpc.reason(), Some(ErrorReason::QueueFull));
        assert_eq!(grpc.retry_after(), Some(Duration::from_millis(250)));
        assert_eq!(grpc.to_string(), "all taken");
    }

    #[test]
    fn a_field_and_a_delay_are_found_where_google_puts_them() {
        let mut found = ErrorDetails::with_error_info("BUSY", ERROR_DOMAIN, details([]));
        found.add_bad_request_violation("sampling.top_p", "no");
        found.set_retry_info(Some(Duration::from_secs(1)));
        let Error::Failed(failure) = over_grpc(tonic::Code::Unavailable, "x", found) else {
            panic!("not a failure")
        };
        assert_eq!(failure.details.get("field").unwrap(), "sampling.top_p");
        assert_eq!(failure.retry_after, Some(Duration::from_secs(1)));
    }

    #[test]
    fn a_newer_reason_keeps_its_sentence() {
        let newer = ErrorDetails::with_error_info("TOO_HOT", ERROR_DOMAIN, details([]));
        let grpc = over_grpc(tonic::Code::Unavailable, "cool it", newer);
        let dbus = over_dbus("org.nestd.Error.TooHot", "cool it", &[]);
        assert_eq!(grpc, dbus);
        assert_eq!(grpc.reason(), Some(ErrorReason::Unspecified));
    }

    #[test]
    fn no_daemon_says_what_to_do() {
        let missing = Error::from_connect(&io::Error::from(io::ErrorKind::NotFound), &place());
        assert!(matches!(&missing, Error::Unreachable(text)
            if text.starts_with("nestd is not running at /run/nestd/nestd.sock: start it with")));
        let no_owner = over_dbus("org.freedesktop.DBus.Error.ServiceUnknown", "not provided", &[]);
        assert!(matches!(no_owner, Error::Unreachable(_)));
        let forbidden =
            Error::from_connect(&io::Error::from(io::ErrorKind::PermissionDenied), &place());
        assert_eq!(forbidden.reason(), Some(ErrorReason::NotAllowed));
    }

    #[test]
    fn tls_says_whose_certificate_is_wrong() {
        let place = Place::Tcp("https://tablet:1".into());
        let failed = |error: rustls::Error| {
            Error::from_connect(&io::Error::new(io::ErrorKind::InvalidData, error), &place)
        };
        let mine = failed(rustls::Error::AlertReceived(rustls::AlertDescription::UnknownCA));
        assert_eq!(mine.reason(), Some(ErrorReason::NotAllowed));
        assert!(mine.to_string().contains("tcp.client_ca"), "{mine}");
        let theirs = failed(rustls::CertificateError::UnknownIssuer.into());
        assert!(matches!(&theirs, Error::Unreachable(text) if text.contains("cannot be trusted")));
    }

    #[test]
    fn a_connection_that_ends_is_the_same_on_both() {
        let grpc = Error::from_status(&tonic::Status::unavailable("broken"), &place());
        let dbus = over_dbus("org.freedesktop.DBus.Error.NoReply", "left the bus", &[]);
        assert_eq!(grpc, dbus);
        assert!(matches!(grpc, Error::Disconnected(_)));
    }

    #[test]
    fn a_request_over_the_limit_of_a_message_is_invalid() {
        let status = tonic::Status::out_of_range("decoded message length too large");
        let error = Error::from_status(&status, &place());
        assert_eq!(error.reason(), Some(ErrorReason::InvalidArgument));
    }

    #[test]
    fn a_status_without_details_is_unexpected() {
        let status = tonic::Status::data_loss("?");
        let error = Error::from_status(&status, &place());
        assert!(matches!(error, Error::Unexpected(_)));
    }
}
