"""A durable checkout without HTTP: the framework, the same by hand, and sqlx as people write it.

Each side runs in one process with the callers inside of it, on an empty data folder.
"""

import contextlib
import json
import sqlite3
import sys

from harness import (
    BENCHES, about_machine, add_load_options, build, chosen_of, in_turns, median, parser, placing, publish, rate, ratio, reached,
)

DURABLE = BENCHES / "durable"
OURS, BARE, SQLX = "modulith", "by-hand-bare", "sqlx"
# By a number of callers, the least that we want to be, in orders a second of the other side.
ASKED_BY_HAND = {1: 0.8, 64: 0.8, 256: 0.8}
ASKED_SQLX = {1: 1.5, 64: 8.0}
CATALOGUES = {"products_product", "products"}


class Candidate:
    """One of the sides, and the thread of it that writes."""

    def __init__(self, name, label, manifest, binary, arguments, writer):
        self.name = name
        self.label = label
        self.manifest = manifest
        self.binary = binary
        self.arguments = arguments
        self.writer = writer


CANDIDATES = [
    Candidate(OURS, "through the framework", DURABLE, "checkout", ["modulith"], "modulith-writer"),
    Candidate("by-hand", "by hand, a row a step", DURABLE, "checkout", ["by-hand", "--rows-per-step", "1"], "by-hand-writer"),
    Candidate(BARE, "by hand, no rows for steps", DURABLE, "checkout", ["by-hand", "--rows-per-step", "0"], "by-hand-writer"),
    Candidate(SQLX, "sqlx, a pool of 8", BENCHES, "checkout-sqlx", [], "sqlx-sqlite-wor"),
]


def main(arguments):
    options = parser("checkout", __doc__.splitlines()[0], [candidate.name for candidate in CANDIDATES])
    add_load_options(options)
    chosen = chosen_of(options, arguments, CANDIDATES)
    binaries = build({(candidate.manifest, candidate.binary) for candidate in chosen.candidates}, chosen.no_build)

    def measure(candidate, callers, data):
        command = [
            str(binaries[candidate.binary]), "--data", str(data), "--callers", str(callers),
            "--seconds", str(chosen.seconds), "--warmup-seconds", str(chosen.warmup_seconds), *candidate.arguments,
        ]
        result = placing(command, lambda load: [load])
        if result["errors"]:
            sys.exit(f"{candidate.name}: not every order was placed: {json.dumps(result['errors'])[:1000]}")
        return result | {
            "rows_per_order": rows_per_order(data / "checkout.db", result["done"]),
            "writer_s_per_1000": result["threads_s_per_1000"].get(candidate.writer, 0),
        }

    results = in_turns(chosen, chosen.callers, measure, lambda result: f"{result['orders_per_s']:,.0f} orders/s")
    command = (
        f"--only {','.join(candidate.name for candidate in chosen.candidates)} --callers {','.join(map(str, chosen.callers))}"
        f" --rounds {chosen.rounds} --seconds {chosen.seconds:g} --warmup-seconds {chosen.warmup_seconds:g}"
    )
    publish("checkout", command, "\n".join([*tables(results, chosen), *goals(results, chosen), "", *about_machine(results)]), chosen)


def rows_per_order(database, orders):
    """Rows that an order added, the catalogue left out, which was there before."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        counts = [connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables - CATALOGUES]
    return round(sum(counts) / orders)


def tables(results, chosen):
    lines = []
    for callers in chosen.callers:
        lines += [
            f"**{plural(callers)}**",
            "",
            "| | orders/s (least, most) | p50 ms | p99 ms | CPU ms a 1,000 orders | of it the writer's | rows an order |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for candidate in chosen.candidates:
            def of(key, name=candidate.name):
                return median(results, name, callers, key)

            lines.append(
                f"| {candidate.label} | {rate(results, candidate.name, callers, 'orders_per_s')} "
                f"| {of('p50_us') / 1000:.2f} | {of('p99_us') / 1000:.2f} "
                f"| {1000 * of('cpu_s_per_1000'):.0f} | {1000 * of('writer_s_per_1000'):.0f} | {of('rows_per_order'):.0f} |"
            )
        lines.append("")
    return lines


def goals(results, chosen):
    """What we are to the others, in orders a second: by hand to the side that writes as many rows as we do."""
    present = [candidate.name for candidate in chosen.candidates]
    if OURS not in present:
        return []
    rows = {result["candidate"]: result["rows_per_order"] for result in results}
    by_hand = [name for name in ("by-hand", BARE) if name in present]
    lines = ["| the framework to | " + " | ".join(plural(callers) for callers in chosen.callers) + " |"]
    lines.append("| --- |" + " ---: |" * len(chosen.callers))
    for candidate in chosen.candidates:
        if candidate.name == OURS:
            continue
        asked = ASKED_SQLX if candidate.name == SQLX else {}
        if candidate.name in by_hand and rows[candidate.name] == rows[OURS]:
            asked = ASKED_BY_HAND
        cells = []
        for callers in chosen.callers:
            figure = ratio(results, OURS, candidate.name, callers, "orders_per_s")
            judged = f" (asked {asked[callers]:.1f}: {reached(figure, asked[callers])})" if callers in asked else ""
            cells.append(f"{figure:.2f}{judged}")
        lines.append(f"| {candidate.label} | {' | '.join(cells)} |")
        cells = (f"{ratio(results, OURS, candidate.name, callers, 'cpu_s_per_1000'):.2f}" for callers in chosen.callers)
        lines.append(f"| the same, in CPU an order | {' | '.join(cells)} |")
    return lines


def plural(callers):
    return f"{callers} caller{'s' if callers > 1 else ''}"
