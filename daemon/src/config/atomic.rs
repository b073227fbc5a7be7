//! Files that are either the old or the new one, whatever happens while they are written.

use rustix::fs::{Mode, OFlags};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Replaces a file: temporary file in the same directory, fsync, rename, fsync of the directory.
///
/// The mode is set exactly, whatever the umask. There must be one writer only: the name of the temporary file is fixed,
/// so that what a crash left behind is used again and not collected.
pub(super) fn replace(file: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = temporary_name(file)?;
    let result = write_new(&temporary, bytes, mode).and_then(|()| std::fs::rename(&temporary, file));
    if let Err(error) = result {
        // The first error is the one to report; a file that was never made cannot be removed either.
        let _ = std::fs::remove_file(&temporary);
        return Err(error);
    }
    File::open(file.parent().unwrap_or(Path::new("/")))?.sync_all()
}

fn write_new(temporary: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mode = Mode::from_raw_mode(mode);
    let mut file = File::from(rustix::fs::open(temporary, flags, mode)?);
    rustix::fs::fchmod(&file, mode)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// `.name.tmp`: hidden, and with an ending that nobody reads as a drop-in.
fn temporary_name(file: &Path) -> io::Result<PathBuf> {
    let name = file.file_name().ok_or_else(|| io::Error::other("not a file name"))?;
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(".tmp");
    Ok(file.with_file_name(temporary))
}

#[cfg(test)]
mod tests {
    use super::super::testing::Dir;
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn replaces_and_leaves_nothing_behind() {
        let dir = Dir::new();
        let file = dir.write("conf.d/x.toml", "old and longer");
        dir.write("conf.d/.x.toml.tmp", "left behind by a crash");
        replace(&file, b"new", 0o640).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"new");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(std::fs::read_dir(dir.path().join("conf.d")).unwrap().count(), 1);
    }

    #[test]
    fn a_failure_keeps_the_old_file() {
        let dir = Dir::new();
        std::fs::create_dir(dir.path().join("conf.d/x.toml")).unwrap();
        replace(&dir.path().join("conf.d/x.toml"), b"new", 0o644).unwrap_err();
        assert_eq!(std::fs::read_dir(dir.path().join("conf.d")).unwrap().count(), 1);
        replace(&dir.path().join("none/x.toml"), b"new", 0o644).unwrap_err();
    }
}
