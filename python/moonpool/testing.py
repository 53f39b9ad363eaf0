"""./moonpool test: everything that shows that Moonpool works, on this machine, with what it takes to get there.

Steps run one after the other, each with a time limit; a step that fails does not stop the later ones unless they need what it makes.
The last line is `moonpool: N passed, N failed`, and the exit status says the same.

With --within, all of it has that many minutes. A step that needs more than what is left (Step.minutes) is left out, and shown and counted as
skipped; one that hangs is ended in time for the summary, and counts as failed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moonpool import bench_regression, cuda_host, cuda_tests, packages, rdma_tests
from moonpool.bench_sides import WorkerFailed
from moonpool.benching import built_programs
from moonpool.building import build_preset, configure, ensure_build_tools, ensure_wheel
from moonpool.commands import all_end_by, log_path, output, run_status, tail
from moonpool.console import board, format_seconds
from moonpool.errors import UserError
from moonpool.models import SMOLLM2, TINY_FOUR_HEADS, ensure_model
from moonpool.paths import BUILD, LOGS, ROOT, VENV, VENV_PYTHON
from moonpool.provision import ensure_packages, ensure_requirements, ensure_venv, ensure_vllm
from moonpool.soft_roce_vm import GuestFailed

BUILD_SECONDS = 2400
CTEST_SECONDS = 1500
FUZZ_SECONDS = 6
PYTEST_SECONDS = 900
E2E_SECONDS = 3000
E2E_TEST_SECONDS = 900  # the first test of a cluster pays for starting it
FAILURE_TAIL = 60
TORCH_TESTS = "test_tensors or test_programs_without_gpu"  # as pytest -k


@dataclass
class Outcome:
    """What one step counted, and the slowest of its tests as (seconds, name). A step that was left out is one skipped."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    slowest: list[tuple[float, str]] = field(default_factory=list)
    left_out: int = 0

    def __add__(self, other: Outcome) -> Outcome:
        slowest = sorted(self.slowest + other.slowest, reverse=True)
        left_out = self.left_out + other.left_out
        return Outcome(self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped, slowest, left_out)

    def __str__(self) -> str:
        text = f"{self.passed} passed, {self.failed} failed"
        return text + (f", {self.skipped} skipped" if self.skipped else "")


def read_junit(path: Path) -> Outcome:
    """The counts in a JUnit report, as pytest and ctest write it."""
    outcome = Outcome()
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        name = ".".join(filter(None, (case.get("classname", ""), case.get("name", ""))))
        outcome.slowest.append((float(case.get("time") or 0), name))
        if case.find("failure") is not None or case.find("error") is not None:
            outcome.failed += 1
        elif case.find("skipped") is not None or case.get("status") == "notrun":
            outcome.skipped += 1
        else:
            outcome.passed += 1
    outcome.slowest.sort(reverse=True)
    return outcome


def _run_with_report(name: str, argv: Sequence[str | Path], report: Path, timeout: float, env: dict[str, str] | None = None) -> Outcome:
    """A test runner that leaves a JUnit report. A runner that fails without a failed test (a crash, its time over) counts as one."""
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    status = run_status(name, argv, timeout=timeout, env=env)
    outcome = read_junit(report) if report.is_file() else Outcome()
    if status != 0 and outcome.failed == 0:
        outcome.failed += 1
    if outcome.failed:
        board.say(f"---- {name}: the end of {log_path(name)}\n{tail(log_path(name), FAILURE_TAIL)}\n----")
    return outcome


# ------------------------------------------------------------------------------------------------------------------ C++ unit tests


def _labelled_tests(preset: str, label: str) -> list[str]:
    listing = output(["ctest", "--test-dir", BUILD / preset, "-L", label, "--show-only=json-v1"]) or "{}"
    return [test["name"] for test in json.loads(listing).get("tests", [])]


def unit_tests(preset: str, label: str = "") -> Outcome:
    """Build one preset and run its tests. With a label, only the tests that carry it are built (a test's name is its target)."""
    targets: tuple[str, ...] = ()
    if label:
        configure(preset)
        targets = tuple(_labelled_tests(preset, label))
        if not targets:
            return Outcome()
    build_preset(preset, timeout=BUILD_SECONDS, targets=targets)
    report = LOGS / f"ctest-{preset}.xml"
    argv: list[str | Path] = ["ctest", "--test-dir", BUILD / preset, "-j", str(os.cpu_count() or 1), "--output-on-failure", "--output-junit", report]
    if label:
        argv += ["-L", label]
    if preset == "tsan":
        # g++ 12's ThreadSanitizer cannot start where the kernel randomizes more address bits than it knows of.
        argv = ["setarch", platform.machine(), "-R", *argv]
    env = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1", "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}
    return _run_with_report(f"ctest {preset}", argv, report, CTEST_SECONDS, env)


def fuzz_runs() -> Outcome:
    """Some seconds of every fuzzer: those that the asan preset has built, and those in Python. Crashing inputs stay in .cache/fuzz."""
    ensure_requirements("test", packages.TEST_REQUIREMENTS)
    outcome = Outcome()
    artifacts = LOGS.parent / "fuzz"
    artifacts.mkdir(parents=True, exist_ok=True)
    built = sorted(path for path in (BUILD / "asan" / "tests" / "fuzz").glob("*fuzz*") if path.is_file() and os.access(path, os.X_OK))
    for fuzzer in [*built, *sorted((ROOT / "tests" / "fuzz").glob("*_fuzz.py"))]:
        name = f"fuzz {fuzzer.name}"
        program: list[str | Path] = [VENV_PYTHON, fuzzer] if fuzzer.suffix == ".py" else [fuzzer]
        argv = [*program, f"-max_total_time={FUZZ_SECONDS}", "-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1", f"-artifact_prefix={artifacts}/"]
        started = time.monotonic()
        status = run_status(name, argv, timeout=FUZZ_SECONDS + 60)
        outcome.slowest.append((time.monotonic() - started, fuzzer.name))
        if status == 0:
            outcome.passed += 1
        else:
            outcome.failed += 1
            board.say(f"---- {name}\n{tail(log_path(name), FAILURE_TAIL)}\n----")
    return outcome


# --------------------------------------------------------------------------------------------------------------------- Python tests


def pytest_run(name: str, folders: Sequence[str], expression: str, timeout: float, one_test_seconds: int = 0) -> Outcome:
    """pytest in .venv over those of the folders that exist; one test's time limit is pyproject.toml's unless given."""
    present = [folder for folder in folders if any((ROOT / folder).rglob("test_*.py"))]
    if not present:
        return Outcome()
    ensure_requirements("test", packages.TEST_REQUIREMENTS)
    report = LOGS / f"pytest-{name}.xml"
    argv: list[str | Path] = [VENV_PYTHON, "-m", "pytest", "-v", "--tb=short", f"--junitxml={report}", *present]
    if one_test_seconds:
        argv.append(f"--timeout={one_test_seconds}")
    if expression:
        argv += ["-k", expression]
    env = {**os.environ, "PATH": f"{VENV / 'bin'}:{os.environ['PATH']}"}
    outcome = _run_with_report(f"pytest {name}", argv, report, timeout, env)
    # pytest's "no test matched" is a failure only when nobody asked for a selection.
    if expression and not outcome.slowest:
        return Outcome()
    return outcome


def torch_tests(expression: str) -> Outcome:
    """The tests of tests/compat that need torch, with the one that vLLM brings: in the step for tests/compat it is not there yet, and they skip."""
    ensure_vllm(None, "cpu")
    return pytest_run("torch", ["tests/compat"], f"({TORCH_TESTS}) and ({expression})" if expression else TORCH_TESTS, PYTEST_SECONDS)


def end_to_end(expression: str) -> Outcome:
    """Real vLLM, etcd and redis. The models are made here, so that no test's time limit pays for it."""
    vllm = ensure_vllm(None, "cpu")
    for kind in (SMOLLM2, TINY_FOUR_HEADS):
        ensure_model(kind, vllm)
    return pytest_run("e2e", ["tests/e2e"], expression, E2E_SECONDS, E2E_TEST_SECONDS)


# ------------------------------------------------------------------------------------------------------------------------------ RDMA


def rdma_suite(expression: str) -> Outcome:
    """Real verbs: C++ conformance and the scenarios of tests/rdma, on this host's RDMA devices or in a guest with software ones."""
    if not rdma_tests.host_devices() and platform.machine() != "x86_64":
        board.say(f"note: no RDMA device, and no guest for {platform.machine()} to have one in; the RDMA tests are skipped")
        return Outcome(skipped=1)
    ensure_requirements("test", packages.TEST_REQUIREMENTS)
    labelled: list[str] = []
    if not expression:
        configure("dev")
        labelled = _labelled_tests("dev", "rdma")
        build_preset("dev", timeout=BUILD_SECONDS, targets=rdma_tests.programs(labelled))
    runs = rdma_tests.suite(labelled, rdma_tests.built_program, expression)
    try:
        rdma_tests.run_suite(runs)
    except GuestFailed as error:
        board.say(error.render())
    outcome = sum((_rdma_outcome(run, expression) for run in runs), Outcome())
    if outcome.failed:
        board.say(f"---- the end of {log_path(rdma_tests.NAME)}\n{tail(log_path(rdma_tests.NAME), FAILURE_TAIL)}\n----")
    return outcome


def _rdma_outcome(run: rdma_tests.Run, expression: str) -> Outcome:
    """What one program counted. One that crashed, or was not reached, counts as a failure."""
    outcome = read_junit(run.report) if run.report.is_file() else Outcome()
    if expression and not outcome.slowest and run.status is not None:
        return Outcome()  # no scenario matched
    if run.status != 0 and outcome.failed == 0:
        board.say(f"   {run.name}: {'not run to its end' if run.status is None else f'exit status {run.status}'}")
        outcome.failed += 1
    return outcome


# ------------------------------------------------------------------------------------------------------------------------------ CUDA


def cuda_cpp_tests() -> Outcome:
    """The C++ tests with the label "cuda", on the real driver."""
    if not cuda_tests.can_build_tests():
        board.say("note: GoogleTest is not installed here; the C++ tests on GPUs are skipped")
        return Outcome(skipped=1)
    cuda_host.ensure_installed()
    cuda_host.build_targets(cuda_tests.labelled_programs())
    # One after the other: some measure, and all share the devices.
    argv: list[str | Path] = ["ctest", "--test-dir", cuda_host.CUDA_BUILD, "-L", f"^{cuda_tests.LABEL}$", "--output-on-failure"]
    return _run_with_report("ctest cuda", [*argv, "--output-junit", cuda_tests.report("ctest")], cuda_tests.report("ctest"), CTEST_SECONDS)


def cuda_python_tests(expression: str) -> Outcome:
    """tests/cuda and the tensors of tests/compat, with the host's torch."""
    cuda_host.require_test_modules()
    python, report = cuda_host.ensure_installed(), cuda_tests.report("pytest")
    argv: list[str | Path] = [python, "-m", "pytest", "-v", "--tb=short", f"--junitxml={report}", "tests/cuda", "tests/compat/test_tensors.py"]
    outcome = _run_with_report("pytest cuda", argv + (["-k", expression] if expression else []), report, PYTEST_SECONDS)
    return Outcome() if expression and not outcome.slowest else outcome


def cuda_sanitizer() -> Outcome:
    """compute-sanitizer over the gathers and scatters."""
    sanitizer = cuda_tests.compute_sanitizer()
    if sanitizer is None or not cuda_tests.can_build_tests():
        board.say("note: memcheck and racecheck are skipped: compute-sanitizer (of the CUDA toolkit) or GoogleTest is not installed here")
        return Outcome(skipped=len(cuda_tests.SANITIZER_TOOLS))
    cuda_host.ensure_installed()
    outcome = Outcome()
    for tool, status in cuda_tests.sanitized_runs(sanitizer):
        if status == 0:
            outcome.passed += 1
        else:
            outcome.failed += 1
            log = log_path(f"compute-sanitizer {tool}")
            board.say(f"---- {tool}: exit status {status}; the end of {log}\n{tail(log, FAILURE_TAIL)}\n----")
    return outcome


def _cuda_build() -> Outcome:
    cuda_host.ensure_installed()
    return Outcome(passed=1)


def _no_gpu(reason: str) -> Outcome:
    board.say(f"note: {reason}")
    return Outcome(skipped=1)


def cuda_steps(expression: str) -> list[Step]:
    """All that runs on GPUs; one skipped step where there is none."""
    if reason := cuda_tests.no_gpu():
        return [Step("GPUs", lambda: _no_gpu(reason))]
    python = Step("GPUs from Python", lambda: cuda_python_tests(expression), minutes=3)
    build = Step("GPUs: the wheel", _cuda_build, minutes=5)
    if expression:
        return [build, python]
    cpp = Step("GPUs: C++ tests", cuda_cpp_tests, minutes=10)
    return [build, cpp, python, Step("GPUs: compute-sanitizer", cuda_sanitizer, minutes=5)]


# ----------------------------------------------------------------------------------------------------------------------- benchmarks


def regression_bench() -> Outcome:
    """Our speed beside plain baselines: printed, not judged. Fails only when it cannot run, a call fails, or a byte is wrong."""
    programs = built_programs(["plain_baseline"])
    try:
        for line in bench_regression.report(programs["plain_baseline"]):
            board.say(f"   {line}")
    except WorkerFailed as error:
        raise UserError(f"the regression bench could not run: {error}") from error
    return Outcome(passed=1)


# ---------------------------------------------------------------------------------------------------------------------------- steps


def _count_build() -> Outcome:
    ensure_wheel()
    return Outcome(passed=1)


@dataclass(frozen=True)
class Step:
    """One row of the summary. `minutes` is what it needs on two cores with nothing built, of the early ones at least, of the late ones
    (sanitizers, fuzzers, bench) generously: these are what a run that has little time left can do without."""

    name: str
    action: Callable[[], Outcome]
    needs_wheel: bool = False
    minutes: float = 0


@dataclass(frozen=True)
class Budget:
    """The time that a whole run may take, from `started` (time.monotonic) on."""

    minutes: float
    started: float

    @property
    def end(self) -> float:
        return self.started + 60 * self.minutes

    @property
    def left(self) -> float:
        """In minutes, not below zero."""
        return max(0.0, (self.end - time.monotonic()) / 60)


def plan(options: argparse.Namespace) -> list[Step]:
    """The steps that the options select. A whole run has its unit tests under ASan, so that nothing is compiled twice for them."""
    everything = not (options.unit or options.e2e or options.fast or options.rdma or options.cuda)
    wheel = Step("wheel", _count_build, minutes=4)
    unit = Step("C++ unit tests", lambda: unit_tests("dev"), minutes=10)
    python = Step("Python tooling", lambda: pytest_run("tooling", ["tests/python"], options.k, PYTEST_SECONDS), minutes=1)
    compat = Step("compatibility and faults", lambda: pytest_run("compat", ["tests/compat", "tests/faults"], options.k, PYTEST_SECONDS), True, 4)
    torch = Step("tensors on torch", lambda: torch_tests(options.k), True, 2)
    e2e = Step("end to end on vLLM", lambda: end_to_end(options.k), True, 15)
    rdma = Step("RDMA on real verbs", lambda: rdma_suite(options.k), True, 6)
    sanitized = Step("C++ tests, ASan+UBSan", lambda: unit_tests("asan"), minutes=22)
    sanitizers = [
        Step("TSan, core", lambda: unit_tests("tsan", "core"), minutes=14),
        Step("fuzzers", fuzz_runs, True, 6),
        Step("regression bench", regression_bench, True, 3),
    ]
    if everything:
        steps = [python, wheel, compat, rdma, torch, e2e] if options.k else [python, wheel, compat, rdma, torch, e2e, sanitized, *sanitizers]
        return steps if cuda_tests.no_gpu() else [*steps, *cuda_steps(options.k)]
    chosen = [python, unit] if options.unit or options.fast else []
    if options.fast or options.e2e or options.rdma:
        chosen.append(wheel)
    if options.fast:
        chosen.append(compat)
    if options.rdma:
        chosen.append(rdma)
    if options.e2e:
        chosen += [torch, e2e]
    if options.cuda:
        chosen += cuda_steps(options.k)
    return chosen


def prepare() -> None:
    ensure_packages("build and tests", (*packages.BUILD_PACKAGES, *packages.TEST_PACKAGES))
    ensure_build_tools()
    ensure_venv()


def run_steps(steps: Sequence[Step], budget: Budget | None = None) -> list[tuple[Step, Outcome, float, str]]:
    """Run all steps, or those for which the budget has time left. One whose action raises, or that needs a wheel which could not be built,
    counts as one failure; without a wheel for want of time, those that need it are left out too."""
    results: list[tuple[Step, Outcome, float, str]] = []
    wheel_failed = wheel_left_out = False
    for step in steps:
        started = time.monotonic()
        remark = ""
        board.say(f"== {step.name}")
        if step.needs_wheel and wheel_failed:
            outcome, remark = Outcome(failed=1), "not run: there is no wheel"
        elif budget is not None and (budget.left < step.minutes or (step.needs_wheel and wheel_left_out)):
            outcome, remark = Outcome(skipped=1, left_out=1), f"left out: {math.floor(budget.left)} min were left of {budget.minutes:g}"
        else:
            try:
                outcome = step.action()
            except UserError as error:
                outcome, remark = Outcome(failed=1), error.message
                board.say(error.render())
        wheel_failed = wheel_failed or (step.name == "wheel" and outcome.failed > 0)
        if budget is not None and budget.left == 0 and outcome.failed and not remark:
            remark = f"ended: the {budget.minutes:g} min were over"
        wheel_left_out = wheel_left_out or (step.name == "wheel" and outcome.left_out > 0)
        seconds = time.monotonic() - started
        board.say(f"   {step.name}: {outcome} in {format_seconds(seconds)} {remark}".rstrip())
        results.append((step, outcome, seconds, remark))
    return results


def print_table(results: Sequence[tuple[Step, Outcome, float, str]]) -> None:
    print(f"\n{'step':<28} {'time':>12}  result")
    for step, outcome, seconds, remark in results:
        result = remark if outcome.left_out else f"{outcome}  ({remark})" if remark else str(outcome)
        print(f"{step.name:<28} {format_seconds(seconds):>12}  {result}")
    slowest = sorted((entry for _, outcome, _, _ in results for entry in outcome.slowest), reverse=True)[:12]
    if slowest:
        print("\nthe slowest tests")
        for seconds, name in slowest:
            print(f"{format_seconds(seconds):>12}  {name}")
    print()


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./moonpool test", description="Builds and tests everything; without options, all of it.")
    parser.add_argument("--unit", action="store_true", help="only the unit tests, C++ and Python")
    parser.add_argument("--e2e", action="store_true", help="only the wheel and the end-to-end tests on vLLM")
    parser.add_argument("--fast", action="store_true", help="all but sanitizers, fuzzers, RDMA and vLLM")
    parser.add_argument("--rdma", action="store_true", help="only the wheel and the tests on RDMA devices, or in a guest with software ones")
    parser.add_argument("--cuda", action="store_true", help="only what runs on GPUs, with what this host has: nothing is installed (docs/cuda.md)")
    parser.add_argument("-k", default="", metavar="EXPR", help="only Python tests that match, as pytest -k; leaves C++ out")
    parser.add_argument(
        "--within", type=float, metavar="MINUTES", help="be over by then: leave out the steps for which too little time is left, end what hangs"
    )
    options = parser.parse_args(arguments)
    if options.within is not None and not 0 < options.within < math.inf:
        parser.error("--within: a number of minutes above 0")
    return options


def main(arguments: list[str]) -> int:
    options = parse_arguments(arguments)
    started = time.monotonic()
    budget = Budget(options.within, started) if options.within is not None else None
    only_cuda = options.cuda and not (options.unit or options.e2e or options.fast or options.rdma)
    with all_end_by(budget.end if budget else math.inf):
        if not only_cuda:
            prepare()
        if not only_cuda and (os.geteuid() != 0 or shutil.which("ip") is None):
            board.say("note: network namespaces need root and ip; tests that use them will be skipped")
        results = run_steps(plan(options), budget)
    print_table(results)
    total = sum((outcome for _, outcome, _, _ in results), Outcome())
    print(f"took {format_seconds(time.monotonic() - started)}")
    left_out = f", {total.left_out} of {len(results)} steps left out" if total.left_out else ""
    print(f"moonpool: {total}{left_out}", flush=True)
    return 1 if total.failed or not (total.passed or total.skipped) else 0
