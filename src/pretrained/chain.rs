//! What an adapter was trained on top of. Vectors of an adapter without the layers below it are wrong and look right,
//! so each adapter records them, and whoever stacks adapters checks.

use std::path::Path;

use super::names::{Located, stem};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Message, Result, Setting, message};
use crate::format::peft::Adapter;

/// One adapter of a stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its folder's name, for people.
    pub name: String,
    /// SHA-256 of what it does to the weights, whatever the form of its file.
    pub sha256: String,
}

impl Link {
    /// The link that stands for `adapter`, which was found as `at`.
    pub fn new(at: &Located, adapter: &Adapter) -> Link {
        let name = if at.hub { at.name.clone() } else { name(&adapter.dir) };
        Link { name, sha256: Link::hash(adapter) }
    }

    /// SHA-256 of what `adapter` does to the weights.
    pub fn hash(adapter: &Adapter) -> String {
        let mut hash = Sha256::new();
        let mut pairs: Vec<_> = adapter.pairs.iter().collect();
        pairs.sort_by_key(|p| (p.layer, &p.module));
        for p in pairs {
            hash.update(format!("{} {} {} {} {}\n", p.layer, p.module, p.rank, p.inputs, p.outputs));
            hash.update(p.scale.to_le_bytes());
            for chunk in p.a.chunks(4096).chain(p.b.chunks(4096)) {
                hash.update(chunk.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
            }
        }
        hex(&hash.finalize())
    }
}

/// The folder's own name, and the run's before it where the folder is one of its checkpoints.
fn name(dir: &Path) -> String {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
    let part = |p: Option<&Path>| p?.file_name().map(|n| n.to_string_lossy().into_owned());
    let own = part(Some(&dir)).unwrap_or_default();
    match part(dir.parent()) {
        Some(run) if own.starts_with("checkpoint-") => format!("{run}/{own}"),
        _ => own,
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// What the published names say: the adapter that `…-mntp-unsup-simcse` and `…-mntp-supervised` were trained on top of,
/// as a name like theirs. Their files do not record it, and name the bare model as their base.
pub fn implied(name: &str) -> Option<&str> {
    let name = name.trim_end_matches('/');
    let stage = ["-unsup-simcse", "-supervised"].iter().find_map(|stage| name.strip_suffix(stage));
    stage.filter(|below| below.ends_with("-mntp"))
}

/// Refuses a published adapter that is put on the bare model; in a folder of the same name, which may be anybody's,
/// gives a warning instead.
pub fn check_implied(at: &Located, below: &[Link]) -> Result<Option<String>> {
    let Some(mntp) = implied(&at.name).filter(|_| below.is_empty()) else { return Ok(None) };
    let what = format!("was trained on top of {} by its name, here it is put on the bare model", stem(mntp));
    match at.hub {
        true => Err(Error::file(
            &at.name,
            message![what, "; put ", Setting::Adapters, format!(" {mntp} before it")],
        )),
        false => Ok(Some(format!("adapter {} {what}", at.name))),
    }
}

/// Refuses the adapter in `dir`, which records that it was trained on top of `recorded`, on top of anything else.
pub fn check(dir: &Path, recorded: &[Link], below: &[Link]) -> Result<()> {
    if recorded.iter().map(|l| &l.sha256).eq(below.iter().map(|l| &l.sha256)) {
        return Ok(());
    }
    let list = |links: &[Link]| match links {
        [] => "the bare model".to_string(),
        _ => links.iter().map(|l| format!("{} ({:.8})", l.name, l.sha256)).collect::<Vec<_>>().join(" + "),
    };
    let missing: Vec<_> = recorded.iter().filter(|r| below.iter().all(|b| b.sha256 != r.sha256)).collect();
    let hint = match missing.as_slice() {
        [] => message!["give ", Setting::Adapters, " in the order of the training, and no other"],
        _ => {
            let mut hint = Message::from("put");
            for link in missing {
                hint.push(message![" ", Setting::Adapters, format!(" {}", link.name)]);
            }
            message![hint, " before it"]
        }
    };
    let what = format!("was trained on top of {}, here it is put on {}; ", list(recorded), list(below));
    Err(Error::file(dir, message![what, hint]))
}
