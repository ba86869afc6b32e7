"""A call that stays in the process: nanoseconds, and instructions where valgrind is installed."""

import json
import os
import re
import resource
import shutil
import subprocess
import time

import machine
from harness import about_others, build, chosen_of, in_turns, median, others_share, parser, publish, ratio, reached, values
from rpc import RPC

POINT = "local"
CALL_NS_MAX = 70
SAMPLED_OUT_NS_MAX = 25
# Callgrind counts everything from the first instruction on; what is left of the difference is calls.
COUNTED_CALLS = (10_000, 110_000)


class Candidate:
    """A kind of call, by the options that the binary has for it."""

    def __init__(self, name, label, options):
        self.name = name
        self.label = label
        self.options = options


CANDIDATES = [
    Candidate("absent", "with a deadline, in no trace", ["--trace", "absent"]),
    Candidate("sampled-out", "with a deadline, in a trace that is sampled out", ["--trace", "sampled-out"]),
    Candidate("by-hand", "by hand: a boxed future under tokio's timeout, no context, no contract", ["--by-hand"]),
]


def main(arguments):
    options = parser("calls", __doc__.splitlines()[0], [candidate.name for candidate in CANDIDATES])
    chosen = chosen_of(options, arguments, CANDIDATES)
    binary = str(build({(RPC, "local-call")}, chosen.no_build)["local-call"])

    def measure(candidate, _point, _data):
        began, machine_s, own_s = time.monotonic(), machine.machine_cpu_seconds(), children_s()
        said = subprocess.run([binary, *candidate.options], check=True, stdout=subprocess.PIPE).stdout
        own_s, machine_s, passed = children_s() - own_s, machine.machine_cpu_seconds() - machine_s, time.monotonic() - began
        return json.loads(said) | {"others_share": others_share(machine_s - own_s, passed * os.cpu_count())}

    results = in_turns(chosen, [POINT], measure, lambda result: f"{result['ns']:.1f} ns a call")
    counted = {candidate.name: instructions(binary, candidate.options) for candidate in chosen.candidates}
    command = f"--only {','.join(candidate.name for candidate in chosen.candidates)} --rounds {chosen.rounds}"
    publish("calls", command, "\n".join([*table(results, counted, chosen), "", *about_others(results)]), chosen)


def children_s():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def instructions(binary, options):
    """Instructions of one call, as callgrind counts them; None without valgrind."""
    if not shutil.which("valgrind"):
        return None
    totals = []
    for calls in COUNTED_CALLS:
        command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", binary]
        command += [*options, "--calls", str(calls), "--rounds", "1"]
        said = subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True).stderr
        totals.append(int(re.search(r"Collected : (\d+)", said)[1]))
    return (totals[1] - totals[0]) / (COUNTED_CALLS[1] - COUNTED_CALLS[0])


def table(results, counted, chosen):
    lines = ["| | ns a call (least, most) | instructions a call | asked |", "| --- | ---: | ---: | ---: |"]
    for candidate in chosen.candidates:
        each = values(results, candidate.name, POINT, "ns")
        ns, count = median(results, candidate.name, POINT, "ns"), counted[candidate.name]
        asked = f"at most {CALL_NS_MAX}: {reached(CALL_NS_MAX, ns)}" if candidate.name == "absent" else ""
        spread = f"{ns:.1f} ({min(each):.1f}, {max(each):.1f})"
        lines.append(f"| {candidate.label} | {spread} | {f'{count:,.0f}' if count else 'no valgrind'} | {asked} |")
    if {"absent", "by-hand"} <= set(counted):
        lines.append(f"| the first to the one by hand | {ratio(results, 'absent', 'by-hand', POINT, 'ns'):.2f} | | |")
    if {"absent", "sampled-out"} <= set(counted):
        more = median(results, "sampled-out", POINT, "ns") - median(results, "absent", POINT, "ns")
        asked = f"at most {SAMPLED_OUT_NS_MAX}: {reached(SAMPLED_OUT_NS_MAX, more)}"
        lines.append(f"| what the trace costs | {more:.1f} | | {asked} |")
    return lines
