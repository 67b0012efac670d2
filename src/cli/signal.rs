//! Signals that end a run: no unfinished file is left, and the end is one line and the exit status 128 + number.
//!
//! Ctrl-C, SIGTERM and SIGHUP end a run at once, but for one that can stop where it goes on later: there the first asks,
//! and the second ends. A thread does it, because a handler may not: it waits at a socket that the handlers write to.

use crate::cli::say;
use crate::error::{Error, Result};
use crate::format::atomic;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Once};

/// Those that end a run. Which does not matter where there are no others.
#[cfg(unix)]
const SIGNALS: [i32; 3] = [SIGINT, SIGTERM, signal_hook::consts::SIGHUP];
#[cfg(not(unix))]
const SIGNALS: [i32; 2] = [SIGINT, SIGTERM];

/// The newest signal's number.
static NEWEST: LazyLock<Arc<AtomicUsize>> = LazyLock::new(Arc::default);
/// Whether nothing is said of a signal.
static MUTE: AtomicBool = AtomicBool::new(false);
/// Whether the first signal only asks.
static ASKS: AtomicBool = AtomicBool::new(false);

fn failed(what: impl std::fmt::Display, e: std::io::Error) -> Error {
    Error::device(format!("{what} cannot be watched: {e}"))
}

/// Signals that this process heeds: those that it was started to ignore, as by `nohup`, stay ignored.
fn heeded() -> impl Iterator<Item = i32> {
    SIGNALS.into_iter().filter(|signal| !crate::device::system::is_ignored(*signal))
}

/// The number of the signal that came first, 0 before it comes. To be called once, before the run.
pub fn stop_flag() -> Result<Arc<AtomicUsize>> {
    watch()?;
    let stop = Arc::new(AtomicUsize::new(0));
    for signal in heeded() {
        let registered = flag::register_usize(signal, stop.clone(), signal as usize);
        registered.map_err(|e| failed(format_args!("signal {signal}"), e))?;
    }
    ASKS.store(true, Ordering::SeqCst);
    Ok(stop)
}

/// Has signals, and faults of the machine, end the process in good order from now on; more than one call is one.
pub fn watch() -> Result<()> {
    static ONCE: Once = Once::new();
    let mut done = Ok(());
    ONCE.call_once(|| done = start());
    done
}

#[cfg(unix)]
fn start() -> Result<()> {
    use std::os::unix::net::UnixStream;
    let (woken, waking) = UnixStream::pair().map_err(|e| failed("signals", e))?;
    for signal in heeded() {
        // In this order: whoever is woken looks at the number.
        flag::register_usize(signal, NEWEST.clone(), signal as usize)
            .and_then(|_| low_level::pipe::register(signal, waking.try_clone()?))
            .map_err(|e| failed(format_args!("signal {signal}"), e))?;
    }
    crate::device::system::watch_faults(waking.into());
    let thread = std::thread::Builder::new().name("signals".into()).spawn(move || attend(woken));
    thread.map(drop).map_err(|e| {
        Error::device(format!(
            "cannot start a thread: {e}; raise the limit of processes (ulimit -u) or of memory"
        ))
    })
}

#[cfg(not(unix))]
fn start() -> Result<()> {
    Ok(()) // the system's own way to end a process
}

/// Waits for signals and faults, one byte each.
#[cfg(unix)]
fn attend(mut woken: std::os::unix::net::UnixStream) {
    use std::io::Read;
    let mut asked = false;
    while woken.read_exact(&mut [0]).is_ok() {
        let fault = crate::device::system::has_fault();
        if !fault && !asked && ASKS.load(Ordering::SeqCst) {
            asked = true;
            continue;
        }
        atomic::remove_unfinished();
        if fault {
            low_level::exit(1); // it has said so itself
        }
        let what = "what was not finished is removed".into();
        let stopped = Error::Stopped { signal: NEWEST.load(Ordering::SeqCst) as u8, what };
        if !MUTE.load(Ordering::SeqCst) {
            say(format_args!("error: {stopped}"));
        }
        low_level::exit(stopped.exit_code().into());
    }
}

/// From now on a signal ends the process without a word.
pub fn mute() {
    MUTE.store(true, Ordering::SeqCst);
}

/// Returns where no signal is ending the process; one that does has the last word.
pub fn settle() {
    atomic::wait_for_removal();
}
