//! What an ablation says: for each variant and pooling the mean over the seeds, by task, by type and in all.

use super::plan::{Plan, Section, Source, Task};
use super::record::Record;
use crate::error::{Error, Result};
use crate::eval::suite::Kind;
use crate::pretrained::pooling::PoolingMode;
use serde::{Serialize, Serializer};

/// A figure (0 to 1) with each seed; no mean where a seed has none.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// Over the seeds.
    pub mean: Option<f64>,
    /// The sample standard deviation over the seeds; none of one.
    pub std: Option<f64>,
    /// In the order of the seeds.
    pub by_seed: Vec<Option<f64>>,
}

/// A variant under a pooling.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The variant.
    pub variant: &'static str,
    /// The pooling; none for words.
    pub pooling: Option<&'static str>,
    /// The mean over all tasks, each counting the same; of words, whose figures are not of one measure, there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub average: Option<Figure>,
    /// The mean over the tasks of each type.
    #[serde(serialize_with = "as_map", skip_serializing_if = "Vec::is_empty")]
    pub types: Vec<(String, Figure)>,
    /// Each task.
    #[serde(serialize_with = "as_map")]
    pub tasks: Vec<(String, Figure)>,
}

/// A section's figures.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// The section.
    pub name: &'static str,
    /// The picture's file.
    #[serde(skip)]
    pub plot: &'static str,
    /// The heads of the tasks' columns.
    pub heads: Vec<String>,
    /// In the order of the paper's tables, the poolings of a variant together.
    pub rows: Vec<Row>,
}

fn as_map<S: Serializer>(list: &[(String, Figure)], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_map(list.iter().map(|(name, figure)| (name, figure)))
}

impl Figure {
    fn new(by_seed: Vec<Option<f64>>) -> Figure {
        let n = by_seed.len() as f64;
        let mean = by_seed.iter().copied().sum::<Option<f64>>().map(|sum| sum / n);
        let squares = |mean: f64| by_seed.iter().flatten().map(|v| (v - mean).powi(2)).sum::<f64>();
        let std = mean.filter(|_| by_seed.len() > 1).map(|mean| (squares(mean) / (n - 1.0)).sqrt());
        Figure { mean, std, by_seed }
    }

    /// The mean of several figures, seed by seed.
    fn average(figures: &[&Figure]) -> Figure {
        let seeds = figures.first().map_or(0, |f| f.by_seed.len());
        let one = |seed: usize| {
            let sum = figures.iter().map(|f| f.by_seed[seed]).sum::<Option<f64>>()?;
            Some(sum / figures.len() as f64)
        };
        Figure::new((0..seeds).map(one).collect())
    }

    /// `41.77 ± 0.31`, times 100.
    pub fn text(&self) -> String {
        let percent = |v: f64| format!("{:.2}", 100.0 * v);
        let std = self.std.map_or(String::new(), |std| format!(" ± {}", percent(std)));
        self.mean.map_or("-".into(), |mean| percent(mean) + &std)
    }
}

impl Table {
    /// The figures of a section, all of which are in `record`.
    pub fn new(plan: &Plan, section: &Section, record: &Record) -> Result<Table> {
        let mut kinds: Vec<Kind> = section.tasks.iter().filter_map(Task::kind).collect();
        kinds.sort();
        kinds.dedup();
        let mut rows = Vec::new();
        for &variant in &plan.variants {
            for &pooling in &section.poolings {
                let figure = |task: &Task| {
                    let seeds = variant.seeds(&plan.seeds).into_iter();
                    let sources = seeds.map(|seed| Source { variant, seed, pooling });
                    Ok(Figure::new(sources.map(|s| kept(record, &s, task)).collect::<Result<Vec<_>>>()?))
                };
                let figures = section.tasks.iter().map(figure).collect::<Result<Vec<_>>>()?;
                let of_kind = |kind: &Kind| {
                    let both = section.tasks.iter().zip(&figures);
                    let some: Vec<&Figure> =
                        both.filter(|(t, _)| t.kind() == Some(*kind)).map(|(_, f)| f).collect();
                    (kind.name().to_string(), Figure::average(&some))
                };
                rows.push(Row {
                    variant: variant.name,
                    pooling: pooling.map(PoolingMode::name),
                    average: pooling.map(|_| Figure::average(&figures.iter().collect::<Vec<_>>())),
                    types: kinds.iter().map(of_kind).collect(),
                    tasks: section.tasks.iter().map(Task::id).zip(figures).collect(),
                });
            }
        }
        let heads = section.tasks.iter().map(Task::head).collect();
        Ok(Table { name: section.name, plot: section.plot, heads, rows })
    }

    /// Variants down and poolings across, as table 5 of the paper, then the types; of words the tasks across, as its table 4.
    /// Markdown that reads as it stands.
    pub fn summary(&self) -> String {
        let head = |of: &str| format!("### {}: {of} (x 100, ± standard deviation over seeds)\n\n", self.name);
        if self.is_of_words() {
            return head("a linear probe on frozen features") + &self.columns(&self.heads, |row| &row.tasks);
        }
        let first = self.rows.first();
        let tasks = first.map_or(0, |row| row.tasks.len());
        let of_first = self.rows.iter().take_while(|row| row.variant == self.rows[0].variant);
        let poolings: Vec<&str> = of_first.filter_map(|row| row.pooling).collect();
        let mut lines = vec![cells(&[""], poolings.iter().map(|p| p.to_string()))];
        for rows in self.rows.chunks(poolings.len().max(1)) {
            let averages = rows.iter().flat_map(|row| &row.average);
            lines.push(cells(&[rows[0].variant], averages.map(Figure::text)));
        }
        let of = if tasks == 1 { "1 task".into() } else { format!("the average of {tasks} tasks") };
        let table = markdown(&lines, 1);
        // Of one type the average is the type's.
        if first.is_some_and(|row| row.types.len() == 1) {
            return head(&of) + &table;
        }
        let types: Vec<String> =
            first.into_iter().flat_map(|row| &row.types).map(|(n, _)| n.clone()).collect();
        format!("{}{table}\nBy type:\n\n{}", head(&of), self.columns(&types, |row| &row.types))
    }

    /// The summary, and every task that it has not.
    pub fn whole(&self) -> String {
        let summary = self.summary();
        match self.is_of_words() {
            true => summary,
            false => format!("{summary}\nBy task:\n\n{}", self.columns(&self.heads, |row| &row.tasks)),
        }
    }

    /// The figures of the picture's panels, row by row the same ones: of sentences the average and the types, of which a
    /// single one is the average; of words the tasks.
    pub fn panels<'r>(&self, row: &'r Row) -> Vec<(String, &'r Figure)> {
        let Some(average) = &row.average else {
            return self.heads.iter().cloned().zip(row.tasks.iter().map(|(_, f)| f)).collect();
        };
        let types = row.types.iter().filter(|_| row.types.len() > 1).map(|(n, f)| (n.clone(), f));
        std::iter::once(("average".to_string(), average)).chain(types).collect()
    }

    fn is_of_words(&self) -> bool {
        self.rows.iter().any(|row| row.pooling.is_none())
    }

    fn columns(&self, heads: &[String], of: fn(&Row) -> &Vec<(String, Figure)>) -> String {
        let names = |variant, pooling: Option<&'static str>| {
            std::iter::once(variant).chain(pooling).collect::<Vec<&str>>()
        };
        let pooling = (!self.is_of_words()).then_some("pooling");
        let mut lines = vec![cells(&names("", pooling), heads.iter().cloned())];
        for row in &self.rows {
            lines.push(cells(&names(row.variant, row.pooling), of(row).iter().map(|(_, f)| f.text())));
        }
        markdown(&lines, names("", pooling).len())
    }
}

fn kept(record: &Record, source: &Source, task: &Task) -> Result<Option<f64>> {
    record
        .score(source, task)?
        .ok_or_else(|| Error::file(&record.path, format!("lost a score of {}", task.id())))
}

fn cells(names: &[&str], figures: impl Iterator<Item = String>) -> Vec<String> {
    names.iter().map(|name| name.to_string()).chain(figures).collect()
}

/// A table with its first `names` columns to the left and the others to the right, padded.
fn markdown(rows: &[Vec<String>], names: usize) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |c: usize| rows.iter().map(|row| row[c].chars().count()).max().unwrap_or(0).max(3);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cell = |(c, text): (usize, &String)| match c < names {
            true => format!(" {text:<0$} |", widths[c]),
            false => format!(" {text:>0$} |", widths[c]),
        };
        format!("|{}\n", row.iter().enumerate().map(cell).collect::<String>())
    };
    let rule = |(c, width): (usize, &usize)| match c < names {
        true => format!("{}|", "-".repeat(width + 2)),
        false => format!("{}:|", "-".repeat(width + 1)),
    };
    let rule = format!("|{}\n", widths.iter().enumerate().map(rule).collect::<String>());
    let mut lines: Vec<String> = rows.iter().map(line).collect();
    lines.insert(lines.len().min(1), rule);
    lines.concat()
}
