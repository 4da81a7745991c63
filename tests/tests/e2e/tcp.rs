//! gRPC on TCP: mutual TLS or nothing, and certificates that have classes of their own.

use std::process::Command;
use std::time::{Duration, Instant};

use nestd_client::v1::{App, ErrorReason, HoldForegroundRequest, HoldRequest, Priority, State};
use nestd_client::{Certificates, Client, Error, ask};
use nestd_tests::{Authority, Builder, Daemon, collect, program, text, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::copy;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

/// A daemon on TCP, with a certificate of the authority for this machine.
fn served(authority: &Authority) -> Builder {
    let [certificate, key] = authority.signs("nestd", "IP:127.0.0.1,DNS:localhost");
    let path = |path: std::path::PathBuf| format!("'{}'", path.display());
    Builder::sim()
        .set("sim.tokens_per_s", "2000.0")
        .set("tcp.listen", "'127.0.0.1:0'")
        .set("tcp.certificate", &path(certificate))
        .set("tcp.key", &path(key))
        .set("tcp.client_ca", &path(authority.ca()))
        .set("access.use", "['*', 'cert:phone.local']")
        .set("access.control", "['root', 'cert:Kitchen tablet']")
}

/// Where it listens, as it logs it.
fn port(daemon: &Daemon) -> u16 {
    let log = daemon.log();
    let (_, rest) = log.split_once("address=127.0.0.1:").expect("it is told");
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().expect("a port")
}

fn url(daemon: &Daemon) -> String {
    format!("https://127.0.0.1:{}", port(daemon))
}

async fn connect(daemon: &Daemon, files: &Certificates) -> Client {
    Client::tcp(&url(daemon), files).await.expect("the certificates are good")
}

/// The first call's error, however far the connection gets.
async fn refused(url: &str, files: &Certificates) -> Error {
    match Client::tcp(url, files).await {
        Ok(client) => client.status().await.expect_err("the call is refused"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn a_certificate_has_the_classes_of_its_name() {
    let authority = Authority::default();
    let daemon = served(&authority).start();
    let phone = connect(&daemon, &authority.client("p", "DNS:phone.local,DNS:other.local")).await;
    until(&phone, |status| status.state() == State::Ready).await;
    let events = collect(phone.generate(ask("over the air")).await.unwrap()).await.unwrap();
    assert_eq!(text(&events), "over the air");
    let error = phone.unload().await.unwrap_err();
    assert_eq!(error.reason(), Some(ErrorReason::NotAllowed));
    assert!(error.to_string().contains("access.control (root, cert:Kitchen tablet)"), "{error}");
    daemon.wait_log("cert phone.local").await;

    let tablet = connect(&daemon, &authority.client("Kitchen tablet", "")).await;
    tablet.unload().await.unwrap();
    assert_eq!(phone.status().await.unwrap().state(), State::NoModel);

    // By "*" comes nobody from the network, and by a name of the certificate other than the first neither.
    for (name, names) in
        [("stranger", ""), ("Kitchen tablet", "DNS:x"), ("y", "DNS:z,DNS:phone.local")]
    {
        let client = connect(&daemon, &authority.client(name, names)).await;
        let error = client.status().await.unwrap_err();
        assert_eq!(error.reason(), Some(ErrorReason::NotAllowed), "{name}: {error}");
        assert!(error.to_string().contains("access.observe (*)"), "{error}");
    }
}

#[tokio::test]
async fn an_app_in_the_foreground_may_be_a_certificate() {
    let authority = Authority::default();
    let daemon = served(&authority).set("sim.tokens_per_s", "20.0").start();
    let phone = connect(&daemon, &authority.client("p", "DNS:phone.local")).await;
    let tablet = connect(&daemon, &authority.client("Kitchen tablet", "")).await;
    until(&tablet, |status| status.state() == State::Ready).await;
    let lease = || HoldForegroundRequest {
        app: Some(App { certificate: "phone.local".into(), ..App::default() }),
        reason: "it is held".into(),
    };
    let refused = phone.hold_foreground(lease()).await.err().expect("a refusal");
    assert_eq!(refused.reason(), Some(ErrorReason::NotAllowed), "{refused}");
    let _lease = tablet.hold_foreground(lease()).await.unwrap();
    let mut running = Vec::new();
    for client in [&tablet, &phone] {
        let mut request = ask("word ".repeat(500));
        request.priority = Priority::Interactive.into();
        running.push(client.generate(request).await.unwrap());
    }
    let all = tablet.requests().await.unwrap().requests;
    let served: Vec<_> = all.iter().map(|one| (one.client.as_str(), one.served_as())).collect();
    let wanted =
        [("cert phone.local", Priority::Interactive), ("cert Kitchen tablet", Priority::Normal)];
    assert_eq!(served, wanted, "the most urgent first");
}

#[tokio::test]
async fn the_table_and_the_certificates_change_while_it_runs() {
    let authority = Authority::default();
    let daemon = served(&authority).start();
    let files = authority.client("p", "DNS:phone.local");
    let phone = connect(&daemon, &files).await;
    phone.status().await.unwrap();
    daemon.change("access.use", "['*']");
    let error = phone.status().await.unwrap_err();
    assert_eq!(error.reason(), Some(ErrorReason::NotAllowed), "the connection is the same one");
    daemon.change("access.observe", "['cert:phone.local']");
    phone.status().await.unwrap();
    assert_eq!(
        phone.generate(ask("a")).await.err().unwrap().reason(),
        Some(ErrorReason::NotAllowed)
    );

    // A certificate of another authority, at the next connection.
    let other = Authority::default();
    let [certificate, _] = authority.signs("nestd", "");
    let [renewed, key] = other.signs("nestd", "IP:127.0.0.1");
    std::fs::copy(&renewed, &certificate).unwrap();
    std::fs::copy(&key, certificate.with_extension("key")).unwrap();
    daemon.signal(Signal::SIGHUP);
    let began = Instant::now();
    let error = loop {
        match Client::tcp(&url(&daemon), &files).await {
            Err(error) => break error,
            Ok(_) => assert!(began.elapsed() < Duration::from_secs(10), "it stays the old one"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(error.to_string().contains("cannot be trusted"), "{error}");
    phone.status().await.unwrap();
    let ca = other.ca();
    connect(&daemon, &Certificates { ca, ..files.clone() }).await.status().await.unwrap();
    // Files that are none change nothing.
    std::fs::write(&certificate, "nonsense").unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.wait_log("it holds no certificate").await;
    phone.status().await.unwrap();
}

#[tokio::test]
async fn who_cannot_show_a_good_certificate_gets_nowhere() {
    let authority = Authority::default();
    let daemon = served(&authority).start();
    let other = Authority::default();
    let good = authority.client("p", "DNS:phone.local");

    // From another authority, though with a name that has a class.
    let forged = other.client("p", "DNS:phone.local");
    let error =
        refused(&url(&daemon), &Certificates { ca: authority.ca(), ..forged.clone() }).await;
    assert!(error.to_string().contains("does not take this certificate"), "{error}");
    // The daemon itself must be of the client's authority.
    let ca = other.ca();
    let error = refused(&url(&daemon), &Certificates { ca, ..good.clone() }).await;
    assert!(error.to_string().contains("cannot be trusted"), "{error}");

    // Without a certificate, and without TLS.
    let pem = std::fs::read(authority.ca()).unwrap();
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
    let bare = Endpoint::from_shared(url(&daemon)).unwrap().tls_config(tls).unwrap();
    let plain = Endpoint::from_shared(format!("http://127.0.0.1:{}", port(&daemon))).unwrap();
    for endpoint in [bare, plain] {
        if let Ok(channel) = endpoint.connect().await {
            let mut client = nestd_proto::v1::status_client::StatusClient::new(channel);
            let status = client.get(nestd_proto::v1::GetStatusRequest {}).await.unwrap_err();
            assert!(std::error::Error::source(&status).is_some(), "no answer: {status}");
        }
    }
    for why in ["BadSignature", "fatal alert", "peer sent no certificates", "corrupt message"] {
        daemon.wait_log(why).await;
    }
    // The good one is let in all the same.
    connect(&daemon, &good).await.status().await.unwrap();
}

#[tokio::test]
async fn handshakes_that_stall_keep_nobody_else_out() {
    let authority = Authority::default();
    let daemon = served(&authority).start();
    let files = authority.client("p", "DNS:phone.local");
    let address = format!("127.0.0.1:{}", port(&daemon)).parse().unwrap();
    // More than are shaken hands with at once, from another address, and nothing is said on any.
    let mut silent = Vec::new();
    for _ in 0..40 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        silent.push(socket.connect(address).await.unwrap());
    }
    daemon.wait_log("too many handshakes at once: refused address=127.0.0.2").await;
    connect(&daemon, &files).await.status().await.unwrap();
    daemon.wait_log("no TLS handshake within 3 s").await;
    drop(silent);
}

#[tokio::test]
async fn nestctl_talks_over_tcp() {
    let authority = Authority::default();
    let daemon = served(&authority).start();
    let files = authority.client("p", "DNS:phone.local");
    let nestctl = || {
        let mut command = Command::new(program("nestctl"));
        command.args(["--json", "--server", &url(&daemon)]);
        command
    };
    let output = nestctl()
        .args(["status", "--ca"])
        .arg(&files.ca)
        .arg("--certificate")
        .arg(&files.certificate)
        .arg("--key")
        .arg(&files.key)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let output = Command::new(program("nestctl"))
        .args(["ask", "--quiet", "by the environment"])
        .env("NESTCTL_SERVER", url(&daemon))
        .env("NESTCTL_CA", &files.ca)
        .env("NESTCTL_CERTIFICATE", &files.certificate)
        .env("NESTCTL_KEY", &files.key)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim_end(), "by the environment");
    let output = nestctl().arg("status").arg("--ca").arg(&files.ca).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let told: Value = serde_json::from_slice(&output.stderr).unwrap();
    let sentence = told["error"]["message"].as_str().unwrap();
    assert!(sentence.contains("needs --certificate, --key too"), "{told}");
}

/// Passes bytes on between a client and the daemon, until it goes silent without closing anything.
async fn cable(to: String) -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let daemon = TcpStream::connect(to).await.unwrap();
        // What is leaked stays open.
        let (client, daemon) = (Box::leak(Box::new(client)), Box::leak(Box::new(daemon)));
        let (mut from_client, mut to_client) = client.split();
        let (mut from_daemon, mut to_daemon) = daemon.split();
        let there = copy(&mut from_client, &mut to_daemon);
        let _ = tokio::join!(there, copy(&mut from_daemon, &mut to_client));
    });
    (address, task)
}

#[tokio::test]
async fn a_half_open_connection_is_found_and_its_hold_ends() {
    let authority = Authority::default();
    let daemon =
        served(&authority).set("grpc.keepalive_s", "0.5").set("governor.enabled", "true").start();
    let local = daemon.grpc().await;
    until(&local, |status| status.state() == State::Ready).await;
    let (address, wire) = cable(format!("127.0.0.1:{}", port(&daemon))).await;
    let files = authority.client("p", "DNS:phone.local");
    let phone = Client::tcp(&address, &files).await.unwrap();
    let request = HoldRequest { max_size: "small".into(), ..HoldRequest::default() };
    let holding = phone.hold(request).await.unwrap();
    assert_eq!(local.governor().await.unwrap().holds.len(), 1);
    // Longer than a keepalive and its answer: who answers stays.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(local.governor().await.unwrap().holds.len(), 1);
    wire.abort();
    gone(&daemon, &local).await;
    drop(holding);
}

#[tokio::test]
async fn a_client_on_the_socket_that_stands_still_is_found_too() {
    let daemon =
        Builder::sim().set("grpc.keepalive_s", "0.5").set("governor.enabled", "true").start();
    let local = daemon.grpc().await;
    until(&local, |status| status.state() == State::Ready).await;
    let mut holder = Command::new(program("nestctl"))
        .args(["governor", "hold", "--max", "small", "--socket"])
        .arg(daemon.socket())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while local.governor().await.unwrap().holds.is_empty() {
        assert!(began.elapsed() < Duration::from_secs(10), "{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    kill(Pid::from_raw(holder.id().try_into().unwrap()), Signal::SIGSTOP).unwrap();
    gone(&daemon, &local).await;
    holder.kill().unwrap();
    holder.wait().unwrap();
}

/// Waits until no hold is in force.
async fn gone(daemon: &Daemon, client: &Client) {
    let began = Instant::now();
    while !client.governor().await.unwrap().holds.is_empty() {
        assert!(began.elapsed() < Duration::from_secs(30), "it is still held:\n{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn plain_tcp_is_refused_with_the_settings() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("nestd.toml");
    for (settings, told) in [
        (
            "listen = '127.0.0.1:7878'",
            &["tcp.listen", "tcp.certificate, tcp.key, tcp.client_ca"][..],
        ),
        ("listen = '127.0.0.1:7878'\ncertificate = '/c'\nkey = '/k'", &["set tcp.client_ca, too"]),
        ("listen = 'localhost'", &["tcp.listen", "\"localhost\" is not an address with a port"]),
        ("certificate = 'c.pem'", &["tcp.certificate", "is not an absolute path"]),
    ] {
        std::fs::write(&file, format!("[tcp]\n{settings}\n")).unwrap();
        let output = Command::new(program("nestd"))
            .args(["--check-config", "--config"])
            .arg(&file)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(78), "{settings}: {output:?}");
        let problems = String::from_utf8(output.stderr).unwrap();
        assert_eq!(problems.lines().count(), 1, "{problems}");
        for words in told {
            assert!(problems.contains(words), "{words} is not in\n{problems}");
        }
    }
    // Files that are not there end the start, with the key and the file.
    let mut daemon = Builder::sim()
        .set("tcp.listen", "'127.0.0.1:0'")
        .set("tcp.certificate", "'/nonexistent/c.pem'")
        .set("tcp.key", "'/nonexistent/k.pem'")
        .set("tcp.client_ca", "'/nonexistent/ca.pem'")
        .launch();
    assert_eq!(daemon.wait().code(), Some(1));
    assert!(daemon.log().contains("tcp.certificate: /nonexistent/c.pem"), "{}", daemon.log());
}
