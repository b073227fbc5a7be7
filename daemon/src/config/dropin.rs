//! The drop-in that `netskoopctl probes enable|disable` writes. The configuration file itself is the administrator's, and
//! the package manager would ask about it at every upgrade if it were changed.

use super::check::find_probe;
use super::errors::{ConfigError, ConfigErrors};
use super::source::Source;
use super::state::Override;
use super::{Loaded, Origin, atomic, drop_in_dir, load_with};
use crate::declare::Probe;
use netskoop_api::OptionValue;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Name of the drop-in. Later ones win, so that an administrator can overrule it.
pub const FILE_NAME: &str = "50-netskoopctl.toml";

const HEADER: &str = "\
# Written by netskoopd for `netskoopctl probes enable|disable`. It is rewritten as a whole: values are kept, comments are
# not. Put your own settings into netskoopd.toml or into another drop-in; one that sorts after this one wins.

";

/// A change that is on disk.
#[derive(Debug)]
pub struct Written {
    /// The drop-in.
    pub file: PathBuf,
    /// The configuration as it is on disk now.
    pub loaded: Loaded,
    /// Keys that were written but are decided by a later drop-in, and where.
    pub overruled: Vec<(String, Origin)>,
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum DropInError {
    /// The files on disk are not valid as they are, with or without the change.
    #[error("the configuration on disk is not valid, so nothing was changed:\n{0}")]
    Invalid(ConfigErrors),
    /// The directory or the file cannot be written.
    #[error(
        "cannot write {}: {source}; use --runtime to change it until the next boot without touching the configuration",
        file.display()
    )]
    Write {
        /// What was to be written.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Writes a change for one probe into the drop-in of the configuration that [`super::load`] reads for `path`.
///
/// What the configuration would be is checked first: nothing is written that the next start would refuse.
pub fn write(path: Option<&Path>, probe: &Probe, change: &Override) -> Result<Written, DropInError> {
    write_for(path, crate::probes::PROBES, probe, change)
}

fn write_for(
    path: Option<&Path>,
    probes: &[&'static Probe],
    probe: &Probe,
    change: &Override,
) -> Result<Written, DropInError> {
    let dir = drop_in_dir(path);
    let file = dir.join(FILE_NAME);
    let text = changed(&file, probes, probe, change).map_err(DropInError::Invalid)?;
    let candidate = Source { file: file.clone(), text: text.clone() };
    let loaded = load_with(path, probes, Some(candidate)).map_err(DropInError::Invalid)?;
    create(&dir)
        .and_then(|()| atomic::replace(&file, text.as_bytes(), 0o644))
        .map_err(|source| DropInError::Write { file: file.clone(), source })?;
    let overruled = overruled(&loaded, &file, probe, change);
    Ok(Written { file, loaded, overruled })
}

/// The text of the drop-in with the change.
fn changed(
    file: &Path,
    probes: &[&'static Probe],
    probe: &Probe,
    change: &Override,
) -> Result<String, ConfigErrors> {
    let one = |error| ConfigErrors(vec![error]);
    let mut table = Table::new();
    if let Some(source) = Source::read(file).map_err(one)? {
        source.parse().map_err(ConfigErrors)?;
        let parsed = source.text.parse();
        table = parsed.map_err(|error: toml::de::Error| one(ConfigError::file(file, error.message())))?;
    }
    let settings = settings_of(&mut table, probes, probe)
        .ok_or_else(|| one(ConfigError::file(file, "'probes' or a probe in it is not a table")))?;
    if let Some(enabled) = change.enabled {
        settings.insert("enabled".to_owned(), Value::Boolean(enabled));
    }
    for (name, value) in &change.options {
        settings.insert(name.clone(), to_toml(value));
    }
    Ok(format!("{HEADER}{table}"))
}

/// The table of the probe, made if missing. One that stands under an older name of the probe moves to its name.
fn settings_of<'t>(table: &'t mut Table, probes: &[&'static Probe], probe: &Probe) -> Option<&'t mut Table> {
    let all = table.entry("probes").or_insert_with(|| Value::Table(Table::new())).as_table_mut()?;
    let same = |name: &&String| find_probe(probes, name).is_some_and(|found| found.name == probe.name);
    let settings = match all.keys().find(same).cloned() {
        Some(name) => all.remove(&name)?,
        None => Value::Table(Table::new()),
    };
    all.insert(probe.name.to_owned(), settings);
    all.get_mut(probe.name)?.as_table_mut()
}

/// A value as a file has it.
pub(super) fn to_toml(value: &OptionValue) -> Value {
    match value {
        OptionValue::Bool(boolean) => Value::Boolean(*boolean),
        // TOML has no larger numbers; such a value is refused when the candidate is checked against its range.
        OptionValue::Integer(number) => Value::Integer(i64::try_from(*number).unwrap_or(i64::MAX)),
        OptionValue::Text(text) => Value::String(text.clone()),
        OptionValue::List(words) => Value::Array(words.iter().cloned().map(Value::String).collect()),
    }
}

/// Makes the directory if it is missing, readable for everybody like the rest of `/etc`.
fn create(dir: &Path) -> io::Result<()> {
    match std::fs::create_dir(dir) {
        // The daemon's umask would hide it.
        Ok(()) => std::fs::set_permissions(dir, Permissions::from_mode(0o755)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::create_dir_all(dir)?;
            std::fs::set_permissions(dir, Permissions::from_mode(0o755))
        }
        Err(error) => Err(error),
    }
}

/// The keys of the change that are decided elsewhere.
fn overruled(loaded: &Loaded, file: &Path, probe: &Probe, change: &Override) -> Vec<(String, Origin)> {
    let Some(settings) = loaded.config.probes.get(probe.name) else { return Vec::new() };
    let enabled = settings.enabled.as_ref().filter(|_| change.enabled.is_some());
    let enabled = enabled.map(|(_, origin)| ("enabled", origin));
    let options = settings.options.iter().filter(|(name, _)| change.options.contains_key(**name));
    let options = options.map(|(name, (_, origin))| (*name, origin));
    let all = enabled.into_iter().chain(options).filter(|(_, origin)| origin.file != file);
    all.map(|(key, origin)| (format!("probes.{}.{key}", probe.name), origin.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Dir, PROBES};
    use super::*;
    use std::collections::BTreeMap;

    fn switch(enabled: bool) -> Override {
        Override { enabled: Some(enabled), options: BTreeMap::new() }
    }

    fn limit(limit: u64) -> Override {
        Override { enabled: None, options: [("limit".to_owned(), OptionValue::Integer(limit))].into() }
    }

    fn write(dir: &Dir, change: &Override) -> Result<Written, DropInError> {
        let file = dir.path().join("netskoopd.toml");
        write_for(file.exists().then_some(file.as_path()), PROBES, PROBES[1], change)
    }

    fn own(dir: &Dir) -> String {
        std::fs::read_to_string(dir.path().join("conf.d").join(FILE_NAME)).unwrap()
    }

    fn with_file(text: &str) -> Dir {
        let dir = Dir::new();
        dir.write("netskoopd.toml", text);
        dir
    }

    #[test]
    fn the_change_lasts_and_the_file_stays_untouched() {
        let dir = with_file("[probes.tcpreset]\nenabled = false\n");
        std::fs::remove_dir(dir.path().join("conf.d")).unwrap();
        let written = write(&dir, &switch(true)).unwrap();
        assert_eq!(written.overruled, []);
        let (enabled, origin) = written.loaded.config.probes["tcpreset"].enabled.clone().unwrap();
        assert!(enabled);
        assert_eq!(origin.file, written.file);
        assert!(own(&dir).starts_with("# Written by netskoopd"));
        assert!(own(&dir).ends_with("[probes.tcpreset]\nenabled = true\n"), "{}", own(&dir));
        let file = dir.path().join("netskoopd.toml");
        assert_eq!(
            load_with(Some(&file), PROBES, None).unwrap(),
            written.loaded,
            "as the next start sees it"
        );
        assert_eq!(std::fs::read_to_string(file).unwrap(), "[probes.tcpreset]\nenabled = false\n");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir.path().join("conf.d")), 0o755);
        assert_eq!(mode(&written.file), 0o644);
    }

    #[test]
    fn other_settings_stay() {
        let dir = with_file("");
        let before =
            "[metrics]\nset = \"full\"\n[probes.tcp]\nenabled = false\n[probes.tcp_reset]\nstack = true\n";
        dir.write("conf.d/50-netskoopctl.toml", before);
        write(&dir, &switch(true)).unwrap();
        let written = write(&dir, &limit(5)).unwrap();
        let text = own(&dir);
        let table: Table = text.parse().unwrap();
        let expected = "[metrics]\nset='full'\n[probes.tcp]\nenabled=false\n[probes.tcpreset]\nstack=true\nenabled=true\nlimit=5";
        assert_eq!(table, expected.parse::<Table>().unwrap());
        assert!(written.loaded.config.full_set);
    }

    #[test]
    fn a_later_drop_in_is_named() {
        let dir = with_file("");
        let later = dir.write("conf.d/90-site.toml", "[probes.tcpreset]\n\nenabled = false\n");
        dir.write("conf.d/10-site.toml", "[probes.tcpreset]\nlimit = 3\n");
        let mut change = switch(true);
        change.merge(&limit(5));
        let written = write(&dir, &change).unwrap();
        assert_eq!(
            written.overruled,
            [("probes.tcpreset.enabled".to_owned(), Origin { file: later, line: 3 })]
        );
    }

    #[test]
    fn nothing_is_written_that_the_next_start_would_refuse() {
        for (text, message) in [
            (
                "[probes.tcp]\nenabled = 7\n",
                "netskoopd.toml:2:11: probes.tcp.enabled: expected true or false",
            ),
            ("x = [\n", "netskoopd.toml:1:"),
        ] {
            let dir = with_file(text);
            let error = write(&dir, &switch(true)).unwrap_err().to_string();
            assert!(error.contains("nothing was changed") && error.contains(message), "{error}");
            assert!(!dir.path().join("conf.d").join(FILE_NAME).exists());
        }
        let dir = with_file("");
        write(&dir, &limit(u64::MAX)).unwrap_err();
        for text in ["probes = 1\n", "[probes]\ntcpreset = 1\n", "rubbish\n", "[probes.tcpreset]\nno = 1\n"] {
            dir.write("conf.d/50-netskoopctl.toml", text);
            write(&dir, &switch(true)).unwrap_err();
            assert_eq!(own(&dir), text);
        }
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_explained() {
        let dir = with_file("");
        std::fs::create_dir(dir.path().join("conf.d").join(FILE_NAME)).unwrap();
        let error = write(&dir, &switch(true)).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
        let dir = with_file("");
        let conf_d = dir.path().join("conf.d");
        std::fs::remove_dir(&conf_d).unwrap();
        // Nobody, not even root, makes a file in sysfs.
        std::os::unix::fs::symlink("/sys/kernel", &conf_d).unwrap();
        let error = write(&dir, &switch(true)).unwrap_err().to_string();
        assert!(error.starts_with("cannot write ") && error.contains("use --runtime"), "{error}");
        let read_only = DropInError::Write {
            file: "/etc/netskoop/conf.d/50-netskoopctl.toml".into(),
            source: io::Error::from(rustix::io::Errno::ROFS),
        };
        assert_eq!(
            read_only.to_string(),
            "cannot write /etc/netskoop/conf.d/50-netskoopctl.toml: Read-only file system (os error 30); \
             use --runtime to change it until the next boot without touching the configuration"
        );
    }
}
