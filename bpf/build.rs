//! Compiles every `*.bpf.c` beside this file and writes a module with all skeletons.

#![allow(
    clippy::disallowed_types,
    clippy::disallowed_macros,
    reason = "a build script runs clang and talks to cargo"
)]

use libbpf_cargo::SkeletonBuilder;
use libbpf_rs::ObjectBuilder;
use libbpf_rs::libbpf_sys::{
    BPF_CALL, BPF_DW, BPF_IMM, BPF_JMP, BPF_LD, BPF_PSEUDO_CALL, BPF_PSEUDO_FUNC, bpf_insn,
};
use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?);
    let include = here.join("include");
    let include = include.to_str().ok_or("the path of the source tree is not UTF-8")?;
    let clang = clang()?;
    let mut modules = String::new();
    for name in programs(&here)? {
        let skeleton = out.join(format!("{name}.skel.rs"));
        SkeletonBuilder::new()
            .source(here.join(format!("{name}.bpf.c")))
            .obj(out.join(format!("{name}.bpf.o")))
            .clang(&clang)
            .clang_args(["-I", include, "-mcpu=v3", "-Wall", "-Werror"])
            .build_and_generate(&skeleton)
            .map_err(|error| format!("{name}.bpf.c: {error:#}"))?;
        refuse_calls(&out, &name)?;
        compile_for_arm64(&here, &out, &clang, include, &name)?;
        writeln!(modules, "/// Skeleton of `{name}.bpf.c`.\npub mod {name} {{ include!({skeleton:?}); }}")?;
    }
    fs::write(out.join("skeletons.rs"), modules)?;
    // The directory itself, so that a new file is noticed.
    println!("cargo::rerun-if-changed={}", here.display());
    println!("cargo::rerun-if-env-changed=NETSKOOP_CLANG");
    Ok(())
}

/// Programs that call functions of their own bring kernels down that lack 4675e234b9e1 ("bpf: ensure main program has an
/// extable", 6.5; it is not in 5.10): these have such a program twice in their table of code, one of the two without the list
/// of its loads that may fail. When a load fails, as that of a field through a pointer that is none any more does, it is
/// chance which of them is found, and with the other the kernel panics.
fn refuse_calls(out: &Path, name: &str) -> Result<(), Box<dyn Error>> {
    let object = ObjectBuilder::default().open_file(out.join(format!("{name}.bpf.o")))?;
    let calls = |insn: &bpf_insn| match (u32::from(insn.code), u32::from(insn.src_reg())) {
        (code, BPF_PSEUDO_CALL) => code == BPF_JMP | BPF_CALL,
        (code, BPF_PSEUDO_FUNC) => code == BPF_LD | BPF_IMM | BPF_DW,
        _ => false,
    };
    match object.progs().find(|program| program.insns().iter().any(calls)) {
        Some(program) => {
            let program = program.name().display();
            Err(format!(
                "{name}.bpf.c: {program} calls a function that is not inlined; make it __always_inline"
            )
            .into())
        }
        None => Ok(()),
    }
}

/// What is loaded is the same for all processors, but a program can be written so that it holds for x86 only: whoever
/// develops is told so at once. Releases do not need it.
fn compile_for_arm64(
    here: &Path,
    out: &Path,
    clang: &Path,
    include: &str,
    name: &str,
) -> Result<(), Box<dyn Error>> {
    if env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        return Ok(());
    }
    SkeletonBuilder::new()
        .source(here.join(format!("{name}.bpf.c")))
        .obj(out.join(format!("{name}.arm64.bpf.o")))
        .clang(clang)
        .clang_args(["-I", include, "-mcpu=v3", "-Wall", "-Werror", "-D__TARGET_ARCH_arm64"])
        .build()
        .map_err(|error| format!("{name}.bpf.c for arm64: {error:#}"))?;
    Ok(())
}

/// Names of the programs, in a fixed order.
fn programs(dir: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        if let Some(name) = entry?.file_name().to_str().and_then(|name| name.strip_suffix(".bpf.c")) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// `NETSKOOP_CLANG`, else `clang`, else the newest `clang-NN`.
fn clang() -> Result<PathBuf, String> {
    if let Some(clang) = env::var_os("NETSKOOP_CLANG") {
        return match works(Path::new(&clang)) {
            true => Ok(clang.into()),
            false => Err(format!("NETSKOOP_CLANG names {}, which does not run", clang.display())),
        };
    }
    let numbered = (11..40).rev().map(|version| format!("clang-{version}"));
    std::iter::once("clang".to_owned())
        .chain(numbered)
        .map(PathBuf::from)
        .find(|clang| works(clang))
        .ok_or_else(|| {
            "no clang found, which compiles the BPF programs. Install it with `apt-get install clang` or \
             `dnf install clang`, or name one in NETSKOOP_CLANG"
                .to_owned()
        })
}

fn works(clang: &Path) -> bool {
    let status = Command::new(clang).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}
