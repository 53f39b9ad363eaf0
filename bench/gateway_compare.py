"""The gateway beside vllm-router, nginx and the demo proxy: one run, the same static upstreams, contenders in turn, several rounds.

    ./moonpool bench gateway [--rounds 3] [--parts rate,latency,half,tokens,open] [--contenders Moonpool,vllm-router,demo,nginx]
                             [--json FILE] [--merge] [--no-build] [--markdown]

rate      32 connections, each sends again when it has its answer: requests/s, and CPU time a request of proxy, upstreams and load
latency   one connection: p50 with all cores, and with every process on one core, where no idle core has to be woken
half      requests by the clock, evenly and at random times (Poisson), at half of the rate that the contender itself reached with 32
          connections: p99 against p50. The proxy has one core, upstreams and load the others, so that it is the proxy's delays that are measured
tokens    64 streams with a token every 20 ms: a token's time from the upstream to the client, against that without a proxy
open      10,000 streams that are open at once, a token every 2 s: the proxy's memory (fewer where the limit of open files says so)

Every answer is checked to be whole, and the upstreams count what they were asked: a proxy of two hops has to have made both. "Added" is p50
less what the hops take without a proxy: twice the direct p50 where there is a prefill, once for nginx. Standard library only; vllm-router and
what the demo proxy needs are installed in an environment of their own (--router-venv), nginx by apt-get when it is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "python"))

from moonpool.benching import built_programs  # noqa: E402
from moonpool.commands import run  # noqa: E402
from moonpool.errors import UserError  # noqa: E402
from moonpool.packages import GATEWAY_BENCH_PACKAGES, ROUTER_REQUIREMENTS  # noqa: E402
from moonpool.ports import pick_free  # noqa: E402
from moonpool.processes import Component, Supervisor, group_members  # noqa: E402
from moonpool.provision import ensure_packages  # noqa: E402

PARTS = ("rate", "latency", "half", "tokens", "open")
PROGRAMS = ("moonpool", "gateway_upstream", "gateway_load")
OUT = ROOT / "bench" / "out"
START_SECONDS = 60.0
CORES = os.sched_getaffinity(0)
TICKS = os.sysconf("SC_CLK_TCK")
OPEN_STREAMS = 10_000
FOREIGN_AT_MOST = 0.1
BODY = json.dumps({"model": "bench", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}).encode()
NGINX = """daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log error; worker_processes 2; worker_rlimit_nofile {files}; {user}
events {{ worker_connections {files}; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 300; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream instance {{ server 127.0.0.1:{decode}; keepalive 256; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ proxy_pass http://instance; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }}
  }}
}}
"""


@dataclass(frozen=True)
class Contender:
    name: str
    hops: int


DIRECT = Contender("direct to the upstream", 1)
GATEWAY = Contender("Moonpool, round_robin", 2)
ROUTER = Contender("vllm-router 0.1.17", 2)
CONTENDERS = (DIRECT, GATEWAY, Contender("Moonpool, prefix_aware", 2), ROUTER, Contender("demo proxy (FastAPI, aiohttp)", 2), Contender("nginx, one hop", 1))


def fetch(port: int, path: str, body: bytes | None = None) -> bytes:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return bytes(answer.read())


class Field:
    """Two upstreams and the contenders that are wanted, all running."""

    def __init__(self, supervisor: Supervisor, programs: dict[str, Path], router: Path, contenders: tuple[Contender, ...], folder: Path) -> None:
        self._supervisor, self._programs, self._router, self._folder = supervisor, programs, router, folder
        self.prefill, self.decode = (self._upstream(role) for role in ("prefill", "decode"))
        self.contenders = contenders
        self.proxies: dict[str, Component] = {}
        self.ports = {DIRECT.name: self.decode[1]}
        for contender in contenders:
            if contender is not DIRECT:
                self.ports[contender.name], self.proxies[contender.name] = self._proxy(contender)
        for contender in contenders:
            self._wait(contender)

    def _component(self, name: str, argv: list[str | Path]) -> Component:
        return self._supervisor.start(Component(name, argv, self._folder / f"{name.split(',')[0].split()[0]}-{len(self._supervisor.components)}.log"))

    def _upstream(self, role: str) -> tuple[Component, int]:
        component = self._component(f"upstream-{role}", [self._programs["gateway_upstream"]])
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            words = component.log.read_text().split()
            if words and words[-1].isdigit():
                return component, int(words[-1])
            time.sleep(0.02)
        raise component.died() if not component.running else UserError("an upstream did not start", f"see {component.log}")

    def _proxy(self, contender: Contender) -> tuple[int, Component]:
        port, metrics = pick_free(2)
        prefill, decode = (f"127.0.0.1:{upstream[1]}" for upstream in (self.prefill, self.decode))
        name = contender.name
        argv: list[str | Path]
        if name.startswith("Moonpool"):
            policy = name.split()[-1]
            argv = [self._programs["moonpool"], "gateway", "--model", "bench", "--port", str(port), "--prefill", prefill, "--decode", decode, "--scheduling", policy]
        elif name.startswith("vllm-router"):
            argv = [self._router / "vllm-router", "--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics), "--log-level", "error"]
            argv += ["--vllm-pd-disaggregation", "--kv-connector", "nixl", "--policy", "round_robin", "--worker-startup-check-interval", "1"]
            argv += ["--prefill", f"http://{prefill}", "--decode", f"http://{decode}"]
        elif name.startswith("demo"):
            argv = [self._router / "python", ROOT / "bench" / "gateway_demo_proxy.py", str(port), prefill, decode]
        else:
            config = self._folder / "nginx.conf"
            files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            user = "user root;" if os.geteuid() == 0 else ""
            config.write_text(NGINX.format(folder=self._folder, files=files, user=user, port=port, decode=self.decode[1]))
            argv = [shutil.which("nginx") or "/usr/sbin/nginx", "-p", self._folder, "-c", config]
        return port, self._component(name, argv)

    def _wait(self, contender: Contender) -> None:
        end = time.monotonic() + START_SECONDS
        while True:
            self._supervisor.check()
            try:
                if b"choices" in fetch(self.ports[contender.name], "/v1/chat/completions", BODY):
                    return
            except OSError as error:
                if time.monotonic() > end:
                    raise UserError(f"{contender.name} does not answer: {error}", f"see the logs in {self._folder}") from error
            time.sleep(0.05)

    def processes(self, contender: Contender) -> list[int]:
        proxy = self.proxies.get(contender.name)
        return sorted(group_members(proxy.pid)) if proxy else []

    def everything(self) -> list[int]:
        return [self.prefill[0].pid, self.decode[0].pid, *(pid for contender in self.contenders for pid in self.processes(contender))]

    def counts(self) -> list[int]:
        """POSTs at prefill, at decode, and at decode with what prefill handed over."""
        return [json.loads(fetch(self.prefill[1], "/counts"))[0], *json.loads(fetch(self.decode[1], "/counts"))]

    def load(self, contender: Contender, mode: str, *arguments: object) -> dict[str, Any]:
        """Like load_once, again (twice at most) when something else on this machine took more than a little of the cores meanwhile."""
        for _ in range(3):
            result = self.load_once(contender, mode, *arguments)
            if result["foreign"] < FOREIGN_AT_MOST:
                break
        return result

    def load_once(self, contender: Contender, mode: str, *arguments: object) -> dict[str, Any]:
        """Run the load generator. Its figures, and the CPU microseconds that each process took for one answer."""
        watched = {"proxy": self.processes(contender), "upstreams": [self.prefill[0].pid, self.decode[0].pid], "everything": [os.getpid(), *self.everything()]}
        argv = [self._programs["gateway_load"], mode, "--port", str(self.ports[contender.name]), *map(str, arguments)]
        counts, before = self.counts(), {name: cpu_us(pids) for name, pids in watched.items()}
        busy, began = busy_us(), time.monotonic()
        done = subprocess.run(argv, capture_output=True, text=True, timeout=150)
        busy, took = busy_us() - busy, time.monotonic() - began
        if done.returncode != 0 or not done.stdout:
            raise UserError(f"{contender.name}, {mode}: {done.stdout[:400]} {done.stderr.strip()[:600]}", f"see the logs in {self._folder}")
        result: dict[str, Any] = json.loads(done.stdout)
        for name, pids in watched.items():
            used = [now - then for now, then in zip(cpu_us(pids), before[name], strict=True)]
            if name == "everything":
                result["foreign"] = (busy - sum(used) - result["cpu_us"]) / (took * 1e6)  # in cores
                continue
            result[f"{name}_user_us"], result[f"{name}_system_us"] = (value / result["answers"] for value in used)
        result["load_us"] = result["cpu_us"] / result["answers"]
        prefills, decodes, handed = (now - then for now, then in zip(self.counts(), counts, strict=True))
        result["handed_over"] = handed / max(1, decodes)
        if decodes < result["answers"] or (contender.hops == 2 and prefills < result["answers"]):
            raise UserError(f"{contender.name} answered {result['answers']} times, and asked prefill {prefills}, decode {decodes} times", "that is no comparison")
        return result


def cpu_us(pids: list[int]) -> tuple[float, float]:
    """User and system time of these processes together."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(f[11]) for f in fields) * 1e6 / TICKS, sum(int(f[12]) for f in fields) * 1e6 / TICKS


def busy_us() -> float:
    """Time that the cores were busy, whoever with: user, nice, system, interrupts."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    return sum(int(fields[index]) for index in (1, 2, 3, 6, 7)) * 1e6 / TICKS


@contextlib.contextmanager
def on_cores(pids: list[int], cores: set[int]) -> Iterator[None]:
    """These processes, with all their threads, on these cores and nowhere else."""

    def put(where: set[int]) -> None:
        for pid in pids:
            for thread in Path(f"/proc/{pid}/task").iterdir():
                os.sched_setaffinity(int(thread.name), where)

    put(cores)
    try:
        yield
    finally:
        put(CORES)


# ------------------------------------------------------------------------------------------------------------------------- the parts

Sample = dict[str, Any]


def rate(field: Field, contender: Contender, seconds: float) -> Iterator[Sample]:
    yield {"what": "c=32"} | field.load(contender, "closed", "--connections", 32, "--seconds", seconds)


def latency(field: Field, contender: Contender, seconds: float) -> Iterator[Sample]:
    yield {"what": "all cores"} | field.load(contender, "closed", "--connections", 1, "--seconds", seconds, "--warm-up", 0.3)
    with on_cores([*field.everything(), os.getpid()], {max(CORES)}):
        yield {"what": "one core"} | field.load(contender, "closed", "--connections", 1, "--seconds", seconds, "--warm-up", 0.3)


def half(field: Field, contender: Contender, seconds: float) -> Iterator[Sample]:
    harness = [field.prefill[0].pid, field.decode[0].pid, os.getpid()]
    with on_cores(harness, CORES - {max(CORES)} or CORES), on_cores(field.processes(contender), {max(CORES)}):
        most = field.load(contender, "closed", "--connections", 32, "--seconds", 1)["requests_per_s"]
        for what, more in (("evenly", ()), ("at random", ("--poisson",))):
            yield {"what": what, "most": most} | field.load(contender, "open", *more, "--connections", 64, "--seconds", seconds, "--rate", most / 2)


def tokens(field: Field, contender: Contender, seconds: float) -> Iterator[Sample]:
    shape = ("--connections", 64, "--ramp", 0.5, "--tokens", int(seconds * 50) + 25, "--interval-us", 20_000)
    yield {"what": "all cores"} | field.load(contender, "streams", *shape)
    with on_cores([*field.everything(), os.getpid()], {max(CORES)}):
        yield {"what": "one core"} | field.load(contender, "streams", *shape)


def open_streams(field: Field, contender: Contender, _seconds: float) -> Iterator[Sample]:
    # A proxy of one process has two files for each stream.
    streams = min(OPEN_STREAMS, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 200) // 2)
    before = sum(memory(pid, "VmRSS") for pid in field.processes(contender))
    result = field.load(contender, "streams", "--connections", streams, "--ramp", 10, "--tokens", 8, "--interval-us", 2_000_000)
    most = sum(memory(pid, "VmHWM") for pid in field.processes(contender))
    yield {"what": "open", "streams": result["most_open"], "rss_before_mib": before, "rss_mib": most} | result


def memory(pid: int, which: str) -> float:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) / 1024


MEASURES: dict[str, Callable[[Field, Contender, float], Iterator[Sample]]] = {"rate": rate, "latency": latency, "half": half, "tokens": tokens, "open": open_streams}

# ------------------------------------------------------------------------------------------------------------------------ the report


class Report:
    """Medians and ranges over the rounds."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples

    def values(self, part: str, what: str, contender: Contender, name: str) -> list[float]:
        return [s[name] for s in self.samples if (s["part"], s["what"], s["contender"]) == (part, what, contender.name)]

    def median(self, *key: Any) -> float | None:
        values = self.values(*key)
        return statistics.median(values) if values else None

    def text(self, *key: Any) -> str:
        values = self.values(*key)
        if not values:
            return ""
        return shown(statistics.median(values)) + (f" ({shown(min(values))} to {shown(max(values))})" if len(values) > 1 else "")

    def added(self, part: str, what: str, contender: Contender, name: str, hops: int) -> float | None:
        through, direct = self.median(part, what, contender, name), self.median(part, what, DIRECT, name)
        return None if through is None or direct is None or contender is DIRECT else through - hops * direct

    def against(self, part: str, what: str, contender: Contender, name: str, other: Contender) -> list[float]:
        """The ratios within each round."""
        by_round = [{s["round"]: s[name] for s in self.samples if (s["part"], s["what"], s["contender"]) == (part, what, side.name)} for side in (contender, other)]
        return [by_round[0][number] / by_round[1][number] for number in by_round[0].keys() & by_round[1].keys()]

    def markdown(self) -> str:
        return "\n\n".join(filter(None, (self._rate(), self._latency(), self._half(), self._tokens(), self._open(), self._targets())))

    def _sides(self, part: str) -> list[Contender]:
        return [contender for contender in CONTENDERS if any(s["part"] == part and s["contender"] == contender.name for s in self.samples)]

    def _rate(self) -> str:
        rows = []
        for side in self._sides("rate"):
            key = ("rate", "c=32", side)
            ratios = self.against(*key, "requests_per_s", ROUTER)
            user, system = self.median(*key, "proxy_user_us"), self.median(*key, "proxy_system_us")
            assert user is not None and system is not None
            rows.append(
                (side.name, self.text(*key, "requests_per_s"), range_of(ratios), f"{shown(user + system)} ({shown(user)} + {shown(system)})")
                + tuple(shown(self.median(*key, name)) for name in ("upstreams_us", "load_us", "p50_us", "p99_us"))
            )
        head = ("32 connections", "requests/s", "against vllm-router", "CPU us a request (user + system)", "upstreams' CPU us", "load's CPU us", "p50 us", "p99 us")
        return grid(head, rows)

    def _latency(self) -> str:
        rows = []
        for side in self._sides("latency"):
            cells = [side.name]
            for what in ("one core", "all cores"):
                cells += [self.text("latency", what, side, "p50_us"), shown(self.added("latency", what, side, "p50_us", side.hops))]
            rows.append(tuple(cells))
        return grid(("1 connection", "p50 us, one core", "added", "p50 us, all cores", "added"), rows)

    def _half(self) -> str:
        rows = []
        for side in self._sides("half"):
            cells = [side.name, self.text("half", "evenly", side, "most")]
            for what in ("evenly", "at random"):
                cells += [" / ".join(shown(self.median("half", what, side, name)) for name in ("p50_us", "p99_us")), range_of(self._spreads(what, side))]
            rows.append(tuple(cells))
        head = ("half of its own rate on one core", "that rate, requests/s", "evenly: p50 / p99 us", "p99 / p50", "at random: p50 / p99 us", "p99 / p50")
        return grid(head, rows)

    def _spreads(self, what: str, side: Contender) -> list[float]:
        return [p99 / p50 for p99, p50 in zip(self.values("half", what, side, "p99_us"), self.values("half", what, side, "p50_us"), strict=True)]

    def _tokens(self) -> str:
        rows = []
        for side in self._sides("tokens"):
            cells = [side.name]
            for what in ("one core", "all cores"):
                key = ("tokens", what, side)
                cells += [f"{self.text(*key, 'token_p50_us')} / {self.text(*key, 'token_p99_us')}"]
                cells += [" / ".join(shown(self.added(*key, name, 1)) for name in ("token_p50_us", "token_p99_us")) if side is not DIRECT else ""]
            rows.append(tuple(cells))
        return grid(("64 streams, a token each 20 ms", "a token's p50 / p99 us, one core", "added", "p50 / p99 us, all cores", "added"), rows)

    def _open(self) -> str:
        rows = [
            (side.name, *(self.text("open", "open", side, name) for name in ("streams", "rss_before_mib", "rss_mib", "token_p50_us", "token_p99_us")))
            for side in self._sides("open")
        ]
        return grid(("open streams", "at once", "RSS before, MiB", "RSS at most, MiB", "token p50 us", "token p99 us"), rows)

    def _targets(self) -> str:
        rows = []

        def judge(what: str, wanted: str, value: float | None, fine: bool, form: str = "{:.1f}") -> None:
            rows.append((what, wanted, form.format(value), "yes" if fine else "no"))

        if ratios := self.against("rate", "c=32", GATEWAY, "requests_per_s", ROUTER):
            value = statistics.median(ratios)
            judge("requests/s at 32 connections against vllm-router", "at least 3x", value, value >= 3, "{:.1f}x")
        for what in ("one core", "all cores"):
            ours, theirs = (self.added("latency", what, side, "p50_us", 2) for side in (GATEWAY, ROUTER))
            if ours is not None and theirs is not None:
                judge(f"added p50 at 1 connection, {what}, against vllm-router's", "at most 0.5", ours / theirs, ours / theirs <= 0.5, "{:.2f}")
        for what in ("evenly", "at random"):
            if spreads := self._spreads(what, GATEWAY):
                judge(f"p99 / p50 at half of its own rate, {what}", "at most 2", statistics.median(spreads), statistics.median(spreads) <= 2)
        for what in ("one core", "all cores"):
            added = self.added("tokens", what, GATEWAY, "token_p99_us", 1)
            if added is not None:
                judge(f"time added to a token, p99, {what}", "less than 50 us", added, added < 50, "{:.0f} us")
        if (rss := self.median("open", "open", GATEWAY, "rss_mib")) is not None:
            streams = self.median("open", "open", GATEWAY, "streams")
            judge(f"RSS with {streams:,.0f} open streams", "less than 300 MB", rss * 1.048576, rss * 1.048576 < 300, "{:.0f} MB")
        return grid(("wanted", "", "measured", "reached"), rows)


def shown(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if abs(value) < 100 else f"{value:,.0f}"


def range_of(values: list[float]) -> str:
    return f"{statistics.median(values):.2f}x ({min(values):.2f} to {max(values):.2f})" if values else ""


def grid(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows)) if rows else ""


# -------------------------------------------------------------------------------------------------------------------------- the run


def ensure_router(venv: Path) -> Path:
    """vllm-router's environment. Returns its folder of programs."""
    stamp, content = venv / "moonpool-bench.stamp", "\n".join(ROUTER_REQUIREMENTS)
    if not stamp.is_file() or stamp.read_text() != content:
        print(f"installing {', '.join(ROUTER_REQUIREMENTS)} in {venv}", flush=True)
        run("make router venv", [sys.executable, "-m", "venv", "--clear", venv], timeout=120)
        run("install vllm-router", [venv / "bin" / "python", "-m", "pip", "install", "-q", *ROUTER_REQUIREMENTS], timeout=600)
        stamp.write_text(content)
    return venv / "bin"


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./moonpool bench gateway", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="of one timed part (1.5)")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--json", type=Path, default=OUT / "gateway.json", help="where the samples go (bench/out/gateway.json)")
    parser.add_argument("--merge", action="store_true", help="these are further rounds beside those in that file")
    parser.add_argument("--markdown", action="store_true", help="measure nothing: print the tables of that file")
    parser.add_argument("--no-build", action="store_true", help="use what is in build/release")
    parser.add_argument("--router-venv", type=Path, default=Path.home() / ".cache" / "moonpool" / "bench-router")
    parser.add_argument("--contenders", type=lambda text: text.split(","), default=[], help="their first words, such as Moonpool,nginx (all)")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    return options


def measure(options: argparse.Namespace, samples: list[Sample], save: Callable[[], None]) -> None:
    if options.no_build:
        programs = {name: next(path for path in (ROOT / "build" / "release").rglob(name) if path.is_file()) for name in PROGRAMS}
    else:
        programs = built_programs(PROGRAMS)
    contenders = tuple(one for one in CONTENDERS if not options.contenders or one is DIRECT or one.name.split()[0].strip(",") in options.contenders)
    router = ensure_router(options.router_venv)
    if shutil.which("nginx") is None and not Path("/usr/sbin/nginx").exists():
        ensure_packages("the gateway's benchmark", GATEWAY_BENCH_PACKAGES)
    folder = OUT / time.strftime("gateway-%Y%m%d-%H%M%S")
    first = 1 + max((sample["round"] for sample in samples), default=-1)

    def sample(part: str, contender: Contender, number: int, field: Field) -> None:
        for found in MEASURES[part](field, contender, options.seconds):
            found["upstreams_us"] = found["upstreams_user_us"] + found["upstreams_system_us"]
            samples.append({"part": part, "contender": contender.name, "round": number} | found)
            value = found["requests_per_s"] or found["token_p50_us"]
            unit = "requests/s" if found["requests_per_s"] else "us a token"
            print(f"round {number}: {part}, {found['what']}: {contender.name}: {shown(value)} {unit}, others had {found['foreign']:.2f} cores", flush=True)
        save()

    for number in range(first, first + options.rounds):
        if parts := [part for part in options.parts if part != "open"]:
            with Supervisor() as supervisor:
                field = Field(supervisor, programs, router, contenders, folder / str(number))
                for part in parts:
                    for turn in range(len(contenders)):
                        sample(part, contenders[(turn + number) % len(contenders)], number, field)
        if "open" in options.parts:
            for contender in (one for one in (GATEWAY, ROUTER) if one in contenders):
                with Supervisor() as supervisor:
                    sample("open", contender, number, Field(supervisor, programs, router, (contender,), folder / f"{number}-open-{contender.name.split()[0]}"))


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    kept = json.loads(options.json.read_text()) if (options.merge or options.markdown) and options.json.is_file() else {"samples": []}
    samples: list[Sample] = kept["samples"]

    def save() -> None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        machine = f"{os.cpu_count()} cores, Linux {platform.release()}, {time.strftime('%Y-%m-%d')}"
        options.json.write_text(json.dumps({"machine": machine, "samples": samples}, indent=1))

    if not options.markdown:
        measure(options, samples, save)
    print(f"\n{Report(samples).markdown()}\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(error.render())
