"""What every benchmark has in common: its options, building, taking turns, and what is said about the machine."""

import argparse
import datetime
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import machine

BENCHES = pathlib.Path(__file__).resolve().parent.parent
ROOT = BENCHES.parent
README = BENCHES / "README.md"
OTHERS_SHARE_MAX = 0.1


def parser(name, about, candidates):
    """The options of all benchmarks. `candidates` are names."""
    options = argparse.ArgumentParser(prog=f"benches/run {name}", description=about)
    options.add_argument("--only", default=",".join(candidates), help="candidates, separated by commas (default: %(default)s)")
    options.add_argument("--rounds", type=int, default=5, help="measurements of each (default: %(default)s)")
    options.add_argument("--scratch", type=pathlib.Path, help="where data folders are made; its disk is what is measured")
    options.add_argument("--no-build", action="store_true", help="use the binaries as they are")
    options.add_argument("--no-readme", action="store_true", help="print the table and leave README.md alone")
    options.add_argument("--json", type=pathlib.Path, help="write every single measurement to this file")
    return options


def add_load_options(options):
    options.add_argument("--callers", default="1,64,256", help="numbers of callers (default: %(default)s)")
    options.add_argument("--seconds", type=float, default=8, help="measured seconds of each (default: %(default)s)")
    options.add_argument("--warmup-seconds", type=float, default=2, help="load before that (default: %(default)s)")


def chosen_of(options, arguments, candidates):
    """The options as given, with the candidates in their own order."""
    chosen = options.parse_args(arguments)
    unknown = set(chosen.only.split(",")) - {candidate.name for candidate in candidates}
    if unknown:
        names = ", ".join(candidate.name for candidate in candidates)
        options.error(f"no such candidate: {', '.join(sorted(unknown))}; there are {names}")
    chosen.candidates = [candidate for candidate in candidates if candidate.name in chosen.only.split(",")]
    if "callers" in chosen:
        chosen.callers = [int(number) for number in chosen.callers.split(",")]
    return chosen


def build(wanted, skip):
    """The release binaries by name, of pairs of a workspace and a name; a build that fails ends the run."""
    binaries = {}
    for folder in sorted({folder for folder, _ in wanted}):
        names = sorted(name for where, name in wanted if where == folder)
        manifest = ["--manifest-path", str(folder / "Cargo.toml")]
        if not skip:
            subprocess.run(["cargo", "build", "--release", *manifest, *sum((["--bin", name] for name in names), [])], check=True)
        metadata = subprocess.run(
            ["cargo", "metadata", "--format-version", "1", "--no-deps", *manifest], check=True, stdout=subprocess.PIPE
        )
        target = pathlib.Path(json.loads(metadata.stdout)["target_directory"])
        binaries |= {name: target / "release" / name for name in names}
    return binaries


def in_turns(chosen, points, measure, said):
    """Measures every candidate at every point, in every round.

    Candidates follow each other directly, and each round begins with another one, so that what drifts on the machine
    drifts for all. `measure(candidate, point, data)` has an empty data folder; `said(result)` is one line of it.
    """
    results, candidates = [], chosen.candidates
    with tempfile.TemporaryDirectory(prefix="benches-", dir=chosen.scratch) as scratch:
        for number in range(chosen.rounds):
            turn = number % len(candidates)
            for point in points:
                for candidate in candidates[turn:] + candidates[:turn]:
                    data = pathlib.Path(tempfile.mkdtemp(prefix=f"{candidate.name}-{point}-", dir=scratch))
                    try:
                        sync = machine.sync_us(data)
                        result = measure(candidate, point, data)
                    finally:
                        shutil.rmtree(data, ignore_errors=True)
                        data.with_suffix(".log").unlink(missing_ok=True)
                    result |= {"round": number, "candidate": candidate.name, "point": point, "sync_us": sync}
                    results.append(result)
                    print(f"round {number + 1}/{chosen.rounds}, {candidate.name} at {point}: {said(result)}", file=sys.stderr)
                    if chosen.json:
                        chosen.json.write_text(json.dumps(results, indent=1))
    return results


def placing(command, servers, counted="orders"):
    """Runs a load that announces what it measures, and watches over exactly that interval.

    `servers(load)` tells the processes that are measured; the load is one of them where it runs inside, or is one side
    of what is measured. `counted` is what the report calls the things that were done.
    """
    load = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=machine.die_with_parent)
    at, report = {}, None
    try:
        for line in load.stdout:
            message = json.loads(line)
            if "phase" in message:
                at[message["phase"]] = Reading(load.pid, servers(load.pid))
            else:
                report = message
    finally:
        load.kill()
        load.wait()
    if not report or not report[counted]:
        sys.exit(f"{pathlib.Path(command[0]).name}: nothing was done: {report}")
    return report | spent(at["measuring"], at["measured"], report[counted], is_apart=load.pid not in servers(load.pid))


def spent(begin, end, count, is_apart):
    """What `count` things have cost between two readings, and what everybody else took meanwhile.

    A load that is apart belongs to neither.
    """
    cores_s = (end.at - begin.at) * os.cpu_count()
    apart_s = end.load_s - begin.load_s if is_apart else 0
    threads = {name: end.threads_s[name] - begin.threads_s.get(name, 0) for name in end.threads_s}
    return {
        "cpu_s_per_1000": 1000 * (end.servers_s - begin.servers_s) / count,
        "threads_s_per_1000": {name: 1000 * seconds / count for name, seconds in threads.items()},
        "others_share": others_share(end.machine_s - begin.machine_s - apart_s - (end.servers_s - begin.servers_s), cores_s),
    }


class Reading:
    """What the clocks show at one moment."""

    def __init__(self, load, servers):
        self.at = time.monotonic()
        self.machine_s = machine.machine_cpu_seconds()
        self.servers_s = machine.cpu_seconds(servers)
        self.load_s = machine.cpu_seconds([load])
        self.threads_s = machine.thread_seconds(load)


def others_share(seconds, cores_s):
    return max(0, seconds) / cores_s


# Reporting


def values(results, name, point, key):
    return [result[key] for result in results if (result["candidate"], result["point"]) == (name, point)]


def median(results, name, point, key):
    return statistics.median(values(results, name, point, key))


def rate(results, name, point, key):
    """A rate with its extremes: `1,747 (1,694, 2,251)`."""
    rates = values(results, name, point, key)
    return f"{statistics.median(rates):,.0f} ({min(rates):,.0f}, {max(rates):,.0f})"


def ratio(results, name, to, point, key):
    """The median of what each round's two measurements, which follow each other, are to one another."""
    return statistics.median(
        ours / theirs for ours, theirs in zip(values(results, name, point, key), values(results, to, point, key))
    )


def about_machine(results):
    """Lines on the disk, and on who else used the machine."""
    syncs = [result["sync_us"] for result in results]
    disk, slow = (statistics.median(sync[key] for sync in syncs) for key in ("median", "p99"))
    about_disk = f"The disk took {disk:.0f} microseconds to append and sync 4 KiB (median, no load; 99th of 100: {slow:.0f})."
    return [about_disk, *about_others(results)]


def about_others(results):
    """Lines on who else used the machine, which is all there is to say where nothing is durable."""
    others = statistics.median(result["others_share"] for result in results)
    lines = [f"Meanwhile other processes took {others:.0%} of the cores (median)."]
    if others > OTHERS_SHARE_MAX:
        lines.append("**The machine was not idle: these figures compare nothing.**")
    return lines


def reached(figure, asked):
    return "reached" if figure >= asked else "missed"


def publish(name, command, text, chosen):
    """Prints the tables, and puts them into README.md unless that is not wanted."""
    today = datetime.date.today().isoformat()
    text = (
        f"Measured on {today} with `benches/run {name} {command}`\n"
        f"on {machine.model()}, which all share. Medians over the rounds.\n\n{text}"
    )
    print(text)
    if chosen.no_readme:
        return
    readme = README.read_text()
    head, begin, rest = readme.partition(f"<!-- results of {name}: begin -->")
    _, end, tail = rest.partition(f"<!-- results of {name}: end -->")
    if not begin or not end:
        sys.exit(f"{README.name} has lost its markers for the results of {name}")
    README.write_text(f"{head}{begin}\n\n{text}\n\n{end}{tail}")
