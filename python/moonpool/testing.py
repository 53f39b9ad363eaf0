"""./moonpool test: everything that shows that Moonpool works, on this machine, with what it takes to get there.

Steps run one after the other, each with a time limit; a step that fails does not stop the later ones unless they need what it makes.
The last line is `moonpool: N passed, N failed`, and the exit status says the same.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moonpool import bench_regression, packages
from moonpool.bench_sides import WorkerFailed
from moonpool.benching import built_programs
from moonpool.building import build_preset, configure, ensure_build_tools, ensure_wheel
from moonpool.commands import log_path, output, run_status, tail
from moonpool.console import board, format_seconds
from moonpool.errors import UserError
from moonpool.models import SMOLLM2, TINY_FOUR_HEADS, ensure_model
from moonpool.paths import BUILD, LOGS, ROOT, VENV, VENV_PYTHON
from moonpool.provision import ensure_packages, ensure_requirements, ensure_venv, ensure_vllm

BUILD_SECONDS = 2400
CTEST_SECONDS = 900
FUZZ_SECONDS = 6
PYTEST_SECONDS = 900
E2E_SECONDS = 2400
E2E_TEST_SECONDS = 900  # the first test of a cluster pays for starting it
FAILURE_TAIL = 60


@dataclass
class Outcome:
    """What one step counted, and the slowest of its tests as (seconds, name)."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    slowest: list[tuple[float, str]] = field(default_factory=list)

    def __add__(self, other: Outcome) -> Outcome:
        slowest = sorted(self.slowest + other.slowest, reverse=True)
        return Outcome(self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped, slowest)

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
        elif case.find("skipped") is not None:
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


def end_to_end(expression: str) -> Outcome:
    """Real vLLM, etcd and redis. The models are made here, so that no test's time limit pays for it."""
    vllm = ensure_vllm(None, "cpu")
    for kind in (SMOLLM2, TINY_FOUR_HEADS):
        ensure_model(kind, vllm)
    return pytest_run("e2e", ["tests/e2e"], expression, E2E_SECONDS, E2E_TEST_SECONDS)


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
    name: str
    action: Callable[[], Outcome]
    needs_wheel: bool = False


def plan(options: argparse.Namespace) -> list[Step]:
    """The steps that the options select. A whole run has its unit tests under ASan, so that nothing is compiled twice for them."""
    everything = not (options.unit or options.e2e or options.fast)
    wheel = Step("wheel", _count_build)
    unit = Step("C++ unit tests", lambda: unit_tests("dev"))
    python = Step("Python tooling", lambda: pytest_run("tooling", ["tests/python"], options.k, PYTEST_SECONDS))
    compat = Step("compatibility and faults", lambda: pytest_run("compat", ["tests/compat", "tests/faults"], options.k, PYTEST_SECONDS), True)
    e2e = Step("end to end on vLLM", lambda: end_to_end(options.k), True)
    sanitized = Step("C++ tests, ASan+UBSan", lambda: unit_tests("asan"))
    sanitizers = [
        Step("TSan, core", lambda: unit_tests("tsan", "core")),
        Step("fuzzers", fuzz_runs, True),
        Step("regression bench", regression_bench, True),
    ]
    if everything:
        steps = [python, wheel, compat, e2e] if options.k else [python, wheel, compat, e2e, sanitized, *sanitizers]
        return steps
    chosen = [python, unit] if options.unit or options.fast else []
    if options.fast or options.e2e:
        chosen.append(wheel)
    if options.fast:
        chosen.append(compat)
    if options.e2e:
        chosen.append(e2e)
    return chosen


def prepare() -> None:
    ensure_packages("build and tests", (*packages.BUILD_PACKAGES, *packages.TEST_PACKAGES))
    ensure_build_tools()
    ensure_venv()


def run_steps(steps: Sequence[Step]) -> list[tuple[Step, Outcome, float, str]]:
    """Run all steps; one whose action raises, or that needs a wheel which could not be built, counts as one failure."""
    results: list[tuple[Step, Outcome, float, str]] = []
    wheel_failed = False
    for step in steps:
        started = time.monotonic()
        remark = ""
        board.say(f"== {step.name}")
        if step.needs_wheel and wheel_failed:
            outcome, remark = Outcome(failed=1), "not run: there is no wheel"
        else:
            try:
                outcome = step.action()
            except UserError as error:
                outcome, remark = Outcome(failed=1), error.message
                board.say(error.render())
        wheel_failed = wheel_failed or (step.name == "wheel" and outcome.failed > 0)
        seconds = time.monotonic() - started
        board.say(f"   {step.name}: {outcome} in {format_seconds(seconds)} {remark}".rstrip())
        results.append((step, outcome, seconds, remark))
    return results


def print_table(results: Sequence[tuple[Step, Outcome, float, str]]) -> None:
    print(f"\n{'step':<28} {'time':>12}  result")
    for step, outcome, seconds, remark in results:
        print(f"{step.name:<28} {format_seconds(seconds):>12}  {outcome}{'  (' + remark + ')' if remark else ''}")
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
    parser.add_argument("--fast", action="store_true", help="all but sanitizers, fuzzers and vLLM")
    parser.add_argument("-k", default="", metavar="EXPR", help="only Python tests that match, as pytest -k; leaves C++ out")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parse_arguments(arguments)
    started = time.monotonic()
    prepare()
    if os.geteuid() != 0 or shutil.which("ip") is None:
        board.say("note: network namespaces need root and ip; tests that use them will be skipped")
    results = run_steps(plan(options))
    print_table(results)
    total = sum((outcome for _, outcome, _, _ in results), Outcome())
    print(f"took {format_seconds(time.monotonic() - started)}")
    print(f"moonpool: {total}", flush=True)
    return 1 if total.failed or not total.passed else 0
