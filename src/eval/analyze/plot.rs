//! Pictures of similarities and of prefixes as SVG files.

use super::prefix::{self, Histogram};
use super::similarity;
use crate::error::Result;
use crate::format::svg::{self, Area, COLOURS, Drawn, Frame, GREY, filled, number, stroke, text, upright};
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;
use std::path::Path;

/// Dark to bright, for those who see no colours too (viridis).
const SCALE: [[f64; 3]; 5] =
    [[68.0, 1.0, 84.0], [59.0, 82.0, 139.0], [33.0, 145.0, 140.0], [94.0, 201.0, 98.0], [253.0, 231.0, 37.0]];

const LEFT: i32 = 70;
const TOP: i32 = 60;
/// Room for the scale.
const RIGHT: i32 = 110;
const BOTTOM: i32 = 60;

fn colour(part: f64) -> RGBColor {
    let place = part.clamp(0.0, 1.0) * (SCALE.len() - 1) as f64;
    let first = (place as usize).min(SCALE.len() - 2);
    let mix = |i: usize| {
        let (a, b) = (SCALE[first][i], SCALE[first + 1][i]);
        (a + (b - a) * (place - first as f64)).round() as u8
    };
    RGBColor(mix(0), mix(1), mix(2))
}

/// A cell for each layer (upwards) and token (to the right).
pub fn heat_map(path: &Path, title: &str, report: &similarity::Report) -> Result<()> {
    let (tokens, layers) = (report.tokens.len().max(1) as i32, report.layers.len() as i32);
    let (wide, high) = ((900 / tokens).clamp(2, 24), (440 / layers.max(1)).clamp(8, 24));
    // Narrow enough texts leave room for the title.
    let (right, bottom) = (LEFT + (wide * tokens).max(360), TOP + high * layers);
    let lowest = report.similarity.iter().flatten().fold(0.0f64, |low, v| low.min(*v));
    let low = (lowest * 10.0).floor() / 10.0;
    svg::write(path, ((right + RIGHT) as u32, (bottom + BOTTOM) as u32), |area| {
        text(area, title.into(), (LEFT, 20), HPos::Left, 17, BLACK)?;
        let mean = format!("mean over layers above the embedding: {:.4}", report.mean);
        text(area, mean, (LEFT, 42), HPos::Left, 14, GREY)?;
        for (layer, row) in report.similarity.iter().enumerate() {
            let y = bottom - high * (layer as i32 + 1);
            for (token, v) in row.iter().enumerate() {
                let x = LEFT + wide * token as i32;
                let style = colour((v - low) / (1.0 - low)).filled();
                filled(area, (x, y), (x + wide, y + high), style)?;
            }
            let every = 1 + layers as usize / 17;
            if layer % every == 0 {
                text(area, layer.to_string(), (LEFT - 6, y + high / 2), HPos::Right, 13, GREY)?;
            }
        }
        let every = [1, 2, 5, 10, 20, 50, 100, 200, 500].into_iter().find(|n| n * wide >= 24).unwrap_or(1000);
        for token in (0..tokens).step_by(every as usize) {
            let x = LEFT + wide * token + wide / 2;
            text(area, token.to_string(), (x, bottom + 12), HPos::Center, 13, GREY)?;
        }
        let middle = LEFT + wide * tokens / 2;
        text(
            area,
            "token of the text".into(),
            (middle.max(LEFT + 60), bottom + 34),
            HPos::Center,
            15,
            BLACK,
        )?;
        upright(area, "layer (0: embedding)", (LEFT - 44, (TOP + bottom) / 2))?;
        scale(area, [right + 24, TOP, right + 40, bottom], low)
    })
}

/// The colours from `low` to 1, with numbers.
fn scale(area: &Area<'_>, edges: [i32; 4], low: f64) -> Drawn {
    let [left, top, right, bottom] = edges;
    for y in top..bottom {
        let part = f64::from(bottom - y) / f64::from((bottom - top).max(1));
        filled(area, (left, y), (right, y + 1), colour(part).filled())?;
    }
    let frame = Frame { edges, x: [0.0, 1.0], y: [low, 1.0] };
    for tick in svg::ticks(low, 1.0) {
        let (_, y) = frame.place(0.0, tick);
        stroke(area, (right, y), (right + 4, y), BLACK.mix(0.5).into())?;
        text(area, number(tick), (right + 8, y), HPos::Left, 13, GREY)?;
    }
    text(area, "cosine".into(), (left, top - 14), HPos::Left, 15, BLACK)
}

/// A panel for each mask, by its name.
pub fn histograms(path: &Path, panels: &[(&str, &prefix::Report)]) -> Result<()> {
    let reports: Vec<&prefix::Report> = panels.iter().map(|(_, report)| *report).collect();
    let bins = prefix::histograms(&reports);
    let most = bins.iter().flat_map(|b| b.positive.iter().chain(&b.negative)).max().copied().unwrap_or(1);
    let (panel, size) = (260, 700);
    svg::write(path, (size, (panel * panels.len() + 60) as u32), |area| {
        text(area, "How near a prefix is to itself".into(), (LEFT, 20), HPos::Left, 17, BLACK)?;
        let (alike, other) = ("before ends that mean alike", "before ends that do not");
        text(area, alike.into(), (LEFT, 42), HPos::Left, 15, COLOURS[1])?;
        text(area, other.into(), (LEFT + 230, 42), HPos::Left, 15, COLOURS[0])?;
        for (i, ((name, report), bins)) in panels.iter().zip(&bins).enumerate() {
            let top = 60 + (panel * i) as i32;
            let (n, apart) = (report.triples.len(), report.separated);
            let what = format!("attention {name}: {apart} of {n} apart");
            let what = format!("{what}, mean difference {}", prefix::figure(report.mean_difference));
            text(area, what, (LEFT, top + 16), HPos::Left, 15, BLACK)?;
            let edges = [LEFT, top + 34, size as i32 - 24, top + panel as i32 - 50];
            let x = [bins.edges[0], bins.edges[prefix::BINS]];
            bars(area, &Frame { edges, x, y: [0.0, most as f64] }, bins)?;
        }
        Ok(())
    })
}

fn bars(area: &Area<'_>, frame: &Frame, bins: &Histogram) -> Drawn {
    frame.axes(area, "cosine of the prefix's two vectors", "triples", false)?;
    for (counts, colour, half) in [(&bins.positive, COLOURS[1], 0), (&bins.negative, COLOURS[0], 1)] {
        for (i, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            // Side by side within the bin.
            let (left, right) = (bins.edges[i], bins.edges[i + 1]);
            let middle = (left + right) / 2.0;
            let (from, to) = if half == 0 { (left, middle) } else { (middle, right) };
            let (from, to) = (frame.place(from, count as f64), frame.place(to, 0.0));
            filled(area, (from.0 + 1, from.1), (to.0 - 1, to.1), colour.filled())?;
        }
    }
    Ok(())
}
