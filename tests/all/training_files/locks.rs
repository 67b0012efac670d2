//! One run at a time in a folder.

use super::refused;
use llm2vec::train::lock::{FILE, Lock};
use std::fs::{self, File};
use std::sync::atomic::{AtomicUsize, Ordering};

#[test]
fn a_folder_is_locked_once_and_its_lock_leaves_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let file = tmp.path().join(FILE);
    let lock = Lock::new(tmp.path()).unwrap();
    let holder = format!("trained into by process {} on ", std::process::id());
    refused(Lock::new(tmp.path()), &[&holder, "started ", "another folder"]);
    assert!(lock.warning.is_none());
    drop(lock);
    assert!(!file.exists());
    // What a killed process leaves is no lock.
    fs::write(&file, r#"{"pid": 1, "host": "here", "started": 5}"#).unwrap();
    drop(Lock::new(tmp.path()).unwrap());
    assert!(!file.exists());
    // A holder that has not said who it is.
    let other = File::create(&file).unwrap();
    other.lock().unwrap();
    refused(Lock::new(tmp.path()), &["by another process"]);
}

/// Whoever takes it while its holder removes it has it alone.
#[test]
fn a_lock_that_is_removed_has_one_holder_at_a_time() {
    let tmp = tempfile::tempdir().unwrap();
    let (inside, taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                while taken.load(Ordering::Relaxed) < 4000 {
                    let Ok(lock) = Lock::new(tmp.path()) else { continue };
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    taken.fetch_add(1, Ordering::Relaxed);
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(lock);
                }
            });
        }
    });
    assert!(!tmp.path().join(FILE).exists());
}
