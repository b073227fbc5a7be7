//! Kernel symbols. The whole table (millions of bytes) is never kept: what is asked for is looked up in one pass over
//! the file and remembered. A pass takes long on a loaded node, so whoever fills counters does not wait for it.

use rustc_hash::FxHashMap;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
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
    passes: AtomicU32,
}

#[derive(Debug)]
struct State {
    /// What events named; it is thrown away when it is full.
    known: FxHashMap<u64, Option<Place>>,
    /// What counters are shown under; this stays, since a series must not change its name.
    settled: FxHashMap<u64, Option<Place>>,
    /// What will be settled by the next pass in the background.
    wanted: BTreeSet<u64>,
    /// Whether there is a thread for that.
    reading: bool,
    landmarks: Arc<Landmarks>,
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

/// What is known of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is here.
    At(Place),
    /// It has no name, and gets none later.
    Nameless,
    /// It is looked for: who asks again will be told.
    Later,
}

impl From<Option<Place>> for Found {
    fn from(place: Option<Place>) -> Found {
        place.map_or(Found::Nameless, Found::At)
    }
}

/// Functions whose code was found beforehand, so that an address in them needs no look at the file.
#[derive(Debug, Default)]
pub struct Landmarks {
    functions: Vec<(Range<u64>, &'static str)>,
    /// The kernel's own code. Modules may come later and are not part of it.
    core: Range<u64>,
}

impl Landmarks {
    /// Whether it can be told for this address in which of the functions it is.
    pub fn cover(&self, address: u64) -> bool {
        self.core.contains(&address)
    }

    /// In which of the functions an address is; `None` if in none of them.
    pub fn function(&self, address: u64) -> Option<&'static str> {
        self.functions.iter().find(|(range, _)| range.contains(&address)).map(|(_, name)| *name)
    }

    /// Code ranges of the functions among these, with copies that the compiler made of them.
    pub fn ranges(&self, functions: &[&str]) -> Vec<Range<u64>> {
        let among =
            |(range, name): &(Range<u64>, &'static str)| functions.contains(name).then(|| range.clone());
        self.functions.iter().filter_map(among).collect()
    }
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
        let state = State {
            known: FxHashMap::default(),
            settled: FxHashMap::default(),
            wanted: BTreeSet::new(),
            reading: false,
            landmarks: Arc::default(),
            hidden: false,
            budget: BURST,
            refilled: Instant::now(),
        };
        Symbols { path: proc.into().join("kallsyms"), state: Mutex::new(state), passes: AtomicU32::new(0) }
    }

    /// Names of addresses as `symbol+0xoffset`, or the bare address where there is none.
    pub fn names(&self, addresses: &[u64]) -> Vec<String> {
        let name = |(address, place): (&u64, &Option<Place>)| match place {
            Some(place) => format!("{}+{:#x}", place.symbol, place.offset),
            None => format!("{address:#x}"),
        };
        addresses.iter().zip(&self.look(addresses)).map(name).collect()
    }

    /// Name of one address.
    pub fn name(&self, address: u64) -> String {
        self.names(&[address]).pop().unwrap_or_default()
    }

    /// Places of addresses, without reading: what is new is looked for in the background, all of it in one pass. Once
    /// it is not [`Found::Later`] any more, an address always has the same place.
    pub fn places(self: &Arc<Self>, addresses: &[u64]) -> Vec<Found> {
        let mut state = self.lock();
        let found = addresses.iter().map(|address| state.settle(*address)).collect();
        let start = !state.reading && !state.wanted.is_empty();
        state.reading |= start;
        drop(state);
        if start {
            self.read_in_background();
        }
        found
    }

    fn read_in_background(self: &Arc<Self>) {
        let reader = Reader { symbols: Arc::clone(self), done: false };
        let thread = std::thread::Builder::new().name("netskoop-symbols".into());
        // Without a thread the reader is dropped, and the next who asks tries again.
        if let Err(error) = thread.stack_size(256 * 1024).spawn(move || reader.run()) {
            tracing::warn!(%error, "cannot start a thread that reads kernel symbols");
        }
    }

    fn look(&self, addresses: &[u64]) -> Vec<Option<Place>> {
        let missing = self.missing(addresses);
        // The lock is free meanwhile: reading takes long on a loaded node, and others may have what they want already.
        let found = if missing.is_empty() { None } else { Some(self.read(&missing)) };
        let mut state = self.lock();
        match found {
            Some(Ok((places, hidden))) => {
                state.hidden = hidden;
                state.known.extend(missing.into_iter().zip(places));
            }
            Some(Err(error)) => self.log(&error),
            None => {}
        }
        addresses.iter().map(|address| state.known.get(address).cloned().flatten()).collect()
    }

    fn log(&self, error: &io::Error) {
        tracing::debug!(%error, path = %self.path.display(), "cannot read kernel symbols");
    }

    /// Which of the addresses must be read, sorted; none if it is not time to read again.
    fn missing(&self, addresses: &[u64]) -> Vec<u64> {
        let mut state = self.lock();
        let unknown = |address: &u64| !state.known.contains_key(address);
        let mut missing: Vec<u64> = addresses.iter().copied().filter(unknown).collect();
        if missing.is_empty() || !state.may_read() {
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

    /// Finds the code of functions, also of the copies that the compiler made of them, and remembers where it is.
    pub fn learn(&self, functions: &[&'static str]) -> io::Result<Arc<Landmarks>> {
        let mut found: Vec<(Range<u64>, &'static str)> = Vec::new();
        let (mut core, mut hidden) = (0..0, true);
        self.each(|address, name| {
            hidden &= address == 0;
            // The file is sorted but for modules: what follows a symbol ends it.
            if let Some((last, _)) = found.last_mut()
                && last.end == u64::MAX
                && address > last.start
            {
                last.end = address;
            }
            match name {
                "_stext" => core.start = address,
                "_etext" => core.end = address,
                _ => {}
            }
            if address != 0
                && let Some(function) = functions.iter().find(|function| **function == bare(name))
            {
                found.push((address..u64::MAX, function));
            }
        })?;
        for (range, _) in &mut found {
            range.end = range.end.min(range.start.saturating_add(MAX_OFFSET));
        }
        let landmarks = Arc::new(Landmarks { functions: found, core });
        let mut state = self.lock();
        state.hidden = hidden;
        state.landmarks = Arc::clone(&landmarks);
        Ok(landmarks)
    }

    /// What was learned.
    pub fn landmarks(&self) -> Arc<Landmarks> {
        Arc::clone(&self.lock().landmarks)
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
        self.passes.fetch_add(1, Ordering::Relaxed);
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

/// `ffffffff81000000 T _stext`, or with `\t[module]` behind; only code, and its end, which is data to some linkers.
fn symbol(line: &[u8]) -> Option<(u64, &str)> {
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split_ascii_whitespace();
    let address = u64::from_str_radix(words.next()?, 16).ok()?;
    let code = matches!(words.next()?, "t" | "T" | "w" | "W");
    let name = words.next()?;
    (code || name == "_etext").then_some((address, name))
}

/// Settles what is wanted, on a thread that ends with its work. There is one at most.
struct Reader {
    symbols: Arc<Symbols>,
    done: bool,
}

impl Reader {
    fn run(mut self) {
        while let Some(wanted) = self.next() {
            let found = self.symbols.read(&wanted);
            let mut state = self.symbols.lock();
            let places = match found {
                Ok((places, hidden)) => {
                    state.hidden = hidden;
                    places
                }
                Err(error) if is_final(&error) => vec![None; wanted.len()],
                // They stay wanted: the next who asks tries again.
                Err(error) => return self.symbols.log(&error),
            };
            state.wanted.retain(|address| wanted.binary_search(address).is_err());
            for (address, place) in wanted.into_iter().zip(places) {
                state.settled.entry(address).or_insert(place);
            }
        }
    }

    /// What is wanted now, sorted. If that is nothing the thread ends; whoever wants something later starts another.
    fn next(&mut self) -> Option<Vec<u64>> {
        let mut state = self.symbols.lock();
        self.done = state.wanted.is_empty();
        state.reading = !self.done;
        state.reading.then(|| state.wanted.iter().copied().collect())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // When nothing was wanted it has said so already, and another may be at work by now.
        if !self.done {
            self.symbols.lock().reading = false;
        }
    }
}

/// Whether a kernel without its table is meant, not one that is short of something at the moment.
fn is_final(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied)
}

impl State {
    fn settle(&mut self, address: u64) -> Found {
        if let Some(place) = self.settled.get(&address) {
            return place.clone().into();
        }
        // Neither of the two shrinks but into the other, so who finds no room once finds none later.
        if !self.wanted.contains(&address) && self.settled.len() + self.wanted.len() >= MAX_KNOWN {
            return Found::Nameless;
        }
        // An event may have had it named already.
        if let Some(place) = self.known.get(&address).cloned() {
            self.wanted.remove(&address);
            self.settled.insert(address, place.clone());
            return place.into();
        }
        self.wanted.insert(address);
        Found::Later
    }

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
    struct Fixture(Arc<Symbols>);

    impl std::ops::Deref for Fixture {
        type Target = Arc<Symbols>;
        fn deref(&self) -> &Arc<Symbols> {
            &self.0
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(self.0.path.parent().unwrap());
        }
    }

    fn empty(name: &str) -> Fixture {
        let dir = std::env::temp_dir().join(format!("netskoop-symbols-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Fixture(Arc::new(Symbols::new(dir)))
    }

    fn fixture(name: &str, text: &str) -> Fixture {
        let symbols = empty(name);
        std::fs::write(&symbols.path, text).unwrap();
        symbols
    }

    fn settled(symbols: &Arc<Symbols>, addresses: &[u64]) -> Vec<Found> {
        loop {
            let found = symbols.places(addresses);
            if !found.contains(&Found::Later) {
                return found;
            }
            std::thread::yield_now();
        }
    }

    fn passes(symbols: &Symbols) -> u32 {
        symbols.passes.load(Ordering::Relaxed)
    }

    fn functions(found: &[Found]) -> Vec<&str> {
        let mut functions = Vec::new();
        for found in found {
            functions.push(match found {
                Found::At(place) => place.function(),
                Found::Nameless => "nameless",
                Found::Later => "later",
            });
        }
        functions
    }

    const TEXT: &str = "0000000000000000 A fixed_percpu_data\n\
        ffffffff81000000 T _stext\n\
        ffffffff81000100 T tcp_v4_rcv\n\
        ffffffff81000200 t tcp_v4_do_rcv.isra.0\n\
        ffffffff81000300 D _etext\n\
        ffffffff81000308 D not_code\n\
        broken\n\
        ffffffffc0000000 t in_module\t[veth]\n";

    #[test]
    fn addresses_get_the_symbol_before_them() {
        let symbols = fixture("names", TEXT);
        let asked = [0xffff_ffff_8100_0123, 0xffff_ffff_c000_0010, 0xffff_ffff_8100_0304, 0x10];
        let names = symbols.names(&asked);
        assert_eq!(names, ["tcp_v4_rcv+0x23", "in_module+0x10", "_etext+0x4", "0x10"]);
        assert_eq!(functions(&symbols.places(&asked[..2])), ["tcp_v4_rcv", "in_module"], "known from before");
        assert_eq!(functions(&symbols.places(&asked[2..])), ["_etext", "nameless"]);
        assert_eq!(passes(&symbols), 1);
        assert_eq!(symbols.hidden(), None);
    }

    #[test]
    fn learned_functions_need_no_look_at_the_file() {
        let symbols = fixture("ranges", TEXT);
        let landmarks = symbols.learn(&["tcp_v4_rcv", "tcp_v4_do_rcv", "in_module", "absent"]).unwrap();
        let ranges = landmarks.ranges(&["tcp_v4_rcv", "tcp_v4_do_rcv"]);
        assert_eq!(ranges[0], 0xffff_ffff_8100_0100..0xffff_ffff_8100_0200);
        assert_eq!((ranges[1].start, ranges.len()), (0xffff_ffff_8100_0200, 2));
        let of = |address| (landmarks.cover(address), landmarks.function(address));
        assert_eq!(of(0xffff_ffff_8100_0100), (true, Some("tcp_v4_rcv")));
        assert_eq!(of(0xffff_ffff_8100_01ff), (true, Some("tcp_v4_rcv")));
        assert_eq!(of(0xffff_ffff_8100_0210), (true, Some("tcp_v4_do_rcv")));
        assert_eq!(of(0xffff_ffff_8100_00ff), (true, None));
        assert_eq!(of(0xffff_ffff_8100_0300), (false, None), "behind the kernel's own code");
        assert!(!landmarks.cover(0xffff_ffff_c000_0010), "modules come and go");
        assert_eq!(symbols.landmarks().ranges(&["tcp_v4_rcv"]), ranges[..1]);
        assert_eq!(passes(&symbols), 1);
    }

    #[test]
    fn all_that_is_new_costs_one_pass_however_many_ask() {
        let symbols = fixture("once", TEXT);
        let asked: Vec<u64> = (0xffff_ffff_8100_0100..0xffff_ffff_8100_0200).collect();
        assert!(
            symbols.places(&asked).iter().all(|found| *found == Found::Later),
            "who asks first waits for none"
        );
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    assert!(functions(&settled(&symbols, &asked)).iter().all(|f| *f == "tcp_v4_rcv"));
                });
            }
        });
        assert_eq!(passes(&symbols), 1);
        assert_eq!(functions(&settled(&symbols, &[asked[0], 0x10])), ["tcp_v4_rcv", "nameless"]);
        assert_eq!(functions(&settled(&symbols, &[0x10])), ["nameless"], "this is remembered, too");
        assert_eq!(passes(&symbols), 2);
    }

    #[test]
    fn nobody_who_counts_waits_for_a_file_that_hangs() {
        let symbols = empty("hangs");
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &symbols.path, fifo, 0o600.into(), 0).unwrap();
        let (early, late) = (0xffff_ffff_8100_0123, 0xffff_ffff_8100_0210);
        // Nobody writes into the pipe yet, so that whoever opens it hangs.
        for _ in 0..100 {
            assert_eq!(symbols.places(&[early]), [Found::Later]);
        }
        while passes(&symbols) == 0 {
            std::thread::yield_now();
        }
        assert_eq!(symbols.places(&[early, late]), [Found::Later, Found::Later]);
        std::fs::write(&symbols.path, TEXT).unwrap();
        // What came meanwhile is read by the same thread, when the first has read to the end.
        while passes(&symbols) == 1 {
            std::thread::yield_now();
        }
        std::fs::write(&symbols.path, TEXT).unwrap();
        assert_eq!(functions(&settled(&symbols, &[early, late])), ["tcp_v4_rcv", "tcp_v4_do_rcv"]);
        assert_eq!(passes(&symbols), 2);
    }

    #[test]
    fn what_is_shown_keeps_its_name_whatever_events_bring() {
        let symbols = fixture("kept", TEXT);
        let shown = settled(&symbols, &[0xffff_ffff_8100_0123]);
        // As many addresses as will be remembered of stacks, twice.
        for first in [0x1000, 0x9000] {
            let stacks: Vec<u64> = (first..first + MAX_KNOWN as u64).collect();
            symbols.names(&stacks);
        }
        std::fs::remove_file(&symbols.path).unwrap();
        assert_eq!(symbols.places(&[0xffff_ffff_8100_0123]), shown);
        // There is an end to what counters can bring, too; what finds no room has no name, at once and for good.
        let many: Vec<u64> = (0x10..0x10 + MAX_KNOWN as u64).collect();
        settled(&symbols, &many);
        assert_eq!(symbols.places(&[0xffff_ffff_8100_0124]), [Found::Nameless]);
        assert_eq!(symbols.places(&[0xffff_ffff_8100_0123]), shown);
        let state = symbols.state.lock().unwrap();
        assert_eq!((state.settled.len(), state.wanted.len()), (MAX_KNOWN, 0));
    }

    #[test]
    fn a_table_that_cannot_be_read_now_is_read_later() {
        let symbols = empty("later");
        // What may be here is a directory: opened it can be, read it cannot.
        std::fs::create_dir(&symbols.path).unwrap();
        let asked = [0xffff_ffff_8100_0123];
        while passes(&symbols) < 3 {
            assert_eq!(symbols.places(&asked), [Found::Later]);
        }
        std::fs::remove_dir(&symbols.path).unwrap();
        // A kernel without symbols has no file.
        assert_eq!(settled(&symbols, &asked), [Found::Nameless]);
        std::fs::write(&symbols.path, TEXT).unwrap();
        assert_eq!(symbols.places(&asked), [Found::Nameless], "names do not change");
    }

    #[test]
    fn hidden_symbols_are_said_and_addresses_shown() {
        let symbols = fixture("hidden", "0000000000000000 T _stext\n0000000000000000 T tcp_v4_rcv\n");
        assert_eq!(symbols.name(0xffff_ffff_8100_0123), "0xffffffff81000123");
        assert!(symbols.hidden().unwrap().contains("CAP_SYSLOG"));
        let landmarks = symbols.learn(&["tcp_v4_rcv"]).unwrap();
        assert!(landmarks.ranges(&["tcp_v4_rcv"]).is_empty() && !landmarks.cover(0));
    }

    #[test]
    fn passes_over_the_file_are_bounded() {
        let symbols = fixture("bounded", TEXT);
        for address in 0..64 {
            symbols.name(0xffff_ffff_8100_0100 + address);
        }
        let passes = passes(&symbols);
        assert!(passes <= BURST + 1, "{passes} passes");
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
