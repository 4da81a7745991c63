//! What every command takes: where the daemon is, and how to print.

use std::{env, path::PathBuf};

use clap::Args;
use nestd_client::{Bus, DEFAULT_SOCKET};

/// What every command takes.
#[derive(Args, Default)]
pub struct Global {
    /// Talk gRPC (the default): over the daemon's socket, or over TCP with --server
    #[arg(long, global = true, conflicts_with_all = ["dbus", "bus"], help_heading = "Options of every command")]
    pub grpc: bool,
    /// Talk D-Bus
    #[arg(
        long,
        global = true,
        conflicts_with = "socket",
        help_heading = "Options of every command"
    )]
    pub dbus: bool,
    /// The daemon's socket [default: $NESTCTL_SOCKET, else /run/nestd/nestd.sock]
    #[arg(long, global = true, value_name = "PATH", help_heading = "Options of every command")]
    pub socket: Option<PathBuf>,
    /// The daemon's address on TCP, https://HOST:PORT; needs --ca, --certificate and --key [default:
    /// $NESTCTL_SERVER]
    #[arg(
        long,
        global = true,
        value_name = "URL",
        conflicts_with_all = ["dbus", "bus", "socket"],
        help_heading = "Options of every command"
    )]
    pub server: Option<String>,
    /// The authority that the daemon's certificate comes from, in PEM [default: $NESTCTL_CA]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Options of every command")]
    pub ca: Option<PathBuf>,
    /// The certificate to show to the daemon, in PEM [default: $NESTCTL_CERTIFICATE]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Options of every command")]
    pub certificate: Option<PathBuf>,
    /// The certificate's key, in PEM [default: $NESTCTL_KEY]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Options of every command")]
    pub key: Option<PathBuf>,
    /// The message bus: system, session or an address; implies --dbus [default: $NESTCTL_BUS, else
    /// system]
    #[arg(
        long,
        global = true,
        conflicts_with = "socket",
        help_heading = "Options of every command"
    )]
    pub bus: Option<Bus>,
    /// Print JSON: one object a line for what streams, else one object or array
    #[arg(long, global = true, help_heading = "Options of every command")]
    pub json: bool,
}

/// Where the daemon is.
pub enum Transport {
    Grpc(PathBuf),
    /// An address, and the files that are known.
    Tcp(String, [Option<PathBuf>; 3]),
    Dbus(Bus),
}

impl Global {
    /// The transport that was asked for.
    pub fn transport(&self) -> Transport {
        let variable = |name| env::var_os(name).filter(|value| !value.is_empty());
        if self.dbus || self.bus.is_some() {
            let bus = self.bus.clone().or_else(|| variable("NESTCTL_BUS")?.to_str()?.parse().ok());
            return Transport::Dbus(bus.unwrap_or_default());
        }
        if let Some(socket) = &self.socket {
            return Transport::Grpc(socket.clone());
        }
        let server = || variable("NESTCTL_SERVER")?.into_string().ok();
        if let Some(server) = self.server.clone().or_else(server) {
            let files = [
                (&self.ca, "NESTCTL_CA"),
                (&self.certificate, "NESTCTL_CERTIFICATE"),
                (&self.key, "NESTCTL_KEY"),
            ];
            let file = |(given, name): (&Option<PathBuf>, _)| {
                given.clone().or_else(|| variable(name).map(Into::into))
            };
            return Transport::Tcp(server, files.map(file));
        }
        let socket = variable("NESTCTL_SOCKET").map(Into::into);
        Transport::Grpc(socket.unwrap_or_else(|| DEFAULT_SOCKET.into()))
    }
}
