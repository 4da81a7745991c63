//! The plot of a day: battery, memory and temperature, where the trace has them, above the size.

use std::ops::Range;

use nestd_policy::ladder::Ladder;
use nestd_policy::trace::Point;
use plotters::coord::Shift;
use plotters::prelude::*;

use super::simulate::Day;

type Fault = Box<dyn std::error::Error>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const WIDTH: u32 = 1000;
const PANEL: u32 = 170;
/// Room for names of sizes.
const LABELS: u32 = 150;
const MAINS: RGBColor = RGBColor(226, 240, 217);
const INK: RGBColor = RGBColor(31, 78, 121);
const SIZE: RGBColor = RGBColor(178, 68, 32);

/// One panel: what, its values over time in hours, and what the axis shows.
struct Panel {
    title: String,
    values: Vec<(f64, f64)>,
    range: Range<f64>,
    color: RGBColor,
    /// The names of whole numbers; empty: the numbers themselves.
    names: Vec<String>,
}

/// Draws a day as SVG.
pub fn draw(day: &Day, ladder: &Ladder) -> Result<String, Fault> {
    let mut panels = readings(&day.points);
    panels.push(sizes(day, ladder));
    let height = PANEL * u32::try_from(panels.len())?;
    let end = hours(day.end()).max(hours(day.start()) + 1e-3);
    let span = hours(day.start())..end;
    let mains = mains(&day.points);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE)?;
        for (panel, area) in panels.iter().zip(root.split_evenly((panels.len(), 1))) {
            panel.draw(&area, &span, &mains)?;
        }
        root.present()?;
    }
    Ok(svg)
}

impl Panel {
    fn draw(&self, area: &Area<'_>, span: &Range<f64>, mains: &[Range<f64>]) -> Result<(), Fault> {
        let Range { start: bottom, end: top } = self.range;
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, ("sans-serif", 14))
            .margin_right(20)
            .x_label_area_size(24)
            .y_label_area_size(LABELS)
            .build_cartesian_2d(span.clone(), bottom..top)?;
        chart.draw_series(
            mains
                .iter()
                .map(|run| Rectangle::new([(run.start, bottom), (run.end, top)], MAINS.filled())),
        )?;
        let short = span.end - span.start < 3.0;
        let time = move |hour: &f64| {
            if short { format!("{:.0} min", hour * 60.0) } else { format!("{hour:.0} h") }
        };
        let label = |value: &f64| match self.names.len() {
            0 => format!("{value:.0}"),
            _ => self.name(*value).to_owned(),
        };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .x_labels(13)
            .x_label_formatter(&time)
            .y_labels(if self.names.is_empty() { 4 } else { self.names.len() * 2 + 1 })
            .y_label_formatter(&label)
            .label_style(("sans-serif", 12))
            .draw()?;
        let line = LineSeries::new(self.values.iter().copied(), self.color.stroke_width(2));
        chart.draw_series(line)?;
        Ok(())
    }

    /// The name that stands at a place of the axis.
    fn name(&self, value: f64) -> &str {
        let mut places = self.names.iter().enumerate();
        let found = places.find(|(place, _)| (value - *place as f64).abs() < 0.05);
        found.map_or("", |(_, name)| name)
    }
}

fn hours(time: std::time::Duration) -> f64 {
    time.as_secs_f64() / 3600.0
}

/// The panels whose sensor is anywhere in the trace.
fn readings(points: &[Point]) -> Vec<Panel> {
    type Value = fn(&Point) -> Option<f64>;
    let all: [(&str, Value, Option<Range<f64>>); 3] = [
        ("battery, %", |point| Some(point.snapshot.battery?.percent), Some(0.0..105.0)),
        ("available memory, MiB", |point| Some(point.snapshot.memory?.available_mib as f64), None),
        ("temperature, °C", |point| point.snapshot.temperature_c, None),
    ];
    let mut panels = Vec::new();
    for (title, value, range) in all {
        let values = points.iter().filter_map(|point| Some((hours(point.at), value(point)?)));
        let values: Vec<_> = values.collect();
        let least = values.iter().map(|(_, value)| *value).fold(f64::INFINITY, f64::min);
        let most = values.iter().map(|(_, value)| *value).fold(f64::NEG_INFINITY, f64::max);
        if least > most {
            continue;
        }
        let room = ((most - least) * 0.1).max(1.0);
        panels.push(Panel {
            title: title.into(),
            values,
            range: range.unwrap_or(least - room..most + room),
            color: INK,
            names: Vec::new(),
        });
    }
    panels
}

/// The size over time as steps, the largest of those that were used on top.
fn sizes(day: &Day, ladder: &Ladder) -> Panel {
    let used = |name: &str| day.steps.iter().any(|step| step.decision.size == name);
    let rungs = ladder.rungs.iter().rev().filter(|rung| used(&rung.name));
    let names: Vec<String> = rungs.map(|rung| rung.name.clone()).collect();
    let mut values: Vec<(f64, f64)> = Vec::new();
    for step in &day.steps {
        let place = names.iter().position(|name| *name == step.decision.size).unwrap_or(0);
        if let Some((_, before)) = values.last().copied() {
            values.push((hours(step.at), before));
        }
        values.push((hours(step.at), place as f64));
    }
    if let Some((_, place)) = values.last().copied() {
        values.push((hours(day.end()), place));
    }
    let range = -0.5..names.len() as f64 - 0.5;
    Panel { title: "size (shaded: on mains)".into(), values, range, color: SIZE, names }
}

/// When mains are connected, in hours.
fn mains(points: &[Point]) -> Vec<Range<f64>> {
    let mut runs: Vec<Range<f64>> = Vec::new();
    let ends = points.iter().skip(1).map(|point| point.at);
    for (point, end) in points.iter().zip(ends) {
        if point.snapshot.on_ac != Some(true) {
            continue;
        }
        let (start, end) = (hours(point.at), hours(end));
        match runs.last_mut() {
            Some(run) if (run.end - start).abs() < 1e-9 => run.end = end,
            _ => runs.push(start..end),
        }
    }
    runs
}
