//! Tables on stdout.

/// The first column to the left, the others to the right.
pub fn aligned(rows: &[Vec<String>]) -> String {
    let width = |c: usize| rows.iter().map(|row| row[c].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len)).map(width).collect();
    let line = |row: &Vec<String>| {
        let first = format!("{:<1$}", row[0], widths[0]);
        let rest = row.iter().zip(&widths).skip(1).map(|(cell, w)| format!("  {cell:>w$}"));
        format!("{first}{}\n", rest.collect::<String>())
    };
    rows.iter().map(line).collect()
}
