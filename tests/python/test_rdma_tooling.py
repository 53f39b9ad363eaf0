"""The guest for RDMA tests and the suite that runs in it, as far as that needs no guest: names, scripts, statuses, counting."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
from pathlib import Path

import pytest
from moonpool import guest_clock, guest_kernel, rdma_tests, soft_roce_vm, testing
from moonpool.rdma_tests import Run
from moonpool.soft_roce_vm import Guest, GuestFailed

GTEST_REPORT = """\
<testsuites tests="3"><testsuite name="Nics"><testcase name="Works" status="run" time="0.1" classname="Nics" />
<testcase name="Fails" status="run" time="0.2" classname="Nics"><failure message="no" /></testcase>
<testcase name="Disabled" status="notrun" time="0" classname="Nics" /></testsuite></testsuites>
"""


def options(**changes: object) -> argparse.Namespace:
    return argparse.Namespace(**{"unit": False, "e2e": False, "fast": False, "rdma": False, "cuda": False, "k": "", **changes})


def test_rdma_alone_needs_the_wheel_and_a_whole_run_has_it_too() -> None:
    assert [step.name for step in testing.plan(options(rdma=True))] == ["wheel", "RDMA on real verbs"]
    assert "RDMA on real verbs" in [step.name for step in testing.plan(options())]
    assert "RDMA on real verbs" not in [step.name for step in testing.plan(options(fast=True))]


def test_each_cable_has_a_nic_of_either_side() -> None:
    assert Guest(nics=1).devices() == ("rxe0", "rxe1")
    assert Guest(nics=3).devices() == ("rxe0,rxe2,rxe4", "rxe1,rxe3,rxe5")


@pytest.mark.parametrize("arguments", [[], ["--"], ["--nics", "0", "--", "true"], ["--nics", "9", "--", "true"]])
def test_a_guest_without_a_command_or_with_impossible_cables_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        soft_roce_vm.parse_arguments(arguments)


def test_the_counters_frequency_is_measured_alike_on_a_busy_machine() -> None:
    found = [guest_clock.tsc_khz() for _ in range(3)]
    if None in found:
        pytest.skip("no time-stamp counter to read here")
    assert max(found) / min(found) < 1.01, found
    assert 500_000 < found[0] < 10_000_000
    assert re.search(r"\btsc_early_khz=\d{6,8}\b", soft_roce_vm.kernel_parameters())


def test_a_command_keeps_its_own_options() -> None:
    parsed = soft_roce_vm.parse_arguments(["--nics", "1", "--", "ibv_devinfo", "--nics", "-v"])
    assert parsed.nics == 1 and parsed.command == ["ibv_devinfo", "--nics", "-v"]


def test_the_job_sets_limits_and_environment_and_quotes_the_command() -> None:
    job = soft_roce_vm.job_script(Guest(memlock_kib=64), ["echo", "a b", "it's"], {"NAME": "two words"}, Path("/some where"))
    assert "ulimit -l 64\n" in job
    assert "export NAME='two words'\n" in job
    assert "cd '/some where'\n" in job
    assert """echo 'a b' 'it'"'"'s'\n""" in job


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rdma_tests, "REPORTS", tmp_path)
    return tmp_path


def run_script(runs: list[Run], reports: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, soft_roce_vm.RESULTS_VARIABLE: str(reports)}
    return subprocess.run(["bash", "-c", rdma_tests.script(runs)], env=env, capture_output=True, text=True, timeout=30, check=False)


def test_every_program_is_run_and_its_status_kept_whatever_the_one_before_did(reports: Path) -> None:
    good = ("cp", "/etc/hostname", f"${soft_roce_vm.RESULTS_VARIABLE}/good.xml")
    runs = [Run("bad", ("false",), 10), Run("slow", ("sleep", "20"), 1), Run("good", good, 10)]
    done = run_script(runs, reports)
    assert done.returncode == 1
    assert [run.status for run in runs] == [1, 124, 0]
    assert "bad ended with status 1" in done.stdout
    assert runs[2].report.is_file()
    assert run_script([runs[2]], reports).returncode == 0
    assert Run("never run", (), 1).status is None


def test_single_tests_are_counted_and_a_program_without_a_report_is_a_failure(reports: Path) -> None:
    (reports / "nic.xml").write_text(GTEST_REPORT)
    (reports / "nic.status").write_text("1\n")
    counted = testing._rdma_outcome(Run("nic", (), 1), "")
    assert (counted.passed, counted.failed, counted.skipped) == (1, 1, 1)
    assert testing._rdma_outcome(Run("never run", (), 1), "").failed == 1
    (reports / "crashed.status").write_text("139\n")
    assert testing._rdma_outcome(Run("crashed", (), 1), "").failed == 1


def test_an_expression_leaves_the_programs_out() -> None:
    whole = rdma_tests.suite(["nic_test"], lambda name: Path("/build") / name, "")
    assert [run.name for run in whole] == ["nic_test", "nic_conformance_test", "transport_conformance_test", "scenarios"]
    assert "--gtest_filter=*rdma_devices*" in whole[2].argv and not any("filter" in word for word in whole[0].argv)
    chosen = rdma_tests.suite(["nic_test"], lambda name: Path("/build") / name, "links")
    assert [run.name for run in chosen] == ["scenarios"] and chosen[0].argv[-2:] == ("-k", "links")


def guest_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """In place of QEMU, a shell script that finds the exchange folder in $1."""
    kernel = guest_kernel.Kernel(tmp_path / "vmlinux", tmp_path / "initramfs")
    monkeypatch.setattr(soft_roce_vm, "ensure_kernel", lambda: kernel)
    monkeypatch.setattr(soft_roce_vm, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(soft_roce_vm, "BOOT_SECONDS", 2)
    monkeypatch.setattr(soft_roce_vm, "qemu_command", lambda _guest, _kernel, exchange: ["bash", "-c", program, "qemu", str(exchange)])


def test_status_output_and_results_come_back_from_the_guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guest_of(tmp_path, monkeypatch, "echo hello >$1/output; echo found >$1/results/file; echo 7 >$1/status")
    seen: list[bytes] = []
    assert soft_roce_vm.run_in_guest("guest test", ["true"], timeout=10, results=tmp_path / "results", show=seen.append) == 7
    assert b"".join(seen) == b"hello\n"
    assert (tmp_path / "results" / "file").read_text() == "found\n"
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_guest_that_dies_or_does_not_end_is_an_error_with_its_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guest_of(tmp_path, monkeypatch, "echo panic; echo begun >$1/output")
    with pytest.raises(GuestFailed, match="before the command") as caught:
        soft_roce_vm.run_in_guest("guest test", ["true"], timeout=10)
    assert "panic" in caught.value.detail and "begun" in caught.value.detail
    guest_of(tmp_path, monkeypatch, "echo begun >$1/output; sleep 60")
    with pytest.raises(GuestFailed, match="not finished after 1 s"):
        soft_roce_vm.run_in_guest("guest test", ["true"], timeout=1)


def test_a_guest_that_does_not_boot_is_booted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once = tmp_path / "once"
    guest_of(tmp_path, monkeypatch, f"if [ ! -e {once} ]; then touch {once}; sleep 60; fi; echo booted >$1/output; echo 0 >$1/status")
    assert soft_roce_vm.run_in_guest("guest test", ["true"], timeout=10) == 0
