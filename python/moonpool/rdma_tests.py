"""What shows that RDMA works on real verbs: the C++ programs that have a rig on devices, and the scenarios of tests/rdma.

On a host with an RDMA device they run on it; elsewhere all of them run in one guest with soft-RoCE NICs (soft_roce_vm.py). Each leaves a
JUnit report, so single tests are counted; one that leaves none counts as failed.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from moonpool.commands import log_path, run_status
from moonpool.console import board
from moonpool.errors import UserError
from moonpool.paths import BUILD, LOGS, ROOT, VENV, VENV_PYTHON
from moonpool.soft_roce_vm import PAIR_VARIABLE, RESULTS_VARIABLE, Guest, run_in_guest

NAME = "RDMA tests"
REPORTS = LOGS / "rdma"
DEVICES = Path("/sys/class/infiniband")
PROGRAM_SECONDS = 240
SCENARIO_SECONDS = 900
# Programs that hold other rigs too, and which of their tests need devices. Programs with the ctest label "rdma" run whole.
FILTERED = {"nic_conformance_test": "*Verbs*", "transport_conformance_test": "*rdma_devices*"}


@dataclass(frozen=True)
class Run:
    """One program of the suite."""

    name: str
    argv: tuple[str, ...]
    seconds: float

    @property
    def report(self) -> Path:
        """JUnit; missing when the program did not come to its end."""
        return REPORTS / f"{self.name}.xml"

    @property
    def status(self) -> int | None:
        """The exit status; none when it was not run, or not to its end."""
        file = REPORTS / f"{self.name}.status"
        text = file.read_text().strip() if file.is_file() else ""
        return int(text) if text.isdigit() else None


def host_devices() -> list[str]:
    """The RDMA devices of this host."""
    return sorted(path.name for path in DEVICES.iterdir()) if DEVICES.is_dir() else []


def programs(labelled: Sequence[str]) -> list[str]:
    """The C++ test programs of the suite."""
    return list(dict.fromkeys((*labelled, *FILTERED)))


def suite(labelled: Sequence[str], find: Callable[[str], Path], expression: str) -> list[Run]:
    """All runs, in order. An expression (as pytest -k) selects scenarios, and leaves C++ out."""
    runs = []
    if not expression:
        for name in programs(labelled):
            argv = [str(find(name)), f"--gtest_output=xml:${RESULTS_VARIABLE}/{name}.xml"]
            if name in FILTERED:
                argv.append(f"--gtest_filter={FILTERED[name]}")
            runs.append(Run(name, tuple(argv), PROGRAM_SECONDS))
    pytest = [str(VENV_PYTHON), "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", f"--junitxml=${RESULTS_VARIABLE}/scenarios.xml", "tests/rdma"]
    if expression:
        pytest += ["-k", expression]
    runs.append(Run("scenarios", tuple(pytest), SCENARIO_SECONDS))
    return runs


def script(runs: Sequence[Run]) -> str:
    """Runs all of them one after the other, each with its time limit. Succeeds when all did."""
    lines = ["all=0"]
    for run in runs:
        # Words are quoted, but for the variable that names the results' folder.
        words = " ".join(shlex.quote(word).replace(f"${RESULTS_VARIABLE}", f"'\"${RESULTS_VARIABLE}\"'") for word in run.argv)
        lines.append(f"echo '== {run.name}'; timeout -k 5 {run.seconds:.0f} {words}; status=$?")
        lines.append(f'echo $status >"${RESULTS_VARIABLE}/{run.name}.status"')
        lines.append(f"if [ $status != 0 ]; then all=1; echo 'moonpool: {run.name} ended with status '$status; fi")
    lines.append("exit $all")
    return "\n".join(lines)


def built_program(name: str) -> Path:
    """The test program of that name in the dev preset's folder."""
    found = [path for path in (BUILD / "dev").rglob(name) if path.is_file() and os.access(path, os.X_OK)]
    if not found:
        raise UserError(f"{name} was not built", "see the log of 'build dev'")
    return found[0]


def run_suite(runs: Sequence[Run]) -> None:
    """Run them on this host's devices, or in the guest. Their reports and statuses say how it went, also when GuestFailed is raised."""
    shutil.rmtree(REPORTS, ignore_errors=True)
    REPORTS.mkdir(parents=True)
    devices = host_devices()
    seconds = sum(run.seconds for run in runs)
    argv = ["bash", "-c", script(runs)]
    where = f"on {', '.join(devices)}" if devices else "in a guest with soft-RoCE NICs"
    with board.row(f"{NAME} {where}") as row:
        if devices:
            env = {**os.environ, "PATH": f"{VENV / 'bin'}:{os.environ['PATH']}", RESULTS_VARIABLE: str(REPORTS)}
            env.setdefault(PAIR_VARIABLE, ",".join(devices[:2]))
            run_status(NAME, argv, timeout=seconds + 60, env=env)
        else:

            def show(part: bytes) -> None:
                if lines := part.decode("utf-8", "replace").split("\n")[:-1]:
                    row.update(lines[-1].strip()[:100])

            run_in_guest(NAME, argv, timeout=seconds + 60, guest=Guest(nics=2), cwd=ROOT, results=REPORTS, show=show)
        row.update(f"log: {log_path(NAME)}")
