//! No file uses, by whatever way, one that uses it: each can be read on what stands before it.

use super::{CratePaths, Source, Visit, none, sources};
use std::collections::BTreeSet;

/// Files, by name with those that they use, which are in a circle or behind one.
pub fn circles(files: &[(String, Vec<String>)]) -> Vec<String> {
    let names: BTreeSet<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    // Those that use none but files without a circle are without one, until no more are found.
    let mut free = BTreeSet::new();
    loop {
        let known = free.len();
        for (name, uses) in files {
            let open = |used: &&str| names.contains(used) && used != name && !free.contains(used);
            if !uses.iter().map(String::as_str).any(|used| open(&used)) {
                free.insert(name.as_str());
            }
        }
        if free.len() == known {
            break;
        }
    }
    names.difference(&free).map(|name| format!("{name}: in a circle, or behind one")).collect()
}

/// `src/ops/rope.rs` is `ops::rope`, `src/ops/mod.rs` is `ops`.
fn module(source: &Source) -> Option<Vec<String>> {
    let inside = source.path.strip_prefix("src/")?.strip_suffix(".rs")?;
    let apart = ["emulator/", "kernels/build/"].iter().any(|folder| inside.starts_with(folder));
    let mut path: Vec<String> = inside.split('/').map(String::from).collect();
    path.pop_if(|last| last == "mod");
    (!apart && !["lib", "main"].contains(&inside) && path.last()? != "tests").then_some(path)
}

#[test]
fn files_use_one_another_in_no_circle() {
    let all = sources(&["src"]);
    let files: Vec<(Vec<String>, &Source)> = all.iter().filter_map(|s| Some((module(s)?, s))).collect();
    let names: BTreeSet<String> = files.iter().map(|(path, _)| path.join("::")).collect();
    assert!(names.len() > 90, "the sources were not found");
    let uses = |(path, source): &(Vec<String>, &Source)| {
        let mut paths = CratePaths::default();
        paths.visit_file(&source.syntax);
        let named = paths.0.into_iter().filter_map(|(_, used)| {
            // From the root, whatever number of modules it goes up first.
            let ups = used.iter().take_while(|s| *s == "super").count();
            let root = if ups == 0 { &[][..] } else { &path[..path.len().checked_sub(ups)?] };
            let whole = [root, &used[ups..]].concat();
            let longest = (1..=whole.len()).rev().map(|n| whole[..n].join("::"));
            longest.into_iter().find(|name| names.contains(name))
        });
        (path.join("::"), named.collect())
    };
    none(circles(&files.iter().map(uses).collect::<Vec<_>>()));
}
