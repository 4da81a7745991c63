//! `nestctl top`: a live view of the daemon. `look` asks it, `rates` remembers what that is compared with,
//! `view` draws. Without a terminal: one look as text, or, with `--json`, as an object.

mod look;
mod rates;
mod view;

use std::io::{self, IsTerminal};
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::{DefaultTerminal, try_init, try_restore};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::args::{Global, TopArgs};
use crate::problem::Problem;
use crate::render::Screen;
use look::{Daemon, Look};
use rates::Rates;
use view::View;

/// How often the daemon is asked.
const EVERY: Duration = Duration::from_secs(1);
/// How soon the reader of keys notices that the view has ended.
const KEYS: Duration = Duration::from_millis(200);

/// Shows the daemon until the person quits, or once.
pub async fn top(global: &Global, args: &TopArgs, screen: &mut Screen) -> Result<(), Problem> {
    let mut daemon = Daemon::new(global);
    let first = daemon.look().await?;
    if args.once || screen.json || !io::stdout().is_terminal() {
        if screen.json {
            screen.value(&first.json())?;
        } else {
            screen.text(&view::text(&first))?;
        }
        return Ok(());
    }
    let mut terminal = Terminal::take()?;
    let shown = watch(daemon, first, &mut terminal).await;
    let restored = terminal.give_back();
    shown?;
    restored
}

/// The terminal in its full-screen state. Given back when dropped, whatever happened.
struct Terminal {
    screen: DefaultTerminal,
    taken: bool,
}

impl Terminal {
    fn take() -> Result<Self, Problem> {
        let screen = try_init().inspect_err(|_| {
            // It may have got half-way.
            let _ = try_restore();
        });
        Ok(Self { screen: screen.map_err(|error| wrong(&error))?, taken: true })
    }

    fn draw(&mut self, view: &View<'_>) -> Result<(), Problem> {
        self.screen.draw(|frame| view.draw(frame)).map(drop).map_err(|error| wrong(&error))
    }

    fn give_back(&mut self) -> Result<(), Problem> {
        if std::mem::take(&mut self.taken) {
            let shown = self.screen.show_cursor();
            try_restore().and(shown).map_err(|error| wrong(&error))?;
        }
        Ok(())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.give_back();
    }
}

fn wrong(error: &io::Error) -> Problem {
    Problem::Io(format!("the terminal: {error}"))
}

async fn watch(daemon: Daemon<'_>, first: Look, terminal: &mut Terminal) -> Result<(), Problem> {
    let signal = |kind| signal(kind).map_err(|error| Problem::Io(format!("signals: {error}")));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut keys = keys()?;
    let mut rates = Rates::default();
    rates.see(&first);
    let mut look = first;
    let mut lost: Option<String> = None;
    // A daemon that does not answer must not make the keys wait.
    let looks = looks(daemon);
    tokio::pin!(looks);
    loop {
        terminal.draw(&View { look: &look, rates: &rates, lost: lost.as_deref() })?;
        tokio::select! {
            (back, next) = &mut looks => {
                match next {
                    Ok(next) => {
                        rates.see(&next);
                        look = next;
                        lost = None;
                    }
                    Err(Problem::Client(error)) => lost = Some(error.to_string()),
                    Err(problem) => return Err(problem),
                }
                looks.set(self::looks(back));
            }
            key = keys.recv() => match key {
                Some(Event::Key(key)) if quits(key) => return Ok(()),
                // The view is drawn again: the size may be another one.
                Some(_) => {}
                None => return Err(Problem::Io("the keyboard cannot be read any more".into())),
            },
            _ = interrupt.recv() => return Err(Problem::Interrupted),
            _ = terminate.recv() => return Err(Problem::Interrupted),
            _ = hangup.recv() => return Err(Problem::Interrupted),
        }
    }
}

/// The next look, after a while.
async fn looks(mut daemon: Daemon<'_>) -> (Daemon<'_>, Result<Look, Problem>) {
    tokio::time::sleep(EVERY).await;
    let look = daemon.look().await;
    (daemon, look)
}

fn quits(key: KeyEvent) -> bool {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press
        && match key.code {
            KeyCode::Char('q' | 'Q') | KeyCode::Esc => true,
            KeyCode::Char('c' | 'd') => control,
            _ => false,
        }
}

/// What the terminal tells, read by a thread of its own: that blocks. It ends with the receiver.
fn keys() -> Result<mpsc::Receiver<Event>, Problem> {
    let (sender, receiver) = mpsc::channel(16);
    let read = move || {
        while !sender.is_closed() {
            match event::poll(KEYS) {
                Ok(false) => continue,
                Ok(true) => {}
                Err(_) => return,
            }
            let Ok(event) = event::read() else { return };
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("keys".into()).spawn(read);
    thread.map_err(|error| Problem::Io(format!("a thread for the keyboard: {error}")))?;
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_keys_quit() {
        let key = |code, modifiers| KeyEvent::new(code, modifiers);
        let none = KeyModifiers::NONE;
        assert!(quits(key(KeyCode::Char('q'), none)));
        assert!(quits(key(KeyCode::Esc, none)));
        assert!(quits(key(KeyCode::Char('c'), KeyModifiers::CONTROL)));
        assert!(!quits(key(KeyCode::Char('c'), none)));
        assert!(!quits(key(KeyCode::Enter, none)));
    }
}
