//! How far the weights of a model are read, for whoever shows it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Is told how many bytes of how many were read, by any thread; at the end, however it came, that all were.
pub type Show = fn(u64, u64);

static SHOW: OnceLock<Show> = OnceLock::new();

/// Has all loading of this process shown; the first to ask is heard.
pub fn show(show: Show) {
    let _ = SHOW.set(show);
}

/// The bytes of one model's tensors.
#[derive(Debug)]
pub struct Loading {
    total: u64,
    read: AtomicU64,
}

impl Loading {
    /// Of so many.
    pub fn new(total: u64) -> Loading {
        Loading { total, read: AtomicU64::new(0) }
    }

    /// So many more were read; or nothing more will be.
    pub fn taken(&self, bytes: Option<usize>) {
        let read = match bytes {
            // A head is read twice where it is trained.
            Some(bytes) => {
                let read = self.read.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
                read.min(self.total.saturating_sub(1))
            }
            None => {
                self.read.store(0, Ordering::Relaxed);
                self.total
            }
        };
        if let Some(show) = SHOW.get() {
            show(read, self.total);
        }
    }
}
