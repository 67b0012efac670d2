//! Cases shared by tests and benches: what is timed is what is checked; and how they are timed, compared and written down.

pub mod cases;
pub mod check;
pub mod measure;
pub mod record;
pub mod rival;
mod roof;
pub mod subject;
pub mod table;
pub mod tune;
pub mod whole;
