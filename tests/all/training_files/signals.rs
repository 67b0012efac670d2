//! The first signal asks, the second ends.
#![cfg(unix)]

use super::{child, child_folder};
use llm2vec::cli::signal::stop_flag;
use llm2vec::error::Error;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::raise;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Sends itself what its folder's name says; exits with 7 where the second signal did not end it.
#[test]
#[ignore = "run by the test below"]
fn signalled() {
    let Some(folder) = child_folder() else { return };
    let stop = stop_flag().unwrap();
    let sent = folder.file_name().unwrap().to_str().unwrap();
    for (n, signal) in sent.split('-').enumerate() {
        if (stop.load(Ordering::Relaxed) == 0) != (n == 0) {
            std::process::exit(8);
        }
        raise(if signal == "int" { SIGINT } else { SIGTERM }).unwrap();
        if n > 0 {
            std::thread::sleep(Duration::from_secs(60)); // a thread ends the process
            std::process::exit(7);
        }
    }
    // What `main` does of the error that a stopped run ends with.
    let signal = stop.load(Ordering::Relaxed) as u8;
    std::process::exit(Error::Stopped { signal, what: String::new().into() }.exit_code().into());
}

#[test]
fn the_first_signal_asks_and_the_second_ends() {
    for (sent, status) in
        [("int", 130), ("term", 143), ("int-int", 130), ("term-int", 130), ("int-term", 143)]
    {
        let ended = child("training_files::signals::signalled", sent.as_ref()).wait().unwrap();
        assert_eq!((ended.code(), ended.signal()), (Some(status), None), "{sent}");
    }
}

#[test]
fn a_stopped_run_says_so_in_one_line() {
    let stopped = |signal| Error::Stopped { signal, what: "saved; go on with --resume".into() };
    assert_eq!(stopped(2).to_string(), "stopped by SIGINT: saved; go on with --resume");
    assert_eq!(stopped(15).to_string(), "stopped by SIGTERM: saved; go on with --resume");
    assert_eq!([stopped(2).exit_code(), stopped(15).exit_code()], [130, 143]);
}
