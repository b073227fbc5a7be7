//! The only way out: lines to standard output and standard error. A reader that went away is an error of its own, so
//! that `netskoopctl ... | head` ends silently.

use crate::args::ColorWhen;
use crate::error::Error;
use crate::json;
use crate::text::Line;
use rustix::event::{PollFd, PollFlags, Timespec};
use std::io::{BufWriter, IsTerminal, Write};

/// Size of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    /// Characters per line.
    pub(crate) columns: usize,
    /// Lines.
    pub(crate) rows: usize,
}

/// How things are shown.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Look {
    /// Whether colours are used.
    pub(crate) colour: bool,
    /// Whether tables have a line of titles.
    pub(crate) headers: bool,
    /// Size of the terminal; `None` where the output is not one, and nothing is cut off.
    pub(crate) size: Option<Size>,
}

/// Where lines go.
pub(crate) struct Screen<'a> {
    out: Box<dyn Write + 'a>,
    look: Look,
    is_stdout: bool,
    is_terminal: bool,
}

impl<'a> Screen<'a> {
    /// Standard output, buffered: whoever streams flushes.
    pub(crate) fn stdout(color: ColorWhen, headers: bool) -> Self {
        let out = std::io::stdout();
        let is_terminal = out.is_terminal();
        let look = Look { colour: wants_colour(color, is_terminal), headers, size: terminal_size() };
        Self { out: Box::new(BufWriter::new(out)), look, is_stdout: true, is_terminal }
    }

    /// Standard error.
    pub(crate) fn stderr(color: ColorWhen) -> Self {
        let out = std::io::stderr();
        let is_terminal = out.is_terminal();
        let look = Look { colour: wants_colour(color, is_terminal), headers: true, size: None };
        Self { out: Box::new(out), look, is_stdout: false, is_terminal }
    }

    /// Any writer.
    #[cfg(test)]
    pub(crate) fn to(out: impl Write + 'a, look: Look) -> Self {
        Self { out: Box::new(out), look, is_stdout: false, is_terminal: false }
    }

    /// How things are shown.
    pub(crate) fn look(&self) -> Look {
        self.look
    }

    /// Writes a line.
    pub(crate) fn line(&mut self, line: &Line) -> Result<(), Error> {
        self.spans(line)?;
        Ok(self.out.write_all(b"\n")?)
    }

    /// Writes plain text as a line.
    pub(crate) fn text(&mut self, text: &str) -> Result<(), Error> {
        self.line(&Line::from(text))
    }

    /// Writes a JSON document, indented, its tokens as the daemon sent them.
    pub(crate) fn document(&mut self, call: &str, document: &[u8]) -> Result<(), Error> {
        let text = json::pretty(document)
            .map_err(|error| Error::Undecodable { call: call.to_owned(), why: error.to_string() })?;
        Ok(self.out.write_all(text.as_bytes())?)
    }

    /// Writes a JSON document on one line.
    pub(crate) fn json_line(&mut self, call: &str, document: &[u8]) -> Result<(), Error> {
        let text = json::compact(document)
            .map_err(|error| Error::Undecodable { call: call.to_owned(), why: error.to_string() })?;
        Ok(self.out.write_all(text.as_bytes())?)
    }

    /// Shows lines in place of what is on the terminal; elsewhere, after what was written, with an empty line between.
    pub(crate) fn redraw(&mut self, lines: &[Line], first: bool) -> Result<(), Error> {
        let on_terminal = self.look.size.is_some();
        if on_terminal {
            // Overwriting line by line flickers less than clearing the screen each time.
            self.out.write_all(if first { b"\x1b[2J\x1b[H" } else { b"\x1b[H" })?;
        } else if !first {
            self.out.write_all(b"\n")?;
        }
        for line in lines {
            // A line that wraps would shift all that follow.
            match self.look.size {
                Some(size) => self.spans(&line.clone().truncate(size.columns))?,
                None => self.spans(line)?,
            }
            self.out.write_all(if on_terminal { b"\x1b[K\n" } else { b"\n" })?;
        }
        if on_terminal {
            self.out.write_all(b"\x1b[J")?;
        }
        self.flush()
    }

    /// A line of its own for what follows Ctrl-C: the terminal has shown `^C` where the cursor was.
    pub(crate) fn after_interrupt(&mut self) {
        if self.is_terminal {
            let _ = self.text("");
        }
    }

    /// Writes a line that the command can do without: where standard error cannot be written, nobody could be told.
    pub(crate) fn notice(&mut self, line: &Line) {
        let _ = self.line(line);
    }

    /// Takes the terminal's size anew: it may have been changed.
    pub(crate) fn measure(&mut self) {
        if self.is_stdout {
            self.look.size = terminal_size();
        }
    }

    /// Hands everything to the kernel.
    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        Ok(self.out.flush()?)
    }

    /// Whether the reader of the output went away. A stream that has nothing to say would not notice otherwise.
    pub(crate) fn reader_gone(&self) -> bool {
        let out = std::io::stdout();
        let mut polled = [PollFd::new(&out, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        self.is_stdout
            && rustix::event::poll(&mut polled, Some(&now)).is_ok()
            && polled[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
    }

    fn spans(&mut self, line: &Line) -> Result<(), Error> {
        for (style, text) in line.spans() {
            match style.sgr() {
                Some(sgr) if self.look.colour => write!(self.out, "\x1b[{sgr}m{text}\x1b[0m")?,
                _ => self.out.write_all(text.as_bytes())?,
            }
        }
        Ok(())
    }
}

/// Says what went wrong and what to do next.
pub(crate) fn report(error: &Error, stderr: &mut Screen<'_>) {
    let Some(message) = error.message() else { return };
    let mut lines = message.lines();
    stderr.notice(&format!("netskoopctl: {}", lines.next().unwrap_or("failed")).into());
    for more in lines {
        stderr.notice(&format!("  {more}").into());
    }
    if let Some(hint) = error.hint() {
        stderr.notice(&format!("  {hint}").into());
    }
}

/// Size of the terminal at standard output, if it is one.
fn terminal_size() -> Option<Size> {
    let out = std::io::stdout();
    let size = out.is_terminal().then(|| rustix::termios::tcgetwinsize(&out).ok())??;
    // A serial console knows no size and says zero.
    (size.ws_col > 0).then(|| Size { columns: size.ws_col.into(), rows: size.ws_row.into() })
}

/// Whether to use colours: what the user says, else NO_COLOR (<https://no-color.org>) and TERM, else on a terminal.
fn wants_colour(when: ColorWhen, is_terminal: bool) -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    match when {
        ColorWhen::Always => true,
        ColorWhen::Never => false,
        ColorWhen::Auto => {
            is_terminal && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Style;
    use netskoop_api::ErrorInfo;

    #[test]
    fn colours_only_where_wanted() {
        let line = Line::new().styled(Style::Bad, "lost").plain(" 3");
        let mut out = Vec::new();
        Screen::to(&mut out, Look::default()).line(&line).unwrap();
        assert_eq!(out, b"lost 3\n");
        out.clear();
        Screen::to(&mut out, Look { colour: true, ..Look::default() }).line(&line).unwrap();
        assert_eq!(out, b"\x1b[31mlost\x1b[0m 3\n");
    }

    #[test]
    fn a_vanished_reader_is_its_own_error() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut screen = Screen::to(writer, Look::default());
        assert!(matches!(screen.text("hello"), Err(Error::BrokenPipe)));
    }

    #[test]
    fn redraws_in_place_only_on_a_terminal() {
        let lines = [Line::from("a"), Line::from("b")];
        let mut out = Vec::new();
        let mut screen = Screen::to(&mut out, Look::default());
        screen.redraw(&lines, true).unwrap();
        screen.redraw(&lines, false).unwrap();
        drop(screen);
        assert_eq!(out, b"a\nb\n\na\nb\n");
        out.clear();
        let size = Some(Size { columns: 80, rows: 24 });
        Screen::to(&mut out, Look { size, ..Look::default() }).redraw(&lines, false).unwrap();
        assert_eq!(out, b"\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J");
    }

    #[test]
    fn errors_have_two_lines_and_cannot_steer_the_terminal() {
        let info = ErrorInfo {
            code: "bad_request".into(),
            message: "no\x1b[2J\nsecond".into(),
            hint: Some("do this".into()),
        };
        let mut out = Vec::new();
        report(&Error::Api { status: 400, info }, &mut Screen::to(&mut out, Look::default()));
        assert_eq!(String::from_utf8(out).unwrap(), "netskoopctl: no\\u{1b}[2J\n  second\n  do this\n");
        let mut out = Vec::new();
        report(&Error::BrokenPipe, &mut Screen::to(&mut out, Look::default()));
        assert!(out.is_empty());
    }
}
