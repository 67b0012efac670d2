//! Loss, evaluations and learning rate of a run as an SVG file.

use super::log::Point;
use crate::error::{Error, Result};
use crate::format::atomic;
use plotters::coord::Shift;
use plotters::prelude::*;
use std::path::Path;

const SIZE: (u32, u32) = (900, 640);
/// Height of the loss's panel, and of that of evaluations, by which the picture grows; the learning rate has the rest.
const LOSS: u32 = 440;
const EVALUATIONS: u32 = 240;

/// Draws all `points`, the loss also smoothed; and of evaluations, if there were any, the step and the first figure.
pub fn draw(path: &Path, points: &[Point], evaluations: &[(u64, f64)]) -> Result<()> {
    if points.is_empty() {
        return Err(Error::file(path, "there is no step to draw"));
    }
    let loss: Vec<(f64, f64)> = points.iter().map(|p| (p.step as f64, p.loss)).collect();
    let lr: Vec<(f64, f64)> = points.iter().map(|p| (p.step as f64, p.lr)).collect();
    let mut svg = String::new();
    {
        let evaluations: Vec<(f64, f64)> = evaluations.iter().map(|&(step, v)| (step as f64, v)).collect();
        let middle = if evaluations.is_empty() { 0 } else { EVALUATIONS };
        let root = SVGBackend::with_string(&mut svg, (SIZE.0, SIZE.1 + middle)).into_drawing_area();
        let (upper, rest) = root.split_vertically(LOSS);
        let (between, lower) = rest.split_vertically(middle);
        let drawn = root
            .fill(&WHITE)
            .map_err(|e| e.to_string())
            .and_then(|()| panel(&upper, "loss", &loss, Some(&smoothed(&loss))))
            .and_then(|()| match middle {
                0 => Ok(()),
                _ => panel(&between, "first figure of the evaluations", &evaluations, None),
            })
            .and_then(|()| panel(&lower, "learning rate", &lr, None))
            .and_then(|()| root.present().map_err(|e| e.to_string()));
        drawn.map_err(|e| Error::file(path, format!("cannot be drawn: {e}")))?;
    }
    atomic::write(path, svg.as_bytes())
}

/// The moving average over about a fiftieth of the run, without the bias of its start.
fn smoothed(loss: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let keep = 1.0 - 1.0 / (loss.len() as f64 / 50.0).max(1.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    let next = |&(step, loss): &(f64, f64)| {
        sum = keep * sum + loss;
        weight = keep * weight + 1.0;
        (step, sum / weight)
    };
    loss.iter().map(next).collect()
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// One curve; with a second one, the first is its pale background.
fn panel(
    area: &Area<'_>,
    title: &str,
    curve: &[(f64, f64)],
    over: Option<&[(f64, f64)]>,
) -> std::result::Result<(), String> {
    let range = |of: fn(&(f64, f64)) -> f64| {
        let (low, high) = curve.iter().map(of).fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
        let room = if high > low { (high - low) * 0.04 } else { (high.abs() * 0.1).max(1e-9) };
        low - room..high + room
    };
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(8)
        .x_label_area_size(28)
        .y_label_area_size(72)
        .build_cartesian_2d(range(|p| p.0), range(|p| p.1))
        .map_err(|e| e.to_string())?;
    let number = |v: &f64| if v.abs() >= 0.01 || *v == 0.0 { format!("{v:.3}") } else { format!("{v:.1e}") };
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .y_labels(area.dim_in_pixel().1 as usize / 40)
        .x_label_formatter(&|v| format!("{v:.0}"))
        .y_label_formatter(&number)
        .draw()
        .map_err(|e| e.to_string())?;
    let colour = if over.is_some() { BLUE.mix(0.3) } else { BLUE.mix(1.0) };
    chart.draw_series(LineSeries::new(curve.iter().copied(), colour)).map_err(|e| e.to_string())?;
    if let Some(over) = over {
        let style = BLUE.stroke_width(2);
        chart.draw_series(LineSeries::new(over.iter().copied(), style)).map_err(|e| e.to_string())?;
    }
    Ok(())
}
