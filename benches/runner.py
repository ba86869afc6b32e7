"""Runs the store and its peers in turns, measures them, and writes the table into README.md.

Every measurement has a server of its own with an empty data folder. Within a round the candidates
follow each other directly, and each round begins with another one, so that what drifts on the machine
drifts for all. What is reported is the median over the rounds.

Everything that is started ends with this script: servers run in sessions of their own that are killed
as a whole, and the kernel kills their first process should this one be killed.
"""

import argparse
import ctypes
import datetime
import json
import os
import pathlib
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

BENCHES = pathlib.Path(__file__).resolve().parent
ROOT = BENCHES.parent
README = BENCHES / "README.md"
MARK_BEGIN = "<!-- results: begin -->"
MARK_END = "<!-- results: end -->"

READY_WITHIN_S = 60
STOP_WITHIN_S = 5
SYNCS = 100
OTHERS_SHARE_MAX = 0.1
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)


class Candidate:
    """One of the sides: how it is built, started, and made ready for load."""

    def __init__(self, name, manifest, binary, arguments, prepare=None):
        self.name = name
        self.manifest = manifest
        self.binary = binary
        self.arguments = arguments
        self.prepare = prepare

    def command(self, binaries, data, listen):
        return [str(binaries[self.binary]), *self.arguments, "--data", str(data), "--listen", listen]


def prepare_store(binary, data, url):
    """Stocks the store as the peers stock themselves: 1,000 products that do not sell out.

    The small catalogue that the store ships has a finite stock, so its products get more of it too.
    """
    token = (data / "keys" / "admin.token").read_text().strip()
    products, after = [], ""
    while True:
        page = fetch(f"{url}/products?limit=100{after}")
        products += [{"id": item["id"], "name": item["name"], "price": item["price"]} for item in page["items"]]
        if not page["next"]:
            break
        after = f"&after={page['next']}"
    for number in range(1000 - len(products)):
        price = {"amount": 100 + number, "currency": "GBP"}
        products.append({"id": f"BENCH-{number:04}", "name": f"Product {number}", "price": price})
    for at in range(0, len(products), 500):
        supplied = [product | {"units": 1_000_000_000} for product in products[at : at + 500]]
        body = json.dumps({"source": f"benchmark {at}", "products": supplied}).encode()
        fetch(f"{url}/admin/products/supply", body, token)


def fetch(url, body=None, token=None):
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(url, data=body, headers=headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        text = response.read()
        return json.loads(text) if text else None


STORE_ARGUMENTS = ["run"]
SPLIT_ARGUMENTS = ["run", "--topology", str(ROOT / "store" / "topology" / "split.toml")]
BASELINE = "peer-monolith"
CANDIDATES = [
    Candidate("store", ROOT, "store", STORE_ARGUMENTS, prepare_store),
    Candidate("store-split", ROOT, "store", SPLIT_ARGUMENTS, prepare_store),
    Candidate("peer-monolith", BENCHES, "peer-monolith", []),
    Candidate("peer-services", BENCHES, "peer-services", ["--all"]),
]
LABELS = {
    "store": "store, one process",
    "store-split": "store, split",
    "peer-monolith": "peer: one axum + sqlx process",
    "peer-services": "peer: five axum + reqwest + sqlx services",
}


def options():
    parser = argparse.ArgumentParser(prog="benches/run", description=__doc__.splitlines()[0])
    names = [candidate.name for candidate in CANDIDATES]
    parser.add_argument("--only", default=",".join(names), help="candidates, separated by commas (default: %(default)s)")
    parser.add_argument("--callers", default="1,64,256", help="numbers of callers (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=8, help="measured seconds of each (default: %(default)s)")
    parser.add_argument("--warmup-seconds", type=float, default=2, help="load before that (default: %(default)s)")
    parser.add_argument("--scratch", type=pathlib.Path, help="where data folders are made; its disk is what is measured")
    parser.add_argument("--no-build", action="store_true", help="use the binaries as they are")
    parser.add_argument("--no-readme", action="store_true", help="print the table and leave README.md alone")
    parser.add_argument("--json", type=pathlib.Path, help="write every single measurement to this file")
    chosen = parser.parse_args()
    chosen.only = chosen.only.split(",")
    chosen.callers = [int(number) for number in chosen.callers.split(",")]
    unknown = set(chosen.only) - set(names)
    if unknown:
        parser.error(f"no such candidate: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    return chosen


# Building


def build(candidates, skip):
    """The release binaries by name; a build that fails ends the run."""
    wanted = {(BENCHES, "load")} | {(candidate.manifest, candidate.binary) for candidate in candidates}
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


# Processes


def die_with_parent():
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Server:
    """A candidate that runs, with all of its processes; a context that ends them."""

    def __init__(self, candidate, binaries, data):
        self.candidate = candidate
        self.data = data
        self.binary = binaries[candidate.binary]
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = open(data.with_suffix(".log"), "wb")
        command = candidate.command(binaries, data, f"127.0.0.1:{self.port}")
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
            start_new_session=True, preexec_fn=die_with_parent,
        )

    def __enter__(self):
        try:
            self.wait_until_ready()
            if self.candidate.prepare:
                self.candidate.prepare(self.binary, self.data, self.url)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def wait_until_ready(self):
        deadline = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"{self.url}/readyz", timeout=1) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                time.sleep(0.02)
        said = pathlib.Path(self.log.name).read_text(errors="replace")[-2000:]
        sys.exit(f"{self.candidate.name} did not become ready\n{said}")

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.log.close()

    def pids(self):
        """The process and its descendants."""
        children = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                fields = stat_fields(int(entry))
                if fields:
                    children.setdefault(int(fields[1]), []).append(int(entry))
        found, unseen = [], [self.process.pid]
        while unseen:
            pid = unseen.pop()
            found.append(pid)
            unseen.extend(children.get(pid, []))
        return found

    def pss_mib(self):
        kib = 0
        for pid in self.pids():
            try:
                rollup = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue
            kib += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        return kib / 1024


def stat_fields(pid):
    """/proc/PID/stat from the state on, since a command's name may hold spaces; None if it is gone."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def cpu_seconds(pids):
    """User and system time of these processes."""
    ticks = 0
    for fields in filter(None, map(stat_fields, pids)):
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_S


def machine_cpu_seconds():
    """What all cores have worked, for whomever; the time that a hypervisor took counts too."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, open("/proc/stat").readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_S


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# Measuring


def measure(candidate, binaries, callers, chosen, scratch):
    data = pathlib.Path(tempfile.mkdtemp(prefix=f"{candidate.name}-{callers}-", dir=scratch))
    try:
        sync_us = sync_median_us(data)
        with Server(candidate, binaries, data) as server:
            result = load(server, binaries["load"], callers, chosen)
        result["sync_us"] = sync_us
        return result
    finally:
        shutil.rmtree(data, ignore_errors=True)
        data.with_suffix(".log").unlink(missing_ok=True)


def load(server, binary, callers, chosen):
    """Loads the server and watches its processes over exactly the interval that is measured."""
    command = [
        str(binary), "--json", "--url", server.url, "--callers", str(callers),
        "--seconds", str(chosen.seconds), "--warmup-seconds", str(chosen.warmup_seconds),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent)
    spent_s, report = {}, None
    try:
        for line in process.stdout:
            message = json.loads(line)
            if "phase" in message:
                spent_s[message["phase"]] = (
                    time.monotonic(), machine_cpu_seconds(), cpu_seconds(server.pids()), cpu_seconds([process.pid])
                )
            else:
                report = message
    finally:
        process.kill()
        process.wait()
    if not report or not report["orders"]:
        sys.exit(f"{server.candidate.name}: no order was placed by {callers} callers: {report}")
    passed, machine, servers, loading = (after - before for before, after in zip(spent_s["measuring"], spent_s["measured"]))
    return {
        "candidate": server.candidate.name,
        "callers": callers,
        "orders_per_s": report["orders_per_s"],
        "p50_us": report["p50_us"],
        "p99_us": report["p99_us"],
        "cpu_s_per_1000": 1000 * servers / report["orders"],
        "load_share": loading / (passed * os.cpu_count()),
        "others_share": max(0, machine - servers - loading) / (passed * os.cpu_count()),
        "pss_mib": server.pss_mib(),
        "errors": report["errors"],
    }


def sync_median_us(folder):
    """What the disk takes for the least that is durable: 4 KiB appended and synced."""
    page, took = bytes(4096), []
    path = folder / "sync-probe"
    probe = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    try:
        for _ in range(SYNCS):
            began = time.perf_counter()
            os.write(probe, page)
            os.fdatasync(probe)
            took.append(1e6 * (time.perf_counter() - began))
    finally:
        os.close(probe)
        path.unlink()
    return statistics.median(took)


# Reporting


def table(results, chosen):
    def values(name, callers, key):
        return [result[key] for result in results if (result["candidate"], result["callers"]) == (name, callers)]

    lines = []
    for callers in chosen.callers:
        lines += [
            f"**{callers} caller{'s' if callers > 1 else ''}**",
            "",
            "| | orders/s (least, most) | ratio | p50 ms | p99 ms | CPU s a 1,000 orders | ratio | MiB |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for name in chosen.only:
            def median(key, of=name):
                return statistics.median(values(of, callers, key))

            def ratio(key):
                return f"{median(key) / median(key, BASELINE):.2f}" if BASELINE in chosen.only else "-"

            rates = values(name, callers, "orders_per_s")
            lines.append(
                f"| {LABELS[name]} | {median('orders_per_s'):,.0f} ({min(rates):,.0f}, {max(rates):,.0f}) "
                f"| {ratio('orders_per_s')} | {median('p50_us') / 1000:.2f} | {median('p99_us') / 1000:.2f} "
                f"| {median('cpu_s_per_1000'):.3f} | {ratio('cpu_s_per_1000')} | {median('pss_mib'):.0f} |"
            )
        lines.append("")
    for result in results:
        if result["errors"]:
            lines.append(f"Not 201: {result['candidate']} at {result['callers']} callers: {json.dumps(result['errors'])}.")
    sync_us = statistics.median(result["sync_us"] for result in results)
    lines.append(f"The disk took {sync_us:.0f} microseconds to append and sync 4 KiB (median, no load).")
    others = statistics.median(result["others_share"] for result in results)
    lines.append(f"Meanwhile other processes took {others:.0%} of the cores (median).")
    if others > OTHERS_SHARE_MAX:
        lines.append("**The machine was not idle: these figures compare nothing.**")
    return "\n".join(lines)


def described(results, chosen):
    today = datetime.date.today().isoformat()
    command = (
        f"benches/run --only {','.join(chosen.only)} --callers {','.join(map(str, chosen.callers))}"
        f" --rounds {chosen.rounds} --seconds {chosen.seconds:g} --warmup-seconds {chosen.warmup_seconds:g}"
    )
    return (
        f"Measured on {today} with `{command}`\n"
        f"on {os.cpu_count()} cores, which servers and load share. Medians over the rounds; ratios are to \"{LABELS[BASELINE]}\".\n\n"
        f"{table(results, chosen)}"
    )


def write_readme(text):
    readme = README.read_text()
    head, begin, rest = readme.partition(MARK_BEGIN)
    _, end, tail = rest.partition(MARK_END)
    if not begin or not end:
        sys.exit(f"{README.name} has lost its markers {MARK_BEGIN} and {MARK_END}")
    README.write_text(f"{head}{begin}\n\n{text}\n\n{end}{tail}")


def main():
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda *_: sys.exit("ended by a signal"))
    chosen = options()
    candidates = [candidate for candidate in CANDIDATES if candidate.name in chosen.only]
    chosen.only = [candidate.name for candidate in candidates]
    binaries = build(candidates, chosen.no_build)
    results = []
    with tempfile.TemporaryDirectory(prefix="benches-", dir=chosen.scratch) as scratch:
        for number in range(chosen.rounds):
            turn = number % len(candidates)
            for callers in chosen.callers:
                for candidate in candidates[turn:] + candidates[:turn]:
                    result = measure(candidate, binaries, callers, chosen, scratch)
                    results.append(result)
                    print(
                        f"round {number + 1}/{chosen.rounds}, {callers} callers, {candidate.name}: "
                        f"{result['orders_per_s']:,.0f} orders/s",
                        file=sys.stderr,
                    )
                    if chosen.json:
                        chosen.json.write_text(json.dumps(results, indent=1))
    text = described(results, chosen)
    print(text)
    if not chosen.no_readme:
        write_readme(text)


if __name__ == "__main__":
    main()
