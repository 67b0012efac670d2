//! The rules of the house, read from the sources: who may use whom, where `unsafe` stands, how long things get.

mod circles;
mod emulator;
mod flags;
mod root;

use circles::circles;
use proc_macro2::LineColumn;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// Every top-level module with those that it may use. `model` knows no files, no text and no optimizer; an op knows
/// no other op (checked apart); only `model` composes. Files are mapped in `device`, where `unsafe` may stand.
const LAYERS: &[(&str, &[&str])] = &[
    // A crate of its own, whose layers its own tests check.
    ("emulator", &[]),
    ("error", &["emulator"]),
    ("rng", &[]),
    ("device", &["error", "emulator"]),
    ("tensor", &["error", "device"]),
    ("memory", &["error", "device", "tensor"]),
    ("kernels", &["error", "device", "tensor"]),
    ("ops", &["error", "device", "tensor", "rng", "kernels"]),
    ("model", &["error", "device", "tensor", "memory", "ops"]),
    ("format", &["error", "device::mapped"]),
    ("text", &["error"]),
    ("pretrained", &["error", "device", "tensor", "memory", "ops", "model", "format", "text"]),
    // Parts of an encoding are files with a record beside them.
    ("encode", &["error", "device", "tensor", "memory", "ops", "model", "format", "text", "pretrained"]),
    // The product of queries and documents is the CPU's own, a probe's step the optimiser's.
    ("eval", &["error", "device", "tensor", "rng", "ops", "format", "encode"]),
    (
        "train",
        // A run may be measured as its adapter is; negatives are mined by an encoder.
        &[
            "error",
            "device",
            "tensor",
            "memory",
            "rng",
            "ops",
            "model",
            "format",
            "text",
            "pretrained",
            "encode",
            "eval",
        ],
    ),
    (
        "bench",
        &[
            "error",
            "device",
            "tensor",
            "rng",
            "memory",
            "kernels",
            "ops",
            "model",
            "format",
            "pretrained",
            "train",
        ],
    ),
    (
        "cli",
        &[
            "error",
            "device",
            "tensor",
            "memory",
            "kernels",
            "model",
            "format",
            "text",
            "pretrained",
            "encode",
            "train",
            "eval",
            "bench",
        ],
    ),
];

const FILE_LINES: usize = 500;
const FUNCTION_LINES: usize = 70;

/// What may be longer than the limits, and why: (path or path::function, reason).
const LONGER: &[(&str, &str)] = &[];

/// Suffixes that say "a later attempt" instead of a fact.
const NAMES_NOT_TAKEN: &[&str] = &["_new", "_old", "_opt", "_tmp", "_v2", "_v3", "_helper", "_utils"];

struct Source {
    /// Relative to the root, with `/`.
    path: String,
    text: String,
    syntax: syn::File,
}

impl Source {
    /// `ops/rope.rs` is in module `ops`.
    fn module(&self) -> &str {
        let inside = self.path.strip_prefix("src/").unwrap_or("");
        inside.split(['/', '.']).next().unwrap_or("")
    }
}

fn sources(folders: &[&str]) -> Vec<Source> {
    fn walk(dir: &Path, list: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().map(|e| e.unwrap().path()) {
            match entry.is_dir() {
                true => walk(&entry, list),
                false if entry.extension().is_some_and(|e| e == "rs") => list.push(entry),
                false => {}
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut list = Vec::new();
    folders.iter().for_each(|f| walk(&root.join(f), &mut list));
    list.sort();
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        let syntax = syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let path = path.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/");
        Source { path, text, syntax }
    };
    let sources: Vec<Source> = list.into_iter().map(read).collect();
    assert!(sources.len() > 1, "the sources were not found");
    sources
}

/// Fails with all findings at once.
fn none(findings: Vec<String>) {
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

/// Collects every path that starts at the crate's root or at the emulator's, as its segments, wherever it is written;
/// with `super` too those that start one module further up.
#[derive(Default)]
struct CratePaths(Vec<(LineColumn, Vec<String>)>);

impl CratePaths {
    fn of(file: &syn::File) -> Vec<(LineColumn, Vec<String>)> {
        let mut paths = CratePaths::default();
        paths.visit_file(file);
        paths.0.retain(|(_, path)| path.first().is_none_or(|s| s != "super"));
        paths.0
    }

    fn tree(&mut self, at: LineColumn, prefix: &[String], tree: &syn::UseTree) {
        let with = |name: &syn::Ident| prefix.iter().cloned().chain([name.to_string()]).collect::<Vec<_>>();
        match tree {
            syn::UseTree::Path(p) => self.tree(at, &with(&p.ident), &p.tree),
            syn::UseTree::Group(g) => g.items.iter().for_each(|t| self.tree(at, prefix, t)),
            syn::UseTree::Name(n) => self.keep(at, with(&n.ident)),
            syn::UseTree::Rename(r) => self.keep(at, with(&r.ident)),
            syn::UseTree::Glob(_) => self.keep(at, prefix.to_vec()),
        }
    }

    fn keep(&mut self, at: LineColumn, path: Vec<String>) {
        match path.first().map_or("", String::as_str) {
            "crate" => self.0.push((at, path[1..].to_vec())),
            "ptx_emulator" => {
                let inside = path[1..].iter().cloned();
                self.0.push((at, ["emulator".to_string()].into_iter().chain(inside).collect()));
            }
            "super" => self.0.push((at, path)),
            _ => {}
        }
    }
}

impl<'a> Visit<'a> for CratePaths {
    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        self.tree(item.span().start(), &[], &item.tree);
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        let names = path.segments.iter().map(|s| s.ident.to_string()).collect();
        self.keep(path.span().start(), names);
        visit::visit_path(self, path);
    }

    /// `#[cfg(test)]` modules may use what they like.
    fn visit_item_mod(&mut self, item: &'a syn::ItemMod) {
        if item.ident != "tests" {
            visit::visit_item_mod(self, item);
        }
    }
}

#[test]
fn nobody_uses_a_module_to_the_right() {
    let mut findings = Vec::new();
    for source in sources(&["src"]) {
        let module = source.module();
        if ["lib", "main", "emulator"].contains(&module) {
            continue;
        }
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == module) else {
            findings.push(format!("{}: module `{module}` has no place in LAYERS", source.path));
            continue;
        };
        for (at, path) in CratePaths::of(&source.syntax) {
            let used = path.first().map_or("", String::as_str);
            let macro_or_own = LAYERS.iter().all(|(name, _)| *name != used) || used == module;
            let path = path.join("::");
            let within = |a: &&str| {
                path.strip_prefix(*a).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
            };
            if !macro_or_own && !allowed.iter().any(within) {
                findings.push(format!("{}:{}: `{module}` may not use `{path}`", source.path, at.line));
            }
        }
    }
    none(findings);
}

#[test]
fn no_op_calls_another() {
    let mut findings = Vec::new();
    for source in sources(&["src/ops"]).iter().filter(|s| !s.path.ends_with("mod.rs")) {
        let stem = Path::new(&source.path).file_stem().unwrap().to_string_lossy().into_owned();
        for (at, path) in CratePaths::of(&source.syntax) {
            let calls = path.last().is_some_and(|f| f.ends_with("_fwd") || f.ends_with("_bwd"));
            if path.len() > 2 && path[0] == "ops" && path[1] != stem && calls {
                findings.push(format!("{}:{}: op `{stem}` calls `{}`", source.path, at.line, path[1]));
            }
        }
    }
    none(findings);
}

/// Every `unsafe`: where it stands, and whether it is a block that holds the call of one launcher and nothing else.
#[derive(Default)]
struct Unsafe(Vec<(LineColumn, bool)>);

impl Unsafe {
    /// `kernels::rmsnorm_fwd(gpu, launch, arguments)`: names only, so that nothing else is done unsafely.
    fn launch(block: &syn::Block) -> bool {
        let [syn::Stmt::Expr(syn::Expr::Call(call), None)] = &block.stmts[..] else { return false };
        let syn::Expr::Path(function) = &*call.func else { return false };
        let modules = ["kernels", "fwd", "bwd", "keys", "queries", "portable", "sm90"];
        let named = function.path.segments.len() == 2;
        let launcher = named && modules.iter().any(|m| function.path.segments[0].ident == m);
        launcher && call.args.iter().all(|a| matches!(a, syn::Expr::Path(p) if p.path.get_ident().is_some()))
    }
}

impl<'a> Visit<'a> for Unsafe {
    fn visit_expr_unsafe(&mut self, e: &'a syn::ExprUnsafe) {
        self.0.push((e.span().start(), Unsafe::launch(&e.block)));
        visit::visit_expr_unsafe(self, e);
    }
    fn visit_item_impl(&mut self, i: &'a syn::ItemImpl) {
        self.0.extend(i.unsafety.map(|u| (u.span().start(), false)));
        visit::visit_item_impl(self, i);
    }
    fn visit_signature(&mut self, s: &'a syn::Signature) {
        self.0.extend(s.unsafety.map(|u| (u.span().start(), false)));
        visit::visit_signature(self, s);
    }
}

/// `unsafe` in `src/device`, and in an op for a launch alone: what makes that sound is the op's own contract, so there its
/// reason must stand. A `SAFETY:` line is directly above each block (or a `# Safety` section above a function).
#[test]
fn unsafe_stands_in_the_device_layer_and_at_launches_and_gives_its_reason() {
    let mut findings = Vec::new();
    for source in sources(&["src", "benches"]) {
        let mut found = Unsafe::default();
        found.visit_file(&source.syntax);
        let lines: Vec<&str> = source.text.lines().collect();
        for (at, launch) in found.0 {
            let above = lines[..at.line].iter().rev().take(12);
            let reasoned = above.take_while(|l| !l.trim().is_empty()).any(|l| {
                let l = l.trim();
                l.contains("SAFETY:") || l.contains("# Safety")
            });
            let place = format!("{}:{}", source.path, at.line);
            match source.module() {
                "device" => {}
                "ops" if launch => {}
                "ops" => findings.push(format!("{place}: `unsafe` around more than one call of a launcher")),
                _ => findings.push(format!("{place}: `unsafe` outside src/device and launches")),
            }
            if !reasoned {
                findings.push(format!("{place}: `unsafe` without a SAFETY: line"));
            }
        }
    }
    none(findings);
}

/// What the rule above takes for a launch.
#[test]
fn an_unsafe_block_of_an_op_holds_one_launch() {
    for (block, allowed) in [
        ("{ kernels::f(gpu, launch, arguments) }", true),
        ("{ bwd::f(gpu, launch, arguments) }", true),
        ("{ kernels::f(gpu, launch, unchecked(x)) }", false),
        ("{ kernels::f(gpu, launch, arguments); g() }", false),
        ("{ gpu.launch(kernel, launch, arguments) }", false),
        ("{ slice::f(gpu) }", false),
    ] {
        assert_eq!(Unsafe::launch(&syn::parse_str(block).unwrap()), allowed, "{block}");
    }
}

/// Collects every function: (name, line, lines).
struct Functions(Vec<(String, usize, usize)>);

impl Functions {
    fn keep(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let (from, to) = (signature.span().start().line, block.span().end().line);
        self.0.push((signature.ident.to_string(), from, to - from + 1));
    }
}

impl<'a> Visit<'a> for Functions {
    fn visit_item_fn(&mut self, f: &'a syn::ItemFn) {
        self.keep(&f.sig, &f.block);
        visit::visit_item_fn(self, f);
    }
    fn visit_impl_item_fn(&mut self, f: &'a syn::ImplItemFn) {
        self.keep(&f.sig, &f.block);
        visit::visit_impl_item_fn(self, f);
    }
}

#[test]
fn files_and_functions_stay_short_and_well_named() {
    let excused = |key: &str| LONGER.iter().any(|(k, _)| *k == key);
    let mut findings = Vec::new();
    for source in sources(&["src", "tests", "benches"]) {
        let (path, lines) = (&source.path, source.text.lines().count());
        if lines > FILE_LINES && !excused(path) {
            findings.push(format!(
                "{path}: {lines} lines, of at most {FILE_LINES}: split it where there are two things"
            ));
        }
        let mut functions = Functions(Vec::new());
        functions.visit_file(&source.syntax);
        for (name, line, lines) in functions.0 {
            if lines > FUNCTION_LINES && !excused(&format!("{path}::{name}")) {
                findings
                    .push(format!("{path}:{line}: `{name}` has {lines} lines, of at most {FUNCTION_LINES}"));
            }
            if NAMES_NOT_TAKEN.iter().any(|n| name.ends_with(n)) {
                findings.push(format!(
                    "{path}:{line}: `{name}`: a suffix must be a fact, such as _sm90 or _d128"
                ));
            }
        }
    }
    none(findings);
}

#[test]
fn every_reason_to_be_longer_is_still_needed() {
    let all = sources(&["src", "tests", "benches"]);
    let needed = |key: &str| {
        all.iter().any(|s| match key.split_once("::") {
            None => s.path == key && s.text.lines().count() > FILE_LINES,
            Some((path, name)) if s.path == path => {
                let mut functions = Functions(Vec::new());
                functions.visit_file(&s.syntax);
                functions.0.iter().any(|(f, _, lines)| f == name && *lines > FUNCTION_LINES)
            }
            Some(_) => false,
        })
    };
    none(LONGER.iter().filter(|(k, _)| !needed(k)).map(|(k, _)| format!("{k}: no longer long")).collect());
}

/// Every KERNEL is launched by an op of its file's noun (which a case names, as below): what comes before `_fwd`, `_bwd`, `_sm90`.
#[test]
fn every_kernel_is_launched_by_its_op() {
    let ops = sources(&["src/ops"]);
    let mut findings = Vec::new();
    for file in llm2vec::launches::FILES {
        let noun =
            ["_fwd", "_bwd", "_sm90"].iter().filter_map(|end| Some(file.stem.split_once(end)?.0)).min();
        let noun = noun.unwrap_or(file.stem);
        let op: Vec<&Source> = ops
            .iter()
            .filter(|s| {
                s.path == format!("src/ops/{noun}.rs") || s.path.starts_with(&format!("src/ops/{noun}/"))
            })
            .collect();
        for kernel in file.kernels {
            // Of KERNELS that differ in a number, there is one launcher for all: the name without `_d128` or `_128`.
            let short = kernel.trim_end_matches(|c: char| c.is_ascii_digit());
            let family = short.strip_suffix("_d").or(short.strip_suffix('_'));
            let launched = |name: &str| op.iter().any(|s| s.text.contains(&format!("::{name}(")));
            if !launched(kernel) && !family.is_some_and(launched) {
                findings
                    .push(format!("kernels/{}.cu: src/ops/{noun}.rs does not launch {kernel}", file.stem));
            }
        }
    }
    none(findings);
}

/// An op is `noun_fwd`, `noun_bwd` or `noun_step` in the file of its noun, and the case table names it.
#[test]
fn every_op_has_its_file_and_its_case() {
    let cases = llm2vec::bench::cases::all().into_iter().chain(llm2vec::bench::cases::device_only());
    let named: BTreeSet<&str> = cases.map(|c| c.op).collect();
    let (mut findings, mut ops) = (Vec::new(), BTreeSet::new());
    for source in sources(&["src/ops"]) {
        let stem = Path::new(&source.path).file_stem().unwrap().to_string_lossy().into_owned();
        for item in &source.syntax.items {
            let syn::Item::Fn(f) = item else { continue };
            let takes_device = f.sig.inputs.iter().any(|a| match a {
                syn::FnArg::Typed(a) => matches!(&*a.pat, syn::Pat::Ident(p) if p.ident == "device"),
                syn::FnArg::Receiver(_) => false,
            });
            if !matches!(f.vis, syn::Visibility::Public(_)) || !takes_device {
                continue;
            }
            let name = f.sig.ident.to_string();
            if !name.starts_with(stem.as_str()) && stem != "mod" {
                findings.push(format!("{}: op `{name}` is not named like its file", source.path));
            }
            if !named.contains(name.as_str()) {
                findings.push(format!("{}: no case of src/bench runs `{name}`", source.path));
            }
            ops.insert(name);
        }
    }
    findings.extend(named.iter().filter(|n| !ops.contains(**n)).map(|n| format!("case `{n}` names no op")));
    none(findings);
}
