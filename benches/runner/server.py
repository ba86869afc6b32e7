"""An application that runs, with all of its processes, and a word with it over HTTP."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import machine
from harness import ROOT

READY_WITHIN_S = 60
STOP_WITHIN_S = 5


def fetch(url, body=None, token=None):
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(url, data=body, headers=headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        text = response.read()
        return json.loads(text) if text else None


class Server:
    """One that was started on a data folder and is ready; a context that ends it."""

    def __init__(self, name, command, data, environment=None):
        self.name = name
        self.url = f"http://127.0.0.1:{machine.free_port()}"
        self.log = open(data.with_suffix(".log"), "wb")
        self.process = subprocess.Popen(
            [*command, "--data", str(data), "--listen", self.url.removeprefix("http://")],
            cwd=ROOT, env=os.environ | (environment or {}), stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
            start_new_session=True, preexec_fn=machine.die_with_parent,
        )

    def __enter__(self):
        try:
            self.wait_until_ready()
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
        sys.exit(f"{self.name} did not become ready\n{said}")

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
        return machine.with_descendants(self.process.pid)
