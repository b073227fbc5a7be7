#!/usr/bin/env python3
"""report.py lines RESULTS KERNEL: what a run in a kernel has found, one line per probe; all that was said if it failed.
report.py document RESULTS KERNEL...: docs/kernels.md"""
import pathlib
import sys


def read(folder, name):
    """What a run has left: release, seconds, exit code, probes (name, how it stands, seen, seconds, problem)."""
    at = pathlib.Path(folder) / name
    text = lambda file: (at / file).read_text(errors="replace") if (at / file).exists() else ""
    seconds, code = text("end").split()
    probes = [line.split("\t") for line in text("probes.tsv").splitlines()]
    return {
        "name": name,
        "release": text("release").strip(),
        "seconds": int(seconds),
        "code": int(code),
        "probes": probes,
        "log": text("log"),
    }


def lines(run):
    head = f"{run['name']:<6}  "
    for probe, way, seen, seconds, problem in run["probes"]:
        took = f"  ({seconds} s)" if seen else ""
        print(f"{head}{probe:<12}  {way}{'  | ' + seen if seen else ''}{took}")
        if problem:
            print(f"{head}{'':<12}  FAILED: {problem}")
    print(f"{head}{run['release']}: {'ok' if run['code'] == 0 else 'FAILED'} in {run['seconds']} s")
    if run["code"] != 0:
        print("\n".join("    " + line for line in run["log"].splitlines()[-120:]))


def table(head, rows):
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head)] + rows)


def document(runs):
    print("# Kernels\n")
    print("Written by `make test-kernels`; do not edit. Each probe of netskoopd on stock Debian kernels: how it is attached or")
    print("what it reads, and what it does not see there. What was provoked in each of them stands below; the rest was only read.\n")
    notes = []

    def cell(way):
        way, _, note = way.partition(": ")
        if not note:
            return way
        if note not in notes:
            notes.append(note)
        return f"{way} [{notes.index(note) + 1}]"

    names = [probe[0] for probe in runs[0]["probes"]]
    stands = [{probe[0]: cell(probe[1]) for probe in run["probes"]} for run in runs]
    rows = [[f"`{name}`"] + [stand.get(name, "-") for stand in stands] for name in names]
    print(table(["probe"] + [run["name"] if run["name"] != "newest" else run["release"].split("-")[0] for run in runs], rows))
    print()
    for number, note in enumerate(notes, 1):
        print(f"{number}. {note}")
    print("\n## What was made to happen, and seen\n")
    seen = []
    for name in names:
        told = [next((probe[2] for probe in run["probes"] if probe[0] == name), "") for run in runs]
        for text in dict.fromkeys(filter(None, told)):
            where = [run["name"] for run, other in zip(runs, told) if other == text]
            seen.append([f"`{name}`", "all" if len(where) == len(runs) else ", ".join(where), text.replace("|", "\\|")])
    print(table(["probe", "kernel", "seen"], seen))
    print("\n## Runs\n")
    print(table(["kernel", "seconds, emulated"], [[run["release"], str(run["seconds"])] for run in runs]))


if sys.argv[1] == "lines":
    lines(read(sys.argv[2], sys.argv[3]))
else:
    document([read(sys.argv[2], name) for name in sys.argv[3:]])
