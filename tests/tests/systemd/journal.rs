//! What the journal has of the daemon: fields, priorities, and nothing of what was said.

use nestd_client::ask;
use nestd_tests::collect;
use serde_json::Value;

use crate::machine::Machine;

/// A sentence that stands nowhere else.
const SECRET: &str = "the zebra keeps marmalade in the umbrella stand";

#[tokio::test]
#[ignore = "tests/systemd.sh runs it"]
async fn lines_have_fields_and_priorities_and_no_prompt() {
    // The most that a level alone gives above trace.
    let machine = Machine::with_nestd("log.level = 'debug'\n");
    machine.start();
    for client in [machine.grpc().await, machine.dbus().await] {
        let answer = client.generate(ask(SECRET)).await.unwrap();
        collect(answer).await.unwrap();
    }
    // Refused, it is told with its reason.
    machine.output(&["nestctl", "load", "none-such"]);
    machine.write("/etc/nestd/nestd.toml.d/20-wrong.toml", "limits.max_token = 5\n");
    machine.output(&["systemctl", "reload", "nestd"]);
    machine.run(&["systemctl", "stop", "nestd"]);
    // Nor does a start get further.
    machine.write("/etc/nestd/nestd.toml.d/20-wrong.toml", "limits.most_tokens = 5\n");
    assert!(!machine.output(&["systemctl", "start", "nestd"]).status.success());

    let lines = machine.run(&["journalctl", "--unit", "nestd", "--output", "json"]);
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |field: &str, value: &str| {
        lines.iter().filter(|line| line[field] == value).cloned().collect::<Vec<Value>>()
    };
    // journald's own protocol, not lines of standard error: the code's place, and what was told as fields.
    let ready = of("MESSAGE", "ready");
    assert_eq!(ready.len(), 1, "{lines:#?}");
    assert_eq!(ready[0]["PRIORITY"], "6", "{}", ready[0]);
    assert_eq!(ready[0]["_TRANSPORT"], "journal", "{}", ready[0]);
    assert_eq!(ready[0]["SYSLOG_IDENTIFIER"], "nestd", "{}", ready[0]);
    assert!(ready[0]["CODE_FILE"].as_str().unwrap().contains("app.rs"));
    let finished = lines.iter().filter(|line| line["F_REQUEST"].is_string());
    assert!(finished.count() >= 2, "each request's lines have its number");
    // A wrong file is an error: for the daemon in a reload, for the check beside it, and for a start, which has no log
    // yet.
    let wrong = |key: &str, transport: &str| {
        let errors = of("PRIORITY", "3").into_iter();
        let by = errors.filter(|line| line["_TRANSPORT"] == transport);
        by.filter(|line| line.to_string().contains(key)).count()
    };
    assert_eq!(wrong("limits.max_token:", "journal"), 1, "{lines:#?}");
    assert_eq!(
        wrong("nestd: /etc/nestd/nestd.toml.d/20-wrong.toml: limits.max_token:", "stdout"),
        1,
        "{lines:#?}"
    );
    assert_eq!(wrong("limits.most_tokens:", "stdout"), 1, "{lines:#?}");

    let whole = machine.run(&["journalctl", "--output", "export"]);
    for word in ["zebra", "marmalade"] {
        assert!(!whole.contains(word), "the journal has {word:?}");
    }
}
