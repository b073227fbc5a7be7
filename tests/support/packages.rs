//! The Debian package as `make deb` leaves it, and a machine with a repository that holds it.

use super::docker::installed;
use super::nspawn::Machine;
use super::{Dir, run, skip, tests_dir};
use std::path::{Path, PathBuf};

/// Where the machines find the repository.
const REPOSITORY: &str = "/srv/netskoop";

/// As a user would write it.
const SOURCE: &str = "deb [signed-by=/usr/share/keyrings/netskoop.gpg] file:/srv/netskoop/apt stable main\n";

/// Versions made of the package: one that comes after it, with another line in its conffile.
pub(crate) const NEXT: &str = "0.1.1~test";

/// The Debian package, if it was built.
pub(crate) fn built() -> Option<PathBuf> {
    built_as("deb")
}

fn built_as(ending: &str) -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../package");
    let files = std::fs::read_dir(&target).map(|files| files.flatten().map(|file| file.path()).collect());
    let files: Vec<PathBuf> = files.unwrap_or_default();
    let package = files.into_iter().find(|file| file.extension().is_some_and(|end| end == ending));
    if package.is_none() {
        skip(&format!("there is no package to install; make {ending}"));
    }
    package.and_then(|package| package.canonicalize().ok())
}

/// Whether the caller is to go on, with [`machine`]: on a little node. Looks for what is needed before that, where it
/// can be said.
pub(crate) fn inside_own_node(test: &str) -> bool {
    for program in ["apt-ftparchive", "gpg", "dpkg-deb"] {
        if super::is_root() && !installed(program) {
            skip(&format!("{program} is not installed"));
            return false;
        }
    }
    (!super::is_root() || built().is_some()) && super::nspawn::inside_own_node(test)
}

/// A machine that can install the package and its next version, and the directory that must outlive it.
pub(crate) fn machine(files: &[(&str, &str)]) -> Option<(Machine, Dir)> {
    let deb = built()?;
    let dir = Dir::new();
    let next = next_version(&deb, &dir.0);
    let repository = dir.0.join("repository");
    let script = tests_dir().join("../packaging/repo.sh");
    let words = [&repository, &deb, &next].map(|path| path.to_str().unwrap());
    run(script.to_str().unwrap(), &words);
    let sources = [("etc/apt/sources.list", ""), ("etc/apt/sources.list.d/netskoop.list", SOURCE)];
    let key = repository.join("netskoop.gpg");
    let binds = [(repository.as_path(), REPOSITORY), (key.as_path(), "/usr/share/keyrings/netskoop.gpg")];
    let machine = Machine::boot_with(&[&sources, files].concat(), &binds)?;
    machine.run("apt-get", &["update"]);
    Some((machine, dir))
}

/// A system with dnf, made once and kept beside what cargo builds: rpm's scriptlets and databases, and a real systemd.
pub(crate) fn dnf_system() -> Option<PathBuf> {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (root, new) = (kept.join("root-dnf"), kept.join("root-dnf.new"));
    if !root.exists() {
        let _ = std::fs::remove_dir_all(&new);
        let packages = "systemd,systemd-sysv,dbus,iproute2,libelf1,zlib1g,procps,dnf,rpm,gpg";
        let include = format!("--include={packages}");
        run("mmdebstrap", &["-q", "--variant=minbase", &include, "bookworm", new.to_str().unwrap()]);
        std::fs::rename(&new, &root).unwrap();
    }
    Some(root)
}

/// A machine that can install the .rpm with dnf.
pub(crate) fn dnf_machine() -> Option<(Machine, Dir)> {
    let package = built_as("rpm")?;
    let (dir, base) = (Dir::new(), dnf_system()?);
    let repository = dir.0.join("repository");
    let script = tests_dir().join("packages/rpm-repository.sh");
    let stage = package.with_file_name("rpm").join("stage");
    let words = [&script, &package, &stage, &repository].map(|path| path.to_str().unwrap());
    let url = format!("NETSKOOP_REPOSITORY_URL=file://{REPOSITORY}");
    run("env", &[&[url.as_str()], words.as_slice()].concat());
    let source = std::fs::read_to_string(repository.join("yum/netskoop.repo")).unwrap();
    let files = [("etc/yum.repos.d/netskoop.repo", source.as_str())];
    let machine = Machine::boot_on(&base, &files, &[(&repository, REPOSITORY)])?;
    machine.run("rpm", &["--import", &format!("{REPOSITORY}/netskoop.asc")]);
    Some((machine, dir))
}

/// The same package with a higher number and a conffile that says more.
fn next_version(deb: &Path, dir: &Path) -> PathBuf {
    let (tree, next) = (dir.join("next"), dir.join("next.deb"));
    let paths = [deb, &tree, &next].map(|path| path.to_str().unwrap());
    run("dpkg-deb", &["-R", paths[0], paths[1]]);
    let change = |file: &str, change: &dyn Fn(String) -> String| {
        let file = tree.join(file);
        std::fs::write(&file, change(std::fs::read_to_string(&file).unwrap())).unwrap();
    };
    change("DEBIAN/control", &|text| {
        let lines = text.lines().map(|line| match line.starts_with("Version:") {
            true => format!("Version: {NEXT}\n"),
            false => format!("{line}\n"),
        });
        lines.collect()
    });
    change("etc/netskoop/netskoopd.toml", &|text| text + "# new in this version\n");
    run("dpkg-deb", &["--root-owner-group", "-Znone", "-b", paths[1], paths[2]]);
    next
}

/// What a user does with packages, without questions.
pub(crate) trait Packages {
    /// `apt-get ARGS`, which must work; what it says.
    fn apt(&self, args: &[&str]) -> String;
    /// A line of `systemctl show`.
    fn property(&self, unit: &str, name: &str) -> String;
    /// `netskoopctl ARGS` of a user, however it ends.
    fn ctl_as(&self, user: &str, args: &[&str]) -> (Option<i32>, String);
}

impl Packages for Machine {
    #[track_caller]
    fn apt(&self, args: &[&str]) -> String {
        let quiet = [
            "DEBIAN_FRONTEND=noninteractive",
            "apt-get",
            "-y",
            "-q",
            "-o",
            "Dpkg::Options::=--force-confold",
        ];
        let (code, said) = self.attempt("env", &[&quiet, args].concat());
        assert_eq!(code, Some(0), "apt-get {args:?}: {said}");
        said
    }

    fn property(&self, unit: &str, name: &str) -> String {
        self.run("systemctl", &["show", "-P", name, unit]).trim().to_owned()
    }

    fn ctl_as(&self, user: &str, args: &[&str]) -> (Option<i32>, String) {
        self.attempt("runuser", &[&["-u", user, "--", "netskoopctl"], args].concat())
    }
}
