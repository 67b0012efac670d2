//! The kernel before one that may overlap it: what it has touched is not over until `griddepcontrol.wait`.

use crate::isa::module::Module;
use std::sync::Arc;

/// The number of its agent, where there is one: it is the first of a launch. All that it did is done at time 1.
pub const PREDECESSOR: u32 = 0;

/// A kernel that may still run.
#[derive(Clone, Debug)]
pub struct Predecessor {
    /// Its name.
    pub kernel: String,
    /// Its program.
    pub module: Arc<Module>,
}
