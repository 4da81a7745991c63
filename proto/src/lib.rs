//! The two contracts of Nestd: the gRPC package `nestd.v1`, generated from the .proto files beside
//! this crate, and the D-Bus interfaces of `dbus/*.xml`.
//!
//! Whatever one can do, the other can; the documentation of each member is in those files.

/// The gRPC package `nestd.v1`: messages, clients and servers.
// Comments of .proto members are their documentation; names that say it all have none.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("nestd.v1");

    /// The encoded `FileDescriptorSet` of the package, comments included, for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/nestd.v1.binpb"));
}

/// Names of the D-Bus contract.
pub mod dbus {
    /// The name that the daemon owns.
    pub const NAME: &str = "org.nestd.Nestd1";
    /// The object with `org.nestd.Manager1` and `org.nestd.Governor1`.
    pub const PATH: &str = "/org/nestd/Nestd1";
    /// Requests live below this path: `SENDER/TOKEN`.
    pub const REQUEST_PATH: &str = "/org/nestd/Nestd1/request";
    /// Sessions live below this path, by their id.
    pub const SESSION_PATH: &str = "/org/nestd/Nestd1/session";
    /// Errors are this prefix and a name of [`crate::error_name`].
    pub const ERROR_PREFIX: &str = "org.nestd.Error.";
    /// The introspection data of `org.nestd.Governor1`.
    pub const GOVERNOR_XML: &str = include_str!("../dbus/org.nestd.Governor1.xml");
    /// The introspection data of `org.nestd.Manager1`.
    pub const MANAGER_XML: &str = include_str!("../dbus/org.nestd.Manager1.xml");
    /// The introspection data of `org.nestd.Request1`.
    pub const REQUEST_XML: &str = include_str!("../dbus/org.nestd.Request1.xml");
    /// The introspection data of `org.nestd.Session1`.
    pub const SESSION_XML: &str = include_str!("../dbus/org.nestd.Session1.xml");
}

/// The domain in every `google.rpc.ErrorInfo`.
pub const ERROR_DOMAIN: &str = "nestd.org";

/// The sender's part of a request's object path: its unique bus name without the colon and with
/// underscores for dots, so that `:1.42` becomes `1_42`.
#[must_use]
pub fn sender_element(unique_name: &str) -> String {
    unique_name.trim_start_matches(':').replace('.', "_")
}

/// The name of an error on D-Bus without its prefix: `QUEUE_FULL` becomes `QueueFull`.
#[must_use]
pub fn error_name(reason: v1::ErrorReason) -> String {
    reason
        .as_str_name()
        .split('_')
        .map(|word| word[..1].to_owned() + &word[1..].to_ascii_lowercase())
        .collect()
}

/// The reason that a D-Bus error's last element names, as [`error_name`] writes it.
#[must_use]
pub fn error_reason(name: &str) -> Option<v1::ErrorReason> {
    (1..)
        .map_while(|number| v1::ErrorReason::try_from(number).ok())
        .find(|reason| error_name(*reason) == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_names_round_trip() {
        assert_eq!(error_name(v1::ErrorReason::QueueFull), "QueueFull");
        for number in 1.. {
            let Ok(reason) = v1::ErrorReason::try_from(number) else { break };
            assert_eq!(error_reason(&error_name(reason)), Some(reason));
        }
        assert_eq!(error_reason("Nonsense"), None);
    }

    #[test]
    fn sender_elements_are_path_elements() {
        assert_eq!(sender_element(":1.42"), "1_42");
    }
}
