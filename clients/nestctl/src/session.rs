//! `nestctl session`: the user's persistent sessions. One that ended with its connection would be gone
//! with the command.

use std::{fmt::Write as _, fs, path::Path};

use futures::StreamExt;
use nestd_client::{
    Client, message,
    v1::{Message, Priority, Role, Session, SessionOptions, generate_event::Event},
};
use serde_json::json;

use crate::{
    args::{NewSessionArgs, SessionCommand},
    conversation::Turn,
    problem::Problem,
    render::{self, Screen},
};

/// Runs one of its commands.
pub async fn session(
    client: &Client,
    command: &SessionCommand,
    screen: &mut Screen,
) -> Result<(), Problem> {
    match command {
        SessionCommand::List => list(client, screen).await,
        SessionCommand::New(args) => make(client, args, screen).await,
        SessionCommand::Show(args) => show(client, &args.session, screen).await,
        SessionCommand::Fork(args) => {
            let options = SessionOptions { persistent: true, ttl_ms: 0 };
            let id = client.fork(&args.session, options).await?;
            tell(&id, screen)
        }
        SessionCommand::Prewarm(args) => prewarm(client, &args.session, screen).await,
        SessionCommand::Delete(args) => {
            client.delete_session(&args.session).await?;
            if screen.json { Ok(screen.value(&json!({}))?) } else { Ok(()) }
        }
    }
}

async fn list(client: &Client, screen: &mut Screen) -> Result<(), Problem> {
    let sessions = client.sessions().await?;
    if screen.json {
        let value = |session: &Session| {
            let Session { id, persistent, ttl_ms, idle_ms, messages, answering } = session;
            json!({
                "id": id, "persistent": persistent, "ttl_ms": ttl_ms, "idle_ms": idle_ms,
                "messages": messages, "answering": answering,
            })
        };
        screen.value(&sessions.iter().map(value).collect())?;
    } else if sessions.is_empty() {
        screen.note("There are no sessions.");
    } else {
        screen.text(&table(&sessions))?;
    }
    Ok(())
}

async fn make(client: &Client, args: &NewSessionArgs, screen: &mut Screen) -> Result<(), Problem> {
    let messages = match (&args.import, &args.system) {
        (Some(file), _) => import(file)?,
        (None, Some(system)) => vec![message(Role::System, system)],
        (None, None) => Vec::new(),
    };
    let ttl_ms = args.ttl_s.unwrap_or_default().saturating_mul(1000);
    let options = SessionOptions { persistent: true, ttl_ms };
    let id = client.create_session(messages, options).await?;
    tell(&id, screen)?;
    if args.prewarm { prewarm(client, &id, screen).await } else { Ok(()) }
}

fn tell(id: &str, screen: &mut Screen) -> Result<(), Problem> {
    if screen.json {
        screen.value(&json!({ "id": id }))?;
    } else {
        screen.line(id)?;
    }
    Ok(())
}

async fn show(client: &Client, session: &str, screen: &mut Screen) -> Result<(), Problem> {
    let turns: Vec<Turn> = client.transcript(session).await?.iter().map(Turn::from).collect();
    if screen.json {
        screen.value(&json!(turns))?;
    } else {
        for Turn { role, content } in &turns {
            screen.line(&format!("{}: {}", role.name(), render::clean(content)))?;
        }
    }
    Ok(())
}

/// Reads on until the prompt is read; progress on the terminal.
async fn prewarm(client: &Client, session: &str, screen: &mut Screen) -> Result<(), Problem> {
    let mut events = client.prewarm(session, Priority::Normal).await?;
    while let Some(event) = events.next().await {
        if let Some(Event::Prefill(prefill)) = event?.event {
            let done = f64::from(prefill.done_tokens) / f64::from(prefill.total_tokens.max(1));
            screen.progress(&format!("reading {}", render::bar(done)));
        }
    }
    screen.clear();
    Ok(())
}

fn import(file: &Path) -> Result<Vec<Message>, Problem> {
    let wrong = |why: String| Problem::Usage(format!("{}: {why}", file.display()));
    let text = fs::read(file).map_err(|error| wrong(error.to_string()))?;
    let turns: Vec<Turn> =
        serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    Ok(turns.into_iter().map(Message::from).collect())
}

fn table(sessions: &[Session]) -> String {
    let heading = ["SESSION", "MESSAGES", "STATE", "ENDS"];
    let mut rows = vec![heading.map(String::from).to_vec()];
    for session in sessions {
        let state = if session.answering {
            "answering".into()
        } else {
            format!("idle for {}", duration(session.idle_ms))
        };
        let left = session.ttl_ms.saturating_sub(session.idle_ms);
        let mut ends = format!("in {} unused", duration(left));
        if !session.persistent {
            let _ = write!(ends, ", or with its connection");
        }
        rows.push(vec![session.id.clone(), session.messages.to_string(), state, ends]);
    }
    render::table(&rows)
}

fn duration(ms: u64) -> String {
    match ms / 1000 {
        s @ 0..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s / 60),
        s @ 7200..172_800 => format!("{} h", s / 3600),
        s => format!("{} days", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_has_a_row() {
        let session = Session {
            id: "0123456789abcdef".into(),
            persistent: true,
            ttl_ms: 3_600_000,
            idle_ms: 60_000,
            messages: 4,
            answering: false,
        };
        let own = Session { answering: true, persistent: false, ttl_ms: 1000, ..session.clone() };
        let text = table(&[session, own]);
        assert!(
            text.contains("0123456789abcdef  4         idle for 60 s  in 59 min unused"),
            "{text}"
        );
        assert!(text.contains("answering") && text.contains("with its connection"), "{text}");
        assert_eq!([duration(7_200_000), duration(u64::MAX / 1000)], ["2 h", "213503982 days"]);
    }

    #[test]
    fn what_is_shown_can_be_imported() {
        let file = std::env::temp_dir().join(format!("nestctl-import-{}", std::process::id()));
        let said = [message(Role::System, "Be \"brief\"."), message(Role::User, "Grüße\n")];
        let turns: Vec<Turn> = said.iter().map(Turn::from).collect();
        fs::write(&file, json!(turns).to_string()).unwrap();
        assert_eq!(import(&file).unwrap(), said);
        fs::write(&file, r#"[{"role": "robot", "content": ""}]"#).unwrap();
        assert!(matches!(import(&file), Err(Problem::Usage(why)) if why.contains("robot")));
        fs::remove_file(&file).unwrap();
    }
}
