//! Kernel symbols. The whole table (millions of bytes) is never kept: what is asked for is looked up in one pass over
//! the file and remembered.

use rustc_hash::FxHashMap;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Addresses remembered; more than the call sites a kernel has for one kind of event.
const MAX_KNOWN: usize = 4096;
/// Passes over the file: at most this many in a row, then one per [`PAUSE`].
const BURST: u32 = 16;
const PAUSE: Duration = Duration::from_secs(1);
/// Further behind a symbol an address belongs to something that has no name.
const MAX_OFFSET: u64 = 1 << 20;

/// The table of kernel symbols.
#[derive(Debug)]
pub struct Symbols {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    known: FxHashMap<u64, Option<Place>>,
    hidden: bool,
    budget: u32,
    refilled: Instant,
}

/// A place in the kernel's code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Symbol, as the kernel spells it.
    pub symbol: Arc<str>,
    /// Bytes behind its start.
    pub offset: u64,
}

impl Place {
    /// The function's name in the source: without what the compiler appended (`.isra.0`, `.constprop.0`, `.cold`).
    pub fn function(&self) -> &str {
        bare(&self.symbol)
    }
}

fn bare(symbol: &str) -> &str {
    match symbol.find('.') {
        Some(0) | None => symbol,
        Some(dot) => &symbol[..dot],
    }
}

impl Symbols {
    /// Symbols of the kernel whose procfs is at `proc`.
    pub fn new(proc: impl Into<PathBuf>) -> Symbols {
        let state =
            State { known: FxHashMap::default(), hidden: false, budget: BURST, refilled: Instant::now() };
        Symbols { path: proc.into().join("kallsyms"), state: Mutex::new(state) }
    }

    /// Names of addresses as `symbol+0xoffset`, or the bare address where there is none.
    pub fn names(&self, addresses: &[u64]) -> Vec<String> {
        let name = |(address, place): (&u64, &Option<Place>)| match place {
            Some(place) => format!("{}+{:#x}", place.symbol, place.offset),
            None => format!("{address:#x}"),
        };
        addresses.iter().zip(&self.look(addresses, false)).map(name).collect()
    }

    /// Name of one address.
    pub fn name(&self, address: u64) -> String {
        self.names(&[address]).pop().unwrap_or_default()
    }

    /// Places of addresses, however often it is called: the same address always has the same place. All that are new
    /// cost one pass over the file together.
    pub fn places(&self, addresses: &[u64]) -> Vec<Option<Place>> {
        self.look(addresses, true)
    }

    fn look(&self, addresses: &[u64], always: bool) -> Vec<Option<Place>> {
        let missing = self.missing(addresses, always);
        // The lock is free meanwhile: reading takes long on a loaded node, and others may have what they want already.
        let found = if missing.is_empty() { None } else { Some(self.read(&missing)) };
        let mut state = self.lock();
        match found {
            Some(Ok((places, hidden))) => {
                state.hidden = hidden;
                state.known.extend(missing.into_iter().zip(places));
            }
            Some(Err(error)) => {
                tracing::debug!(%error, path = %self.path.display(), "cannot read kernel symbols");
            }
            None => {}
        }
        addresses.iter().map(|address| state.known.get(address).cloned().flatten()).collect()
    }

    /// Which of the addresses must be read, sorted; none if it is not time to read again.
    fn missing(&self, addresses: &[u64], always: bool) -> Vec<u64> {
        let mut state = self.lock();
        let unknown = |address: &u64| !state.known.contains_key(address);
        let mut missing: Vec<u64> = addresses.iter().copied().filter(unknown).collect();
        if missing.is_empty() || !(state.may_read() || always) {
            return Vec::new();
        }
        if state.known.len() + missing.len() > MAX_KNOWN {
            state.known.clear();
            missing = addresses.to_vec();
        }
        missing.sort_unstable();
        missing.dedup();
        missing.truncate(MAX_KNOWN);
        missing
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Code ranges of functions, also of the copies that the compiler made of them. Not remembered.
    pub fn ranges(&self, functions: &[&str]) -> io::Result<Vec<Range<u64>>> {
        let mut found: Vec<Range<u64>> = Vec::new();
        let mut hidden = true;
        self.each(|address, name| {
            hidden &= address == 0;
            // The file is sorted but for modules: what follows a symbol ends it.
            if let Some(last) = found.last_mut()
                && last.end == u64::MAX
                && address > last.start
            {
                last.end = address;
            }
            if address != 0 && functions.contains(&bare(name)) {
                found.push(address..u64::MAX);
            }
        })?;
        for range in &mut found {
            range.end = range.end.min(range.start.saturating_add(MAX_OFFSET));
        }
        self.lock().hidden = hidden;
        Ok(found)
    }

    /// Why addresses have no names, if the kernel hides them.
    pub fn hidden(&self) -> Option<&'static str> {
        let hidden = self.lock().hidden;
        hidden.then_some(
            "the kernel hides its symbols (kernel.kptr_restrict, or CAP_SYSLOG is missing): stacks show addresses",
        )
    }

    /// For each of the sorted addresses the symbol closest before it; and whether the kernel hides addresses.
    fn read(&self, addresses: &[u64]) -> io::Result<(Vec<Option<Place>>, bool)> {
        let mut best: Vec<Option<(u64, Arc<str>)>> = vec![None; addresses.len()];
        let mut hidden = true;
        self.each(|start, name| {
            hidden &= start == 0;
            // The first address not before the symbol is the only one that has to be told: the others take over
            // below what is closer than what they were told themselves.
            let at = addresses.partition_point(|address| *address < start);
            if let Some(slot) = best.get_mut(at)
                && slot.as_ref().is_none_or(|(known, _)| *known < start)
            {
                *slot = Some((start, name.into()));
            }
        })?;
        let mut closest: Option<(u64, Arc<str>)> = None;
        let places = addresses.iter().zip(best).map(|(address, found)| {
            if let Some((start, name)) = found
                && closest.as_ref().is_none_or(|(known, _)| *known < start)
            {
                closest = Some((start, name));
            }
            let (start, symbol) = closest.clone()?;
            let offset = address - start;
            (start != 0 && offset < MAX_OFFSET).then_some(Place { symbol, offset })
        });
        Ok((places.collect(), hidden))
    }

    /// Calls `f` for each code symbol, with one fixed buffer.
    fn each(&self, mut f: impl FnMut(u64, &str)) -> io::Result<()> {
        let mut file = File::open(&self.path)?;
        let mut buffer = vec![0; 64 << 10];
        let mut filled = 0;
        loop {
            let read = match file.read(&mut buffer[filled..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            filled += read;
            let whole = match buffer[..filled].iter().rposition(|byte| *byte == b'\n') {
                Some(end) => end + 1,
                // The end, or a line that fills the buffer, which is none.
                None => filled,
            };
            for line in buffer[..whole].split(|byte| *byte == b'\n') {
                if let Some((address, name)) = symbol(line) {
                    f(address, name);
                }
            }
            if read == 0 {
                return Ok(());
            }
            buffer.copy_within(whole..filled, 0);
            filled -= whole;
        }
    }
}

/// `ffffffff81000000 T _stext`, or with `\t[module]` behind; only code.
fn symbol(line: &[u8]) -> Option<(u64, &str)> {
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split_ascii_whitespace();
    let address = u64::from_str_radix(words.next()?, 16).ok()?;
    let code = matches!(words.next()?, "t" | "T" | "w" | "W");
    code.then_some((address, words.next()?))
}

impl State {
    fn may_read(&mut self) -> bool {
        let pauses = self.refilled.elapsed().as_millis() / PAUSE.as_millis();
        if pauses > 0 {
            self.refilled = Instant::now();
            self.budget = self.budget.saturating_add(u32::try_from(pauses).unwrap_or(BURST)).min(BURST);
        }
        let may = self.budget > 0;
        self.budget = self.budget.saturating_sub(1);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Symbols of a file that goes when they do.
    struct Fixture(Symbols);

    impl std::ops::Deref for Fixture {
        type Target = Symbols;
        fn deref(&self) -> &Symbols {
            &self.0
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(self.0.path.parent().unwrap());
        }
    }

    fn fixture(name: &str, text: &str) -> Fixture {
        let dir = std::env::temp_dir().join(format!("netskoop-symbols-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("kallsyms"), text).unwrap();
        Fixture(Symbols::new(dir))
    }

    const TEXT: &str = "0000000000000000 A fixed_percpu_data\n\
        ffffffff81000000 T _stext\n\
        ffffffff81000100 T tcp_v4_rcv\n\
        ffffffff81000200 t tcp_v4_do_rcv.isra.0\n\
        ffffffff81000300 D not_code\n\
        broken\n\
        ffffffffc0000000 t in_module\t[veth]\n";

    #[test]
    fn addresses_get_the_symbol_before_them() {
        let symbols = fixture("names", TEXT);
        let asked = [0xffff_ffff_8100_0123, 0xffff_ffff_c000_0010, 0xffff_ffff_8100_0304, 0x10];
        let names = symbols.names(&asked);
        assert_eq!(names, ["tcp_v4_rcv+0x23", "in_module+0x10", "tcp_v4_do_rcv.isra.0+0x104", "0x10"]);
        let places = symbols.places(&asked[2..3]);
        assert_eq!(places[0].as_ref().unwrap().function(), "tcp_v4_do_rcv");
        assert_eq!(symbols.hidden(), None);
    }

    #[test]
    fn functions_have_ranges() {
        let symbols = fixture("ranges", TEXT);
        let ranges = symbols.ranges(&["tcp_v4_rcv", "tcp_v4_do_rcv", "absent"]).unwrap();
        assert_eq!(ranges[0], 0xffff_ffff_8100_0100..0xffff_ffff_8100_0200);
        assert_eq!(ranges[1].start, 0xffff_ffff_8100_0200);
        assert_eq!(ranges.len(), 2);
    }

    #[test]
    fn hidden_symbols_are_said_and_addresses_shown() {
        let symbols = fixture("hidden", "0000000000000000 T _stext\n0000000000000000 T tcp_v4_rcv\n");
        assert_eq!(symbols.name(0xffff_ffff_8100_0123), "0xffffffff81000123");
        assert!(symbols.hidden().unwrap().contains("CAP_SYSLOG"));
        assert!(symbols.ranges(&["tcp_v4_rcv"]).unwrap().is_empty());
    }

    #[test]
    fn passes_over_the_file_are_bounded() {
        let symbols = fixture("bounded", TEXT);
        for address in 0..64 {
            symbols.name(0xffff_ffff_8100_0100 + address);
        }
        let known = symbols.state.lock().unwrap().known.len();
        assert!(known <= BURST as usize + 1, "{known} passes");
    }

    #[test]
    fn a_missing_file_leaves_addresses() {
        assert_eq!(Symbols::new("/nonexistent").name(0x1234), "0x1234");
    }

    #[test]
    fn lines_across_buffers_are_whole() {
        let mut text = String::new();
        for i in 0..20_000u64 {
            text.push_str(&format!("{:016x} t symbol_{i}\n", 0xffff_ffff_8000_0000 + i * 16));
        }
        let symbols = fixture("long", &text);
        assert_eq!(symbols.name(0xffff_ffff_8000_0000 + 19_999 * 16 + 1), "symbol_19999+0x1");
        assert_eq!(symbols.name(0xffff_ffff_8000_0000 + 7_777 * 16 + 3), "symbol_7777+0x3");
    }
}
