"""A request of 100 bytes and its answer, between two processes, by the framework and by what others use.

The caller's process is one of the two that are measured: a call costs both of them.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error

import machine
from harness import (
    BENCHES, Reading, about_others, add_load_options, build, chosen_of, in_turns, median, parser, placing, publish, rate,
    ratio, reached, spent,
)
from server import Server, fetch

RPC = BENCHES / "rpc"
REPORT_WITHIN_S = 10
REPORT_POLL_S = 0.05
BASELINES = ("tonic", "tarpc")


class Candidate:
    """A library with its two processes. `trace` is what the framework's calls say about one."""

    def __init__(self, name, label, binary, trace=None):
        self.name = name
        self.label = label
        self.binary = binary
        self.trace = trace


CANDIDATES = [
    Candidate("modulith", "the framework", "rpc-modulith", "absent"),
    Candidate("modulith-sampled-out", "the framework, in a trace that is sampled out", "rpc-modulith", "sampled-out"),
    Candidate("tonic", "tonic, prost", "rpc-tonic"),
    Candidate("tarpc", "tarpc, bincode", "rpc-tarpc"),
    Candidate("json", "axum and reqwest, JSON", "rpc-json"),
    Candidate("transport", "the framework's transport, bytes", "rpc-transport"),
    Candidate("bare", "bare frames, bytes", "rpc-bare"),
]
# Of the framework to another: at how many callers, what, and the least or the most that we want of the ratio.
GOALS = [
    (64, "tonic", "calls a second", "calls_per_s", 10, "at least"),
    (64, "tonic", "CPU a call", "cpu_s_per_1000", 0.1, "at most"),
    (64, "tarpc", "calls a second", "calls_per_s", 4, "at least"),
    (1, "tonic", "latency (p50)", "p50_us", 1 / 3, "at most"),
]


def main(arguments):
    options = parser("rpc", __doc__.splitlines()[0], [candidate.name for candidate in CANDIDATES])
    add_load_options(options)
    options.add_argument("--sockets", default="unix,tcp", help="kinds of sockets (default: %(default)s)")
    options.add_argument("--threads", type=int, help="tokio's threads of every process (default: each library's own number)")
    chosen = chosen_of(options, arguments, CANDIDATES)
    binaries = build({(RPC, candidate.binary) for candidate in chosen.candidates}, chosen.no_build)
    if chosen.threads:
        # The supervisor's children too.
        os.environ["TOKIO_WORKER_THREADS"] = str(chosen.threads)

    def measure(candidate, point, data):
        socket, callers = point.split("-")
        run = through_framework if candidate.trace else between_two
        return run(candidate, str(binaries[candidate.binary]), socket, int(callers), data, chosen)

    points = [f"{socket}-{callers}" for socket in chosen.sockets.split(",") for callers in chosen.callers]
    results = in_turns(chosen, points, measure, lambda result: f"{result['calls_per_s']:,.0f} calls/s")
    command = (
        f"--only {','.join(candidate.name for candidate in chosen.candidates)} --sockets {chosen.sockets}"
        f" --callers {','.join(map(str, chosen.callers))} --rounds {chosen.rounds} --seconds {chosen.seconds:g}"
        f" --warmup-seconds {chosen.warmup_seconds:g}" + (f" --threads {chosen.threads}" if chosen.threads else "")
    )
    publish("rpc", command, table(results, chosen, points), chosen)


def between_two(candidate, binary, socket, callers, data, chosen):
    """A process that serves, and one that calls and announces what it measures."""
    address = f"unix:{data / 'socket'}" if socket == "unix" else f"127.0.0.1:{machine.free_port()}"
    with serving([binary, "serve", address]) as server:
        command = [
            binary, "call", address, "--callers", str(callers),
            "--seconds", str(chosen.seconds), "--warmup-seconds", str(chosen.warmup_seconds),
        ]
        return placing(command, lambda load: [server, load], counted="calls")


@contextlib.contextmanager
def serving(command):
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=machine.die_with_parent)
    try:
        if process.stdout.readline() != "ready\n":
            sys.exit(f"{command[0]} does not serve")
        yield process.pid
    finally:
        process.kill()
        process.wait()


def through_framework(candidate, binary, socket, callers, data, chosen):
    """An application of two services, as its topology file says; the supervisor and the gateway are measured with it."""
    listen = f'listen = "127.0.0.1:{machine.free_port()}"\n' if socket == "tcp" else ""
    topology = data / "topology.toml"
    topology.write_text(f'[service.echo]\nmodules = ["echo"]\n{listen}\n[service.driver]\nmodules = ["driver"]\n')
    with Server(candidate.name, [binary, "run", "--topology", str(topology)], data) as server:
        token = (data / "keys" / "admin.token").read_text().strip()
        pids = server.pids()
        asked = {
            "callers": callers, "seconds": chosen.seconds, "warmup_seconds": chosen.warmup_seconds, "trace": candidate.trace,
        }
        fetch(f"{server.url}/admin/driver/load", json.dumps(asked).encode(), token)
        # Its interval begins with the request, but for the time that the answer to it takes.
        time.sleep(chosen.warmup_seconds)
        begin = Reading(server.process.pid, pids)
        time.sleep(chosen.seconds)
        end = Reading(server.process.pid, pids)
        report = report_of(server, token)
    if not report["calls"]:
        sys.exit(f"{candidate.name}: no call was answered: {report}")
    return report | spent(begin, end, report["calls"], is_apart=False)


def report_of(server, token):
    until = time.monotonic() + REPORT_WITHIN_S
    while True:
        try:
            return fetch(f"{server.url}/admin/driver/load", token=token)
        except urllib.error.HTTPError as error:
            if error.code != 404 or time.monotonic() > until:
                raise
        time.sleep(REPORT_POLL_S)


def table(results, chosen, points):
    names = [candidate.name for candidate in chosen.candidates]
    baselines = [name for name in BASELINES if name in names]
    lines = []
    for point in points:
        socket, callers = point.split("-")
        where = "Unix socket" if socket == "unix" else "TCP over loopback"
        heads = "".join(f" | calls to {name}'s | CPU to {name}'s" for name in baselines)
        lines += [
            f"**{where}, {callers} caller{'s' if callers != '1' else ''}**",
            "",
            f"| | calls/s (least, most) | p50 us | p99 us | CPU us a call{heads} |",
            "| --- |" + " ---: |" * (4 + 2 * len(baselines)),
        ]
        for candidate in chosen.candidates:
            def of(key, name=candidate.name):
                return median(results, name, point, key)

            def to(baseline, key, name=candidate.name):
                return f"{ratio(results, name, baseline, point, key):.2f}"

            ratios = "".join(f" | {to(name, 'calls_per_s')} | {to(name, 'cpu_s_per_1000')}" for name in baselines)
            lines.append(
                f"| {candidate.label} | {rate(results, candidate.name, point, 'calls_per_s')} | {of('p50_us'):,.1f} "
                f"| {of('p99_us'):,.1f} | {1000 * of('cpu_s_per_1000'):.2f}{ratios} |"
            )
        lines.append("")
    lines += goals(results, names, points)
    for result in results:
        if result["errors"]:
            lines.append(f"Failed: {result['candidate']} at {result['point']}: {json.dumps(result['errors'])[:300]}.")
    return "\n".join(lines + about_others(results))


def goals(results, names, points):
    """What was asked of the framework, on each kind of socket."""
    lines = []
    for callers, baseline, what, key, asked, bound in GOALS:
        for point in points:
            if point.split("-")[1] != str(callers) or not {"modulith", baseline} <= set(names):
                continue
            figure = ratio(results, "modulith", baseline, point, key)
            judged = reached(figure, asked) if bound == "at least" else reached(asked, figure)
            lines.append(f"| {what} to {baseline}'s at {point} | {figure:.2f} | {bound} {asked:.2f}: {judged} |")
    return ["| the framework's | | asked |", "| --- | ---: | ---: |", *lines, ""] if lines else []
