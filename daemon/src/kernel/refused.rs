//! Why something of BPF does not work, as a sentence.

use libbpf_rs::{ErrorKind, PrintLevel, set_print};
use std::cell::RefCell;
use std::fmt;
use std::sync::Once;

/// Bytes of libbpf's messages that are kept to explain a failure.
const LOG_TAIL: usize = 8 << 10;

/// Why a probe cannot run: one sentence for humans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// This kernel lacks something, or the process may not use it: trying again will not help.
    NotHere(String),
    /// Something went wrong.
    Failed {
        /// What was being done: `load packetloss`.
        doing: String,
        /// The cause.
        cause: String,
    },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::NotHere(sentence) => f.write_str(sentence),
            Refused::Failed { doing, cause } => write!(f, "cannot {doing}: {cause}"),
        }
    }
}

impl std::error::Error for Refused {}

thread_local! {
    /// The last messages of libbpf on this thread; it prints from the call that fails.
    static LOG: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Sends libbpf's messages to the log instead of standard error.
pub(super) fn quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        set_print(Some((PrintLevel::Info, |_, message| {
            tracing::debug!(target: "libbpf", "{}", message.trim_end());
            // Called from C, so it must not panic: neither at the end of a thread nor when nested.
            let _ = LOG.try_with(|log| {
                let Ok(mut log) = log.try_borrow_mut() else { return };
                log.push_str(&message);
                if log.len() > LOG_TAIL {
                    let cut = (log.len() - LOG_TAIL..=log.len()).find(|at| log.is_char_boundary(*at));
                    log.drain(..cut.unwrap_or(0));
                }
            });
        })));
    });
}

/// Turns an error of libbpf into a sentence.
pub(super) fn refused(doing: &str, error: &libbpf_rs::Error) -> Refused {
    let log = LOG.take();
    if error.kind() == ErrorKind::PermissionDenied {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        let missing = missing_capabilities(&status);
        if !missing.is_empty() {
            return Refused::NotHere(format!(
                "BPF needs CAP_BPF and CAP_PERFMON (or CAP_SYS_ADMIN), and this process lacks {}",
                missing.join(" and ")
            ));
        }
    }
    let cause = match verdict(&log) {
        Some(line) => format!("{error}: {line}"),
        None => error.to_string(),
    };
    Refused::Failed { doing: doing.to_owned(), cause }
}

/// The same error in the standard library's terms.
pub fn io_error(error: libbpf_rs::Error) -> std::io::Error {
    std::io::Error::other(error)
}

/// Last line of the verifier's log that is about the program, if there is one.
fn verdict(log: &str) -> Option<&str> {
    let (log, _) = log.rsplit_once("-- END PROG LOAD LOG --")?;
    let skip = |line: &&str| !line.is_empty() && !line.starts_with("processed ") && !line.starts_with("-- ");
    log.lines().map(str::trim).rfind(skip)
}

/// Capabilities that loading needs and `/proc/.../status` does not list.
fn missing_capabilities(status: &str) -> Vec<&'static str> {
    const SYS_ADMIN: u64 = 1 << 21;
    const WANTED: [(u64, &str); 2] = [(1 << 39, "CAP_BPF"), (1 << 38, "CAP_PERFMON")];
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(effective) = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()) else {
        return Vec::new();
    };
    if effective & SYS_ADMIN != 0 {
        return Vec::new();
    }
    WANTED.iter().filter(|(bit, _)| effective & bit == 0).map(|(_, name)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifier_has_the_last_word() {
        let log = "libbpf: prog 'on_x': BPF program load failed: -EACCES\n-- BEGIN PROG LOAD LOG --\n0: (79) r1 = 1\n\
                   R2 pointer arithmetic prohibited\nprocessed 6 insns (limit 1000000)\n-- END PROG LOAD LOG --\n\
                   libbpf: failed to load object 'x'\n";
        assert_eq!(verdict(log), Some("R2 pointer arithmetic prohibited"));
        assert_eq!(verdict("libbpf: no such file\n"), None);
    }

    #[test]
    fn missing_capabilities_are_found() {
        let status = |hex: &str| format!("Name:\tx\nCapEff:\t{hex}\n");
        assert_eq!(missing_capabilities(&status("0000000000000000")), ["CAP_BPF", "CAP_PERFMON"]);
        assert_eq!(missing_capabilities(&status("0000008000000000")), ["CAP_PERFMON"]);
        assert!(missing_capabilities(&status("000000c000000000")).is_empty());
        assert!(missing_capabilities(&status("0000000000200000")).is_empty());
        assert!(missing_capabilities("").is_empty());
    }

    #[test]
    fn a_refusal_is_a_sentence() {
        let failed = Refused::Failed { doing: "load x".to_owned(), cause: "no luck".to_owned() };
        assert_eq!(failed.to_string(), "cannot load x: no luck");
    }
}
