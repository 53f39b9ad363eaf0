"""Child processes that never outlive us.

A Component is one program with a name, its own process group and a log. A Supervisor owns some of them: it notices one that died,
and stops all. Four nets catch a child: its process group is signalled; every process that carries the supervisor's mark in its
environment is killed after that (vLLM's engine and workers, whatever group they moved to); PR_SET_PDEATHSIG ends the direct
children when we are killed ourselves (then vLLM's own follow, they watch their parent). Orphans become our children
(PR_SET_CHILD_SUBREAPER) and are reaped, since in a container there is often no init that would. Nothing is ever ended by name.

PDEATHSIG fires when the *thread* that started the child ends, so components are started from the main thread.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moonpool.commands import tail
from moonpool.errors import UserError

PR_SET_CHILD_SUBREAPER = 36
MARK = "MOONPOOL_RUN_MARK"
STOP_SECONDS = 15.0
POLL_SECONDS = 0.05


def describe_exit(status: int) -> str:
    """An exit status of subprocess in words."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"exit status {status}"


@dataclass
class Component:
    """One program of a cluster. Started again after it ended, it goes on with the same log. `scratch` is removed when the supervisor stops."""

    name: str
    argv: Sequence[str | Path]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    scratch: Path | None = None
    process: subprocess.Popen[bytes] | None = None

    def start(self, mark: str) -> None:
        words = [str(word) for word in self.argv]
        if setpriv := shutil.which("setpriv"):
            words = [setpriv, "--pdeathsig", "SIGTERM", *words]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            log.write(f"$ {' '.join(words)}\n".encode())
            log.flush()
            env = {**os.environ, **self.environment, MARK: mark}
            try:
                self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True)
            except OSError as error:
                raise UserError(f"{self.name} cannot be started: {error}", "./moonpool build") from error

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} was not started"
        return self.process.pid

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to the program and all that it started in its group; quiet when they are gone."""
        if self.process is not None:
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                pass

    def kill(self) -> None:
        """kill -9 of the program and all in its group, as a crash: nothing is tidied up."""
        if self.process is not None:
            members = group_members(self.process.pid)
            self.signal_group(signal.SIGKILL)
            self.process.wait(STOP_SECONDS)
            reap_orphans(members - {self.process.pid})

    def died(self) -> UserError:
        """The message for a component that ended unasked."""
        assert self.process is not None
        return UserError(
            f"{self.name} died: {describe_exit(self.process.returncode)}", f"its whole log is {self.log}", tail(self.log)
        )


def marked_processes(mark: str) -> list[int]:
    """The living processes that inherited this mark in their environment."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def become_subreaper() -> None:
    """Have orphaned descendants handed to us instead of to the system's init."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def group_members(group: int) -> set[int]:
    """The processes of a process group, ended but unreaped ones included."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # The fields after the program's name, which may hold anything: state, parent, group.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group:
                found.add(int(entry.name))
    return found


def reap_orphans(pids: Iterable[int]) -> None:
    """Collect these processes, which have been killed: they become our children when their parents are gone, or are collected by those."""
    left = set(pids)
    deadline = time.monotonic() + STOP_SECONDS
    while left and time.monotonic() < deadline:
        for pid in list(left):
            try:
                ended = os.waitpid(pid, os.WNOHANG)[0] != 0
            except ChildProcessError:
                ended = not Path(f"/proc/{pid}").exists()
            if ended:
                left.remove(pid)
        if left:
            time.sleep(POLL_SECONDS)


class Supervisor:
    """Starts components, sees them die, stops them all. One owner, one thread."""

    def __init__(self) -> None:
        become_subreaper()
        self.mark = uuid.uuid4().hex
        self.components: list[Component] = []

    def start(self, component: Component) -> Component:
        component.start(self.mark)
        if component not in self.components:
            self.components.append(component)
        return component

    def forget(self, component: Component) -> None:
        """End one component for good."""
        self.stop_components([component])
        self.components = [other for other in self.components if other is not component]

    def check(self) -> None:
        """Raise the message of the first component that has died."""
        for component in self.components:
            if not component.running:
                raise component.died()

    def stop_components(self, components: Sequence[Component], grace_seconds: float = STOP_SECONDS) -> None:
        """Ask them to end, all at once, and kill what is left when the grace is over."""
        for component in components:
            component.signal_group(signal.SIGTERM)
        deadline = time.monotonic() + grace_seconds
        while any(component.running for component in components) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        for component in components:
            component.kill()

    def stop(self) -> None:
        """Stop everything: the users of the pool first, so that they can leave it, then the pool."""
        descendants = set(marked_processes(self.mark)) - {component.pid for component in self.components if component.process}
        pool = [component for component in self.components if component.name == "master"]
        self.stop_components([component for component in self.components if component not in pool])
        self.stop_components(pool)
        deadline = time.monotonic() + STOP_SECONDS
        while (left := marked_processes(self.mark)) and time.monotonic() < deadline:
            descendants.update(left)
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(POLL_SECONDS)
        reap_orphans(descendants)
        for component in self.components:
            if component.scratch is not None:
                shutil.rmtree(component.scratch, ignore_errors=True)
        self.components.clear()

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        previous = [(number, signal.signal(number, signal.SIG_IGN)) for number in (signal.SIGINT, signal.SIGTERM)]
        try:
            self.stop()
        finally:
            for number, handler in previous:
                signal.signal(number, handler)
