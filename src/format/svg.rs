//! Pictures as SVG files: text, strokes, axes with round numbers, curves that bear their names.

use crate::error::{Error, Result};
use crate::format::atomic;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::path::Path;

/// Where is drawn.
pub(crate) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// Done, or what the library says.
pub(crate) type Drawn = std::result::Result<(), String>;

/// For what is beside the figures.
pub(crate) const GREY: RGBColor = RGBColor(120, 120, 120);
/// Told apart by those who see no red or green too.
pub(crate) const COLOURS: [RGBColor; 6] = [
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(150, 120, 0),
];

/// Writes the file that `drawn` draws on white.
pub(crate) fn write(path: &Path, size: (u32, u32), drawn: impl FnOnce(&Area<'_>) -> Drawn) -> Result<()> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE)
            .map_err(|e| e.to_string())
            .and_then(|()| drawn(&area))
            .and_then(|()| area.present().map_err(|e| e.to_string()))
            .map_err(|e| Error::file(path, format!("cannot be drawn: {e}")))?;
    }
    atomic::write(path, svg.as_bytes())
}

/// A line of text, its middle at the height of `at`.
pub(crate) fn text(
    area: &Area<'_>,
    what: String,
    at: (i32, i32),
    h: HPos,
    size: i32,
    colour: RGBColor,
) -> Drawn {
    let style = ("sans-serif", size).into_font().color(&colour).pos(Pos::new(h, VPos::Center));
    area.draw(&Text::new(what, at, style)).map_err(|e| e.to_string())
}

/// A straight line.
pub(crate) fn stroke(area: &Area<'_>, from: (i32, i32), to: (i32, i32), style: ShapeStyle) -> Drawn {
    area.draw(&PathElement::new(vec![from, to], style)).map_err(|e| e.to_string())
}

/// A filled box from one corner to the other.
pub(crate) fn filled(area: &Area<'_>, from: (i32, i32), to: (i32, i32), style: ShapeStyle) -> Drawn {
    area.draw(&Rectangle::new([from, to], style)).map_err(|e| e.to_string())
}

/// Three to six round numbers.
pub(crate) fn ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 5.0;
    let ten = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * ten).find(|s| *s >= rough).unwrap_or(rough);
    let (first, last) = ((low / step).ceil() as i64, (high / step).floor() as i64);
    (first..=last).map(|i| i as f64 * step).collect()
}

/// At most four digits behind the point, and none that says nothing.
pub(crate) fn number(v: f64) -> String {
    let text = format!("{v:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// A rectangle of the picture with a number at each edge.
pub(crate) struct Frame {
    /// Left, top, right, bottom.
    pub edges: [i32; 4],
    /// The numbers at left and right.
    pub x: [f64; 2],
    /// The numbers at bottom and top.
    pub y: [f64; 2],
}

impl Frame {
    /// Where a point of these numbers is.
    pub fn place(&self, x: f64, y: f64) -> (i32, i32) {
        let [left, top, right, bottom] = self.edges.map(f64::from);
        let part = |v: f64, [low, high]: [f64; 2]| (v - low) / (high - low);
        let (x, y) = (part(x, self.x), part(y, self.y));
        ((left + x * (right - left)).round() as i32, (bottom - y * (bottom - top)).round() as i32)
    }

    /// Both axes with round numbers (`whole`: of x only whole ones) and their names.
    pub fn axes(&self, area: &Area<'_>, x: &str, y: &str, whole: bool) -> Drawn {
        let [left, top, right, bottom] = self.edges;
        for tick in ticks(self.y[0], self.y[1]) {
            let (_, at) = self.place(self.x[0], tick);
            stroke(area, (left, at), (right, at), BLACK.mix(0.12).into())?;
            text(area, number(tick), (left - 6, at), HPos::Right, 14, GREY)?;
        }
        for tick in ticks(self.x[0], self.x[1]).into_iter().filter(|t| !whole || t.fract() == 0.0) {
            let (at, _) = self.place(tick, self.y[0]);
            stroke(area, (at, bottom), (at, bottom + 4), BLACK.mix(0.5).into())?;
            text(area, number(tick), (at, bottom + 14), HPos::Center, 14, GREY)?;
        }
        stroke(area, (left, bottom), (right, bottom), BLACK.mix(0.5).into())?;
        text(area, x.into(), ((left + right) / 2, bottom + 34), HPos::Center, 15, BLACK)?;
        upright(area, y, (left - 48, (top + bottom) / 2))
    }
}

/// Text that is read from below.
pub(crate) fn upright(area: &Area<'_>, what: &str, at: (i32, i32)) -> Drawn {
    let font = ("sans-serif", 15).into_font().transform(FontTransform::Rotate270);
    let style = font.color(&BLACK).pos(Pos::new(HPos::Center, VPos::Center));
    area.draw(&Text::new(what.to_string(), at, style)).map_err(|e| e.to_string())
}

/// A named curve.
pub(crate) struct Curve {
    /// Stands at its end, in its colour.
    pub name: String,
    /// x and y, x rising.
    pub points: Vec<(f64, f64)>,
}

/// Curves over one pair of axes.
pub(crate) fn curves(path: &Path, title: &str, [x, y]: [&str; 2], curves: &[Curve]) -> Result<()> {
    let points = || curves.iter().flat_map(|c| c.points.iter().copied());
    if points().next().is_none() {
        return Err(Error::file(path, "there is nothing to draw"));
    }
    let range = |of: fn((f64, f64)) -> f64, room: f64| {
        let (low, high) = points().map(of).fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
        let room = if high > low { (high - low) * room } else { 0.5 };
        [low - room, high + room]
    };
    let names = curves.iter().map(|c| c.name.chars().count()).max().unwrap_or(0) as i32;
    let (width, height) = (680 + 9 * names, 440);
    let frame = Frame {
        edges: [80, 50, width - 20 - 9 * names, height - 60],
        x: range(|p| p.0, 0.02),
        y: range(|p| p.1, 0.06),
    };
    write(path, (width as u32, height as u32), |area| {
        text(area, title.into(), (80, 24), HPos::Left, 18, BLACK)?;
        frame.axes(area, x, y, true)?;
        let mut ends: Vec<(i32, usize)> = Vec::new();
        for (i, curve) in curves.iter().enumerate() {
            let colour = COLOURS[i % COLOURS.len()];
            let places: Vec<(i32, i32)> = curve.points.iter().map(|&(x, y)| frame.place(x, y)).collect();
            let line = PathElement::new(places.clone(), colour.stroke_width(2));
            area.draw(&line).map_err(|e| e.to_string())?;
            for place in &places {
                area.draw(&Circle::new(*place, 3, colour.filled())).map_err(|e| e.to_string())?;
            }
            ends.extend(places.last().map(|(_, y)| (*y, i)));
        }
        // Names whose curves end at one height stand one below the other.
        ends.sort_unstable();
        let mut lowest = i32::MIN;
        for (y, i) in ends {
            lowest = y.max(lowest.saturating_add(17));
            let colour = COLOURS[i % COLOURS.len()];
            text(area, curves[i].name.clone(), (frame.edges[2] + 8, lowest), HPos::Left, 15, colour)?;
        }
        Ok(())
    })
}
