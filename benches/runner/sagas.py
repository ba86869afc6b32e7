"""A saga of four steps, each a command of another module: in one process, and split over four services.

The load runs in the coordinator's process. A saga counts when it has ended, which is after its caller was answered
where a step stands behind the pivot.
"""

import contextlib
import json
import os
import sqlite3
import statistics
import sys
import time

import machine
from harness import BENCHES, about_machine, build, chosen_of, in_turns, median, others_share, parser, publish, rate, reached
from server import Server, fetch

DURABLE = BENCHES / "durable"
POLL_S = 0.1
END_POLL_S = 0.01
ENDED_WITHIN_S = 60
# Shares of the sagas that were answered when memory is read.
MARKS = (0.1, 0.5, 1.0)
# One of these tables has a row for every saga, in each database that took a step which inserts.
TABLES = ("payments_payment", "orders_order", "shipping_parcel")


class Candidate:
    """A topology on a disk, and the least sagas a second that we want of it."""

    def __init__(self, name, label, arguments, asked_per_s, environment=None):
        self.name = name
        self.label = label
        self.arguments = arguments
        self.asked_per_s = asked_per_s
        self.environment = environment


SPLIT = ["--topology", str(DURABLE / "sagas" / "topology" / "split.toml")]
SLOW_DISK = {"SAGAS_SYNC_US": "1000"}
CANDIDATES = [
    Candidate("fused", "one process, one transaction", [], 40_000),
    Candidate("split", "four services", SPLIT, 10_000),
    Candidate("fused-1ms", "one process, a sync takes 1 ms", [], 40_000, SLOW_DISK),
    Candidate("split-1ms", "four services, a sync takes 1 ms", SPLIT, 10_000, SLOW_DISK),
]


def main(arguments):
    options = parser("sagas", __doc__.splitlines()[0], [candidate.name for candidate in CANDIDATES])
    options.add_argument("--count", type=int, default=100_000, help="sagas of each measurement (default: %(default)s)")
    options.add_argument("--in-flight", type=int, default=256, help="sagas that wait for their answer (default: %(default)s)")
    chosen = chosen_of(options, arguments, CANDIDATES)
    binary = build({(DURABLE, "sagas")}, chosen.no_build)["sagas"]

    def measure(candidate, in_flight, data):
        command = [str(binary), "run", *candidate.arguments]
        with Server(candidate.name, command, data, candidate.environment) as server:
            result = run(server, data, chosen.count, in_flight)
        verify(data, chosen.count)
        return result

    results = in_turns(chosen, [chosen.in_flight], measure, lambda result: f"{result['sagas_per_s']:,.0f} sagas/s")
    command = (
        f"--only {','.join(candidate.name for candidate in chosen.candidates)} --count {chosen.count}"
        f" --in-flight {chosen.in_flight} --rounds {chosen.rounds}"
    )
    publish("sagas", command, "\n".join([*table(results, chosen), "", *memory(results, chosen), "", *about_machine(results)]), chosen)


def run(server, data, count, in_flight):
    """Has the coordinator run its load, and watches its processes until every saga has ended."""
    token = (data / "keys" / "admin.token").read_text().strip()
    pids = server.pids()
    before, began = spent_s(pids), time.monotonic()
    fetch(f"{server.url}/admin/orders/load", json.dumps({"sagas": count, "in_flight": in_flight}).encode(), token)
    pss, marks, is_over = [], list(MARKS), False
    while not is_over:
        time.sleep(POLL_S)
        progress = fetch(f"{server.url}/admin/orders/load", token=token)
        report, is_over = progress["report"], progress["is_over"]
        while marks and (is_over or report["done"] >= marks[0] * count):
            pss.append({"share": marks.pop(0), "mib": {service_of(pid): machine.pss_mib(pid) for pid in pids}})
    if report["errors"]:
        sys.exit(f"{server.name}: not every saga was answered: {json.dumps(report['errors'])[:1000]}")
    # The load's own clock says when the last one was answered.
    passed = report["seconds"]
    while fetch(f"{server.url}/admin/sagas", token=token)["open"]:
        if passed > report["seconds"] + ENDED_WITHIN_S:
            sys.exit(f"{server.name}: not every saga has ended")
        time.sleep(END_POLL_S)
        passed = time.monotonic() - began
    watched = time.monotonic() - began
    servers_s, runner_s, machine_s = (after - earlier for after, earlier in zip(spent_s(pids), before))
    return {
        "sagas_per_s": count / passed,
        "answered_per_s": report["orders_per_s"],
        "p50_us": report["p50_us"],
        "p99_us": report["p99_us"],
        "cpu_s_per_1000": 1000 * servers_s / count,
        "others_share": others_share(machine_s - servers_s - runner_s, watched * os.cpu_count()),
        "pss": pss,
    }


def spent_s(pids):
    """The time of the application, of this script, and of all on the machine."""
    return machine.cpu_seconds(pids), time.process_time(), machine.machine_cpu_seconds()


def service_of(pid):
    """The service that a process runs, as its command line says; the first of them has none."""
    arguments = open(f"/proc/{pid}/cmdline").read().split("\0")
    return arguments[arguments.index("--service") + 1] if "--service" in arguments else "first process"


def verify(data, count):
    """Every saga has left exactly its rows, in whichever database its step ran."""
    found = {}
    for file in data.glob("*.db"):
        with contextlib.closing(sqlite3.connect(file)) as connection:
            for table in TABLES:
                if connection.execute("SELECT 1 FROM sqlite_schema WHERE name = ?", (table,)).fetchone():
                    found[table] = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    if found != dict.fromkeys(TABLES, count):
        sys.exit(f"{count} sagas have left other rows than theirs: {found}")


def table(results, chosen):
    lines = [
        "| | sagas/s (least, most) | asked | answered/s | p50 ms | p99 ms | CPU ms a 1,000 sagas |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for candidate in chosen.candidates:
        def of(key, name=candidate.name):
            return median(results, name, chosen.in_flight, key)

        lines.append(
            f"| {candidate.label} | {rate(results, candidate.name, chosen.in_flight, 'sagas_per_s')} "
            f"| {candidate.asked_per_s:,}: {reached(of('sagas_per_s'), candidate.asked_per_s)} | {of('answered_per_s'):,.0f} "
            f"| {of('p50_us') / 1000:.2f} | {of('p99_us') / 1000:.2f} | {1000 * of('cpu_s_per_1000'):.0f} |"
        )
    return lines


def memory(results, chosen):
    """MiB of each process when so many of the sagas were answered."""
    heads = [f"{share:.0%} of {chosen.count:,}" for share in MARKS]
    lines = ["| MiB of | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(MARKS)]
    for candidate in chosen.candidates:
        of = [result["pss"] for result in results if result["candidate"] == candidate.name]
        for service in of[0][0]["mib"]:
            cells = (f"{statistics.median(run[mark]['mib'][service] for run in of):.1f}" for mark in range(len(MARKS)))
            lines.append(f"| {candidate.label}: {service} | {' | '.join(cells)} |")
    return lines
