#!/usr/bin/env python3
"""Recommendations: which products of the store go with which, by the words of their names.

A service of the store in another language, with nothing but Python's standard library. It serves the contract
`recommendations` at POST /call/recommendations/related, and reads the catalogue from the store as any program may:
POST /call/products/catalogue, with the token of `[caller.recommendations]`.

    service.py --listen 127.0.0.1:9400 --store http://127.0.0.1:8080 \\
               --store-token data/keys/caller-recommendations.token
"""

import argparse
import hmac
import json
import math
import re
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REQUEST_BYTES_MAX = 64 * 1024
RELATED_MAX = 100
STORE_TIMEOUT_S = 10
REFRESH_EVERY_S = 60
RETRY_EVERY_S = 0.2
# A client that sends nothing for so long loses its connection.
SILENCE_S_MAX = 60


class Problem(Exception):
    """RFC 9457. With a `code` it is a refusal of the contract, without one the call did not run."""

    def __init__(self, status, kind, title, code=None, retry_after_s=None):
        super().__init__(title)
        self.status, self.retry_after_s = status, retry_after_s
        self.document = {"type": f"/problems/{kind}", "title": title, "status": status}
        if code is not None:
            self.document["code"] = code


class Related:
    """Products by the words that their names share; a word that few names have counts more."""

    def __init__(self, products):
        self.words = {p["id"]: set(re.findall(r"[a-z]{3,}", p["name"].lower())) for p in products}
        self.ids = {}
        for product, words in self.words.items():
            for word in words:
                self.ids.setdefault(word, []).append(product)

    def to(self, product, limit):
        if product not in self.words:
            raise Problem(404, "unknown-product", "No such product", code="unknown_product")
        scores = {}
        for word in self.words[product]:
            weight = math.log(1 + len(self.words) / len(self.ids[word]))
            for other in self.ids[word]:
                scores[other] = scores.get(other, 0) + weight
        scores.pop(product, None)
        return sorted(scores, key=lambda other: (-scores[other], other))[:limit]


class Catalogue:
    """The store's products, read again once in a while; the last that could be read stays."""

    def __init__(self, url, token_file):
        self.url, self.token_file, self.related = url.rstrip("/"), token_file, None

    def keep_reading(self):
        while True:
            try:
                self.related = Related(self.read())
                wait = REFRESH_EVERY_S
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                print(f"catalogue: {error}", file=sys.stderr, flush=True)
                wait = RETRY_EVERY_S
            time.sleep(wait)

    def read(self):
        products, after = [], None
        while page := self.call("catalogue", {"after": after}):
            products += page
            after = page[-1]["id"]
        return products

    def call(self, method, request):
        with open(self.token_file, encoding="ascii") as file:
            token = file.read().strip()
        headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/json",
            "Request-Timeout-Ms": str(STORE_TIMEOUT_S * 1000),
        }
        body = json.dumps(request).encode()
        asked = urllib.request.Request(f"{self.url}/call/products/{method}", body, headers)
        with urllib.request.urlopen(asked, timeout=STORE_TIMEOUT_S) as answer:
            return json.load(answer)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = SILENCE_S_MAX
    # One small answer a request: waiting for more to send would only delay it.
    disable_nagle_algorithm = True

    def do_GET(self):
        if self.path == "/healthz":
            self.answer(200, {"ready": self.server.catalogue.related is not None})
        else:
            self.answer_problem(Problem(404, "not-found", "Not found"))

    def do_POST(self):
        started = time.monotonic()
        try:
            request = self.request_body()
            self.check_token()
            if self.path != "/call/recommendations/related":
                raise Problem(404, "not-found", "Not found")
            answer = self.related(request)
            if time.monotonic() - started > self.timeout_ms() / 1000:
                raise Problem(504, "deadline-exceeded", "No answer in time")
            self.answer(200, answer)
        except Problem as problem:
            self.answer_problem(problem)

    def related(self, request):
        fields = request if isinstance(request, dict) else {}
        product, limit = fields.get("product"), fields.get("limit")
        if not isinstance(product, str) or type(limit) is not int or limit < 0:
            raise Problem(422, "invalid", "A product and a limit are asked for")
        related = self.server.catalogue.related
        if related is None:
            raise Problem(503, "unavailable", "The catalogue is not read yet", retry_after_s=1)
        return related.to(product, min(limit, RELATED_MAX))

    def request_body(self):
        try:
            length = int(self.headers["Content-Length"])
        except (TypeError, ValueError):
            self.close_connection = True
            raise Problem(411, "length-required", "Send a Content-Length") from None
        if not 0 <= length <= REQUEST_BYTES_MAX:
            self.close_connection = True
            raise Problem(413, "body-too-large", "The body is too large")
        try:
            return json.loads(self.rfile.read(length))
        except ValueError:
            raise Problem(400, "malformed-json", "The body is not JSON") from None

    def timeout_ms(self):
        try:
            return max(1, int(self.headers.get("Request-Timeout-Ms", "10000")))
        except ValueError:
            raise Problem(400, "request-timeout-invalid", "Request-Timeout-Ms is no time") from None

    def check_token(self):
        wanted = self.server.token
        shown = self.headers.get("Authorization", "").encode("utf-8", "replace")
        if wanted is not None and not hmac.compare_digest(shown, b"Bearer " + wanted):
            raise Problem(401, "token-invalid", "The token is not valid")

    def answer_problem(self, problem):
        self.answer(problem.status, problem.document, "application/problem+json", problem.retry_after_s)

    def answer(self, status, document, content_type="application/json", retry_after_s=None):
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if retry_after_s is not None:
            self.send_header("Retry-After", str(retry_after_s))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Requests are not logged: there is one for each page of a product."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that has gone, since its time was over, is no error of ours."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def main():
    arguments = argparse.ArgumentParser(description="Recommends products of the store.")
    arguments.add_argument("--listen", default="127.0.0.1:9400", metavar="HOST:PORT")
    arguments.add_argument("--store", default="http://127.0.0.1:8080", metavar="URL")
    arguments.add_argument("--store-token", required=True, metavar="FILE", help="shown to the store")
    arguments.add_argument("--token", metavar="FILE", help="that callers have to show; without it none is asked for")
    arguments = arguments.parse_args()
    host, port = arguments.listen.rsplit(":", 1)
    server = Server((host, int(port)), Handler)
    server.catalogue = Catalogue(arguments.store, arguments.store_token)
    server.token = None
    if arguments.token is not None:
        with open(arguments.token, "rb") as file:
            server.token = file.read().strip()
    threading.Thread(target=server.catalogue.keep_reading, daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
