//! The command line of `nestctl foreground`.

use clap::{ArgGroup, Args};

#[derive(Args)]
#[command(group = ArgGroup::new("app").required(true).multiple(true))]
pub struct ForegroundArgs {
    /// The app's user, a number
    #[arg(long, value_name = "N", group = "app")]
    pub uid: Option<u32>,
    /// The app's systemd unit, as in `nestctl top`: captions.service
    #[arg(long, value_name = "NAME", group = "app", value_parser = name)]
    pub unit: Option<String>,
    /// The app's connection, as in `nestctl top`: :1.7 or connection-3
    #[arg(long, value_name = "NAME", group = "app", value_parser = name)]
    pub connection: Option<String>,
    /// The name in the app's certificate, on TCP
    #[arg(long, value_name = "NAME", group = "app", value_parser = name)]
    pub certificate: Option<String>,
    /// Why, for whoever looks
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
}

/// An empty name would be anybody's.
fn name(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("it is empty".into()) } else { Ok(text.into()) }
}
