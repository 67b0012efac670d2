//! What the documentation of the library shows: its root, and nothing behind it.

use super::none;
use std::path::Path;

/// The root's items are what a user needs; the modules are open for tests and benches, and not shown.
#[test]
fn no_module_is_shown_and_the_guide_links_to_none() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs");
    let text = std::fs::read_to_string(root).unwrap();
    let syntax = syn::parse_file(&text).unwrap();
    let (mut findings, mut modules) = (Vec::new(), Vec::new());
    for item in &syntax.items {
        let syn::Item::Mod(module) = item else { continue };
        modules.push(module.ident.to_string());
        let is_hidden = |a: &syn::Attribute| {
            a.path().is_ident("doc") && a.meta.require_list().is_ok_and(|l| l.tokens.to_string() == "hidden")
        };
        let open = matches!(module.vis, syn::Visibility::Public(_));
        if open && !module.attrs.iter().any(is_hidden) {
            findings.push(format!("src/lib.rs: module `{}` is shown", module.ident));
        }
    }
    assert!(modules.len() > 10, "the modules were not found");
    for (number, line) in text.lines().enumerate().filter(|(_, line)| line.starts_with("//!")) {
        for module in modules.iter().filter(|m| line.contains(&format!("[`{m}"))) {
            findings.push(format!("src/lib.rs:{}: a link into module `{module}`", number + 1));
        }
    }
    none(findings);
}
