//! The metrics, as Prometheus scrapes them from the real daemon.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use futures::StreamExt;
use nestd_client::v1::generate_event::Event;
use nestd_client::v1::{GenerateRequest, Priority, RequestState, State, Stopping, Tool};
use nestd_client::{Client, Error, ask};
use nestd_tests::{Builder, Daemon, Device, collect, finished, program, project, until};
use nix::sys::signal::Signal;

/// An HTTP answer: the status line's number, the head, and the body.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

fn exchange(mut stream: impl Read + Write, request: &str) -> Answer {
    stream.write_all(request.as_bytes()).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

fn ask_socket(socket: &Path, request: &str) -> Answer {
    exchange(UnixStream::connect(socket).unwrap(), request)
}

/// Every sample by its name with labels, after a check of the format around it.
fn samples(answer: &Answer) -> BTreeMap<String, f64> {
    assert_eq!(answer.status, 200, "{}", answer.head);
    assert!(answer.head.contains("content-type: application/openmetrics-text"), "{}", answer.head);
    assert!(answer.body.ends_with("\n# EOF\n"), "{}", answer.body);
    let mut samples = BTreeMap::new();
    let mut family = String::new();
    for line in answer.body.lines().filter(|line| *line != "# EOF") {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.split(' ');
            let kind = words.next().unwrap();
            assert!(["HELP", "TYPE", "UNIT"].contains(&kind), "{line}");
            words.next().unwrap().clone_into(&mut family);
            assert!(family.starts_with("nestd_"), "{line}");
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with(&family), "{name} is not of {family}");
        let twice = samples.insert(name.to_owned(), value.parse().unwrap());
        assert!(twice.is_none(), "{name} is there twice");
    }
    samples
}

fn scrape(daemon: &Daemon) -> BTreeMap<String, f64> {
    samples(&ask_socket(&daemon.metrics_socket(), "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"))
}

/// The samples once they are as wanted: what a client sees comes a moment before it is counted, or after.
fn scrape_until(
    daemon: &Daemon,
    wanted: impl Fn(&BTreeMap<String, f64>) -> bool,
) -> BTreeMap<String, f64> {
    let began = Instant::now();
    loop {
        let samples = scrape(daemon);
        if wanted(&samples) {
            return samples;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "the samples stay {samples:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn number(samples: &BTreeMap<String, f64>, name: &str) -> f64 {
    samples.get(name).copied().unwrap_or(0.0)
}

#[track_caller]
fn assert_number(samples: &BTreeMap<String, f64>, name: &str, wanted: f64) {
    let found = number(samples, name);
    assert!((found - wanted).abs() < 1e-9, "{name} is {found}, not {wanted}: {samples:#?}");
}

fn short(text: &str, max_tokens: u32, priority: Priority) -> GenerateRequest {
    GenerateRequest {
        stopping: Some(Stopping { max_tokens, ..Stopping::default() }),
        priority: priority.into(),
        ..ask(text)
    }
}

#[tokio::test]
async fn requests_are_counted_by_how_they_ended() {
    let daemon = Builder::sim().start();
    let [(_, grpc), (_, dbus)] = daemon.both().await;
    until(&grpc, |status| !status.active_size.is_empty()).await;
    let mut prompt_tokens = 0;
    let mut completion_tokens = 0;
    for (client, max_tokens) in [(&grpc, 0), (&dbus, 0), (&grpc, 2)] {
        let request = short("one two three", max_tokens, Priority::Interactive);
        let events = collect(client.generate(request).await.unwrap()).await.unwrap();
        let usage = finished(&events).usage.unwrap();
        prompt_tokens += usage.prompt_tokens;
        completion_tokens += usage.completion_tokens;
    }
    assert_eq!(completion_tokens, 8);
    // Dropped in the middle, by the client.
    let mut events =
        grpc.generate(short(&"word ".repeat(500), 0, Priority::Background)).await.unwrap();
    while !matches!(events.next().await.unwrap().unwrap().event, Some(Event::Text(_))) {}
    drop(events);
    // Refused: by the checks of the service, and by what decodes a request.
    for client in [&grpc, &dbus] {
        let wrong = short("hello", 1_000_000, Priority::Normal);
        assert!(matches!(client.generate(wrong).await, Err(Error::Failed(_))));
        let unsupported = GenerateRequest { tools: vec![Tool::default()], ..ask("hello") };
        assert!(matches!(client.generate(unsupported).await, Err(Error::Failed(_))));
    }
    let cancelled = "nestd_requests_total{outcome=\"cancelled\",priority=\"background\"}";
    let samples = scrape_until(&daemon, |samples| number(samples, cancelled) > 0.0);
    let count = |outcome: &str, priority: &str, wanted: f64| {
        let name = format!("nestd_requests_total{{outcome=\"{outcome}\",priority=\"{priority}\"}}");
        assert_number(&samples, &name, wanted);
    };
    count("stop", "interactive", 2.0);
    count("length", "interactive", 1.0);
    count("cancelled", "background", 1.0);
    count("invalid_argument", "normal", 2.0);
    count("unsupported", "unknown", 2.0);
    let requests = samples.iter().filter(|(name, _)| name.starts_with("nestd_requests_total"));
    let all: f64 = requests.map(|(_, value)| value).sum();
    assert!((all - 8.0).abs() < 1e-9, "loads are no requests: {samples:#?}");

    // The cancelled one made some tokens too.
    let tokens = |kind: &str| number(&samples, &format!("nestd_tokens_total{{kind=\"{kind}\"}}"));
    assert!(tokens("completion") >= 9.0, "{samples:#?}");
    assert!(tokens("prompt") >= f64::from(prompt_tokens) + 500.0, "{samples:#?}");
    for (histogram, count) in [("queue", 3.0), ("ttft", 3.0), ("inter_token", 5.0)] {
        let name = |part: &str, labels: &str| {
            format!("nestd_{histogram}_seconds_{part}{{{labels}priority=\"interactive\"}}")
        };
        assert_number(&samples, &name("count", ""), count);
        assert_number(&samples, &name("bucket", "le=\"+Inf\","), count);
        assert!(number(&samples, &name("sum", "")) > 0.0, "{samples:#?}");
    }
}

#[tokio::test]
async fn the_state_of_now_is_shown() {
    let daemon = Builder::sim().set("limits.parallel_requests", "1").start();
    let client = daemon.grpc().await;
    let running = client.generate(ask("word ".repeat(500))).await.unwrap();
    until(&client, |status| status.running_requests == 1).await;
    let waiting = client.generate(ask("word")).await.unwrap();
    let samples = scrape(&daemon);
    assert_number(&samples, "nestd_requests_active{state=\"running\"}", 1.0);
    assert_number(&samples, "nestd_requests_active{state=\"queued\"}", 1.0);
    assert_number(&samples, "nestd_state{state=\"ready\"}", 1.0);
    assert_number(&samples, "nestd_state{state=\"no-model\"}", 0.0);
    assert_number(&samples, "nestd_model{model=\"sim\",engine=\"sim\",size=\"large\"}", 1.0);
    assert!(number(&samples, "nestd_resident_bytes") > 1e6, "{samples:#?}");
    let version = format!("nestd_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    assert_number(&samples, &version, 1.0);
    // The governor is off, and the simulator maps no file: what is not known has no series.
    for absent in ["nestd_battery", "nestd_level", "nestd_model_resident", "nestd_energy"] {
        assert!(!samples.keys().any(|name| name.starts_with(absent)), "{samples:#?}");
    }
    drop((running, waiting));
}

#[tokio::test]
async fn a_switch_is_counted_with_its_cause_and_the_time_goes_to_the_size() {
    let device = Device::on_battery(80);
    let daemon = device.governs(Builder::sim()).start();
    let client = daemon.grpc().await;
    until(&client, |status| status.active_size == "large").await;
    let battery = |samples: &BTreeMap<String, f64>| number(samples, "nestd_battery_ratio");
    let samples = scrape_until(&daemon, |samples| battery(samples) > 0.0);
    assert_number(&samples, "nestd_battery_ratio", 0.8);
    assert_number(&samples, "nestd_on_ac", 0.0);
    assert_number(&samples, "nestd_level{level=\"full\"}", 1.0);
    device.charge("5\n");
    until(&client, |status| status.active_size == "small").await;
    let switch = "nestd_switches_total{cause=\"battery\",from=\"large\",to=\"small\"}";
    let small = "nestd_size_seconds_total{size=\"small\"}";
    let large = "nestd_size_seconds_total{size=\"large\"}";
    let samples = scrape_until(&daemon, |samples| number(samples, switch) > 0.0);
    assert_number(&samples, switch, 1.0);
    assert!(number(&samples, large) > 0.0, "{samples:#?}");
    let later = scrape_until(&daemon, |later| number(later, small) > number(&samples, small));
    assert!(number(&later, large) <= number(&samples, large), "it is not in memory any more");
}

#[tokio::test]
async fn a_load_of_a_client_is_a_switch_too() {
    let daemon = Builder::sim().start();
    for (_, client) in daemon.both().await {
        until(&client, |status| !status.active_size.is_empty()).await;
    }
    let client = daemon.dbus().await;
    client.load("", "small").await.unwrap().for_each(|_| async {}).await;
    let switch = "nestd_switches_total{cause=\"load\",from=\"large\",to=\"small\"}";
    scrape_until(&daemon, |samples| number(samples, switch) > 0.0);
}

#[tokio::test]
async fn the_models_memory_is_shown_by_part() {
    let folder = tempfile::tempdir().unwrap();
    let shipped = project().join("models/demo").canonicalize().unwrap();
    let file = folder.path().join("demo.gguf");
    std::fs::copy(shipped.join("nestd-demo-Q8_0.gguf"), &file).unwrap();
    let daemon = Builder::default()
        .set("model.dir", &format!("'{}'", folder.path().display()))
        .set("elastic.threads", "2")
        .start();
    let client = daemon.grpc().await;
    until(&client, |status| status.state() != State::Loading).await;
    let part = |samples: &BTreeMap<String, f64>, part: &str| {
        number(samples, &format!("nestd_model_resident_bytes{{part=\"{part}\"}}"))
    };
    // Running: scraped in the middle of an answer, too.
    let mut events = client.generate(ask("What is the capital of France?")).await.unwrap();
    while !matches!(events.next().await.unwrap().unwrap().event, Some(Event::Text(_))) {}
    let samples = scrape(&daemon);
    collect(events).await.unwrap();
    let length = std::fs::metadata(&file).unwrap().len() as f64;
    for name in ["layers", "embedding", "ple"] {
        let bytes = part(&samples, name);
        assert!(bytes > 0.0 && bytes < length, "{name}: {samples:#?}");
    }
    // The answer's caches are kept for the next turn.
    scrape_until(&daemon, |samples| part(samples, "kv") > 0.0);
    client.unload().await.unwrap();
    let gone = |samples: &BTreeMap<String, f64>| {
        !samples.keys().any(|name| name.starts_with("nestd_model"))
    };
    scrape_until(&daemon, gone);
}

/// Every metric that a device with everything shows is in the table, with its labels.
#[tokio::test]
async fn the_table_in_the_docs_has_every_metric() {
    let device = Device::on_battery(90);
    device.sys("class/power_supply/BAT0/power_now", "4500000\n");
    device.temperature(30);
    let daemon = device.governs(Builder::sim()).start();
    let client = daemon.grpc().await;
    until(&client, |status| !status.active_size.is_empty()).await;
    collect(client.generate(ask("word ".repeat(40))).await.unwrap()).await.unwrap();
    client.pin("small").await.unwrap();
    let samples = scrape_until(&daemon, |samples| {
        ["nestd_energy_per", "nestd_energy_joules", "nestd_switches", "nestd_temperature"]
            .iter()
            .all(|name| samples.keys().any(|found| found.starts_with(name)))
    });
    let docs = std::fs::read_to_string(project().join("docs/metrics.md")).unwrap();
    for sample in samples.keys() {
        let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
        let name = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix))
            .unwrap_or(name);
        let row = docs
            .lines()
            .find(|line| line.starts_with("| `nestd_") && line.contains(&format!("`{name}`")));
        let row = row.unwrap_or_else(|| panic!("docs/metrics.md has no row {name}"));
        for label in labels.split(',').filter_map(|label| label.split('=').next()) {
            let known = label == "le" || row.contains(&format!("`{label}`"));
            assert!(label.is_empty() || known, "{row} has no label {label}");
        }
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn a_loopback_port_serves_the_same() {
    let port = free_port();
    let mut daemon = Builder::sim().set("metrics.listen", &format!("'127.0.0.1:{port}'")).start();
    assert!(!daemon.metrics_socket().exists());
    let request = "GET /metrics?x=y HTTP/1.1\r\nHost: localhost\r\nAccept: text/plain\r\n\r\n";
    let answer = exchange(TcpStream::connect(("127.0.0.1", port)).unwrap(), request);
    assert_number(&samples(&answer), "nestd_state{state=\"draining\"}", 0.0);
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[tokio::test]
async fn the_socket_is_for_the_group_and_goes_with_the_daemon() {
    let mut daemon = Builder::sim().without_bus().start();
    let mode = std::fs::metadata(daemon.metrics_socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
    assert!(!daemon.metrics_socket().exists());
}

#[tokio::test]
async fn what_is_no_scrape_is_refused_and_harms_nothing() {
    let mut daemon = Builder::sim().without_bus().start();
    let socket = daemon.metrics_socket();
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        ("GET /metrics/ HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        ("GET /../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        ("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi", 405),
        ("DELETE /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        ("HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        ("GET /metrics HTTP/9.9\r\n\r\n", 400),
        ("\0\0\0\0\r\n\r\n", 400),
        ("GET /metrics\r\n\r\n", 400),
        // No HTTP/1: the connection is closed.
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0),
    ] {
        let answer = ask_socket(&socket, request);
        assert_eq!(answer.status, status, "{request:?}: {}", answer.head);
        if status == 405 {
            assert!(answer.head.contains("allow: get"), "{}", answer.head);
        }
    }
    // Cut off in the middle of its writing, maybe.
    let mut stream = UnixStream::connect(&socket).unwrap();
    let _ = stream.write_all(long.as_bytes());
    let mut reply = String::new();
    let _ = stream.read_to_string(&mut reply);
    assert!(!reply.contains("200 OK"), "{reply}");
    assert!(daemon.runs());
    scrape(&daemon);
}

#[tokio::test]
async fn connections_that_say_nothing_do_not_keep_others_out() {
    let daemon = Builder::sim().without_bus().start();
    let socket = daemon.metrics_socket();
    let mut idle: Vec<_> = (0..20).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    for stream in &mut idle[..10] {
        stream.write_all(b"GET /metr").unwrap();
    }
    // Without a limit of their time this would never return.
    scrape(&daemon);
    drop(idle);
    scrape(&daemon);
}

#[tokio::test]
async fn metrics_are_for_this_machine_and_what_fails_is_told() {
    for wrong in ["0.0.0.0:9464", "[::]:9464", "192.0.2.1:9464", "localhost:9464"] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("nestd.toml");
        std::fs::write(&file, format!("[metrics]\nlisten = '{wrong}'\n")).unwrap();
        let output = std::process::Command::new(program("nestd"))
            .args(["--check-config", "--config"])
            .arg(file)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(78), "{wrong}");
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains("metrics.listen") && told.contains(wrong), "{told}");
    }
    // The port is another's: the daemon serves all the same, and says so.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("'{}'", other.local_addr().unwrap());
    let daemon = Builder::sim().set("metrics.listen", &address).start();
    daemon.wait_log("metrics are not served").await;
    let events = daemon.grpc().await.generate(ask("still there")).await.unwrap();
    assert_eq!(nestd_tests::text(&collect(events).await.unwrap()), "still there");
    // Empty: nowhere.
    let daemon = Builder::sim().set("metrics.listen", "''").start();
    until(&daemon.grpc().await, |status| !status.active_size.is_empty()).await;
    assert!(!daemon.log().contains("metrics"), "{}", daemon.log());
}

#[tokio::test]
async fn requests_are_listed_alike_and_without_their_text() {
    let daemon = Builder::sim().set("limits.parallel_requests", "1").start();
    let [(_, grpc), (_, dbus)] = daemon.both().await;
    let long = "secret ".repeat(500);
    let mut first = grpc.generate(short(&long, 0, Priority::Normal)).await.unwrap();
    while !matches!(first.next().await.unwrap().unwrap().event, Some(Event::Text(_))) {}
    let second = dbus.generate(short("secret", 0, Priority::Background)).await.unwrap();
    let third = grpc.generate(short("secret", 0, Priority::Normal)).await.unwrap();
    until(&grpc, |status| status.queued_requests == 2).await;
    let told = [grpc.requests().await.unwrap(), dbus.requests().await.unwrap()];
    let fixed = told.each_ref().map(|told| {
        let rows = told.requests.iter();
        let row = |request: &nestd_client::v1::ActiveRequest| {
            let (id, client) = (request.request_id, request.client.clone());
            (id, client, request.priority(), request.state(), request.prompt_tokens)
        };
        rows.map(row).collect::<Vec<_>>()
    });
    assert_eq!(fixed[0], fixed[1]);
    let kinds: Vec<_> = fixed[0].iter().map(|row| (row.2, row.3, row.4)).collect();
    let wanted = [
        (Priority::Normal, RequestState::Decode, 502),
        (Priority::Normal, RequestState::Queued, 0),
        (Priority::Background, RequestState::Queued, 0),
    ];
    assert_eq!(kinds, wanted, "the most urgent first, then the oldest");
    assert!(fixed[0][0].1.contains(&format!("pid {}", std::process::id())), "{fixed:?}");
    let decoding = &told[1].requests[0];
    assert!(decoding.completion_tokens > 0 && decoding.ttft_us > 0, "{decoding:?}");
    assert!(told[1].completion_tokens >= told[0].completion_tokens, "{told:?}");
    assert!(told[0].uptime_ms >= decoding.age_ms, "{told:?}");
    assert!(!format!("{told:?}").contains("secret"));
    drop((first, second, third));
    let gone = |client: Client| async move {
        let began = Instant::now();
        loop {
            let told = client.requests().await.unwrap();
            if told.requests.is_empty() {
                return told;
            }
            assert!(began.elapsed() < Duration::from_secs(10), "{told:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert_eq!(gone(grpc).await.ended_requests, 3);
}
