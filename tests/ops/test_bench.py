"""`make bench` in its short form: every bench runs to its end, and says what it says of the same tokens.

No figure is judged here: the tests share their machine with others.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ops.bench.__main__ import main
from ops.bench.engine import same_tokens
from ops.bench.figures import Figures
from ops.bench.systems import Run, Wrong
from ops.bench.workload import Request, Workload, mixed_lengths

ROOT = Path(__file__).parents[2]
SYSTEMS = ["transformers static 16", "slipstream", "slipstream static 16", "slipstream static 64"]


def cells(said: str, first: str) -> list[list[str]]:
    """The other cells of the table rows that begin with the cell `first`."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in said.splitlines() if line[:1] == "|"]
    return [row[1:] for row in rows if row[0] == first]


def test_the_engine_bench_sets_all_systems_beside_each_other(bench):
    """A table and JSON for both workloads: machine, versions, lengths, and the figures of every system."""
    said, found = bench()
    assert [workload["workload"] for workload in found["workloads"]] == ["small", "demo"]
    for workload in found["workloads"]:
        assert workload["requests"] == 6
        assert workload["prompt_tokens"]["sum"] > 0
        assert [system["name"] for system in workload["systems"]] == SYSTEMS
        for system in workload["systems"]:
            figures = {"wall_s", "tokens_per_s", "mean_rows", "first_token_p99_ms", "gap_p50_ms", "gap_p99_ms"}
            assert figures <= system.keys()
            assert len(system["runs"]) == 1
            assert 1 <= system["mean_rows"] <= 6
    assert {"cpu", "isa", "memory_gib", "torch", "transformers", "load_average"} <= found["machine"].keys()
    assert found["settings"]["threads"] == 1
    for name in SYSTEMS:
        small, demo = cells(said, name)
        assert len(small) == 6  # wall, tokens/s, ratio, rows, first token, gap
        assert len(demo) == 7
        assert demo[-1].endswith("/6")  # exact answers
    assert [row[2] for row in cells(said, SYSTEMS[0])] == ["1.00", "1.00"]
    small, demo = found["workloads"]
    assert small["same_tokens"]
    assert {system["output_tokens"] for system in small["systems"]} == {small["output_tokens"]["sum"]}
    assert {system["output_tokens"] for system in demo["systems"]} == {demo["systems"][0]["output_tokens"]}


def test_the_overhead_bench_tells_what_a_step_on_a_device_costs_the_host(bench):
    """Rows on a device that answers at once, so that what the host does is all of it; every row goes on decoding."""
    _, found = bench("overhead", "--rows", "8", "--ahead", "--no-prefix-cache")
    assert found["settings"]["ahead"] is True
    assert [width["width"] for width in found["widths"]] == [1, 8]
    for width in found["widths"]:
        assert width["host_us"] > 0
        assert any("device_runner.py" in one["function"] for one in width["functions"])


def test_the_overhead_bench_says_where_a_step_spends_its_time(bench):
    """Time a step at width 1 and at all rows, without the maths and with it, and parts that make up a step."""
    said, found = bench("overhead", "--rows", "8")
    assert [width["width"] for width in found["widths"]] == [1, 8]
    for width in found["widths"]:
        assert width["host_us"] > 0
        assert width["step_us"] > 0
        assert 0.95 < sum(part["share"] for part in width["parts"]) < 1.01
        assert all(cells(said, function["function"]) for function in width["functions"])


def test_the_int8_bench_sets_accuracy_beside_speed(bench):
    """Errors and exact match of bf16, of either int8 and of both; how long steps take, and what a token's K/V takes."""
    said, found = bench("int8")
    names = ["bf16", "int8 K/V", "int8 weights", "both"]
    for errors in found["accuracy"].values():
        assert list(errors) == names
        assert 0 < errors["bf16"]["rms"] < errors["both"]["rms"] < 1
    assert all(0 <= found["exact_match"][name]["overall"] <= 1 for name in names)
    assert [list(one["ms"]) for one in found["speed"]] == [names] * 5  # 1 and 4 rows, long rows, prompts, a long prompt
    assert found["kv_bytes_a_token"]["int8 K/V"] < 0.6 * found["kv_bytes_a_token"]["bf16"]
    assert all(len(cells(said, name)) == 2 for name in names)


def test_the_startup_bench_says_when_the_first_token_came_and_what_memory_it_took(bench):
    """Of a process that runs the model, beside one that imports alone: in order, and more than that one's."""
    said, found = bench("startup")
    (run,), (bare,) = found["whole"], found["bare"]
    assert bare["imported_s"] > 0
    assert run["imported_s"] < run["loaded_s"] < run["first_token_s"]
    assert run["answered_mib"] > bare["imported_mib"]
    assert cells(said, "first token")


def test_the_loop_bench_streams_through_redis_in_every_way(bench):
    """All jobs come to their ends with the Redis half as a process and as a thread, and a step's time is told."""
    said, found = bench("loop")
    (model,) = found["models"]
    for way in ("process", "thread", "alone"):
        (of_way,) = model["runs"][way]
        assert of_way["step_ms"] > 0
        assert 1 <= of_way["steps"] < 200
        (row,) = cells(said, way)
        assert float(row[0]) == pytest.approx(of_way["step_ms"], abs=0.01)
    assert model["thread_costs"] == pytest.approx(
        model["step_ms"]["thread"] / model["step_ms"]["process"] - 1, abs=0.01
    )


def test_the_small_workload_is_the_one_that_peers_were_measured_with():
    """64 requests with 9,782 prompt and 7,052 output tokens, of lengths that do not depend on the vocabulary."""
    requests = mixed_lengths()
    prompts, outputs = [len(r.prompt) for r in requests], [r.max_tokens for r in requests]
    assert (len(requests), sum(prompts), sum(outputs)) == (64, 9782, 7052)
    assert (min(prompts), max(prompts), min(outputs), max(outputs)) == (17, 512, 8, 512)
    assert requests[0].prompt[:4] == [6826, 7906, 780, 6531]
    assert [len(r.prompt) for r in mixed_lengths(vocab=32768)] == prompts


def test_a_system_that_makes_other_tokens_is_not_measured():
    """One output a token short, of outputs whose lengths are fixed, is refused; equal ones are counted."""
    workload = Workload("small", Path("nowhere"), [Request([1], 3), Request([1], 2)])
    whole = Run([[5, 5, 5], [5, 5]], [[0.1, 0.2, 0.3], [0.1, 0.2]], 0.3, 1.7, 0.0)
    short = Run([[5, 5, 5], [5]], [[0.1, 0.2, 0.3], [0.1]], 0.3, 1.3, 0.0)
    assert same_tokens(workload, {"one": [whole], "other": [whole]})["same_tokens"]
    with pytest.raises(Wrong, match="5, 4"):
        same_tokens(workload, {"one": [whole], "other": [short]})


def test_a_run_in_figures():
    """First tokens count from the start, gaps within a request only, tokens/s over the whole wall time."""
    run = Run([[5, 5, 5], [5]], [[0.1, 0.2, 0.4], [0.3]], 0.5, 1.3, 0.0)
    figures = Figures.of(run)
    assert figures.tokens_per_s == pytest.approx(8)
    assert figures.first_token_p50_ms == pytest.approx(200)
    assert figures.gap_p50_ms == pytest.approx(150)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("speed",), "there is no bench 'speed'; there are engine, online, "),
        (("--only", "vllm"), "no system is named like this; there are transformers static 16, slipstream"),
        (("--workload", "demo", "--threads", "4096"), "threads must be between 1 and"),
        (("peers", "--share", "5"), "--share: expected more than 0 and at most 1, got 5"),
        (("peers", "--llamacpp", "llama-server"), "--llamacpp: expected SERVER,GGUF, got 'llama-server'"),
        (("peers", "--runner", "other"), "--runner: expected NAME=COMMAND, got 'other'"),
        (("long_prompts", "--prompts", "0"), "--prompts: expected at least 1, got 0"),
        (("speculation", "--only", "sing"), "--only: there is no 'sing'; there are repeat, reverse, sort"),
    ],
)
def test_a_wrong_flag_is_one_clear_line(words: tuple[str, ...], said: str, cache: Path, capsys):
    """Exit code 2 and what is right instead."""
    try:
        code = main([*words, "--cache", str(cache)])
    except SystemExit as left:  # how argparse ends
        code = left.code
    assert code == 2
    assert said in capsys.readouterr().err


def test_the_program_ends_with_the_benches_exit_code():
    """`python -m ops.bench speed` as a process."""
    command = [sys.executable, "-m", "ops.bench", "speed"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("bench: there is no bench 'speed'")
