//! The report as tables of figures x 100.

use crate::cli::table::aligned;
use crate::eval::words::scores::Scores;
use crate::eval::words::{LayerReport, Report};

/// One layer by class, several one a line.
pub fn table(report: &Report) -> String {
    match report.layers.as_slice() {
        [one] => of_layer(report, one),
        layers => by_layer(report, layers),
    }
}

fn percent(v: f64) -> String {
    format!("{:.2}", 100.0 * v)
}

fn of_layer(report: &Report, layer: &LayerReport) -> String {
    let sets: Vec<(&str, &Scores)> = [("test", Some(&layer.test)), ("validation", layer.validation.as_ref())]
        .into_iter()
        .filter_map(|(name, scores)| Some((name, scores?)))
        .collect();
    let head = |first: &str| [first, "precision", "recall", "f1", "support"].map(String::from).to_vec();
    // Of plain tags, those of all words together would be the accuracy again.
    let names = match report.spans {
        true => ["set", "accuracy", "precision", "recall", "f1", "words"],
        false => ["set", "accuracy", "macro precision", "macro recall", "macro f1", "words"],
    };
    let mut rows = vec![names.map(String::from).to_vec()];
    for (name, s) in &sets {
        let figures = [s.accuracy, s.precision, s.recall, s.f1].map(percent);
        rows.push([name.to_string()].into_iter().chain(figures).chain([s.words.to_string()]).collect());
    }
    let mut classes = vec![head(if report.spans { "type" } else { "tag" })];
    for (class, f) in &layer.test.by_class {
        let figures = [f.precision, f.recall, f.f1].map(percent);
        classes.push([class.clone()].into_iter().chain(figures).chain([f.support.to_string()]).collect());
    }
    format!("{}\n{}", aligned(&rows), aligned(&classes))
}

fn by_layer(report: &Report, layers: &[LayerReport]) -> String {
    let of_tags = if report.spans { "" } else { "macro " };
    let validated = layers.iter().any(|layer| layer.validation.is_some());
    let mut head = ["layer", "accuracy"].map(String::from).to_vec();
    head.extend(["precision", "recall", "f1"].map(|name| format!("{of_tags}{name}")));
    if validated {
        head.extend(["validation accuracy".to_string(), format!("validation {of_tags}f1")]);
    }
    let mut rows = vec![head];
    for LayerReport { layer, test, validation, .. } in layers {
        let mut row = vec![layer.map_or("-".into(), |layer| layer.to_string())];
        row.extend([test.accuracy, test.precision, test.recall, test.f1].map(percent));
        row.extend(validation.iter().flat_map(|v| [v.accuracy, v.f1].map(percent)));
        rows.push(row);
    }
    aligned(&rows)
}
