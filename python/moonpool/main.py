"""./moonpool: which command is asked for, and what it needs."""

from __future__ import annotations

import sys

from moonpool.errors import UserError

USAGE = """\
usage: ./moonpool COMMAND [options]

  up      from a bare machine to an answer: pool, prefill and decode vLLM instances, gateway   (up --help)
  test    everything that shows that it works, with a summary line                             (test --help)
  build   the wheel: into dist/, and installed in .venv
  bench   the benchmarks in bench/                                   (bench --help; the gateway's: bench gateway; GPUs': bench cuda)
  lint    clang-format and clang-tidy                                                          (lint --help)
  rdma-vm a command in a guest with soft-RoCE NICs, for those who have none                    (rdma-vm --help)

  any other command is one of the moonpool program, once built: master, node, gateway, status, doctor ...
"""


def build(_arguments: list[str]) -> int:
    from moonpool.building import ensure_wheel
    from moonpool.console import board

    wheel = ensure_wheel()
    board.say(f"built and installed: {wheel}")
    return 0


def dispatch(command: str, arguments: list[str]) -> int:
    if command == "up":
        from moonpool.up import main as run_up

        return run_up(arguments)
    if command == "test":
        from moonpool.testing import main as run_tests

        return run_tests(arguments)
    if command == "build":
        return build(arguments)
    if command == "bench":
        from moonpool.benching import main as run_bench

        return run_bench(arguments)
    if command == "lint":
        from moonpool.linting import main as run_lint

        return run_lint(arguments)
    if command == "rdma-vm":
        from moonpool.soft_roce_vm import main as run_rdma_vm

        return run_rdma_vm(arguments)
    print(USAGE, end="")
    return 0 if command in ("help", "-h", "--help") else 2


def main(arguments: list[str]) -> int:
    """Entry of the bash bootstrap. A UserError is a message, Ctrl-C is exit status 130; anything else is our bug and shows as such."""
    try:
        return dispatch(arguments[0] if arguments else "help", arguments[1:])
    except UserError as error:
        print(error.render(), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
