#!/usr/bin/env python3
"""The proxy of vLLM's disaggregated serving guide, on Moonpool's gateway: same command line, same endpoints.

    python3 disagg_proxy_demo.py --model M --prefill localhost:8100 localhost:8101 \
        --decode localhost:8200 localhost:8201 --port 8000 [--scheduling round_robin]

With ADMIN_API_KEY in the environment, POST /instances/add takes instances at run time. This process becomes `moonpool gateway`; further
flags of it may be given too (`moonpool gateway --help`).
"""

import argparse
import os
import pathlib
import shutil
import sys


def find_moonpool():
    """The moonpool program: beside this Python, on PATH, or in the checkout's environment."""
    beside = pathlib.Path(sys.executable).parent / "moonpool"
    in_checkout = pathlib.Path(__file__).resolve().parent.parent / ".venv" / "bin" / "moonpool"
    on_path = shutil.which("moonpool")
    for candidate in (beside, on_path and pathlib.Path(on_path), in_checkout):
        if candidate and candidate.is_file() and os.access(candidate, os.X_OK):
            return str(candidate)
    sys.exit(
        "disagg_proxy_demo.py: the program 'moonpool' was found neither beside "
        f"{sys.executable}, nor on PATH, nor at {in_checkout}. Install it (pip install moonpool), or run "
        "./moonpool build in the checkout."
    )


def gateway_arguments(argv):
    """The command line of `moonpool gateway` for the demo's."""
    parser = argparse.ArgumentParser(description="Proxy for prefill and decode instances of vLLM", allow_abbrev=False)
    parser.add_argument("--model", "-m", required=True, help="name of the model that the instances serve")
    parser.add_argument("--prefill", "-p", nargs="+", default=[], help="prefill instances, host:port each")
    parser.add_argument("--decode", "-d", nargs="+", default=[], help="decode instances, host:port each")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on")
    parser.add_argument("--scheduling", default="round_robin", help="how an instance is chosen: round_robin")
    known, others = parser.parse_known_args(argv)
    arguments = ["gateway", "--model", known.model, "--port", str(known.port), "--scheduling", known.scheduling]
    for flag, instances in (("--prefill", known.prefill), ("--decode", known.decode)):
        if instances:
            arguments += [flag, *instances]
    return arguments + others


def main():
    arguments = gateway_arguments(sys.argv[1:])
    moonpool = find_moonpool()
    os.execv(moonpool, [moonpool, *arguments])


if __name__ == "__main__":
    main()
