//! A section as an SVG file: a dot for each variant and pooling with its standard deviation, a panel for the average and one
//! for each type; of words a panel for each task. Every line has its name at the left and every dot its figure, so there is
//! no legend.

use super::report::{Figure, Row, Table};
use crate::error::{Error, Result};
use crate::format::svg::{self, Area, COLOURS, Drawn, GREY, number, stroke, text, ticks};
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;
use std::path::Path;

/// Room for the names.
const LEFT: i32 = 280;
const PANEL: i32 = 210;
const TOP: i32 = 40;
const BOTTOM: i32 = 34;
const ROW: i32 = 20;
/// Between variants.
const GAP: i32 = 12;

/// A row of the table and where it stands.
struct Line<'a> {
    row: &'a Row,
    y: i32,
    colour: RGBColor,
    /// Whether a variant begins.
    first: bool,
}

/// Draws all of a table.
pub fn draw(path: &Path, table: &Table) -> Result<()> {
    let (mut lines, mut y): (Vec<Line>, i32) = (Vec::new(), TOP);
    for row in &table.rows {
        let first = lines.last().is_none_or(|line| line.row.variant != row.variant);
        y += if first { GAP } else { 0 };
        let place = lines.iter().rev().take_while(|line| line.row.variant == row.variant).count();
        lines.push(Line { row, y: y + ROW / 2, colour: COLOURS[place % COLOURS.len()], first });
        y += ROW;
    }
    let Some(row) = table.rows.first() else { return Err(Error::file(path, "there is nothing to draw")) };
    let panels = table.panels(row);
    let size = ((LEFT + PANEL * panels.len() as i32) as u32, (y + GAP + BOTTOM) as u32);
    svg::write(path, size, |area| {
        names(area, &lines)?;
        let unit = "x 100, ± standard deviation over seeds".to_string();
        text(area, unit, (8, y + GAP + BOTTOM / 2), HPos::Left, 14, GREY)?;
        for (i, (name, _)) in panels.iter().enumerate() {
            let figures: Vec<&Figure> = lines.iter().map(|line| table.panels(line.row)[i].1).collect();
            panel(area, LEFT + PANEL * i as i32, y + GAP, name, &lines, &figures)?;
        }
        Ok(())
    })
}

fn names(area: &Area<'_>, lines: &[Line]) -> Drawn {
    for Line { row, y, colour, first } in lines {
        if *first {
            text(area, row.variant.into(), (8, *y), HPos::Left, 17, BLACK)?;
        }
        if let Some(pooling) = row.pooling {
            text(area, pooling.into(), (LEFT - 8, *y), HPos::Right, 15, *colour)?;
        }
    }
    Ok(())
}

/// One figure of every line, between `left` and the next panel.
fn panel(area: &Area<'_>, left: i32, bottom: i32, name: &str, lines: &[Line], figures: &[&Figure]) -> Drawn {
    let ends = |f: &Figure| f.mean.map(|m| [m - f.std.unwrap_or(0.0), m + f.std.unwrap_or(0.0)]);
    let seeds = figures.iter().flat_map(|f| f.by_seed.iter().flatten().copied());
    let all = figures.iter().copied().filter_map(ends).flatten().chain(seeds).map(|v| 100.0 * v);
    let (low, high) = all.fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
    let (low, high) = if low <= high { (low, high.max(low + 0.5)) } else { (0.0, 1.0) };
    let (from, to) = (f64::from(left + 12), f64::from(left + PANEL - 12));
    let x = |v: f64| (from + (100.0 * v - low) / (high - low) * (to - from)).round() as i32;

    // A long name in smaller letters, so that it does not run into its neighbours.
    let size = if name.len() > 20 { 13 } else { 18 };
    text(area, name.into(), (left + PANEL / 2, TOP / 2), HPos::Center, size, BLACK)?;
    for tick in ticks(low, high) {
        let at = x(tick / 100.0);
        stroke(area, (at, TOP), (at, bottom), BLACK.mix(0.12).into())?;
        text(area, number(tick), (at, bottom + BOTTOM / 2), HPos::Center, 14, GREY)?;
    }
    stroke(area, (left, TOP), (left, bottom), BLACK.mix(0.5).into())?;
    for (Line { y, colour, .. }, figure) in lines.iter().zip(figures) {
        let (Some(mean), Some([low, high])) = (figure.mean, ends(figure)) else { continue };
        for seed in figure.by_seed.iter().flatten() {
            let dot = Circle::new((x(*seed), *y), 2, colour.mix(0.5).filled());
            area.draw(&dot).map_err(|e| e.to_string())?;
        }
        stroke(area, (x(low), *y), (x(high), *y), colour.stroke_width(2))?;
        area.draw(&Circle::new((x(mean), *y), 4, colour.filled())).map_err(|e| e.to_string())?;
        // Beside the dot, on the side where there is room.
        let label = format!("{:.1}", 100.0 * mean);
        let (at, side) = match f64::from(x(high)) + 44.0 < to {
            true => (x(high) + 8, HPos::Left),
            false => (x(low) - 8, HPos::Right),
        };
        text(area, label, (at, *y), side, 15, *colour)?;
    }
    Ok(())
}
