//! Sessions, over both APIs: on the simulator what holds for every engine, then on the real ones.

use std::time::Duration;

use nestd_client::v1::{
    ErrorReason, FinishReason, GenerateRequest, Message, Priority, Role, SessionOptions, Stopping,
    generate_event::Event,
};
use nestd_client::{Client, Error, ask, message};
use nestd_tests::{Builder, collect, finished, text, until};
use nix::sys::signal::Signal;

const CONNECTIONS: SessionOptions = SessionOptions { persistent: false, ttl_ms: 0 };
const PERSISTENT: SessionOptions = SessionOptions { persistent: true, ttl_ms: 0 };

/// A question in a session.
pub fn ask_in(session: &str, question: &str) -> GenerateRequest {
    GenerateRequest { session: session.into(), ..ask(question) }
}

fn reason<T>(result: Result<T, Error>) -> ErrorReason {
    match result.err() {
        Some(Error::Failed(failure)) => failure.reason,
        other => panic!("expected a failure of the daemon, got {other:?}"),
    }
}

fn said(messages: &[Message]) -> Vec<(Role, String)> {
    let texts = messages.iter().map(|message| {
        let parts = message.parts.iter().map(|part| match &part.kind {
            Some(nestd_client::v1::part::Kind::Text(text)) => text.as_str(),
            other => panic!("{other:?}"),
        });
        (message.role(), parts.collect())
    });
    texts.collect()
}

async fn settled(client: &Client, id: &str) {
    for _ in 0..500 {
        if client.sessions().await.unwrap().iter().any(|s| s.id == id && !s.answering) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the session {id} goes on answering");
}

#[tokio::test]
async fn a_session_sends_and_computes_only_what_is_new() {
    let daemon = Builder::sim().start();
    for (api, client) in daemon.both().await {
        let system = message(Role::System, "Repeat what you hear.");
        let id = client.create_session(vec![system], CONNECTIONS).await.unwrap();
        let first = collect(client.generate(ask_in(&id, "one two")).await.unwrap()).await.unwrap();
        assert_eq!((text(&first).as_str(), api), ("one two", api));
        assert_eq!(finished(&first).usage.unwrap().cached_tokens, 0);
        let second = collect(client.generate(ask_in(&id, "three")).await.unwrap()).await.unwrap();
        let usage = finished(&second).usage.unwrap();
        // The system message, the first question, and its answer but for its end.
        assert_eq!((usage.cached_tokens, usage.prompt_tokens), (6 + 4 + 3, 6 + 4 + 4 + 3), "{api}");

        let expected = [
            (Role::System, "Repeat what you hear."),
            (Role::User, "one two"),
            (Role::Assistant, "one two"),
            (Role::User, "three"),
            (Role::Assistant, "three"),
        ];
        let expected = expected.map(|(role, text)| (role, text.to_owned()));
        let transcript = client.transcript(&id).await.unwrap();
        assert_eq!(said(&transcript), expected, "{api}");

        // A fork goes on from there, and an import too; neither changes the first.
        let fork = client.fork(&id, CONNECTIONS).await.unwrap();
        let import = client.create_session(transcript, CONNECTIONS).await.unwrap();
        for other in [&fork, &import] {
            collect(client.generate(ask_in(other, "four")).await.unwrap()).await.unwrap();
            let said = said(&client.transcript(other).await.unwrap());
            assert_eq!((&said[..5], said[6].1.as_str()), (&expected[..], "four"));
        }
        assert_eq!(said(&client.transcript(&id).await.unwrap()), expected);

        // What is appended is answered when somebody asks.
        client.append(&id, vec![message(Role::User, "five")]).await.unwrap();
        let nothing = GenerateRequest { session: id.clone(), ..GenerateRequest::default() };
        let events = collect(client.generate(nothing).await.unwrap()).await.unwrap();
        assert_eq!(text(&events), "five");
        let list = client.sessions().await.unwrap();
        let mut ids: Vec<_> = list.iter().map(|session| session.id.as_str()).collect();
        assert!(ids.is_sorted());
        ids.retain(|known| [&id, &fork, &import].contains(&&(*known).to_owned()));
        assert_eq!(ids.len(), 3);
        let first = list.iter().find(|session| session.id == id).unwrap();
        assert_eq!((first.messages, first.persistent, first.answering), (7, false, false));
        assert_eq!(first.ttl_ms, 3_600_000);

        client.delete_session(&id).await.unwrap();
        assert_eq!(reason(client.transcript(&id).await), ErrorReason::SessionNotFound, "{api}");
        let asked = client.generate(ask_in(&id, "?")).await;
        assert_eq!(reason(asked.map(drop)), ErrorReason::SessionNotFound, "{api}");
    }
}

#[tokio::test]
async fn prewarming_reads_what_the_first_answer_needs() {
    let daemon = Builder::sim().start();
    for (api, client) in daemon.both().await {
        let system = message(Role::System, "word ".repeat(400));
        let id = client.create_session(vec![system], CONNECTIONS).await.unwrap();
        let events = client.prewarm(&id, Priority::Background).await.unwrap();
        let events = collect(events).await.unwrap();
        assert_eq!(
            (text(&events), finished(&events).usage.unwrap().prompt_tokens),
            (String::new(), 402)
        );
        let events = collect(client.generate(ask_in(&id, "hello")).await.unwrap()).await.unwrap();
        assert_eq!(finished(&events).usage.unwrap().cached_tokens, 402, "{api}");
        let empty = client.create_session(Vec::new(), CONNECTIONS).await.unwrap();
        let nothing = client.prewarm(&empty, Priority::Normal).await;
        assert_eq!(reason(nothing.map(drop)), ErrorReason::InvalidArgument, "{api}");
    }
}

#[tokio::test]
async fn a_session_ends_with_its_connection_and_a_persistent_one_does_not_end_with_the_daemon() {
    let kept = tempfile::tempdir().unwrap();
    let dir = format!("'{}'", kept.path().join("sessions").display());
    let builder = || Builder::sim().set("sessions.dir", &dir);
    let mut daemon = builder().start();
    let mut ids = Vec::new();
    for (api, client) in daemon.both().await {
        let own = client.create_session(Vec::new(), CONNECTIONS).await.unwrap();
        let persistent = client.create_session(Vec::new(), PERSISTENT).await.unwrap();
        collect(client.generate(ask_in(&persistent, "remember")).await.unwrap()).await.unwrap();
        drop(client);
        // Another connection of the same user, over the other API.
        let client = if api == "gRPC" { daemon.dbus().await } else { daemon.grpc().await };
        assert_eq!(reason(client.transcript(&own).await), ErrorReason::SessionNotFound, "{api}");
        let list = client.sessions().await.unwrap();
        assert!(list.iter().any(|session| session.id == persistent && session.persistent));
        daemon.wait_log(&format!("session ended session=\"{own}\"")).await;
        ids.push(persistent);
    }
    let client = daemon.grpc().await;
    let gone = client.create_session(Vec::new(), PERSISTENT).await.unwrap();
    client.delete_session(&gone).await.unwrap();
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());

    let daemon = builder().start();
    for (api, client) in daemon.both().await {
        for id in &ids {
            let expected = [(Role::User, "remember".into()), (Role::Assistant, "remember".into())];
            assert_eq!(said(&client.transcript(id).await.unwrap()), expected, "{api}");
        }
        assert_eq!(reason(client.transcript(&gone).await), ErrorReason::SessionNotFound, "{api}");
    }
}

#[tokio::test]
async fn what_the_disk_refuses_is_told_and_what_changes_nothing_is_not_written() {
    use std::os::unix::fs::MetadataExt as _;
    let kept = tempfile::tempdir().unwrap();
    let dir = kept.path().join("sessions");
    let daemon = Builder::sim().set("sessions.dir", &format!("'{}'", dir.display())).start();
    for (api, client) in daemon.both().await {
        std::fs::write(&dir, "no folder").unwrap();
        let refused = client.create_session(Vec::new(), PERSISTENT).await;
        assert_eq!(reason(refused), ErrorReason::Internal, "{api}");
        assert!(client.sessions().await.unwrap().is_empty(), "{api}");
        std::fs::remove_file(&dir).unwrap();

        let id = client.create_session(Vec::new(), PERSISTENT).await.unwrap();
        let file = dir.join(format!("{id}.json"));
        // Each write makes another file.
        let written = std::fs::metadata(&file).unwrap().ino();
        assert_eq!(reason(client.append(&id, Vec::new()).await), ErrorReason::InvalidArgument);
        let mut unfit = ask_in(&id, "?");
        unfit.stopping = Some(Stopping { max_tokens: u32::MAX, ..Stopping::default() });
        let refused = client.generate(unfit).await.map(drop);
        assert_eq!(reason(refused), ErrorReason::InvalidArgument, "{api}");
        // Writes follow each other: after this one there is none of those before.
        client.create_session(Vec::new(), PERSISTENT).await.unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().ino(), written, "{api}");

        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        assert_eq!(reason(client.delete_session(&id).await), ErrorReason::Internal, "{api}");
        assert!(client.sessions().await.unwrap().iter().any(|session| session.id == id), "{api}");
        std::fs::remove_dir(&file).unwrap();
        client.delete_session(&id).await.unwrap();
        for session in client.sessions().await.unwrap() {
            client.delete_session(&session.id).await.unwrap();
        }
        std::fs::remove_dir(&dir).unwrap();
    }
}

#[tokio::test]
async fn a_session_answers_one_request_at_a_time_and_keeps_what_was_said() {
    let daemon = Builder::sim().start();
    for (api, client) in daemon.both().await {
        let id = client.create_session(Vec::new(), CONNECTIONS).await.unwrap();
        let mut running = client.generate(ask_in(&id, &"word ".repeat(500))).await.unwrap();
        while !matches!(
            futures::StreamExt::next(&mut running).await.unwrap().unwrap().event,
            Some(Event::Text(_))
        ) {}
        let second = client.generate(ask_in(&id, "?")).await;
        assert_eq!(reason(second.map(drop)), ErrorReason::Busy, "{api}");
        let append = client.append(&id, vec![message(Role::User, "?")]).await;
        assert_eq!(reason(append), ErrorReason::Busy, "{api}");
        // A request that is cancelled in its answer leaves what there is of it.
        drop(running);
        settled(&client, &id).await;
        let transcript = said(&client.transcript(&id).await.unwrap());
        assert_eq!(transcript.len(), 2, "{api}");
        assert!(transcript[1].1.starts_with("word ") && transcript[1].1.len() < 2000);

        // One that fails leaves nothing, and neither does one that ends before it began.
        let mut request = ask_in(&id, "late");
        request.stopping = Some(Stopping { max_tokens: 10, deadline_ms: 1, ..Stopping::default() });
        let events = collect(client.generate(request).await.unwrap()).await.unwrap();
        assert_eq!(finished(&events).reason(), FinishReason::Deadline, "{api}");
        let long = client.append(&id, vec![message(Role::User, "word ".repeat(7000))]).await;
        long.unwrap();
        let refused = client.generate(ask_in(&id, "too long")).await.map(drop);
        assert_eq!(reason(refused), ErrorReason::ContextTooLong, "{api}");
        assert_eq!(client.transcript(&id).await.unwrap().len(), 3, "{api}");
    }
}

#[tokio::test]
async fn there_are_so_many_sessions_and_for_so_long() {
    let daemon = Builder::sim().set("sessions.per_user", "3").set("sessions.ttl_s", "1").start();
    for (api, client) in daemon.both().await {
        let mut ids = Vec::new();
        for _ in 0..3 {
            ids.push(client.create_session(Vec::new(), CONNECTIONS).await.unwrap());
        }
        // Another connection of the same user has no more.
        let other = daemon.grpc().await;
        let fourth = other.create_session(Vec::new(), CONNECTIONS).await;
        assert_eq!(reason(fourth), ErrorReason::OverQuota, "{api}");
        let asked = client.generate(ask_in(&ids[0], &"word ".repeat(100))).await.unwrap();
        for id in &ids[1..] {
            daemon.wait_log(&format!("session ended session=\"{id}\"")).await;
        }
        let events = collect(asked).await.unwrap();
        assert_eq!(
            finished(&events).reason(),
            FinishReason::Stop,
            "{api}: a session that answers stays"
        );
        daemon.wait_log(&format!("session ended session=\"{}\"", ids[0])).await;
        assert_eq!(client.sessions().await.unwrap(), []);
        let long = SessionOptions { ttl_ms: u64::MAX, ..CONNECTIONS };
        let id = client.create_session(Vec::new(), long).await.unwrap();
        client.delete_session(&id).await.unwrap();
    }
}

#[tokio::test]
async fn malformed_sessions_are_refused() {
    let daemon = Builder::sim().set("sessions.dir", "''").start();
    for (api, client) in daemon.both().await {
        let late_system = vec![message(Role::User, "a"), message(Role::System, "b")];
        let made = client.create_session(late_system, CONNECTIONS).await;
        assert_eq!(reason(made), ErrorReason::InvalidArgument, "{api}");
        let huge = vec![message(Role::User, "x".repeat(300_000))];
        let made = client.create_session(huge, CONNECTIONS).await;
        assert_eq!(reason(made), ErrorReason::InvalidArgument, "{api}");
        let made = client.create_session(Vec::new(), PERSISTENT).await;
        assert_eq!(reason(made), ErrorReason::Unsupported, "{api}");
        let id = client.create_session(Vec::new(), CONNECTIONS).await.unwrap();
        client.append(&id, vec![message(Role::User, "x".repeat(200_000))]).await.unwrap();
        let more = client.append(&id, vec![message(Role::User, "x".repeat(100_000))]).await;
        assert_eq!(reason(more), ErrorReason::InvalidArgument, "{api}: with what is there");
        let system = client.append(&id, vec![message(Role::System, "x")]).await;
        assert_eq!(reason(system), ErrorReason::InvalidArgument, "{api}");
        for name in ["", "0123456789abcdef", "../../etc", "ü", &"0".repeat(10_000)] {
            let asked = client.transcript(name).await;
            assert_eq!(reason(asked), ErrorReason::SessionNotFound, "{api} {name:?}");
        }
    }
    // Another connection of the same user does not see them.
    let (a, b) = (daemon.dbus().await, daemon.dbus().await);
    let id = a.create_session(Vec::new(), CONNECTIONS).await.unwrap();
    assert_eq!(reason(b.transcript(&id).await), ErrorReason::SessionNotFound);
    assert_eq!(reason(b.delete_session(&id).await), ErrorReason::SessionNotFound);
    assert_eq!(b.sessions().await.unwrap(), []);
    until(&a, |status| status.running_requests == 0).await;
}
