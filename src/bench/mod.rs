//! Cases shared by tests and benches: what is timed is what is checked.

pub mod cases;
