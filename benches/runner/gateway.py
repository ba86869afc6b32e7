"""A request through the gateway to a service, and through nginx to an HTTP backend.

`GET /products/{id}`, a small JSON document from the database, from callers with a kept-alive connection each.
"""

import contextlib
import json
import pathlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse

import machine
from harness import (
    BENCHES, ROOT, about_others, add_load_options, build, chosen_of, in_turns, median, parser, placing, publish, rate,
    ratio, reached,
)
from server import Server, fetch
from shop import SPLIT

CPU_TO_NGINX_MAX = 0.6
LISTENS_WITHIN_S = 10
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
# Nothing that costs and that a proxy can do without; connections live as long as the load wants, on both sides.
NGINX_CONFIGURATION = """
daemon off;
worker_processes auto;
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    upstream backend {{
        server {backend};
        keepalive 256;
        keepalive_requests 1000000000;
    }}
    server {{
        listen {listen};
        location / {{
            proxy_pass http://backend;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }}
    }}
}}
"""


class Candidate:
    """A program behind a front, which is its own or nginx."""

    def __init__(self, name, label, manifest, binary, arguments, behind_nginx=False):
        self.name = name
        self.label = label
        self.manifest = manifest
        self.binary = binary
        self.arguments = arguments
        self.behind_nginx = behind_nginx


BEFORE = "gateway-before"
CANDIDATES = [
    Candidate("gateway", "the gateway and the service", ROOT, "store", SPLIT),
    Candidate(BEFORE, "the same of an older build", ROOT, "store", SPLIT),
    Candidate("nginx-store", "nginx and the store in one process", ROOT, "store", ["run"], behind_nginx=True),
    Candidate("nginx-peer", "nginx and the axum + sqlx process", BENCHES, "peer-monolith", [], behind_nginx=True),
    Candidate("direct", "the store in one process, nothing before it", ROOT, "store", ["run"]),
]


def main(arguments):
    options = parser("gateway", __doc__.splitlines()[0], [candidate.name for candidate in CANDIDATES])
    add_load_options(options)
    options.set_defaults(callers="64")
    older = f"a `store` of an older build, to run as {BEFORE}; a name such as store-4569bc1 tells which"
    options.add_argument("--gateway-binary", type=pathlib.Path, help=older)
    chosen = chosen_of(options, arguments, CANDIDATES)
    if not chosen.gateway_binary:
        chosen.candidates = [candidate for candidate in chosen.candidates if candidate.name != BEFORE]
        if not chosen.candidates:
            options.error(f"{BEFORE} needs --gateway-binary")
    if not NGINX and any(candidate.behind_nginx for candidate in chosen.candidates):
        sys.exit("nginx is missing: apt-get install nginx-light, or leave it out with --only gateway,direct")
    wanted = {(candidate.manifest, candidate.binary) for candidate in chosen.candidates} | {(BENCHES, "load")}
    binaries = build(wanted, chosen.no_build)

    def measure(candidate, callers, data):
        binary = chosen.gateway_binary if candidate.name == BEFORE else binaries[candidate.binary]
        with contextlib.ExitStack() as started:
            server = started.enter_context(Server(candidate.name, [str(binary), *candidate.arguments], data))
            url, nginx = server.url, []
            if candidate.behind_nginx:
                url, nginx = started.enter_context(proxying(server.url, data))
            product = fetch(f"{url}/products?limit=1")["items"][0]["id"]
            command = [
                str(binaries["load"]), "--url", url, "--get", f"/products/{urllib.parse.quote(str(product))}",
                "--callers", str(callers), "--seconds", str(chosen.seconds), "--warmup-seconds", str(chosen.warmup_seconds),
            ]
            pids = server.pids() + nginx
            return placing(command, lambda _load: pids)

    results = in_turns(chosen, chosen.callers, measure, lambda result: f"{result['orders_per_s']:,.0f} requests/s")
    command = (
        f"--only {','.join(candidate.name for candidate in chosen.candidates)} --callers {','.join(map(str, chosen.callers))}"
        f" --rounds {chosen.rounds} --seconds {chosen.seconds:g} --warmup-seconds {chosen.warmup_seconds:g}"
    )
    if chosen.gateway_binary:
        command += f" --gateway-binary {chosen.gateway_binary.name}"
    publish("gateway", command, table(results, chosen), chosen)


@contextlib.contextmanager
def proxying(url, data):
    """nginx before `url`; its own, and the ids of its processes."""
    folder = data / "nginx"
    folder.mkdir()
    port = machine.free_port()
    listen = f"127.0.0.1:{port}"
    file = folder / "nginx.conf"
    file.write_text(NGINX_CONFIGURATION.format(backend=url.removeprefix("http://"), listen=listen))
    process = subprocess.Popen([NGINX, "-p", str(folder), "-c", str(file)], preexec_fn=machine.die_with_parent)
    try:
        until = time.monotonic() + LISTENS_WITHIN_S
        while not listens(port):
            if process.poll() is not None or time.monotonic() > until:
                sys.exit("nginx does not listen")
            time.sleep(0.02)
        yield f"http://{listen}", machine.with_descendants(process.pid)
    finally:
        process.terminate()
        process.wait()


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def table(results, chosen):
    names = [candidate.name for candidate in chosen.candidates]
    lines = []
    for callers in chosen.callers:
        lines += [
            f"**{callers} connection{'s' if callers > 1 else ''}**",
            "",
            "| | requests/s (least, most) | p50 ms | p99 ms | CPU us a request | CPU to nginx and the store's |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for candidate in chosen.candidates:
            def of(key, name=candidate.name):
                return median(results, name, callers, key)

            to_nginx = "-"
            if "nginx-store" in names:
                figure = ratio(results, candidate.name, "nginx-store", callers, "cpu_s_per_1000")
                to_nginx = f"{figure:.2f}"
                if candidate.name == "gateway":
                    to_nginx += f" (asked {CPU_TO_NGINX_MAX}: {reached(CPU_TO_NGINX_MAX, figure)})"
            lines.append(
                f"| {candidate.label} | {rate(results, candidate.name, callers, 'orders_per_s')} "
                f"| {of('p50_us') / 1000:.2f} | {of('p99_us') / 1000:.2f} | {1000 * of('cpu_s_per_1000'):.1f} | {to_nginx} |"
            )
        lines.append("")
    for result in results:
        if result["errors"]:
            lines.append(f"Not 200: {result['candidate']} at {result['point']}: {json.dumps(result['errors'])[:300]}.")
    return "\n".join(lines + about_others(results))
