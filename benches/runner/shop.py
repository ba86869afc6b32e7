"""A whole checkout over HTTP, by the store and its peers.

Every measurement has a server of its own with an empty data folder.
"""

import json

from harness import (
    BENCHES, ROOT, about_machine, add_load_options, build, chosen_of, in_turns, median, parser, placing, publish, rate,
)
from machine import pss_mib
from server import Server, fetch


class Candidate:
    """One of the sides: how it is built, started, and made ready for load."""

    def __init__(self, name, label, manifest, binary, arguments, prepare=None):
        self.name = name
        self.label = label
        self.manifest = manifest
        self.binary = binary
        self.arguments = arguments
        self.prepare = prepare


def prepare_store(data, url):
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


SPLIT = ["run", "--topology", str(ROOT / "store" / "topology" / "split.toml")]
BASELINE = "peer-monolith"
CANDIDATES = [
    Candidate("store", "store, one process", ROOT, "store", ["run"], prepare_store),
    Candidate("store-split", "store, split", ROOT, "store", SPLIT, prepare_store),
    Candidate("peer-monolith", "peer: one axum + sqlx process", BENCHES, "peer-monolith", []),
    Candidate("peer-services", "peer: five axum + reqwest + sqlx services", BENCHES, "peer-services", ["--all"]),
]


def main(arguments):
    options = parser("shop", __doc__.splitlines()[0], [candidate.name for candidate in CANDIDATES])
    add_load_options(options)
    chosen = chosen_of(options, arguments, CANDIDATES)
    wanted = {(candidate.manifest, candidate.binary) for candidate in chosen.candidates} | {(BENCHES, "load")}
    binaries = build(wanted, chosen.no_build)

    def measure(candidate, callers, data):
        with Server(candidate.name, [str(binaries[candidate.binary]), *candidate.arguments], data) as server:
            if candidate.prepare:
                candidate.prepare(data, server.url)
            command = [
                str(binaries["load"]), "--url", server.url, "--callers", str(callers),
                "--seconds", str(chosen.seconds), "--warmup-seconds", str(chosen.warmup_seconds),
            ]
            result = placing(command, lambda _load: server.pids())
            return result | {"pss_mib": sum(map(pss_mib, server.pids()))}

    results = in_turns(chosen, chosen.callers, measure, lambda result: f"{result['orders_per_s']:,.0f} orders/s")
    command = (
        f"--only {','.join(candidate.name for candidate in chosen.candidates)} --callers {','.join(map(str, chosen.callers))}"
        f" --rounds {chosen.rounds} --seconds {chosen.seconds:g} --warmup-seconds {chosen.warmup_seconds:g}"
    )
    publish("shop", command, table(results, chosen), chosen)


def table(results, chosen):
    names = [candidate.name for candidate in chosen.candidates]
    baseline = next((candidate.label for candidate in chosen.candidates if candidate.name == BASELINE), None)
    lines = [f'Ratios are to "{baseline}".', ""] if baseline else []
    for callers in chosen.callers:
        lines += [
            f"**{callers} caller{'s' if callers > 1 else ''}**",
            "",
            "| | orders/s (least, most) | ratio | p50 ms | p99 ms | CPU s a 1,000 orders | ratio | MiB |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for candidate in chosen.candidates:
            def of(key, name=candidate.name):
                return median(results, name, callers, key)

            def ratio(key):
                return f"{of(key) / of(key, BASELINE):.2f}" if BASELINE in names else "-"

            lines.append(
                f"| {candidate.label} | {rate(results, candidate.name, callers, 'orders_per_s')} "
                f"| {ratio('orders_per_s')} | {of('p50_us') / 1000:.2f} | {of('p99_us') / 1000:.2f} "
                f"| {of('cpu_s_per_1000'):.3f} | {ratio('cpu_s_per_1000')} | {of('pss_mib'):.0f} |"
            )
        lines.append("")
    for result in results:
        if result["errors"]:
            lines.append(f"Not 201: {result['candidate']} at {result['point']} callers: {json.dumps(result['errors'])}.")
    return "\n".join(lines + about_machine(results))
