//! Records as tables: text, Markdown, CSV.

use super::record::{Record, Rival, Row, Spread};
use crate::error::{Error, Result, Setting, message};
use crate::memory::amount;

/// How a table is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Columns in line.
    Text,
    /// A table with its facts above.
    Markdown,
    /// One line a row, the facts left out.
    Csv,
    /// The record itself.
    Json,
}

impl Form {
    /// By a file's ending.
    pub fn of(path: &std::path::Path) -> Result<Form> {
        match path.extension().and_then(|e| e.to_str()) {
            Some("md") => Ok(Form::Markdown),
            Some("csv") => Ok(Form::Csv),
            Some("json") => Ok(Form::Json),
            Some("txt") => Ok(Form::Text),
            _ => Err(Error::usage(message![
                Setting::Output,
                format!(" {}: expected a name that ends in .md, .json, .csv or .txt", path.display())
            ])),
        }
    }
}

impl Record {
    /// The record in this form; always ends in a new line.
    pub fn render(&self, form: Form) -> String {
        let (head, body) = self.cells();
        match form {
            Form::Json => serde_json::to_string_pretty(self).unwrap_or_default() + "\n",
            Form::Csv => lines(&head, &body, csv),
            Form::Text => format!("{}\n{}", aligned(&head, &body), self.facts("")),
            Form::Markdown => format!("{}\n{}", self.facts("* "), markdown(&head, &body)),
        }
    }

    /// Header and rows.
    fn cells(&self) -> (Vec<&'static str>, Vec<Vec<String>>) {
        if self.kind == "checks" {
            let row = |c: &super::record::Check| {
                vec![c.name.clone(), c.status.clone(), format!("{:.1}", c.seconds), c.detail.clone()]
            };
            return (vec!["check", "result", "s", "detail"], self.checks.iter().map(row).collect());
        }
        if self.rows.iter().any(|r| r.tokens.is_some()) {
            return (WHOLE.to_vec(), self.rows.iter().flat_map(whole).collect());
        }
        let counted = self.rows.iter().any(|r| r.counted.is_some());
        let mut head = vec!["op", "case"];
        match counted {
            true => head.extend(["bytes", "touched", "sectors", "tensor FLOPs", "conflicts", "kernels"]),
            false => head.extend(["us", "least", "GB/s", "TFLOP/s", "of roof", "SM MHz"]),
        }
        if self.rival.is_some() {
            head.extend(["rival us", "by", "ratio"]);
        }
        let body = self.rows.iter().map(|row| {
            let mut cells = vec![row.op.clone(), row.label.clone()];
            cells.extend(if counted { cost(row) } else { timed(row) });
            if self.rival.is_some() {
                cells.extend(against(row));
            }
            cells
        });
        (head, body.collect())
    }

    /// What a reader needs to judge the numbers, a line each.
    fn facts(&self, bullet: &str) -> String {
        let roof = self.roof.clone().unwrap_or_default();
        let copy = roof.bytes_per_second.map(|b| format!("copy {:.0} GB/s", b / 1e9));
        let by = roof.product.map_or(String::new(), |by| format!(" ({by})"));
        let what = if self.device.starts_with("cpu") { "instructions" } else { "plain product" };
        let product = roof.flops_per_second.map(|f| format!("{what} {:.2} TFLOP/s{by}", f / 1e12));
        let roof: Vec<String> = copy.into_iter().chain(product).collect();
        let lines = [
            ("device", Some(self.device.clone())),
            ("kernels", self.kernels.clone()),
            ("machine", Some(self.machine.clone())),
            ("driver", self.driver.clone()),
            ("roof", (!roof.is_empty()).then(|| roof.join(", "))),
            ("rival", self.rival.clone()),
            ("no rival", self.alone()),
            ("apart", self.apart()),
            ("commit", self.commit.clone()),
            ("command", Some(self.command.clone())),
            ("date", Some(self.date.clone())),
        ];
        let full = lines.into_iter().filter_map(|(key, value)| Some((key, value.filter(|v| !v.is_empty())?)));
        full.map(|(key, value)| format!("{bullet}{key}: {value}\n")).collect()
    }
}

const NONE: &str = "-";

impl Record {
    /// How far the rival's results are from ours.
    fn apart(&self) -> Option<String> {
        let one =
            |row: &Row| row.apart.iter().map(|(what, off)| format!("{what} {off:.1e}")).collect::<Vec<_>>();
        let all: Vec<String> = self.rows.iter().flat_map(one).collect();
        (!all.is_empty()).then(|| all.join(", ") + ", of the first result, without dropout")
    }

    /// Why rows have no rival, each reason once.
    fn alone(&self) -> Option<String> {
        let rows = self.rows.iter().filter(|row| self.rival.is_some() && row.best_rival().is_none());
        let mut reasons: Vec<(String, &Row, usize)> = Vec::new();
        for row in rows {
            let why = row.rivals.iter().map(|(name, rival)| match rival {
                Rival::Note(why) => format!("{name}: {why}"),
                // A bound.
                Rival::Time(_) => name.clone(),
            });
            let why: Vec<String> = why.collect();
            let why = if why.is_empty() { "nothing was tried".into() } else { why.join("; ") };
            match reasons.iter_mut().find(|(known, ..)| *known == why) {
                Some((.., count)) => *count += 1,
                None => reasons.push((why, row, 1)),
            }
        }
        let one = |(why, row, count): &(String, &Row, usize)| match count {
            1 => format!("{} {} ({why})", row.op, row.label),
            n => format!("{} {} and {} more ({why})", row.op, row.label, n - 1),
        };
        (!reasons.is_empty()).then(|| reasons.iter().map(one).collect::<Vec<_>>().join("; "))
    }
}

fn or_none(value: Option<String>) -> String {
    value.unwrap_or_else(|| NONE.into())
}

/// Three digits that count.
fn digits(x: f64) -> String {
    let after = if x == 0.0 { 0 } else { (2 - x.abs().log10().floor() as i32).clamp(0, 6) as usize };
    format!("{x:.after$}")
}

fn share(part: Option<f64>) -> String {
    or_none(part.map(|s| format!("{:.0} %", 100.0 * s)))
}

/// What the multiprocessors ran at.
fn megahertz(row: &Row) -> String {
    or_none(row.clock_mhz.map(|mhz| format!("{mhz:.0}")))
}

/// Microseconds, their least, GB/s, TFLOP/s, share of the roof, clock; or why not.
fn timed(row: &Row) -> Vec<String> {
    let Some(t) = row.time else { return noted(row, 6) };
    let rate = |amount: u64, unit: f64| match amount {
        0 => NONE.to_string(),
        _ => digits(amount as f64 / t.median / unit),
    };
    let us = |s: f64| digits(1e6 * s);
    let (bytes, flops) = (rate(row.bytes, 1e9), rate(row.flops, 1e12));
    vec![us(t.median), us(t.least), bytes, flops, share(row.share), megahertz(row)]
}

const WHOLE: [&str; 11] =
    ["op", "case", "by", "ms", "least", "tokens/s", "TFLOP/s", "of roof", "SM MHz", "peak memory", "ratio"];

/// A line for ours and one for each of the rival's ways, its time over ours last; or why there is none.
fn whole(row: &Row) -> Vec<Vec<String>> {
    let line =
        |by: &str, time: std::result::Result<Spread, &str>, share_of, clock: String, peak: Option<u64>| {
            let mut cells = vec![row.op.clone(), row.label.clone(), by.into()];
            match time {
                Ok(t) => {
                    let rate = format!("{:.0}", row.tokens.unwrap_or(0) as f64 / t.median);
                    let ms = |s: f64| digits(1e3 * s);
                    let flops = digits(row.flops as f64 / t.median / 1e12);
                    cells.extend([
                        ms(t.median),
                        ms(t.least),
                        rate,
                        flops,
                        share(share_of),
                        clock,
                        or_none(peak.map(amount)),
                    ]);
                    cells.push(or_none(row.time.map(|ours| format!("{:.2}", t.median / ours.median))));
                }
                Err(why) => {
                    cells.extend(vec![NONE.to_string(); WHOLE.len() - 4]);
                    cells.push(why.into());
                }
            }
            cells
        };
    let ours = row.time.ok_or(row.note.as_deref().unwrap_or("not timed"));
    let theirs = row.rivals.iter().map(|(name, rival)| {
        let time = match rival {
            Rival::Time(t) => Ok(*t),
            Rival::Note(why) => Err(why.as_str()),
        };
        line(&format!("PyTorch {name}"), time, None, NONE.into(), row.rival_peaks.get(name).copied())
    });
    [line("llm2vec", ours, row.share, megahertz(row), row.peak)].into_iter().chain(theirs).collect()
}

fn cost(row: &Row) -> Vec<String> {
    let Some(c) = &row.counted else { return noted(row, 6) };
    let numbers = [c.bytes, c.touched, c.sectors, c.flops, c.conflicts].map(|n| n.to_string());
    numbers.into_iter().chain([c.kernels.join("; ")]).collect()
}

/// The note in the last cell, where there is room.
fn noted(row: &Row, cells: usize) -> Vec<String> {
    let mut list = vec![NONE.to_string(); cells - 1];
    list.push(or_none(row.note.clone()));
    list
}

fn against(row: &Row) -> Vec<String> {
    let Some((name, best)) = row.best_rival() else {
        return vec![NONE.into(), "none ran".into(), NONE.into()];
    };
    let ratio = row.time.map(|t| format!("{:.2}", best.median / t.median));
    vec![digits(1e6 * best.median), name.into(), or_none(ratio)]
}

fn lines(head: &[&str], body: &[Vec<String>], line: impl Fn(&[String]) -> String) -> String {
    let head: Vec<String> = head.iter().map(|h| h.to_string()).collect();
    [&head].into_iter().chain(body).map(|row| line(row) + "\n").collect()
}

fn csv(row: &[String]) -> String {
    let quoted = |c: &String| match c.contains([',', '"', '\n']) {
        true => format!("\"{}\"", c.replace('"', "\"\"")),
        false => c.clone(),
    };
    row.iter().map(quoted).collect::<Vec<_>>().join(",")
}

/// Words to the left, the rest to the right.
fn is_word(column: &str) -> bool {
    ["op", "case", "by", "kernel", "target", "kernels", "check", "result", "detail"].contains(&column)
}

/// Columns in line.
pub fn aligned(head: &[&str], body: &[Vec<String>]) -> String {
    let width =
        |i: usize| body.iter().map(|r| r[i].chars().count()).chain([head[i].len()]).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let pad = |row: &[String]| {
        let cells = row.iter().zip(&widths).zip(head).map(|((cell, &w), column)| match is_word(column) {
            true => format!("{cell:<w$}"),
            false => format!("{cell:>w$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_string()
    };
    lines(head, body, pad)
}

fn markdown(head: &[&str], body: &[Vec<String>]) -> String {
    let row = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|c| c.replace('|', "\\|")).collect();
        format!("| {} |", cells.join(" | "))
    };
    let rule: String = head.iter().map(|c| if is_word(c) { "---|" } else { "--:|" }).collect();
    let text = lines(head, body, row);
    let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
    format!("{first}\n|{rule}\n{rest}")
}
