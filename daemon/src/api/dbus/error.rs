//! The one map from [`Error`] to D-Bus errors: `org.nestd.Error.<Name>` with a sentence and the
//! numbers. The names come from the reasons of nestd.v1, so that both transports mean the same.

use std::collections::HashMap;

use nestd_proto::{dbus::ERROR_PREFIX, error_name};
use zbus::message::Header;
use zbus::names::ErrorName;
use zbus::{DBusError, Message, OwnedVariant};

use super::convert;
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
        Self {
            name: name(&error),
            message: convert::clean(&error.told()).into_owned(),
            details: details(&error),
        }
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

/// The error's numbers and names.
pub(super) fn details(error: &Error) -> HashMap<&'static str, OwnedVariant> {
    let variant = |detail| match detail {
        Detail::Number(number) => OwnedVariant::from(number),
        Detail::Text(text) => convert::string(&text),
    };
    error.details().into_iter().map(|(key, detail)| (key, variant(detail))).collect()
}
