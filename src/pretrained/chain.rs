//! What an adapter was trained on top of. Vectors of an adapter without the layers below it are wrong and look right,
//! so each adapter records them, and whoever stacks adapters checks.

use std::path::Path;

use super::names::{Located, stem};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Message, Result, Setting, message};
use crate::format::hf::read_json;
use crate::format::peft::Adapter;

/// One adapter of a stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its folder's name, for people.
    pub name: String,
    /// SHA-256 of what it does to the weights, whatever the form of its file.
    pub sha256: String,
    /// The stage that trained it (`mntp`, `simcse`, `supervised`), where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
}

impl Link {
    /// The link that stands for `adapter`, which was found as `at`.
    pub fn new(at: &Located, adapter: &Adapter) -> Link {
        let name = if at.hub { at.name.clone() } else { name(&adapter.dir) };
        Link { name, sha256: Link::hash(adapter), stage: stage(at) }
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

/// The configuration of the run that made an adapter, beside it or, of a checkpoint, in the folder of the run.
pub const RUN_FILE: &str = "train_config.json";

/// The first adapter of a stack that MNTP trained: with it, states stand for the token after them.
pub fn mntp(chain: &[Link]) -> Option<&Link> {
    chain.iter().find(|link| link.stage.as_deref() == Some(MNTP))
}

const MNTP: &str = "mntp";

/// The stage of the run that made the adapter: by that run's configuration beside it or, of a published one, which has
/// none, by the name of its repository. What anybody calls a folder of theirs says nothing.
fn stage(at: &Located) -> Option<String> {
    let dir = at.dir.canonicalize().unwrap_or_else(|_| at.dir.clone());
    let run = dir.parent().filter(|_| name(&dir).contains("/checkpoint-"));
    let places = [Some(dir.as_path()), run].into_iter().flatten().map(|dir| dir.join(RUN_FILE));
    if let Some(config) = places.into_iter().find_map(|path| read_json(&path).ok()) {
        return config.get("stage")?.as_str().map(String::from);
    }
    (at.hub && stem(&at.name).ends_with("-mntp")).then(|| MNTP.into())
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
