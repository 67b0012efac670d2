//! The same rules inside the emulator, a crate of its own.

use super::*;

/// Every folder with those that it may use.
const EMULATOR_LAYERS: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("isa", &["error"]),
    ("numbers", &["isa"]),
    ("front", &["error", "isa", "numbers"]),
    ("report", &["error", "isa"]),
    ("machine", &["isa", "numbers", "report"]),
    ("exec", &["isa", "numbers", "report", "machine"]),
    ("launch", &["error", "isa", "report", "machine", "exec"]),
];

/// What a file names, and where.
type Names = Vec<(LineColumn, String)>;

/// Modules of the crate that a file of one of its folders names, as `folder/file` or `file`.
fn named_files(source: &Source, folder: &str) -> Names {
    let mut paths = CratePaths::default();
    paths.visit_file(&source.syntax);
    let file = |(at, path): (LineColumn, Vec<String>)| match &path[..] {
        [first, file, ..] if first == "super" && file != "super" => (at, format!("{folder}/{file}")),
        [first, file, ..] => (at, format!("{first}/{file}")),
        path => (at, path.concat()),
    };
    // `pub(crate)` is a path too, which leads nowhere.
    paths.0.into_iter().filter(|(_, path)| !path.is_empty()).map(file).collect()
}

/// It serves whoever has PTX.
#[test]
fn the_emulator_knows_nothing_of_ours() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/emulator/Cargo.toml");
    let files = sources(&["src/emulator"]).into_iter().map(|s| (s.path, s.text));
    let all = files.chain([("src/emulator/Cargo.toml".into(), std::fs::read_to_string(manifest).unwrap())]);
    let named = |(path, text): (String, String)| {
        let line = text.lines().position(|l| l.to_lowercase().contains("llm2vec"))? + 1;
        Some(format!("{path}:{line}: names llm2vec"))
    };
    none(all.filter_map(named).collect());
}

/// Every file of the emulator in a folder, with its folder and the files that it names.
fn emulator_files() -> Vec<(String, String, Names)> {
    let root = "src/emulator/src/";
    let all = sources(&[root]);
    let inside = all.iter().filter_map(|s| Some((s, s.path.strip_prefix(root)?.strip_suffix(".rs")?)));
    let inside = inside.filter(|(_, name)| *name != "lib");
    let named = inside.map(|(source, name)| {
        let folder = name.split('/').next().unwrap_or("");
        (name.to_string(), folder.to_string(), named_files(source, folder))
    });
    named.collect()
}

#[test]
fn no_folder_of_the_emulator_uses_one_to_the_right() {
    let mut findings = Vec::new();
    for (name, folder, uses) in emulator_files() {
        let Some((_, allowed)) = EMULATOR_LAYERS.iter().find(|(f, _)| *f == folder) else {
            findings.push(format!("{name}: `{folder}` has no place in EMULATOR_LAYERS"));
            continue;
        };
        for (at, used) in uses {
            let other = used.split('/').next().unwrap_or("");
            if other != folder && !allowed.contains(&other) {
                findings.push(format!("{name}.rs:{}: `{folder}` may not use `{used}`", at.line));
            }
        }
    }
    none(findings);
}

/// Matches over instructions that have an arm for all the rest: (function, line).
#[derive(Default)]
struct Rests {
    function: String,
    found: Vec<(String, usize)>,
}

impl<'a> Visit<'a> for Rests {
    fn visit_signature(&mut self, s: &'a syn::Signature) {
        self.function = s.ident.to_string();
    }
    fn visit_expr_match(&mut self, m: &'a syn::ExprMatch) {
        struct Ops(bool);
        impl<'a> Visit<'a> for Ops {
            fn visit_path(&mut self, path: &'a syn::Path) {
                self.0 |= path.segments.iter().any(|s| s.ident.to_string().ends_with("Op"));
            }
        }
        let mut ops = Ops(false);
        m.arms.iter().for_each(|arm| ops.visit_pat(&arm.pat));
        let rest = |arm: &&syn::Arm| matches!(arm.pat, syn::Pat::Wild(_) | syn::Pat::Ident(_));
        if let Some(arm) = m.arms.iter().find(rest).filter(|_| ops.0) {
            self.found.push((self.function.clone(), arm.span().start().line));
        }
        visit::visit_expr_match(self, m);
    }
}

/// An instruction that somebody adds and forgets in one place is no instruction that does nothing: the compiler names the
/// place. Words for a report may have some for all the rest.
#[test]
fn matches_over_instructions_name_them_all() {
    const WORDS: &[&str] = &["waits_at", "name", "what"];
    let mut findings = Vec::new();
    for source in sources(&["src/emulator/src"]) {
        let mut rests = Rests::default();
        rests.visit_file(&source.syntax);
        let silent = rests.found.iter().filter(|(function, _)| !WORDS.contains(&function.as_str()));
        findings.extend(
            silent.map(|(f, line)| {
                format!("{}:{line}: `{f}` has an arm for all other instructions", source.path)
            }),
        );
    }
    none(findings);
}

#[test]
fn files_of_the_emulator_use_one_another_in_no_circle() {
    let files = emulator_files().into_iter().map(|(name, _, uses)| (name, uses));
    let files = files.map(|(name, uses)| (name, uses.into_iter().map(|(_, used)| used).collect()));
    let files: Vec<(String, Vec<String>)> = files.collect();
    assert!(files.len() > 40, "the emulator's files were not found");
    none(circles(&files));
}
