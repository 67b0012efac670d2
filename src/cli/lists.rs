//! Flags with several values: repeated, or with commas between, which a path may have as well.

use crate::pretrained::names;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// What one flag, or its variable, gives: several values by commas, unless the whole is a path that is there, or would be in
/// a folder that is.
#[derive(Clone, Debug)]
pub struct Listed(Vec<String>);

impl FromStr for Listed {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Listed, Infallible> {
        let folder = Path::new(text).parent().filter(|folder| folder.to_string_lossy().contains(','));
        Ok(Listed(match folder.is_some_and(Path::is_dir) {
            true => vec![text.into()],
            false => names::split(&[text.into()]),
        }))
    }
}

/// All values of a flag.
pub fn strings(list: &[Listed]) -> Vec<String> {
    list.iter().flat_map(|listed| listed.0.iter().cloned()).collect()
}

/// All paths of a flag.
pub fn paths(list: &[Listed]) -> Vec<PathBuf> {
    strings(list).into_iter().map(PathBuf::from).collect()
}
