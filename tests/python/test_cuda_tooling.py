"""./moonpool test --cuda as far as it needs no GPU: what is chosen where, what a host lacks, and how the sanitizer's findings are counted."""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import pytest
from moonpool import cuda_host, cuda_tests, testing
from moonpool.errors import UserError


def options(**changes: object) -> argparse.Namespace:
    return argparse.Namespace(**{"unit": False, "e2e": False, "fast": False, "rdma": False, "cuda": False, "k": "", **changes})


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_tests, "gpu_indices", lambda: ("0", "1"))


@pytest.fixture
def no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_tests, "gpu_indices", lambda: ())


def test_without_a_gpu_there_is_one_skipped_step_and_no_failure(
    no_gpus: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    monkeypatch.setattr(testing.board, "say", said.append)
    assert testing.main(["--cuda"]) == 0
    assert len([line for line in said if line.startswith("note: no GPU here")]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "moonpool: 0 passed, 0 failed, 1 skipped"


def test_a_whole_run_has_the_gpus_where_there_are_some_and_not_elsewhere(gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = ["GPUs: the wheel", "GPUs: C++ tests", "GPUs from Python", "GPUs: compute-sanitizer"]
    assert [step.name for step in testing.plan(options(cuda=True))] == steps
    assert [step.name for step in testing.plan(options(cuda=True, k="kv"))] == [steps[0], steps[2]]
    assert [step.name for step in testing.plan(options())][-4:] == steps
    assert not set(steps) & {step.name for step in testing.plan(options(fast=True))}
    monkeypatch.setattr(cuda_tests, "gpu_indices", lambda: ())
    assert not [step.name for step in testing.plan(options()) if "GPU" in step.name]


def test_tests_that_need_torch_run_where_vllm_brings_it(no_gpus: None) -> None:
    for chosen in (options(), options(e2e=True), options(k="x")):
        names = [step.name for step in testing.plan(chosen)]
        assert names.index("tensors on torch") == names.index("end to end on vLLM") - 1
    for part in testing.TORCH_TESTS.split(" or "):
        assert (Path(__file__).parents[1] / "compat" / f"{part}.py").is_file()


def test_what_a_host_lacks_is_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_host, "INCLUDE_FOLDERS", (tmp_path,))
    found = cuda_host.build_options()
    assert found["MOONPOOL_BUILD_TESTS"] == found["MOONPOOL_WITH_REDIS"] == found["MOONPOOL_WITH_RDMA"] == "OFF"
    assert not cuda_tests.can_build_tests()
    for name in ("gtest/gtest.h", "gmock/gmock.h", "hiredis/hiredis.h", "infiniband/verbs.h", "rdma/rdma_cma.h"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert cuda_host.build_options() == {"MOONPOOL_BUILD_TESTS": "ON", "MOONPOOL_WARNINGS_AS_ERRORS": "OFF"}


def fake_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    program = tmp_path / "python3"
    program.write_text(f"#!/bin/sh\necho '{answer}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


def test_a_host_python_without_the_tools_is_named_with_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_host, "CUDA_VENV", tmp_path / "venv")
    fake_python(tmp_path, monkeypatch, '[[3, 12], ["/opt/site-packages"], ["nanobind", "torch"]]')
    assert cuda_host.host_python().version == (3, 12)
    with pytest.raises(UserError, match="lacks what the build needs: nanobind"):
        cuda_host.ensure_environment()
    with pytest.raises(UserError, match="torch"):
        cuda_host.require_test_modules()
    assert not (tmp_path / "venv").exists()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="no python3"):
        cuda_host.host_python()


def test_the_environment_sees_the_packages_of_the_hosts_python_behind_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if cuda_host.host_python().lacks and set(cuda_host.host_python().lacks) & set(cuda_host.BUILD_MODULES):
        pytest.skip("this python3 cannot build the wheel")
    monkeypatch.setattr(cuda_host, "CUDA_VENV", tmp_path / "venv")
    monkeypatch.setattr(cuda_host, "CUDA_PYTHON", tmp_path / "venv" / "bin" / "python")
    cuda_host.ensure_environment()
    code = "import nanobind, pip, sys; print(sys.prefix); print([p for p in sys.path if p.endswith('-packages')][0])"
    prefix, first = subprocess.run([cuda_host.CUDA_PYTHON, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    assert prefix == str(tmp_path / "venv")
    assert first.startswith(prefix)
    made = (tmp_path / "venv" / "pyvenv.cfg").stat().st_mtime_ns
    cuda_host.ensure_environment()
    assert (tmp_path / "venv" / "pyvenv.cfg").stat().st_mtime_ns == made


def test_each_sanitizer_runs_and_what_it_finds_is_its_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = tmp_path / "build" / "tests" / "cuda"
    build.mkdir(parents=True)
    (build / cuda_tests.SANITIZED).touch(mode=0o755)
    monkeypatch.setattr(cuda_host, "CUDA_BUILD", tmp_path / "build")
    monkeypatch.setattr(cuda_host, "build_targets", lambda targets: None)
    sanitizer = tmp_path / "compute-sanitizer"
    # It knows nothing but the tool's name: --tool NAME --error-exitcode N PROGRAM
    sanitizer.write_text('#!/bin/sh\n[ "$2" = racecheck ] && exit "$4"\n[ -x "$5" ]\n')
    sanitizer.chmod(0o755)
    assert cuda_tests.sanitized_runs(str(sanitizer)) == [("memcheck", 0), ("racecheck", cuda_tests.SANITIZER_FAILED)]
    monkeypatch.setattr(cuda_tests, "compute_sanitizer", lambda: str(sanitizer))
    monkeypatch.setattr(cuda_tests, "can_build_tests", lambda: True)
    monkeypatch.setattr(cuda_host, "ensure_installed", lambda: Path("python"))
    assert (testing.cuda_sanitizer().passed, testing.cuda_sanitizer().failed) == (1, 1)
    monkeypatch.setattr(cuda_tests, "compute_sanitizer", lambda: None)
    assert testing.cuda_sanitizer() == testing.Outcome(skipped=2)
