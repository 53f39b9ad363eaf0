"""The pure parts of the tooling: parsing, arithmetic, planning, and processes that have to be gone afterwards."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from moonpool import building, commands, cuda_tests, ports, prompts, provision, smoke, testing, up, vllm_instance
from moonpool.cluster import segment_bytes
from moonpool.commands import run, run_status, tail
from moonpool.console import Board, format_seconds
from moonpool.errors import UserError
from moonpool.processes import Component, Supervisor, describe_exit, group_members, marked_processes
from moonpool.vllm_metrics import VllmCounters, parse_counters

METRICS = """\
# HELP vllm:external_prefix_cache_queries_total External prefix cache queries
# TYPE vllm:external_prefix_cache_queries_total counter
vllm:external_prefix_cache_queries_total{engine="0",model_name="m"} 3000.0
vllm:external_prefix_cache_queries_total{engine="1",model_name="m"} 1000.0
vllm:external_prefix_cache_hits_total{engine="0",model_name="m"} 3.9e+03
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="m"} 0.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 2.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 0.5
python_info{version="3.11"} NaN_is_not_a_number_here
"""


def test_counters_add_up_over_engines_and_ignore_other_samples() -> None:
    counters = parse_counters(METRICS)
    assert counters.external_queries == 4000
    assert counters.external_hit_rate == pytest.approx(0.975)
    assert counters.time_to_first_token == pytest.approx(0.25)


def test_a_difference_of_counters_describes_what_happened_between() -> None:
    change = parse_counters(METRICS) - VllmCounters(external_queries=1000, external_hits=900, first_token_seconds=0.1, first_tokens=1)
    assert change.external_hit_rate == pytest.approx(1.0)
    assert change.time_to_first_token == pytest.approx(0.4)


def test_rates_without_a_request_are_zero() -> None:
    assert VllmCounters().external_hit_rate == 0
    assert VllmCounters().time_to_first_token == 0


def test_picked_ports_are_free_and_never_handed_out_twice() -> None:
    first, second = ports.pick_free(3), ports.pick_free(3)
    assert len({*first, *second}) == 6
    assert all(ports.is_free(port) for port in first + second)


def test_a_port_in_use_is_an_error_that_names_it_and_the_option() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError) as caught:
            ports.require_free(port, "the gateway", "--port")
        assert str(port) in caught.value.message and "--port" in caught.value.advice
        assert ports.accepts("127.0.0.1", port)


def test_prompts_differ_from_the_first_words_on_and_are_always_the_same() -> None:
    starts = {prompts.endless_prompt(index)[:40] for index in range(smoke.PROMPTS)}
    assert len(starts) == smoke.PROMPTS
    assert prompts.endless_prompt(3) == prompts.endless_prompt(3)


def test_a_prompt_is_cut_to_the_longest_run_of_words_that_fits() -> None:
    text = " ".join(f"word{number}" for number in range(1000))
    cut = prompts.fit_prompt(text, lambda part: 2 * len(part.split()), most=101)
    assert cut == " ".join(f"word{number}" for number in range(50))


def measured(**changes: object) -> smoke.Measured:
    values: dict[str, object] = {
        "prompt_tokens": 3090, "cold_text": "a", "pooled_text": "a", "cold_ttft": 4.0, "pooled_ttft": 0.2, "hit_rate": 0.99
    }  # fmt: skip
    return smoke.Measured(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"pooled_text": "b"}, {"pooled_ttft": 0.4}, {"hit_rate": 0.95}])
def test_one_prompt_that_falls_short_fails_the_acceptance(change: dict[str, object]) -> None:
    assert smoke.summary([measured()])["held"] is True
    assert smoke.summary([measured(), measured(**change)])["held"] is False


def test_the_json_line_has_the_promised_fields() -> None:
    assert {"same_text", "external_hit_rate", "ttft_cold_s", "ttft_pooled_s", "prompt_tokens"} <= smoke.summary([measured()]).keys()


def test_kv_both_alone_needs_no_other_instances() -> None:
    groups = up.plan_groups(up.parse_arguments(["--kv-both", "2"]))
    assert groups.prefill == groups.decode == ["both-1", "both-2"]
    assert set(groups.roles.values()) == {vllm_instance.BOTH}


def test_one_prefill_and_one_decode_are_the_default() -> None:
    groups = up.plan_groups(up.parse_arguments([]))
    assert groups.roles == {"prefill-1": vllm_instance.PRODUCER, "decode-1": vllm_instance.CONSUMER}


@pytest.mark.parametrize("arguments", [["--decode", "0"], ["--tp", "0"], ["--config", "a.json", "--metadata", "http://a"], ["--prefill", "-1"]])
def test_impossible_options_of_up_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        up.parse_arguments(arguments)


def test_a_model_directory_without_a_config_is_refused(tmp_path: Path) -> None:
    options = up.parse_arguments(["--model", str(tmp_path)])
    with pytest.raises(UserError, match="config.json"):
        up.choose_model(options, provision.Vllm(Path(sys.executable), {}))


def test_gpu_instances_get_their_own_devices_and_no_cpu_settings() -> None:
    instance = vllm_instance.Instance("prefill-1", vllm_instance.PRODUCER, 1, Path("org/model"), "model", gpus=("2", "3"), tensor_parallel=2)
    env = vllm_instance.environment(instance, provision.Vllm(Path("python3"), {}, ("0", "1", "2", "3")))
    assert env["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert "VLLM_CPU_KVCACHE_SPACE" not in env and "HF_HUB_OFFLINE" not in env


def test_segments_are_a_share_of_the_machine_within_bounds() -> None:
    assert segment_bytes(2, 23 << 30) == 1280 << 20
    assert segment_bytes(100, 1 << 30) == 512 << 20
    assert segment_bytes(1, 1 << 40) == 16 << 30


def test_times_are_short_to_read() -> None:
    assert [format_seconds(value) for value in (0.44, 12.3, 187)] == ["0.4 s", "12 s", "3 min 07 s"]


def test_without_a_terminal_a_row_is_two_plain_lines() -> None:
    stream = io.StringIO()
    board = Board(stream)
    with board.row("master") as row:
        row.update("127.0.0.1:1")
    with pytest.raises(ValueError), board.row("gateway"):
        raise ValueError
    assert "\x1b" not in stream.getvalue()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4 and "ok" in lines[1] and "!!" in lines[3]


def test_a_failed_tool_shows_the_end_of_its_log() -> None:
    with pytest.raises(UserError) as caught:
        run("tooling test", [sys.executable, "-c", "print('the reason'); raise SystemExit(3)"], timeout=20)
    assert "the reason" in caught.value.detail and "exit status 3" in caught.value.message


def test_a_tool_that_hangs_is_ended_with_all_that_it_started() -> None:
    started = time.monotonic()
    assert run_status("tooling hang", ["sh", "-c", "sleep 987 & wait"], timeout=0.3) == 124
    assert time.monotonic() - started < 15


def test_the_tail_of_an_absent_log_is_empty(tmp_path: Path) -> None:
    assert tail(tmp_path / "absent") == ""


def test_stopping_takes_grandchildren_in_sessions_of_their_own_along(tmp_path: Path) -> None:
    grandchild = "import subprocess, time; subprocess.Popen(['sleep', '987'], start_new_session=True); print('up', flush=True); time.sleep(987)"
    with Supervisor() as supervisor:
        component = supervisor.start(Component("parent", [sys.executable, "-c", grandchild], tmp_path / "log"))
        deadline = time.monotonic() + 20
        while len(marked_processes(supervisor.mark)) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(marked_processes(supervisor.mark)) == 2
        assert component.running
    assert marked_processes(supervisor.mark) == []


def test_a_killed_component_leaves_no_zombies(tmp_path: Path) -> None:
    code = "import subprocess, time; subprocess.Popen(['sleep', '987']); print('up', flush=True); time.sleep(987)"
    with Supervisor() as supervisor:
        component = supervisor.start(Component("parent", [sys.executable, "-c", code], tmp_path / "log"))
        deadline = time.monotonic() + 20
        while len(group_members(component.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        component.kill()
        assert group_members(component.pid) == set()


def test_a_dead_component_is_reported_with_name_exit_and_last_words(tmp_path: Path) -> None:
    with Supervisor() as supervisor:
        component = supervisor.start(Component("decode-1", ["sh", "-c", "echo out of memory; kill -9 $$"], tmp_path / "log"))
        assert component.process is not None
        component.process.wait(20)
        with pytest.raises(UserError) as caught:
            supervisor.check()
    assert "decode-1" in caught.value.message and "SIGKILL" in caught.value.message and "out of memory" in caught.value.detail


def test_children_die_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    code = (
        f"import sys, time; sys.path.insert(0, {str(building.ROOT / 'python')!r})\n"
        "from pathlib import Path; from moonpool.processes import *\n"
        f"s = Supervisor(); s.start(Component('c', ['sleep', '987'], Path({str(tmp_path / 'log')!r})))\n"
        "print('mark', s.mark, flush=True); time.sleep(987)"
    )
    with Supervisor() as outer:
        log = tmp_path / "outer"
        victim = outer.start(Component("victim", [sys.executable, "-c", code], log))
        deadline = time.monotonic() + 20
        while not (found := re.search(r"^mark (\w+)$", log.read_text(), re.MULTILINE)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert found
        mark = found[1]
        assert marked_processes(mark) != []
        os.kill(victim.pid, signal.SIGKILL)
        while marked_processes(mark) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert marked_processes(mark) == []


def test_exits_are_described_in_words() -> None:
    assert describe_exit(-9) == "killed by SIGKILL" and describe_exit(2) == "exit status 2"


def test_a_junit_report_is_counted(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase name="a" time="2"/><testcase name="b" time="1"><failure/></testcase>'
        '<testcase name="c"><skipped/></testcase><testcase name="d"><error/></testcase></testsuite></testsuites>'
    )
    outcome = testing.read_junit(report)
    assert str(outcome) == "1 passed, 2 failed, 1 skipped" and outcome.slowest[0] == (2.0, "a")


def test_a_step_that_raises_is_one_failure_and_the_next_still_runs() -> None:
    def broken() -> testing.Outcome:
        raise UserError("no compiler")

    steps = [
        testing.Step("wheel", broken),
        testing.Step("needs it", lambda: testing.Outcome(passed=5), needs_wheel=True),
        testing.Step("does not", lambda: testing.Outcome(passed=2)),
    ]
    outcomes = [outcome for _, outcome, _, _ in testing.run_steps(steps)]
    assert [(outcome.passed, outcome.failed) for outcome in outcomes] == [(0, 1), (0, 1), (2, 0)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The time of testing.py, in minutes: as an entry that the test sets."""
    minutes = [0.0]
    monkeypatch.setattr(testing.time, "monotonic", lambda: 60 * minutes[0])
    yield minutes
    monkeypatch.undo()


def taking(clock: list[float], lasts: float, outcome: testing.Outcome, name: str = "step", **step: object) -> testing.Step:
    def action() -> testing.Outcome:
        clock[0] += lasts
        return outcome

    return testing.Step(name, action, **step)  # type: ignore[arg-type]


def test_a_step_that_needs_more_time_than_is_left_is_left_out_and_a_shorter_one_after_it_is_not(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [
        taking(clock, 70.5, testing.Outcome(passed=5), "early", minutes=15),
        taking(clock, 20, testing.Outcome(passed=100), "long", minutes=14),
        taking(clock, 3, testing.Outcome(passed=2), "short", minutes=13),
        taking(clock, 1, testing.Outcome(passed=1), "free"),
    ]
    results = testing.run_steps(steps, testing.Budget(84, 0))
    assert [(outcome.passed, outcome.skipped, outcome.left_out) for _, outcome, _, _ in results] == [(5, 0, 0), (0, 1, 1), (2, 0, 0), (1, 0, 0)]
    testing.print_table(results)
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert rows["long"].endswith("  left out: 13 min were left of 84") and rows["short"].endswith("  2 passed, 0 failed")


def test_without_a_budget_no_step_is_left_out(clock: list[float]) -> None:
    steps = [taking(clock, 1000, testing.Outcome(passed=1), minutes=1000), taking(clock, 1000, testing.Outcome(passed=1), minutes=1000)]
    assert all(outcome.passed == 1 for _, outcome, _, _ in testing.run_steps(steps))


def test_without_time_for_the_wheel_what_needs_it_is_left_out_too_and_does_not_fail(clock: list[float]) -> None:
    ended = testing.Outcome(passed=1)
    steps = [taking(clock, 9, ended, "wheel", minutes=9), taking(clock, 1, ended, needs_wheel=True), taking(clock, 1, ended)]
    outcomes = [outcome for _, outcome, _, _ in testing.run_steps(steps, testing.Budget(5, 0))]
    assert [(outcome.passed, outcome.failed, outcome.left_out) for outcome in outcomes] == [(0, 0, 1), (0, 0, 1), (1, 0, 0)]


def test_a_step_that_fails_when_the_time_is_over_says_so(clock: list[float]) -> None:
    (result,) = testing.run_steps([taking(clock, 84, testing.Outcome(failed=1))], testing.Budget(84, 0))
    assert result[3] == "ended: the 84 min were over"


def test_the_last_line_counts_the_steps_that_were_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    steps = [testing.Step("quick", lambda: testing.Outcome(passed=3)), testing.Step("long", lambda: testing.Outcome(failed=1), minutes=50)]
    monkeypatch.setattr(testing, "prepare", lambda: None)
    monkeypatch.setattr(testing, "plan", lambda options: steps)
    assert testing.main(["--within", "40"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "moonpool: 3 passed, 0 failed, 1 skipped, 1 of 2 steps left out"
    assert testing.main([]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "moonpool: 3 passed, 1 failed"


def test_a_step_that_hangs_is_ended_with_the_budget_and_is_a_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def hang() -> testing.Outcome:
        return testing.Outcome(failed=int(run_status("tooling hang", ["sleep", "987"], timeout=900) == 124))

    monkeypatch.setattr(testing, "prepare", lambda: None)
    monkeypatch.setattr(testing, "plan", lambda options: [testing.Step("hangs", hang)])
    started = time.monotonic()
    assert testing.main(["--within", "0.02"]) == 1
    assert time.monotonic() - started < 30
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "moonpool: 0 passed, 1 failed"
    assert [line for line in lines if line.startswith("hangs ") and line.endswith("0 passed, 1 failed  (ended: the 0.02 min were over)")]


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "soon"])
def test_a_budget_that_is_no_time_is_refused(minutes: str) -> None:
    with pytest.raises(SystemExit):
        testing.parse_arguments(["--within", minutes])


def test_no_tool_has_longer_than_is_left_for_all_and_tidying_up_always_a_moment() -> None:
    now = time.monotonic()
    assert commands.within_all(900) == 900
    with commands.all_end_by(now + 100):
        assert 0 < commands.within_all(900) <= 100 and commands.within_all(30) == 30
        with commands.all_end_by(now + 500):
            assert commands.within_all(900) <= 100
        with commands.all_end_by(now - 1):
            assert commands.within_all(900) == commands.LEAST_SECONDS
    assert commands.within_all(900) == 900


def test_every_step_says_what_it_needs_and_ci_has_time_for_the_early_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_tests, "no_gpu", lambda: "none")
    steps = testing.plan(testing.parse_arguments([]))
    assert all(step.minutes > 0 for step in steps)
    within = re.search(r"--within (\d+)$", (building.ROOT / ".ci" / "run").read_text().strip())
    assert within and sum(step.minutes for step in steps) < float(within[1]) < 90


def test_the_source_hash_covers_what_the_wheel_is_made_of_and_nothing_built() -> None:
    names = {str(path.relative_to(building.ROOT)) for path in building.source_files()}
    assert {"CMakeLists.txt", "python/moonpool/up.py"} <= names
    assert not any(name.startswith(("build/", "tests/", ".venv/")) for name in names)
