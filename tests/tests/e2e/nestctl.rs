//! `nestctl` as a person or a script uses it, over both transports.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nestd_tests::{Builder, Daemon, program};
use nix::sys::signal::Signal;
use serde_json::Value;

fn nestctl(daemon: &Daemon, transport: &str) -> Command {
    let mut command = Command::new(program("nestctl"));
    command
        .arg(transport)
        .env("NESTCTL_BUS", daemon.bus_address())
        .env("NESTCTL_SOCKET", daemon.socket())
        .stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> Output {
    command.output().expect("nestctl starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

const TRANSPORTS: [&str; 2] = ["--grpc", "--dbus"];

#[test]
fn ask_streams_the_answer_and_tells_its_speed() {
    let daemon = Builder::sim().start();
    for transport in TRANSPORTS {
        let output = run(nestctl(&daemon, transport).args(["ask", "one two three"]));
        assert!(output.status.success(), "{output:?}");
        assert_eq!(stdout(&output).trim_end(), "one two three");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains("large") && told.contains("tok"), "{told}");

        let mut child = nestctl(&daemon, transport)
            .args(["ask", "--quiet", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"from a pipe").unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(stdout(&output).trim_end(), "from a pipe");
        assert!(output.stderr.is_empty(), "{output:?}");
    }
}

#[test]
fn json_is_the_same_on_both() {
    let daemon = Builder::sim().start();
    let told = TRANSPORTS.map(|transport| {
        let status = json(&run(nestctl(&daemon, transport).args(["--json", "status"])));
        let models = json(&run(nestctl(&daemon, transport).args(["--json", "models"])));
        let ask = run(nestctl(&daemon, transport).args(["--json", "ask", "one two"]));
        let lines: Vec<Value> =
            stdout(&ask).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines.len() >= 3, "{lines:?}");
        (status, models)
    });
    assert_eq!(told[0], told[1]);
    assert_eq!(told[0].0["active_size"], "large");
}

#[tokio::test]
async fn ask_shows_how_likely_the_tokens_were() {
    let (_folder, _, daemon, _) = crate::elastic::demo().await;
    for transport in TRANSPORTS {
        let ask = ["--logprobs", "3", "--temperature", "0", "What is the capital of France?"];
        let output = run(nestctl(&daemon, transport).arg("ask").args(ask));
        assert!(output.status.success(), "{output:?}");
        let told = stdout(&output);
        let (answer, table) = told.split_once("\n\n").unwrap();
        assert_eq!(answer, "The capital of France is Paris.");
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[0].starts_with("token") && lines[1].starts_with("\"The\""), "{table}");
        assert!(lines[1].contains(" % ") && lines[1].matches(',').count() == 1, "{table}");
        assert!(lines.last().unwrap().starts_with("\"<end_of_turn>\""), "{table}");
        let output = run(nestctl(&daemon, transport).args(["--json", "ask"]).args(ask));
        let lines = stdout(&output);
        let texts = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let tokens = texts.filter_map(|line| line["text"]["logprobs"].as_array().cloned());
        let tokens: Vec<Value> = tokens.flatten().collect();
        assert!(tokens[0]["token"]["logprob"].as_f64().unwrap() > -0.1, "{lines}");
        assert_eq!(tokens[0]["top"].as_array().unwrap().len(), 3, "{lines}");
        let output = run(nestctl(&daemon, transport).args(["ask", "--logprobs", "21", "hello"]));
        assert_eq!(output.status.code(), Some(4), "{output:?}");
    }
}

#[test]
fn the_size_is_switched_by_name() {
    let daemon = Builder::sim().start();
    for (transport, size) in TRANSPORTS.into_iter().zip(["small", "large"]) {
        let output = run(nestctl(&daemon, transport).args(["size", size]));
        assert!(output.status.success(), "{output:?}");
        let status = json(&run(nestctl(&daemon, transport).args(["--json", "status"])));
        assert_eq!(status["active_size"], size);
    }
}

#[test]
fn exit_codes_tell_what_went_wrong() {
    let daemon = Builder::sim().start();
    for transport in TRANSPORTS {
        let code = |arguments: &[&str]| {
            run(nestctl(&daemon, transport).args(arguments)).status.code().unwrap()
        };
        assert_eq!(code(&["ask", "--max-tokens", "many", "hello"]), 2, "usage");
        assert_eq!(code(&["ask", "--top-p", "7", "hello"]), 4, "invalid argument");
        assert_eq!(code(&["load", "nothing"]), 4, "no such model");
        assert_eq!(code(&["unload"]), 0);
        assert_eq!(code(&["ask", "hello"]), 6, "no model");
        assert_eq!(code(&["load"]), 0);
    }
    let output = run(Command::new(program("nestctl")).args(["--socket", "/nonexistent", "status"]));
    assert_eq!(output.status.code(), Some(3), "not reachable");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("/nonexistent"), "{told}");
}

#[test]
fn chat_keeps_the_conversation() {
    let daemon = Builder::sim().start();
    for transport in TRANSPORTS {
        let mut child = nestctl(&daemon, transport)
            .args(["--json", "chat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"one two\nthree\n/reset\nfour\n/quit\n").unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let lines: Vec<Value> =
            stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let prompts: Vec<_> = lines
            .iter()
            .filter_map(|line| line["finished"]["usage"]["prompt_tokens"].as_u64())
            .collect();
        // The second turn's prompt holds the first one and its answer; the third begins anew.
        assert_eq!(prompts, [4, 11, 3], "{lines:?}");
    }
}

#[test]
fn watch_tells_each_change() {
    let daemon = Builder::sim().start();
    for (transport, size) in TRANSPORTS.into_iter().zip(["small", "large"]) {
        let mut child = nestctl(&daemon, transport)
            .args(["--json", "watch"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_ne!(first["active_size"], size);
        assert!(run(nestctl(&daemon, transport).args(["size", size])).status.success());
        let changed = lines.any(|line| {
            let status: Value = serde_json::from_str(&line.unwrap()).unwrap();
            status["active_size"] == size
        });
        assert!(changed);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn completions_and_man_pages_are_written() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let output = run(Command::new(program("nestctl")).args(["completions", shell]));
        assert!(output.status.success() && stdout(&output).contains("nestctl"), "{shell}");
    }
    let output = run(Command::new(program("nestctl")).args(["man", "--dir"]).arg(folder.path()));
    assert!(output.status.success(), "{output:?}");
    let pages = std::fs::read_dir(folder.path()).unwrap().count();
    assert!(pages > 10, "{pages} pages");
}

#[test]
fn eval_counts_exact_answers_by_skill_and_size() {
    let daemon = Builder::sim().set("sim.tokens_per_s", "2000.0").start();
    let file = daemon.folder().join("eval.jsonl");
    let line = |question: &str, answer: &str, skill: &str| {
        serde_json::json!({
            "messages": [{"role": "user", "content": question}], "answer": answer, "skill": skill
        })
        .to_string()
    };
    let lines = [line("a b", "a b", "echo"), line("c", "d", "echo"), line("e", "e", "letter")];
    std::fs::write(&file, lines.join("\n")).unwrap();
    for transport in TRANSPORTS {
        let output =
            run(nestctl(&daemon, transport).args(["--json", "eval", "--sizes", "all"]).arg(&file));
        assert!(output.status.success(), "{output:?}");
        let result = json(&output).to_string();
        for size in ["large", "small"] {
            assert!(result.contains(size), "{result}");
        }
        let output = run(nestctl(&daemon, transport).arg("eval").arg(&file));
        let table = stdout(&output);
        assert!(table.contains("echo") && table.contains("50"), "{table}");
    }
    std::fs::write(&file, "{\"messages\": 3}\n").unwrap();
    let output = run(nestctl(&daemon, "--grpc").arg("eval").arg(&file));
    assert!(!output.status.success());
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("eval.jsonl:1"), "{told}");
}

#[test]
fn top_without_a_terminal_is_one_look() {
    let daemon = Builder::sim().start();
    let mut running = nestctl(&daemon, "--grpc")
        .args(["ask", "--quiet", "--priority", "background", &"secret ".repeat(500)])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Its answer has begun.
    running.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    for transport in TRANSPORTS {
        for arguments in [&["top"][..], &["top", "--once"]] {
            let output = run(nestctl(&daemon, transport).args(arguments));
            assert!(output.status.success(), "{output:?}");
            let text = stdout(&output);
            assert!(text.starts_with("nestd 0.1.0  ready  model sim"), "{text}");
            let row = text.lines().find(|line| line.contains("background"));
            let row = row.unwrap_or_else(|| panic!("no request in\n{text}"));
            assert!(row.contains("decode") && row.contains(&running.id().to_string()), "{text}");
            assert!(!text.contains("secret") && !text.contains('\x1b'), "{text}");
        }
        let told = json(&run(nestctl(&daemon, transport).args(["--json", "top"])));
        assert_eq!(told["requests"].as_array().unwrap().len(), 1, "{told}");
        assert_eq!(told["requests"][0]["state"], "decode");
        assert_eq!(told["requests"][0]["priority"], "background");
        assert_eq!(told["status"]["running_requests"], 1);
        assert!(told["completion_tokens"].as_u64().unwrap() > 0, "{told}");
    }
    running.kill().unwrap();
    running.wait().unwrap();
}

/// Runs its arguments on a terminal of 80 by 24, does what the lines of its input say ("wait TEXT", "keys
/// TEXT", "resize COLUMNS ROWS", "stop"), and prints everything that the terminal was told.
const ON_A_TERMINAL: &str = r#"
import fcntl, os, pty, select, signal, struct, sys, termios, time
def resize(columns, rows):
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
pid, master = pty.fork()
if pid == 0:
    time.sleep(0.2)
    os.execvp(sys.argv[1], sys.argv[1:])
resize(80, 24)
told, since = b"", 0
def read(seconds):
    global told
    if not select.select([master], [], [], seconds)[0]:
        return True
    try:
        data = os.read(master, 65536)
    except OSError:
        return False
    told += data
    return bool(data)
for line in sys.stdin:
    what, _, text = line.rstrip("\n").partition(" ")
    if what == "wait":
        end = time.time() + 30
        while text.encode() not in told[since:]:
            if time.time() > end or not read(0.1):
                sys.exit("no %r in %r" % (text, told[since:]))
        print("seen", flush=True)
    elif what == "keys":
        os.write(master, text.encode().decode("unicode_escape").encode())
    elif what == "resize":
        since = len(told)
        resize(*map(int, text.split()))
    elif what == "stop":
        os.kill(pid, signal.SIGTERM)
while read(30):
    pass
_, status = os.waitpid(pid, 0)
print("exit", os.waitstatus_to_exitcode(status), "restored", b"\x1b[?1049l" in told and told.rfind(b"\x1b[?25h") > told.rfind(b"\x1b[?25l"))
"#;

struct OnATerminal(std::process::Child, BufReader<std::process::ChildStdout>);

impl OnATerminal {
    fn top(socket: &Path) -> Self {
        let mut child = Command::new("/usr/bin/python3")
            .args(["-c", ON_A_TERMINAL])
            .arg(program("nestctl"))
            .arg("top")
            .env("NESTCTL_SOCKET", socket)
            .env("TERM", "xterm-256color")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self(child, output)
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.0.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.1.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn sees(&mut self, text: &str) {
        self.tell(&format!("wait {text}"));
        assert_eq!(self.line(), "seen", "{text}");
    }

    fn end(mut self) -> String {
        drop(self.0.stdin.take());
        let line = self.line();
        self.0.wait().unwrap();
        line
    }
}

#[test]
fn top_on_a_terminal_lives_through_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("nestd.sock");
    let setting = format!("'{}'", socket.display());
    let start = || Builder::sim().set("grpc.socket", &setting).without_bus().start();
    let mut daemon = start();
    let mut top = OnATerminal::top(&socket);
    top.sees("quits");
    top.tell("resize 40 10");
    top.sees("quits");
    top.tell("resize 80 24");
    top.sees("TTFT");
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
    top.sees("reconnecting");
    let _daemon = start();
    let mut running = Command::new(program("nestctl"))
        .args(["ask", "--priority", "background", &"secret ".repeat(500)])
        .env("NESTCTL_SOCKET", &socket)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    top.sees("background");
    running.kill().unwrap();
    running.wait().unwrap();
    top.tell("keys q");
    assert_eq!(top.end(), "exit 0 restored True");
}

#[test]
fn top_leaves_the_terminal_in_order_however_it_ends() {
    let daemon = Builder::sim().without_bus().start();
    let ends = [("keys \\x1b", 0), ("keys \\x03", 0), ("stop", 130)];
    for (how, code) in ends {
        let mut top = OnATerminal::top(&daemon.socket());
        top.sees("quits");
        top.tell(how);
        assert_eq!(top.end(), format!("exit {code} restored True"), "{how}");
    }
}

#[test]
fn sessions_are_made_asked_exported_imported_and_deleted() {
    let daemon = Builder::sim().start();
    for transport in TRANSPORTS {
        let text = |args: &[&str]| {
            let output = run(nestctl(&daemon, transport).args(args));
            assert!(output.status.success(), "{args:?}: {output:?}");
            stdout(&output).trim().to_owned()
        };
        let id = text(&["session", "new", "--system", "Repeat.", "--prewarm"]);
        assert_eq!(text(&["ask", "--session", &id, "hello", "there"]), "hello there");
        let said = text(&["session", "show", &id]);
        assert_eq!(said, "system: Repeat.\nuser: hello there\nassistant: hello there");
        let exported = daemon.folder().join("talk.json");
        std::fs::write(&exported, text(&["--json", "session", "show", &id])).unwrap();
        let import = text(&["session", "new", "--import", exported.to_str().unwrap()]);
        let fork = text(&["session", "fork", &import]);
        assert_eq!(text(&["session", "show", &fork]), said);
        let list = text(&["session", "list"]);
        for id in [id, import, fork] {
            assert!(list.contains(&id), "{list}");
            text(&["session", "delete", &id]);
            let gone = run(nestctl(&daemon, transport).args(["session", "show", &id]));
            assert_eq!(gone.status.code(), Some(4), "{gone:?}");
        }
        assert_eq!(text(&["--json", "session", "list"]), "[]");
    }
}
