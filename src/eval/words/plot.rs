//! Figures by layer as an SVG file.

use super::Report;
use crate::error::{Error, Result};
use crate::format::atomic;
use plotters::prelude::*;
use std::path::Path;

const SIZE: (u32, u32) = (900, 480);

/// Draws accuracy and F1 of the test file (x 100) over the layers.
pub fn draw(path: &Path, report: &Report) -> Result<()> {
    let curve = |figure: fn(&super::LayerReport) -> f64| -> Vec<(f64, f64)> {
        report.layers.iter().map(|l| (l.layer.unwrap_or(0) as f64, 100.0 * figure(l))).collect()
    };
    let curves = [("accuracy", curve(|l| l.test.accuracy), BLUE), ("F1", curve(|l| l.test.f1), RED)];
    let mut svg = String::new();
    chart(&mut svg, report, &curves).map_err(|e| Error::file(path, format!("cannot be drawn: {e}")))?;
    atomic::write(path, svg.as_bytes())
}

type Curve = (&'static str, Vec<(f64, f64)>, RGBColor);

fn chart(svg: &mut String, report: &Report, curves: &[Curve]) -> std::result::Result<(), String> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(|e| e.to_string())?;
    let points = || curves.iter().flat_map(|(_, points, _)| points);
    let range = |of: fn(&(f64, f64)) -> f64| {
        let (low, high) = points().map(of).fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
        let room = if high > low { (high - low) * 0.06 } else { 1.0 };
        low - room..high + room
    };
    let title = format!("{} by layer: accuracy blue, F1 red", report.label);
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(8)
        .x_label_area_size(28)
        .y_label_area_size(56)
        .build_cartesian_2d(range(|p| p.0), range(|p| p.1))
        .map_err(|e| e.to_string())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_label_formatter(&|v| format!("{v:.0}"))
        .y_label_formatter(&|v| format!("{v:.1}"))
        .draw()
        .map_err(|e| e.to_string())?;
    for (_, points, colour) in curves {
        let style = colour.stroke_width(2);
        chart.draw_series(LineSeries::new(points.iter().copied(), style)).map_err(|e| e.to_string())?;
    }
    root.present().map_err(|e| e.to_string())
}
