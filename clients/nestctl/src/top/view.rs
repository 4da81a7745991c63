//! What `nestctl top` looks like, on a terminal and as text.

use std::time::Duration;

use nestd_client::v1::{ActiveRequest, RequestState};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Row, Table, Wrap};

use super::look::{Look, state};
use super::rates::Rates;
use crate::render::{self, clean};
use crate::{foreground, governor, json};

const HEADINGS: [&str; 8] =
    ["REQUEST", "PRIORITY", "STATE", "TOKENS", "TOK/S", "TTFT", "AGE", "CLIENT"];

/// What is drawn.
pub struct View<'a> {
    pub look: &'a Look,
    pub rates: &'a Rates,
    /// Why the daemon does not answer; what is shown is then what it said last.
    pub lost: Option<&'a str>,
}

impl View<'_> {
    /// Draws it into whatever place there is.
    pub fn draw(&self, frame: &mut Frame<'_>) {
        let problem = match &self.look.status.problem {
            problem if problem.is_empty() => &self.look.governor.problem,
            problem => problem,
        };
        let rows = [
            Constraint::Length(1),
            Constraint::Length(2),
            Constraint::Length(2),
            Constraint::Length(1),
            Constraint::Length(u16::from(self.look.activity.foreground.is_some())),
            Constraint::Length(u16::from(!problem.is_empty())),
            Constraint::Length(1),
            Constraint::Min(1),
            Constraint::Length(1),
        ];
        let [head, decision, readings, rates, front, trouble, _, requests, foot] =
            Layout::vertical(rows).areas(frame.area());
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let wrapped = |text: String| Paragraph::new(text).wrap(Wrap { trim: true });
        frame.render_widget(Line::styled(header(self.look), bold), head);
        frame.render_widget(wrapped(decided(self.look)), decision);
        frame.render_widget(wrapped(sensed(self.look)), readings);
        frame.render_widget(Line::from(self.speed()), rates);
        frame.render_widget(Line::from(first(self.look)), front);
        frame.render_widget(Line::styled(format!("problem: {}", clean(problem)), bold), trouble);

        let all = &self.look.activity.requests;
        let places = usize::from(requests.height.saturating_sub(1));
        let shown = if all.len() > places { places.saturating_sub(1) } else { all.len() };
        let mut table: Vec<Row<'_>> =
            all.iter().take(shown).map(|request| Row::new(self.cells(request))).collect();
        if shown < all.len() {
            table.push(Row::new([format!("{} more", all.len() - shown)]));
        }
        let widths = [7, 11, 7, 6, 6, 7, 8].map(Constraint::Length);
        let widths = widths.into_iter().chain([Constraint::Min(10)]);
        let reversed = Style::new().add_modifier(Modifier::REVERSED);
        let header = Row::new(HEADINGS).style(reversed);
        frame.render_widget(Table::new(table, widths).header(header), requests);
        frame.render_widget(self.footer(), foot);
    }

    fn speed(&self) -> String {
        let rate = |rate: Option<f64>| rate.map_or("-".into(), |rate| format!("{rate:.1}"));
        let ttft = self.rates.ttft_p50_us().map_or("-".into(), milliseconds);
        let look = self.look;
        let limits = look.status.limits.unwrap_or_default();
        format!(
            "{} tokens/s  {} requests/min  TTFT p50 {ttft}  running {} of {}  queued {} of {}",
            rate(self.rates.tokens_per_s()),
            rate(self.rates.requests_per_min()),
            look.status.running_requests,
            limits.parallel_requests,
            look.status.queued_requests,
            limits.queued_requests,
        )
    }

    fn cells(&self, request: &ActiveRequest) -> [String; 8] {
        let decodes = request.state() == RequestState::Decode;
        let rate = self.rates.tokens_per_s_of(request.request_id).filter(|_| decodes);
        row(request, rate.map_or("-".into(), |rate| format!("{rate:.1}")))
    }

    fn footer(&self) -> Line<'static> {
        let quit = Span::raw("q quits");
        match self.lost {
            None => quit.into(),
            Some(why) => {
                let why = Span::styled(
                    format!("reconnecting: {}", clean(why)),
                    Style::new().add_modifier(Modifier::REVERSED),
                );
                Line::from(vec![quit, Span::raw("  "), why])
            }
        }
    }
}

/// The same without a terminal, but for what takes more than one look.
pub fn text(look: &Look) -> String {
    let limits = look.status.limits.unwrap_or_default();
    let mut lines = vec![header(look), decided(look), sensed(look)];
    lines.push(format!(
        "running {} of {}  queued {} of {}  {} tokens made  {} requests ended",
        look.status.running_requests,
        limits.parallel_requests,
        look.status.queued_requests,
        limits.queued_requests,
        look.activity.completion_tokens,
        look.activity.ended_requests,
    ));
    for problem in [&look.status.problem, &look.governor.problem] {
        if !problem.is_empty() {
            lines.push(format!("problem: {problem}"));
        }
    }
    lines.push(first(look));
    lines.retain(|line| !line.is_empty());
    let mut table = vec![HEADINGS.map(str::to_owned).to_vec()];
    let requests = look.activity.requests.iter();
    table.extend(requests.map(|request| row(request, "-".into()).to_vec()));
    lines.join("\n") + "\n\n" + &render::table(&table)
}

fn header(look: &Look) -> String {
    let status = &look.status;
    let mut parts = vec![format!("nestd {}", status.version), json::state(status.state()).into()];
    for (what, value) in
        [("model", &status.model), ("engine", &status.engine), ("size", &status.active_size)]
    {
        if !value.is_empty() {
            parts.push(format!("{what} {value}"));
        }
    }
    if status.loading_fraction > 0.0 {
        parts.push(format!("{:.0} %", status.loading_fraction * 100.0));
    }
    let up = governor::clock(Duration::from_millis(look.activity.uptime_ms));
    parts.push(format!("up {up}"));
    clean(&parts.join("  "))
}

/// The app that is served first; empty if there is none.
fn first(look: &Look) -> String {
    let Some(lease) = &look.activity.foreground else { return String::new() };
    let app = foreground::app(&lease.app.clone().unwrap_or_default());
    clean(&format!("foreground {app}: {} ({})", lease.reason, lease.client))
}

fn decided(look: &Look) -> String {
    let report = &look.governor;
    if !report.enabled {
        return "governor off".into();
    }
    if report.level.is_empty() {
        return "governor: there is no model to decide on".into();
    }
    let selected = match report.selected_size.as_str() {
        selected if selected == report.active_size => String::new(),
        selected => format!("  wants {selected}"),
    };
    let (level, cause, reason) = (&report.level, &report.cause, &report.reason);
    clean(&format!("level {level}  cause {cause}{selected}: {reason}"))
}

/// The readings in short, so that all of a device's fit two lines.
fn sensed(look: &Look) -> String {
    let readings = look.governor.readings.clone().unwrap_or_default();
    let mut parts = Vec::new();
    if let Some(percent) = readings.battery_percent {
        let power = readings.battery_power_w.map(|watts| format!(" {watts:.1} W"));
        parts.push(format!("battery {percent:.0} %{}", power.unwrap_or_default()));
    }
    if let Some(seconds) = readings.time_to_empty_s {
        parts.push(format!("empty in {}", governor::clock(Duration::from_secs(seconds))));
    }
    if let Some(on_ac) = readings.on_ac {
        parts.push(if on_ac { "mains" } else { "no mains" }.into());
    }
    if let (Some(left), Some(total)) = (readings.mem_available_mib, readings.mem_total_mib) {
        parts.push(format!("memory {left} of {total} MiB left"));
    }
    if let Some(own) = readings.resident_mib {
        parts.push(format!("nestd {own} MiB"));
    }
    if let (Some(some), Some(full)) = (readings.psi_some_avg10, readings.psi_full_avg10) {
        parts.push(format!("pressure {some:.0}/{full:.0} %"));
    }
    if let Some(celsius) = readings.temp_c {
        parts.push(format!("{celsius:.0} °C"));
    }
    if let Some(joules) = look.governor.energy_per_token_j {
        parts.push(format!("{joules:.2} J/token"));
    }
    parts.extend(readings.power_profile);
    clean(&parts.join("  "))
}

fn row(request: &ActiveRequest, rate: String) -> [String; 8] {
    let ttft = if request.ttft_us == 0 { "-".into() } else { milliseconds(request.ttft_us) };
    [
        request.request_id.to_string(),
        json::priority(request.served_as()).into(),
        state(request).into(),
        request.completion_tokens.to_string(),
        rate,
        ttft,
        age(request.age_ms),
        clean(&request.client),
    ]
}

fn milliseconds(us: u64) -> String {
    if us < 10_000_000 { format!("{} ms", us / 1000) } else { format!("{} s", us / 1_000_000) }
}

fn age(ms: u64) -> String {
    if ms < 100_000 {
        format!("{:.1} s", ms as f64 / 1000.0)
    } else {
        governor::clock(Duration::from_millis(ms))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use nestd_client::v1::{
        App, ForegroundLease, GovernorReport, Limits, ListRequestsResponse, Priority, Readings,
        State, StatusReport,
    };
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn look(requests: u64) -> Look {
        let requests = (1..=requests).map(|request_id| ActiveRequest {
            request_id,
            client: format!("uid 1000 pid {request_id}\x1b[2J"),
            priority: Priority::Interactive.into(),
            served_as: Priority::Interactive.into(),
            state: RequestState::Decode.into(),
            prompt_tokens: 20,
            completion_tokens: 12,
            age_ms: 61_500,
            ttft_us: 345_000,
        });
        Look {
            at: Instant::now(),
            status: StatusReport {
                version: "0.1.0".into(),
                state: State::Ready.into(),
                model: "demo".into(),
                engine: "elastic".into(),
                active_size: "E2B".into(),
                limits: Some(Limits {
                    parallel_requests: 4,
                    queued_requests: 16,
                    ..Limits::default()
                }),
                running_requests: 4,
                queued_requests: 2,
                ..StatusReport::default()
            },
            governor: GovernorReport {
                enabled: true,
                active_size: "E2B".into(),
                selected_size: "E2B".into(),
                level: "saving".into(),
                cause: "battery".into(),
                reason: "the battery has 12 %: saving".into(),
                readings: Some(Readings {
                    battery_percent: Some(12.0),
                    mem_available_mib: Some(900),
                    mem_total_mib: Some(4096),
                    swap_used_mib: Some(12),
                    resident_mib: Some(1234),
                    psi_some_avg10: Some(3.4),
                    psi_full_avg10: Some(1.2),
                    battery_power_w: Some(4.5),
                    battery_warning: None,
                    time_to_empty_s: Some(3600),
                    on_ac: Some(false),
                    temp_c: Some(41.0),
                    power_profile: Some("power-saver".into()),
                }),
                energy_per_token_j: Some(0.4),
                ..GovernorReport::default()
            },
            activity: ListRequestsResponse {
                requests: requests.collect(),
                uptime_ms: 3_723_000,
                completion_tokens: 1234,
                ended_requests: 56,
                foreground: None,
            },
        }
    }

    fn drawn(look: &Look, lost: Option<&str>, width: u16, height: u16) -> Vec<String> {
        let mut rates = Rates::default();
        rates.see(look);
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        let view = View { look, rates: &rates, lost };
        terminal.draw(|frame| view.draw(frame)).unwrap();
        let cells = terminal.backend().buffer().content();
        let line = |cells: &[ratatui::buffer::Cell]| {
            let text: String = cells.iter().map(ratatui::buffer::Cell::symbol).collect();
            text.trim_end().to_owned()
        };
        cells.chunks(width.into()).map(line).collect()
    }

    #[test]
    fn everything_fits_a_plain_terminal() {
        let lines = drawn(&look(3), None, 80, 24);
        assert_eq!(
            lines[0],
            "nestd 0.1.0  ready  model demo  engine elastic  size E2B  up 1:02:03"
        );
        assert_eq!(lines[1], "level saving  cause battery: the battery has 12 %: saving");
        assert!(lines[3].starts_with("battery 12 % 4.5 W  empty in 1:00:00"), "{lines:#?}");
        assert!(lines[4].ends_with("41 °C  0.40 J/token  power-saver"), "{lines:#?}");
        assert!(lines[5].contains("TTFT p50 345 ms  running 4 of 4  queued 2 of 16"), "{lines:#?}");
        assert!(lines[7].starts_with("REQUEST PRIORITY    STATE   TOKENS TOK/S"), "{lines:#?}");
        let first = "1       interactive decode  12     -      345 ms  61.5 s   uid 1000 pid 1[2J";
        assert_eq!(lines[8], first, "no escape sequence gets through");
        assert_eq!(lines[23], "q quits");
    }

    #[test]
    fn the_app_in_the_foreground_has_a_line() {
        let mut look = look(2);
        look.activity.foreground = Some(ForegroundLease {
            id: 1,
            client: "uid 5 pid 6 :1.2".into(),
            app: Some(App { uid: Some(7), unit: "a.service".into(), ..App::default() }),
            reason: "it has\u{1b}[2J the focus".into(),
        });
        look.activity.requests[0].served_as = Priority::Normal.into();
        let lines = drawn(&look, None, 80, 24);
        let line = "foreground uid 7 unit a.service: it has[2J the focus (uid 5 pid 6 :1.2)";
        assert_eq!(lines[6], line, "no escape sequence gets through");
        assert!(lines[9].starts_with("1       normal "), "{lines:#?}");
        assert!(lines[10].starts_with("2       interactive "), "{lines:#?}");
        let text = text(&look);
        assert!(text.contains(&format!("requests ended\n{line}\n\nREQUEST")), "{text}");
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let lines = drawn(&look(100), Some("nestd went away"), 80, 24);
        assert!(lines[21].starts_with("14 ") || lines[21].starts_with("13 "), "{lines:#?}");
        assert!(lines[22].contains("more"), "{lines:#?}");
        assert_eq!(lines[23], "q quits  reconnecting: nestd went away");
    }

    #[test]
    fn no_terminal_is_too_small() {
        let mut look = look(40);
        look.status.problem = "no model ".repeat(20);
        for (width, height) in [(1, 1), (2, 40), (200, 2), (10, 5), (300, 100)] {
            drawn(&look, Some("gone"), width, height);
        }
    }

    #[test]
    fn without_a_terminal_it_is_text() {
        let text = text(&look(2));
        assert!(text.starts_with("nestd 0.1.0  ready"), "{text}");
        assert!(
            text.contains("1234 tokens made  56 requests ended\n\nREQUEST  PRIORITY"),
            "{text}"
        );
        assert!(text.lines().last().unwrap().ends_with("uid 1000 pid 2[2J"), "{text}");
    }
}
