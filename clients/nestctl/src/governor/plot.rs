//! The plot of a day: battery, memory and temperature, where the trace has them, above the size.

use nestd_policy::ladder::Ladder;
use nestd_policy::trace::Point;
use plotters::prelude::*;

use super::simulate::Day;

type Fault = Box<dyn std::error::Error>;

const WIDTH: u32 = 1000;
const PANEL: u32 = 170;
/// Room for the axis below the last panel.
const AXIS: u32 = 40;
const MAINS: RGBColor = RGBColor(226, 240, 217);
const INK: RGBColor = RGBColor(31, 78, 121);
const SIZE: RGBColor = RGBColor(178, 68, 32);

/// One panel: what, and its values over time in hours.
struct Panel {
    title: &'static str,
    values: Vec<(f64, f64)>,
}

/// Draws a day as SVG.
pub fn draw(day: &Day, ladder: &Ladder) -> Result<String, Fault> {
    let panels = panels(&day.points);
    let count = u32::try_from(panels.len()).unwrap_or(0) + 1;
    let mut svg = String::new();
    {
        let size = (WIDTH, PANEL * count + AXIS);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE)?;
        let (body, _) = root.split_vertically(PANEL * count + AXIS);
        let areas = body.split_evenly((panels.len() + 1, 1));
        let hours = hours(day.start())..hours(day.end()).max(hours(day.start()) + 1e-3);
        for (panel, area) in panels.iter().zip(&areas) {
            let most = panel.values.iter().map(|(_, value)| *value).fold(1.0, f64::max) * 1.1;
            let mut chart = ChartBuilder::on(area)
                .caption(panel.title, ("sans-serif", 14))
                .margin_right(20)
                .x_label_area_size(24)
                .y_label_area_size(150)
                .build_cartesian_2d(hours.clone(), 0.0..most)?;
            chart.draw_series(mains(&day.points, most))?;
            chart
                .configure_mesh()
                .disable_x_mesh()
                .light_line_style(TRANSPARENT)
                .y_labels(4)
                .y_label_formatter(&|value| format!("{value:.0}"))
                .x_labels(13)
                .x_label_formatter(&|hour| format!("{hour:.0} h"))
                .label_style(("sans-serif", 12))
                .draw()?;
            chart
                .draw_series(LineSeries::new(panel.values.iter().copied(), INK.stroke_width(2)))?;
        }
        if let Some(area) = areas.last() {
            let top = ladder.smallest() as f64;
            // The largest size on top; those that were never chosen go unnamed, as there may be many.
            let name = |place: &f64| {
                let whole = (place - place.round()).abs() < 0.05 && *place >= 0.0;
                let index = ladder.rungs.iter().enumerate().rev();
                let found = index.map(|(index, _)| index).find(|index| {
                    (ladder.smallest() as f64 - *index as f64 - place.round()).abs() < 0.5
                });
                let used = |index: &usize| {
                    day.steps.iter().any(|s| s.decision.size == ladder.name(*index))
                };
                found
                    .filter(|index| whole && used(index))
                    .map_or_else(String::new, |index| ladder.name(index).into())
            };
            let mut chart = ChartBuilder::on(area)
                .caption("size (shaded: on mains)", ("sans-serif", 14))
                .margin_right(20)
                .x_label_area_size(24)
                .y_label_area_size(150)
                .build_cartesian_2d(hours, -0.5..top + 0.5)?;
            chart.draw_series(mains(&day.points, top + 0.5).chain(below(&day.points)))?;
            chart
                .configure_mesh()
                .disable_x_mesh()
                .disable_y_mesh()
                .y_labels(ladder.rungs.len() * 2 + 1)
                .x_labels(13)
                .x_label_formatter(&|hour| format!("{hour:.0} h"))
                .y_label_formatter(&name)
                .label_style(("sans-serif", 12))
                .draw()?;
            let line = steps(day, ladder);
            chart.draw_series(LineSeries::new(line, SIZE.stroke_width(2)))?;
        }
        root.present()?;
    }
    Ok(svg)
}

fn hours(time: std::time::Duration) -> f64 {
    time.as_secs_f64() / 3600.0
}

/// The panels whose sensor is anywhere in the trace.
fn panels(points: &[Point]) -> Vec<Panel> {
    type Value = fn(&Point) -> Option<f64>;
    let all: [(&str, Value); 3] = [
        ("battery, %", |point| Some(point.snapshot.battery?.percent)),
        ("available memory, MiB", |point| Some(point.snapshot.memory?.available_mib as f64)),
        ("temperature, °C", |point| point.snapshot.temperature_c),
    ];
    let panels = all.into_iter().map(|(title, value)| {
        let values = points.iter().filter_map(|point| Some((hours(point.at), value(point)?)));
        Panel { title, values: values.collect() }
    });
    panels.filter(|panel| !panel.values.is_empty()).collect()
}

/// Shades while mains are connected.
fn mains(points: &[Point], top: f64) -> impl Iterator<Item = Rectangle<(f64, f64)>> {
    shade(points, 0.0, top)
}

/// The same for the half step below the smallest size.
fn below(points: &[Point]) -> impl Iterator<Item = Rectangle<(f64, f64)>> {
    shade(points, -0.5, 0.0)
}

fn shade(points: &[Point], bottom: f64, top: f64) -> impl Iterator<Item = Rectangle<(f64, f64)>> {
    points.windows(2).filter_map(move |pair| {
        let [from, to] = pair else { return None };
        let on = from.snapshot.on_ac == Some(true);
        let corners = [(hours(from.at), bottom), (hours(to.at), top)];
        on.then(|| Rectangle::new(corners, MAINS.filled()))
    })
}

/// The size over time, as steps.
fn steps(day: &Day, ladder: &Ladder) -> Vec<(f64, f64)> {
    let mut line: Vec<(f64, f64)> = Vec::new();
    for step in &day.steps {
        let index = ladder.index(&step.decision.size).unwrap_or(0);
        let height = (ladder.smallest() - index.min(ladder.smallest())) as f64;
        if let Some((_, before)) = line.last().copied() {
            line.push((hours(step.at), before));
        }
        line.push((hours(step.at), height));
    }
    if let Some((_, height)) = line.last().copied() {
        line.push((hours(day.end()), height));
    }
    line
}
