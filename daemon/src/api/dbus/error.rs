//! The one map from [`Error`] to D-Bus errors: `org.nestd.Error.<Name>` with a sentence and the
//! numbers. The names come from the reasons of nestd.v1, so that both transports mean the same.

use std::collections::HashMap;

use nestd_proto::{dbus::ERROR_PREFIX, error_name};
use zbus::message::Header;
use zbus::names::ErrorName;
use zbus::{DBusError, Message, OwnedVariant};

use super::convert;
use crate::api::bounded;
use crate::api::grpc::error::code_and_reason;
use crate::types::{Detail, Error};

/// An [`Error`] as the reply to a method call.
#[derive(Debug)]
pub(super) struct Failure {
    name: String,
    message: String,
    details: HashMap<&'static str, OwnedVariant>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { name: name(&error), message: message(&error), details: details(&error) }
    }
}

impl From<zbus::Error> for Failure {
    fn from(error: zbus::Error) -> Self {
        Error::Internal(format!("D-Bus: {error}")).into()
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl DBusError for Failure {
    fn create_reply(&self, call: &Header<'_>) -> zbus::Result<Message> {
        Message::error(call, self.name()).build(&(&self.message, &self.details))
    }

    fn name(&self) -> ErrorName<'_> {
        ErrorName::from_str_unchecked(&self.name)
    }

    fn description(&self) -> Option<&str> {
        Some(&self.message)
    }
}

/// The error's full name on the bus.
pub(super) fn name(error: &Error) -> String {
    format!("{ERROR_PREFIX}{}", error_name(code_and_reason(error).1))
}

/// The error's sentence.
pub(super) fn message(error: &Error) -> String {
    convert::clean(&bounded(error.to_string())).into_owned()
}

/// The error's numbers and names.
pub(super) fn details(error: &Error) -> HashMap<&'static str, OwnedVariant> {
    let variant = |detail| match detail {
        Detail::Number(number) => OwnedVariant::from(number),
        Detail::Text(text) => convert::string(&bounded(text)),
    };
    error.details().into_iter().map(|(key, detail)| (key, variant(detail))).collect()
}

#[cfg(test)]
mod tests {
    use zbus::Variant;

    use super::*;

    /// A bus cuts off who sends more than it carries: a client must not have the daemon do so by a call that
    /// is just small enough.
    #[test]
    fn what_a_client_sent_is_not_repeated_at_any_length() {
        let call = Message::method_call("/", "Call").sender(":1.7").build(&()).unwrap();
        for sent in ["x", "\u{1}", "\0", "\u{20ac}"].map(|sent| sent.repeat(1 << 20)) {
            let options = HashMap::from([(sent.clone(), true.into())]);
            let errors = [
                convert::options(options).unwrap_err(),
                convert::messages(vec![(sent.clone(), vec![])]).unwrap_err(),
                Error::SessionNotFound { session: sent },
            ];
            for error in errors {
                let reply = Failure::from(error).create_reply(&call.header()).unwrap();
                assert!(reply.data().len() < 8 << 10, "{}", reply.data().len());
                let body = reply.body();
                let (text, _): (String, HashMap<String, Variant<'_>>) = body.deserialize().unwrap();
                assert!(text.len() > 1000 && !text.contains('\0'));
            }
        }
    }
}
