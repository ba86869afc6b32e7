"""benches/run [shop|checkout|sagas|rpc|calls|gateway] [OPTIONS]

Measures side by side, prints the medians, and writes them into README.md.

  shop      a whole checkout over HTTP: the store and its peers (the default)
  checkout  a durable checkout without HTTP: the framework, by hand, sqlx
  sagas     a saga of four steps: in one process, and split over four services
  rpc       100 bytes there and back between two processes: the framework, tonic, tarpc, axum and reqwest
  calls     a call that stays in the process
  gateway   a request through the gateway, and through nginx

`benches/run NAME --help` lists the options of one.

Everything that is started ends with this script: processes run in sessions of their own that are killed as a
whole, and the kernel kills their first process should this one be killed.
"""

import signal
import sys

import calls
import checkout
import gateway
import rpc
import sagas
import shop

BENCHMARKS = {"shop": shop, "checkout": checkout, "sagas": sagas, "rpc": rpc, "calls": calls, "gateway": gateway}


def main():
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda *_: sys.exit("ended by a signal"))
    arguments = sys.argv[1:]
    if arguments in (["--help"], ["-h"]):
        print(__doc__)
        return
    name = arguments.pop(0) if arguments and arguments[0] in BENCHMARKS else "shop"
    BENCHMARKS[name].main(arguments)


if __name__ == "__main__":
    main()
