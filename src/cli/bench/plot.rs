//! What a bench measured as a picture: the roofline of ops, their ratios to a rival, tokens per second of whole models.

use crate::bench::record::{Record, Rival, Roof, Row};
use crate::error::{Error, Result};
use crate::format::svg::{self, Area, COLOURS, Drawn, Frame, GREY, filled, stroke, text};
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;
use std::path::Path;

const WIDTH: i32 = 1200;
const ROOFLINE: i32 = 520;
/// Height of a bar with its room, and of what is above and below all of them.
const LINE: i32 = 22;
const AROUND: i32 = 70;
/// Where bars begin, and the longest ends.
const BARS: [i32; 2] = [560, 1000];

/// One line of the lower picture.
struct Bar {
    name: String,
    /// Nothing where `said` says why.
    value: Option<f64>,
    said: String,
    colour: usize,
}

/// Draws all rows; a roofline above them where times of ops and a roof are there.
///
/// Errors where nothing was timed.
pub fn draw(path: &Path, record: &Record) -> Result<()> {
    let bars: Vec<Bar> = record.rows.iter().flat_map(|row| bars(row, record.rival.is_some())).collect();
    if bars.iter().all(|bar| bar.value.is_none()) {
        return Err(Error::file(path, "there is nothing to draw: no case was timed"));
    }
    let points = points(record);
    let top = if points.is_empty() { 0 } else { ROOFLINE };
    let height = top + AROUND + LINE * bars.len() as i32;
    svg::write(path, (WIDTH as u32, height as u32), |area| {
        if let (Some(roof), false) = (&record.roof, points.is_empty()) {
            roofline(area, roof, &points)?;
        }
        beside(area, top, record, &bars)
    })
}

fn whole(record: &Record) -> bool {
    record.rows.iter().any(|row| row.tokens.is_some())
}

/// The bars of a row: of a whole model one for each program, of an op the ratio, else its share of the roof.
fn bars(row: &Row, rival: bool) -> Vec<Bar> {
    let name = format!("{} {}", row.op, row.label);
    let none = |why: Option<&str>| (None, why.unwrap_or("not timed").chars().take(60).collect());
    let bar = |name, (value, said): (Option<f64>, String), colour| Bar { name, value, said, colour };
    let note = row.note.as_deref();
    if let Some(tokens) = row.tokens {
        let rate = |median: f64| {
            let rate = tokens as f64 / median;
            (Some(rate), format!("{rate:.0} tokens/s"))
        };
        let ours = row.time.map_or_else(|| none(note), |t| rate(t.median));
        let theirs = row.rivals.iter().enumerate().map(|(i, (way, rival))| {
            let found = match rival {
                Rival::Time(t) => rate(t.median),
                Rival::Note(why) => none(Some(why)),
            };
            bar(format!("PyTorch {way}"), found, i + 1)
        });
        return [bar(format!("{name}: llm2vec"), ours, 0)].into_iter().chain(theirs).collect();
    }
    let found = match (row.time, row.best_rival()) {
        (None, _) => none(note),
        (Some(ours), Some((way, best))) => {
            let ratio = best.median / ours.median;
            (Some(ratio), format!("{ratio:.2} ({way})"))
        }
        (Some(_), None) if rival => none(Some("no rival ran")),
        (Some(_), None) => {
            row.share.map_or_else(|| none(Some("no roof")), |s| (Some(s), format!("{:.0} %", 100.0 * s)))
        }
    };
    vec![bar(name, found, 0)]
}

fn beside(area: &Area<'_>, top: i32, record: &Record, bars: &[Bar]) -> Drawn {
    let title = match (whole(record), record.rival.is_some()) {
        (true, _) => "tokens per second",
        (false, true) => "time of the rival's fastest way over ours: right of the line we are faster",
        (false, false) => "share of the roof, which the line is",
    };
    text(area, format!("{title}; {}", record.device), (20, top + 24), HPos::Left, 17, BLACK)?;
    let most = bars.iter().filter_map(|bar| bar.value).fold(0.0, f64::max);
    let most = if whole(record) { most } else { most.max(1.0) };
    let at = |value: f64| BARS[0] + (value / most * f64::from(BARS[1] - BARS[0])).round() as i32;
    let (first, last) = (top + 44, top + 44 + LINE * bars.len() as i32);
    for (i, bar) in bars.iter().enumerate() {
        let y = first + LINE * i as i32;
        let middle = y + LINE / 2;
        text(area, bar.name.clone(), (BARS[0] - 8, middle), HPos::Right, 13, BLACK)?;
        let end = bar.value.map_or(BARS[0], at);
        let colour = COLOURS[bar.colour % COLOURS.len()];
        filled(area, (BARS[0], y + 3), (end, y + LINE - 3), colour.mix(0.75).filled())?;
        let said = if bar.value.is_some() { BLACK } else { GREY };
        text(area, bar.said.clone(), (end + 6, middle), HPos::Left, 13, said)?;
    }
    let line = if whole(record) { BARS[0] } else { at(1.0) };
    stroke(area, (line, first), (line, last), BLACK.mix(0.6).into())
}

/// An op at its arithmetic intensity.
struct Point {
    op: String,
    /// FLOP a byte, and TFLOP/s.
    at: (f64, f64),
}

/// Rows of ops that have both operations and bytes, if there is a roof.
fn points(record: &Record) -> Vec<Point> {
    let whole = whole(record) || record.roof.as_ref().is_none_or(|r| r.bytes_per_second.is_none());
    let rows = record.rows.iter().filter(|row| !whole && row.flops > 0 && row.bytes > 0);
    let point = |row: &Row| {
        let (flops, time) = (row.flops as f64, row.time?.median);
        Some(Point { op: row.op.clone(), at: (flops / row.bytes as f64, flops / time / 1e12) })
    };
    rows.filter_map(point).collect()
}

/// Both axes by powers of ten: below the lines of the copy and of the product each op as a dot, named once.
fn roofline(area: &Area<'_>, roof: &Roof, points: &[Point]) -> Drawn {
    let bandwidth = roof.bytes_per_second.unwrap_or(1.0) / 1e12;
    let peak = roof.flops_per_second.map(|f| f / 1e12);
    let ends = |all: &mut dyn Iterator<Item = f64>| {
        let (low, high) = all.fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
        [low.log10().floor(), high.log10().ceil().max(low.log10().floor() + 1.0)]
    };
    // As far as the corner, where the one bound becomes the other.
    let x = ends(&mut points.iter().map(|p| p.at.0).chain(peak.map(|peak| peak / bandwidth)));
    let y = ends(&mut points.iter().map(|p| p.at.1).chain(peak));
    let frame = Frame { edges: [100, 50, WIDTH - 200, ROOFLINE - 60], x, y };
    text(area, "roofline: both bounds measured in this run".into(), (20, 24), HPos::Left, 17, BLACK)?;
    powers(area, &frame)?;
    let bound = |intensity: f64| (intensity * bandwidth).min(peak.unwrap_or(f64::MAX));
    let place = |(x, y): (f64, f64)| frame.place(x.log10(), y.log10().clamp(frame.y[0], frame.y[1]));
    let left = 10f64.powf(x[0]).max(10f64.powf(y[0]) / bandwidth);
    let corner = peak.map_or(10f64.powf(x[1]), |peak| peak / bandwidth);
    let right = 10f64.powf(x[1]);
    stroke(area, place((left, bound(left))), place((corner, bound(corner))), BLACK.stroke_width(2))?;
    stroke(area, place((corner, bound(corner))), place((right, bound(right))), BLACK.stroke_width(2))?;
    let at = place((right, bound(right)));
    let said = peak.map_or(String::new(), |peak| format!("product {peak:.3} TFLOP/s"));
    text(area, said, (at.0 + 6, at.1), HPos::Left, 13, GREY)?;
    let at = place((left, bound(left)));
    text(area, format!("copy {:.0} GB/s", bandwidth * 1e3), (at.0 + 8, at.1 - 12), HPos::Left, 13, GREY)?;
    let mut named: Vec<&str> = Vec::new();
    for point in points {
        let at = place(point.at);
        let number = named.iter().position(|name| *name == point.op);
        let colour = COLOURS[number.unwrap_or(named.len()) % COLOURS.len()];
        area.draw(&Circle::new(at, 4, colour.mix(0.8).filled())).map_err(|e| e.to_string())?;
        if number.is_none() {
            named.push(&point.op);
            text(area, point.op.clone(), (at.0 + 8, at.1), HPos::Left, 13, colour)?;
        }
    }
    Ok(())
}

/// Axes whose numbers are powers of ten.
fn powers(area: &Area<'_>, frame: &Frame) -> Drawn {
    let [left, top, right, bottom] = frame.edges;
    let all = |[low, high]: [f64; 2]| (low as i32)..=(high as i32);
    let spelled = |power: i32| svg::number(10f64.powi(power));
    for power in all(frame.y) {
        let (_, at) = frame.place(frame.x[0], power.into());
        stroke(area, (left, at), (right, at), BLACK.mix(0.12).into())?;
        text(area, spelled(power), (left - 6, at), HPos::Right, 14, GREY)?;
    }
    for power in all(frame.x) {
        let (at, _) = frame.place(power.into(), frame.y[0]);
        stroke(area, (at, top), (at, bottom), BLACK.mix(0.12).into())?;
        text(area, spelled(power), (at, bottom + 14), HPos::Center, 14, GREY)?;
    }
    text(area, "FLOP per byte".into(), ((left + right) / 2, bottom + 36), HPos::Center, 15, BLACK)?;
    svg::upright(area, "TFLOP/s", (left - 60, (top + bottom) / 2))
}
