//! Flags are the command's: below it a setting is named as a setting.

use super::{none, sources};
use proc_macro2::{LineColumn, TokenStream, TokenTree};
use syn::visit::{self, Visit};

/// Flags of other programs: of PyTorch's script below `--against`, and of zstd.
const OF_OTHERS: [&str; 3] = ["--serve", "--long=31", "--features parquet"];

/// Every string that the code holds, those in macros too; documentation and tests are none of it.
#[derive(Default)]
struct Strings(Vec<(LineColumn, String)>);

impl Strings {
    fn tokens(&mut self, tokens: TokenStream) {
        for token in tokens {
            match token {
                TokenTree::Group(group) => self.tokens(group.stream()),
                TokenTree::Literal(literal) => {
                    self.0.push((literal.span().start(), literal.to_string()));
                }
                TokenTree::Ident(_) | TokenTree::Punct(_) => {}
            }
        }
    }
}

impl<'a> Visit<'a> for Strings {
    fn visit_lit(&mut self, literal: &'a syn::Lit) {
        self.0.push((literal.span().start(), quoted(literal)));
    }
    fn visit_macro(&mut self, call: &'a syn::Macro) {
        // A table's rows have attributes too, and they are the flags themselves.
        if !call.path.is_ident("settings") {
            self.tokens(call.tokens.clone());
        }
    }
    fn visit_attribute(&mut self, _: &'a syn::Attribute) {}
    fn visit_item_mod(&mut self, item: &'a syn::ItemMod) {
        if item.ident != "tests" {
            visit::visit_item_mod(self, item);
        }
    }
}

fn quoted(literal: &syn::Lit) -> String {
    match literal {
        syn::Lit::Str(text) => text.value(),
        syn::Lit::ByteStr(text) => String::from_utf8_lossy(&text.value()).into_owned(),
        _ => String::new(),
    }
}

/// The first thing in a text that looks like a flag: `--word`, at the start of a word.
fn flag(text: &str) -> Option<&str> {
    let starts = text.match_indices("--").map(|(at, _)| at);
    let is_flag = |&at: &usize| {
        let before = text[..at].chars().next_back();
        let after = text[at + 2..].chars().next();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '-')
            && after.is_some_and(|c| c.is_ascii_lowercase())
            && !OF_OTHERS.iter().any(|other| text[at..].starts_with(other))
    };
    starts.filter(is_flag).map(|at| &text[at..]).next()
}

#[test]
fn only_the_command_speaks_of_flags() {
    let mut findings = Vec::new();
    for source in sources(&["src"]) {
        if ["src/cli/", "src/emulator/", "src/kernels/build/"].iter().any(|f| source.path.starts_with(f)) {
            continue;
        }
        let mut strings = Strings::default();
        strings.visit_file(&source.syntax);
        for (at, text) in strings.0 {
            if let Some(flag) = flag(&text) {
                findings.push(format!("{}:{}: a flag in a string: {flag}", source.path, at.line));
            }
        }
    }
    none(findings);
}

/// What the rule above takes for a flag.
#[test]
fn a_flag_is_a_word_after_two_dashes() {
    for (code, found) in [
        ("fn f() { g(\"try --tokens\") }", true),
        ("fn f() { format!(\"{}; --device cpu\", g(1)) }", true),
        ("fn f() { message![\"use \", (\"(--strict\")] }", true),
        ("fn f() { g(b\"try --threads\") }", true),
        ("/// `--tokens`\nfn f() { g(\"models--org--name, a -- b, ---\") }", false),
        ("fn f() { g(\"zstd -d --long=31\") }", false),
        ("mod tests { fn f() { g(\"--tokens\") } }", false),
    ] {
        let mut strings = Strings::default();
        strings.visit_file(&syn::parse_file(code).unwrap());
        assert_eq!(strings.0.iter().any(|(_, text)| flag(text).is_some()), found, "{code}");
    }
}
