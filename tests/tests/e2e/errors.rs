//! The same failure is the same error on both transports, and docs/errors.md has the table.

use nestd_client::v1::{self, ErrorReason, GenerateRequest, Role, Sampling, Stopping};
use nestd_client::{Client, Error, Failure, ask, message};
use nestd_tests::{Builder, project, until};

async fn failure(client: &Client, request: GenerateRequest) -> Failure {
    let result = match client.generate(request).await {
        Ok(events) => nestd_tests::collect(events).await.map(|_| ()),
        Err(error) => Err(error),
    };
    match result {
        Err(Error::Failed(failure)) => failure,
        other => panic!("expected a failure of the daemon, got {other:?}"),
    }
}

fn sampling(change: impl FnOnce(&mut Sampling)) -> GenerateRequest {
    let mut sampling = Sampling::default();
    change(&mut sampling);
    GenerateRequest { sampling: Some(sampling), ..ask("hello") }
}

fn stopping(change: impl FnOnce(&mut Stopping)) -> GenerateRequest {
    let mut stopping = Stopping::default();
    change(&mut stopping);
    GenerateRequest { stopping: Some(stopping), ..ask("hello") }
}

#[tokio::test]
async fn bad_values_are_refused_by_name_and_alike() {
    let daemon = Builder::sim().start();
    let [(_, grpc), (_, dbus)] = daemon.both().await;
    let cases = [
        ("sampling.temperature", sampling(|s| s.temperature = Some(2.5))),
        ("sampling.temperature", sampling(|s| s.temperature = Some(f64::NAN))),
        ("sampling.top_k", sampling(|s| s.top_k = Some(0))),
        ("sampling.top_p", sampling(|s| s.top_p = Some(1.5))),
        ("sampling.min_p", sampling(|s| s.min_p = Some(-1.0))),
        ("sampling.presence_penalty", sampling(|s| s.presence_penalty = Some(9.0))),
        ("sampling.frequency_penalty", sampling(|s| s.frequency_penalty = Some(-9.0))),
        ("sampling.repetition_penalty", sampling(|s| s.repetition_penalty = Some(0.0))),
        ("stopping.max_tokens", stopping(|s| s.max_tokens = 1_000_000)),
        ("stopping.stop", stopping(|s| s.stop = vec!["x".into(); 9])),
        ("stopping.stop[0]", stopping(|s| s.stop = vec![String::new()])),
        ("messages", GenerateRequest::default()),
        ("messages", ask("x".repeat(300_000))),
        ("messages[0].role", {
            GenerateRequest { messages: vec![message(Role::Assistant, "hi")], ..Default::default() }
        }),
        ("messages[0].parts", {
            let empty = v1::Message { role: Role::User.into(), parts: vec![] };
            GenerateRequest { messages: vec![empty], ..Default::default() }
        }),
    ];
    for (field, request) in cases {
        let over_grpc = failure(&grpc, request.clone()).await;
        assert_eq!(over_grpc.reason, ErrorReason::InvalidArgument, "{field}: {over_grpc:?}");
        assert_eq!(over_grpc.details["field"], field, "{over_grpc:?}");
        assert!(over_grpc.message.starts_with(field), "{over_grpc:?}");
        assert_eq!(over_grpc, failure(&dbus, request).await);
    }
}

#[tokio::test]
async fn a_prompt_that_does_not_fit_is_refused_before_it_waits() {
    let daemon = Builder::sim()
        .set("model.context_tokens", "100")
        .set("limits.parallel_requests", "1")
        .set("sim.tokens_per_s", "1.0")
        .start();
    let [(_, grpc), (_, dbus)] = daemon.both().await;
    let mut fits = ask("word ".repeat(60));
    fits.stopping = Some(Stopping { max_tokens: 20, ..Stopping::default() });
    let running = grpc.generate(fits).await.unwrap();
    until(&grpc, |status| status.running_requests == 1).await;
    let mut request = ask("word ".repeat(90));
    request.stopping = Some(Stopping { max_tokens: 20, ..Stopping::default() });
    let over_grpc = failure(&grpc, request.clone()).await;
    assert_eq!(over_grpc.reason, ErrorReason::ContextTooLong);
    let numbers =
        ["prompt_tokens", "max_tokens", "context_tokens"].map(|key| &over_grpc.details[key]);
    assert_eq!(numbers, ["92", "20", "100"]);
    assert_eq!(over_grpc.details.get("request_id"), None, "it was never accepted");
    assert_eq!(over_grpc, failure(&dbus, request).await);
    let status = grpc.status().await.unwrap();
    assert_eq!((status.running_requests, status.queued_requests), (1, 0));
    drop(running);
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_with_a_time_to_retry() {
    let daemon = Builder::sim()
        .set("limits.parallel_requests", "1")
        .set("limits.queued_requests", "1")
        .start();
    let [(_, grpc), (_, dbus)] = daemon.both().await;
    let running = grpc.generate(ask("word ".repeat(1000))).await.unwrap();
    until(&grpc, |status| status.running_requests == 1).await;
    let queued = dbus.generate(ask("hello")).await.unwrap();
    for client in [&grpc, &dbus] {
        let refused = failure(client, ask("hello")).await;
        assert_eq!(refused.reason, ErrorReason::QueueFull);
        assert_eq!(refused.details["limit"], "1");
        assert!(refused.retry_after.is_some_and(|time| time.as_millis() >= 100), "{refused:?}");
    }
    drop((running, queued));
}

#[tokio::test]
async fn without_a_model_the_rest_works() {
    let daemon = Builder::default().start();
    let mut told = Vec::new();
    for (name, client) in daemon.both().await {
        let status = client.status().await.unwrap();
        assert_eq!(status.state(), v1::State::NoModel, "{name}");
        assert!(status.problem.contains("models"), "{name}: {}", status.problem);
        assert_eq!(client.models().await.unwrap(), [], "{name}");
        let refused = failure(&client, ask("hello")).await;
        assert_eq!(refused.reason, ErrorReason::ModelNotLoaded, "{name}");
        assert!(refused.message.contains(&status.problem), "{name}: {refused:?}");
        let counted = client.count_tokens(ask("hello").messages).await.unwrap_err();
        assert_eq!(counted.reason(), Some(ErrorReason::ModelNotLoaded), "{name}");
        let missing = client.load("gemma", "").await.err().unwrap();
        assert_eq!(missing.reason(), Some(ErrorReason::ModelNotFound), "{name}");
        told.push((status, refused, missing));
    }
    assert_eq!(told[0], told[1]);
}

/// One row for each reason: its name on D-Bus, and the gRPC status that its comment names.
#[test]
fn the_table_in_the_docs_has_every_error() {
    let table = std::fs::read_to_string(project().join("docs/errors.md")).unwrap();
    let proto = std::fs::read_to_string(project().join("proto/nestd/v1/types.proto")).unwrap();
    for number in 1.. {
        let Ok(reason) = ErrorReason::try_from(number) else { break };
        let reason_name = reason.as_str_name();
        let definition = format!("\n  {reason_name} = {number};");
        let (before, _) = proto.split_once(&definition).expect(reason_name);
        let comment = before.rsplit(';').next().unwrap();
        let status = comment.trim_end().trim_end_matches('.').rsplit(' ').next().unwrap();
        let name = nestd_proto::error_name(reason);
        let row = table.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
        let row = row.unwrap_or_else(|| panic!("docs/errors.md has no row `{name}`"));
        assert!(row.contains(&format!("`{reason_name}`")), "{row}");
        assert!(row.contains(&format!("`{status}`")), "{row} has no {status}");
    }
}

#[tokio::test]
async fn what_a_client_sent_makes_no_error_too_long_to_be_told() {
    let daemon = Builder::sim().start();
    for (name, client) in daemon.both().await {
        let long = "ü".repeat(20_000);
        let error = client.load(&long, "").await.err().expect("there is no such model");
        assert_eq!(error.reason(), Some(ErrorReason::ModelNotFound), "{name}: {error}");
        let error = client.transcript(&"0".repeat(50_000)).await.unwrap_err();
        assert_eq!(error.reason(), Some(ErrorReason::SessionNotFound), "{name}: {error}");
    }
}
