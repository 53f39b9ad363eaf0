"""Real verbs on a machine that has no RDMA: a command runs in a small QEMU guest whose kernel has soft-RoCE NICs.

The guest sees the host's files, read-only, so what was built outside runs inside; /tmp, /var/tmp, /run and /dev/shm are memory. Its NICs
hang on cables of their own (guest_network.sh), which a test can take down. QEMU emulates the processor, so that neither the host's kernel
nor KVM matters; that proves what happens, never how fast: expect a fifth to a twentieth of the speed, and 4 s for the boot.

    ./moonpool rdma-vm --nics 2 -- ibv_devinfo
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moonpool.commands import POLL_SECONDS, log_path, tail, terminate_group, within_all
from moonpool.errors import UserError
from moonpool.guest_clock import tsc_khz
from moonpool.guest_kernel import Kernel, ensure_kernel
from moonpool.paths import ROOT, RUNS, VENV

NETWORK = Path(__file__).with_name("guest_network.sh")
EXCHANGE = "/run/moonpool"  # in the guest
RESULTS_VARIABLE = "MOONPOOL_GUEST_RESULTS"  # names the folder whose files come back
# For the C++ tests: two NICs that reach each other, and that their cable may be taken down.
PAIR_VARIABLE = "MOONPOOL_TEST_RDMA_DEVICES"
CUT_VARIABLE = "MOONPOOL_TEST_RDMA_CUT"
# For tests of two processes: the NICs of one, and those of the other at the other ends of the same cables.
USER_VARIABLE = "MOONPOOL_TEST_RDMA_USER"
OWNER_VARIABLE = "MOONPOOL_TEST_RDMA_OWNER"
# A busy machine boots slowly too. One in many boots beside a dozen compilers hung on a lost timer interrupt; the next one does not.
BOOT_SECONDS = 90
BOOTS = 3


@dataclass(frozen=True)
class Guest:
    """The machine to boot. Each of its `nics` cables has a NIC on both ends, so there are twice as many devices."""

    nics: int = 2
    memory_mib: int = 2048
    processors: int = 2
    memlock_kib: int | None = None  # None: no limit. root may lock what it likes in any case

    def devices(self) -> tuple[str, str]:
        """The NICs at this end and at that of all cables, as device_name takes them."""
        return tuple(",".join(f"rxe{2 * cable + end}" for cable in range(self.nics)) for end in (0, 1))  # type: ignore[return-value]


class GuestFailed(UserError):
    """The guest ended without the command's exit status, or had to be ended."""


def kernel_parameters() -> str:
    """No check of timers, which fails on a busy host; the TSC as clock, whose reading costs no exit from the emulated processor, if its frequency is known."""
    khz = tsc_khz()
    clock = "" if khz is None else f" tsc=reliable tsc_early_khz={khz}"
    return f"console=ttyS0 quiet panic=-1 mitigations=off no_timer_check{clock}"


def qemu_command(guest: Guest, kernel: Kernel, exchange: Path) -> list[str]:
    def shared(path: Path, tag: str, options: str) -> list[str]:
        return ["-virtfs", f"local,path={str(path).replace(',', ',,')},mount_tag={tag},security_model=none,multidevs=remap{options}"]

    return [
        "qemu-system-x86_64", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max", "-smp", str(guest.processors), "-m", str(guest.memory_mib),
        "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", str(kernel.image), "-initrd", str(kernel.initramfs),
        "-append", kernel_parameters(),
        *shared(Path("/"), "host", ",readonly=on"), *shared(exchange, "exchange", ""),
    ]  # fmt: skip


def job_script(guest: Guest, argv: Sequence[str | Path], env: Mapping[str, str], cwd: Path) -> str:
    """What the guest's first process runs: the network, the limits, the command; and its status, when all of its output has been written."""
    user, owner = guest.devices()
    exported = {
        "PATH": f"{VENV / 'bin'}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/tmp",
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "MOONPOOL_TEST_SLOWNESS": "8",
        RESULTS_VARIABLE: f"{EXCHANGE}/results",
        PAIR_VARIABLE: "rxe0,rxe1",
        CUT_VARIABLE: "1",
        USER_VARIABLE: user,
        OWNER_VARIABLE: owner,
        **env,
    }
    limit = "unlimited" if guest.memlock_kib is None else str(guest.memlock_kib)
    return "\n".join(
        [
            *(f"export {name}={shlex.quote(value)}" for name, value in exported.items()),
            f"exec >{EXCHANGE}/output 2>&1",
            f"ulimit -l {limit}",
            "ulimit -n 65536",
            f"cd {shlex.quote(str(cwd))}",
            f"if sh {shlex.quote(str(NETWORK))} {guest.nics}; then",
            f"  {shlex.join(str(word) for word in argv)}",
            f"  echo $? >{EXCHANGE}/status",
            "else",
            f"  echo 'the network of the guest could not be set up' >>{EXCHANGE}/output",
            "fi",
            "",
        ]
    )


def _follow(path: Path, offset: int, show: Callable[[bytes], object]) -> int:
    """Show what a growing file has got since; the new offset."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            while part := file.read(1 << 16):
                show(part)
                offset += len(part)
    except FileNotFoundError:
        pass
    return offset


class _Boot:
    """One QEMU from start to end. It never outlives the call, nor us."""

    def __init__(self, name: str, argv: list[str], exchange: Path) -> None:
        self._name = name
        self._argv = argv
        self._output = exchange / "output"  # exists as soon as the command is about to start

    def run(self, timeout: float, show: Callable[[bytes], object]) -> str:
        """Why it had to be ended or ended badly; empty when it switched itself off."""
        argv = self._argv
        if setpriv := shutil.which("setpriv"):
            argv = [setpriv, "--pdeathsig", "SIGKILL", *argv]
        offset = 0
        with log_path(f"{self._name} console").open("wb") as console:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True)
            deadline = time.monotonic() + (boot_seconds := within_all(BOOT_SECONDS))
            booted = False
            try:
                while process.poll() is None:
                    if not booted and self.booted:
                        booted = True
                        timeout = within_all(timeout)
                        deadline = time.monotonic() + timeout
                    if time.monotonic() > deadline:
                        return f"was not finished after {timeout:.0f} s" if booted else f"did not boot within {boot_seconds:.0f} s"
                    offset = _follow(self._output, offset, show)
                    time.sleep(POLL_SECONDS)
            finally:
                terminate_group(process)
                _follow(self._output, offset, show)
        return "" if process.returncode == 0 else f"ended with QEMU's exit status {process.returncode}"

    @property
    def booted(self) -> bool:
        return self._output.exists()


def run_in_guest(
    name: str,
    argv: Sequence[str | Path],
    *,
    timeout: float,
    guest: Guest = Guest(),
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    results: Path | None = None,
    show: Callable[[bytes], object] | None = None,
) -> int:
    """Boot a guest, run a command in it as root, and return the command's exit status.

    Its output is in the log of `name`, the guest's console in that of `name console`; `show` gets the output as it comes. What the command
    leaves in the folder $MOONPOOL_GUEST_RESULTS comes back in `results`, also when it did not end well. GuestFailed when time is over or
    the guest died.
    """
    kernel = ensure_kernel()
    RUNS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RUNS, prefix="guest-") as folder:
        exchange = Path(folder)
        (exchange / "results").mkdir()
        (exchange / "results").chmod(0o777)
        exchange.chmod(0o755)
        (exchange / "job").write_text(job_script(guest, argv, env or {}, cwd))
        (exchange / "folders").write_text("".join(f"{path}\n" for path in dict.fromkeys((ROOT, cwd, Path(sys.base_prefix)))))
        output = exchange / "output"
        try:
            for _ in range(BOOTS):
                boot = _Boot(name, qemu_command(guest, kernel, exchange), exchange)
                trouble = boot.run(timeout, show or (lambda _: None))
                if boot.booted:
                    break
        finally:
            if output.is_file():
                shutil.copyfile(output, log_path(name))
            if results is not None:
                shutil.copytree(exchange / "results", results, dirs_exist_ok=True)
        status = (exchange / "status").read_text().strip() if (exchange / "status").is_file() else ""
        if not status.isdigit():
            console = log_path(f"{name} console")
            text = (tail(log_path(name)) + "\n" + tail(console)).strip()
            raise GuestFailed(f"{name}: the guest {trouble or 'ended before the command did'}", f"logs: {log_path(name)} and {console}", text)
        return int(status)


# ---------------------------------------------------------------------------------------------------------------------- command line


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./moonpool rdma-vm",
        description="Runs a command, as root, in a guest with soft-RoCE NICs: rxe0 cabled to rxe1, rxe2 to rxe3 ... (guest_network.sh). "
        "It sees this machine's files, read-only; what it leaves in $MOONPOOL_GUEST_RESULTS comes back. Its exit status is passed on.",
        usage="./moonpool rdma-vm [options] -- COMMAND [ARGUMENT ...]",
    )
    parser.add_argument("--nics", type=int, default=2, metavar="N", help="cables, with a NIC on both ends (default: 2)")
    parser.add_argument("--memory", type=int, default=2048, metavar="MIB", help="the guest's memory (default: 2048)")
    parser.add_argument("--processors", type=int, default=2, metavar="N", help="default: 2")
    parser.add_argument("--memlock", type=int, metavar="KIB", help="limit of locked memory, for a command that gives up root's rights (default: none)")
    parser.add_argument("--timeout", type=float, default=600, metavar="SECONDS", help="end it after this time (default: 600)")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where to put what the command left in $MOONPOOL_GUEST_RESULTS")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    options = parser.parse_args(arguments)
    if options.command[:1] == ["--"]:
        del options.command[0]
    if not options.command:
        parser.error("which command is to run in the guest?")
    if not 1 <= options.nics <= 8:
        parser.error("--nics: 1 to 8")
    return options


def main(arguments: list[str]) -> int:
    options = parse_arguments(arguments)
    guest = Guest(options.nics, options.memory, options.processors, options.memlock)

    def show(part: bytes) -> None:
        sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return run_in_guest("rdma vm", options.command, timeout=options.timeout, guest=guest, cwd=Path.cwd(), results=options.results, show=show)
