"""The benches of load and scheduling in their short form: they run to their ends, and count what they say they count.

No figure is judged here: the tests share their machine with others.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ops.bench import models, pool, static, sweep
from ops.bench.ceilings import CpuCeilings
from ops.bench.charts import Line, Panel, draw
from ops.bench.latencies import Latencies, distribution, length_class
from ops.bench.long_prompts import _under_long_prompts
from ops.bench.peer import Peer
from ops.bench.systems import OnEngine, Run, Wrong
from ops.bench.workload import Request, equal_lengths, heavy_tailed, poisson, prompts_of, shared_prefixes
from worker.engine import Engine, SequenceParams
from worker.engine.headroom import Headroom


@pytest.fixture(scope="module")
def engine(cache: Path) -> Engine:
    """The random model, on one thread."""
    return Engine.from_pretrained(models.random_llama(cache), dtype="bfloat16", max_rows=4, threads=1)


def picture(said: str) -> Path:
    """The PNG that the last line but one names."""
    return Path(said.splitlines()[-2].removeprefix("picture: "))


def test_the_online_bench_tells_what_jobs_felt_of_each_other(bench):
    """First token, gaps and whole jobs of both models, and a picture of them."""
    said, found = bench("online")
    assert [one["workload"] for one in found["workloads"]] == ["small", "demo"]
    for one in found["workloads"]:
        assert one["rate_requests_per_s"] == pytest.approx(0.6 * one["capacity_requests_per_s"], abs=0.01)
        assert 0 < one["first_token_p50_ms"] <= one["first_token_p99_ms"]
        assert sum(one["jobs"].values()) == 6
        assert one["runs"][0]["wall_s"] > one["runs"][0]["last_arrival_s"]
    assert picture(said).read_bytes()[1:4] == b"PNG"


def test_a_request_is_not_answered_before_it_comes(engine: Engine):
    """Each first token is later than its arrival, and the engine waits where nothing has come yet."""
    requests, arrivals = [Request([300 + at] * 20, 2) for at in range(3)], [0.0, 0.05, 0.3]
    run = OnEngine(engine).run(requests, arrivals)
    assert [len(ids) for ids in run.token_ids] == [2, 2, 2]
    assert all(times[0] > arrival for times, arrival in zip(run.times, arrivals, strict=True))
    assert run.wall_s > 0.3
    assert sum(step.rows for step in run.steps) == 6


def test_an_output_that_is_enough_ends_although_the_engine_would_go_on(engine: Engine):
    """As where a stop string is found: so many tokens, then its row is free."""
    run = OnEngine(engine).run([Request([300] * 20, 50, ends_after=3)])
    assert len(run.token_ids[0]) == 3
    assert not engine.has_work


def test_waits_count_from_a_requests_arrival():
    """Not from the start of the run; a job's class is that of its output."""
    felt = Latencies()
    felt.add(Run([[5, 5, 5], [5]], [[1.1, 1.2, 1.4], [0.3]], 1.5, 1.3, 0.0), [1.0, 0.1])
    assert felt.first == pytest.approx([100, 200])
    assert felt.gaps == pytest.approx([100, 200])
    assert felt.whole["short"] == pytest.approx([400, 200])
    assert [length_class(count) for count in (32, 33, 128, 129)] == ["short", "medium", "medium", "long"]
    assert distribution([3.0, 1.0, 2.0]) == ([1.0, 2.0, 3.0], pytest.approx([1 / 3, 2 / 3, 1]))


def test_arrivals_come_at_the_rate_asked_for():
    """A thousand of them within a tenth of it, ascending, the same for the same seed."""
    arrivals = poisson(1000, 20.0, seed=3)
    assert arrivals == sorted(arrivals)
    assert arrivals[-1] == pytest.approx(50, rel=0.1)
    assert arrivals == poisson(1000, 20.0, seed=3)


def test_lengths_are_spread_as_they_are_named():
    """Equal ones are equal; of heavy-tailed ones the longest tenth have most of the tokens; prefixes are shared."""
    assert {request.max_tokens for request in equal_lengths(9, 40)} == {40}
    lengths = sorted(request.max_tokens for request in heavy_tailed(200))
    assert sum(lengths[-20:]) > sum(lengths) / 2
    prompts = [request.prompt for request in shared_prefixes(6, 2, 50)]
    assert prompts[0][:50] == prompts[2][:50] != prompts[1][:50]
    assert prompts[0][50:] != prompts[2][50:]


def test_the_static_bench_runs_the_same_requests_both_ways(bench):
    """A ratio for each spread of lengths, of the speed and of the rows in use."""
    said, found = bench("static")
    assert [one["workload"] for one in found["spreads"]] == list(static.SPREADS)
    for one in found["spreads"]:
        assert one["ratio"] > 0
        assert one["systems"]["continuous"]["output_tokens"] == one["systems"]["static"]["output_tokens"]
        assert one["rows_over_time"]["static"][-1][1] == 0
    assert picture(said).exists()


def test_the_pool_bench_sets_head_room_beside_the_other_policies(bench):
    """The same tokens with half the pages, and what was computed twice for it."""
    said, found = bench("pool", "--share", "0.3")
    assert [one["policy"] for one in found["policies"]] == list(pool.POLICIES)
    assert len({one["output_tokens"] for one in found["policies"]}) == 1
    ours, reserving, _ = found["policies"]
    assert reserving["preemptions"] == reserving["recomputed_share"] == 0
    assert ours["mean_rows"] >= reserving["mean_rows"]
    assert picture(said).exists()


def test_a_policy_holds_its_head_room_only_while_it_runs():
    """Neither rising nor decaying within; as it was afterwards."""
    headroom = Headroom(0, 0.5)
    with pool.held_headroom():
        headroom.step(preempted=True)
        assert headroom.share == 0.5
    headroom.step(preempted=True)
    assert headroom.share > 0.5


def test_the_long_prompts_bench_sets_the_worst_gap_beside_a_step(bench):
    """Whole prompts make steps as long as they are; chunks stay within the budget."""
    said, found = bench("long_prompts", "--budget", "64")
    whole, chunks, clocked = found["settings_found"]
    assert whole["most_tokens_a_step"] >= 200
    assert chunks["most_tokens_a_step"] <= 64
    assert clocked["steps"] >= chunks["steps"] > whole["steps"]
    assert picture(said).exists()


def test_a_running_job_that_gets_no_token_in_a_step_is_told(engine: Engine):
    """One job runs where two are expected: the bench's count of steps between tokens can fail."""
    engine.add(0, [300] * 20, SequenceParams(30))
    engine.step()
    with pytest.raises(Wrong, match="1 running jobs got no token"):
        _under_long_prompts(engine, prompts_of(1, 40), running=2)
    for id_ in (0, 2):
        engine.cancel(id_)


def test_the_prefix_bench_finds_what_is_shared_and_nothing_else(bench):
    """A hit rate where prompts begin alike, none where they do not, and the cost there as a share."""
    _, found = bench("prefix")
    shared, apart = found["workloads"]
    assert shared["hit_rate"] > 0.1
    assert apart["hit_rate"] == 0
    assert found["cost_where_nothing_is_shared"]["host_ms"].keys() == {"with the cache", "without"}


def test_a_picture_is_drawn_of_lines_and_their_bounds(tmp_path: Path):
    """Three panels in two columns, the last place empty; a floor is dashed and has no colour of its own."""
    lines = [Line("a", [1, 2], [3, 4]), Line("floor", [1, 2], [1, 1], dashed=True)]
    path = draw(tmp_path / "found.png", "what was found", [Panel("one", "x", "y", lines)] * 3)
    assert path.read_bytes()[1:4] == b"PNG"


def test_the_sweep_bench_sets_each_time_beside_its_floor(bench):
    """Points in order for each part, with floors where there are some, and how steeply each cost grows."""
    said, found = bench("sweep")
    assert found["parts"].keys() == {"width", "context", "queue", "length"}
    for part, points in found["parts"].items():
        assert [point["x"] for point in points] == sorted({point["x"] for point in points})
        assert all(point["ms"] > 0 for point in points)
        assert all(point["floor_ms"] > 0 for point in points if part != "queue")
    assert set(found["steepest"]) >= {"width, ms", "queue, add_us", "queue, cancel_us"}
    assert picture(said).exists()


def test_a_curve_that_bends_upward_shows_in_its_steepest_piece():
    """Proportional has exponent 1, quadratic 2, constant 0."""
    curve = [{"x": x, "ms": x, "us": x * x, "s": 5.0} for x in (1.0, 2.0, 4.0)]
    assert [sweep.steepest(curve, key) for key in ("ms", "us", "s")] == [1.0, 2.0, 0.0]


def test_a_working_sets_reading_rate_lies_between_those_measured():
    """And beyond them it is the nearest."""
    ceilings = CpuCeilings([(100, 10.0), (200, 20.0)], 1000.0)
    assert [ceilings.bytes_s(size) for size in (50, 100, 150, 200, 900)] == [10, 10, 15, 20, 20]
    assert ceilings.floor_s(100, 5000) == 10.0
    assert ceilings.floor_s(100, 50_000) == 50.0


RUNNER = """
import sys
from ops.bench.runners.answering import serve

class Counting:
    def __init__(self): self.here = {}
    def add(self, id_, prompt, max_tokens): self.here[id_] = [prompt[0], max_tokens]
    def step(self):
        new = {id_: [first] for id_, (first, left) in self.here.items()}
        self.here = {id_: [first, left - 1] for id_, (first, left) in self.here.items() if left > 1}
        return new
    def close(self): print("closed", file=sys.stderr)

def load():
    print("a library that says something")  # not in the way of the answers
    return Counting(), "1.0"

serve("counting", load)
"""


@pytest.fixture
def counting(tmp_path: Path) -> list[str]:
    """The command of a peer that answers each prompt with its first id, again and again."""
    program = tmp_path / "counting.py"
    program.write_text(RUNNER)
    return [sys.executable, str(program)]


def test_the_peers_bench_sets_other_systems_beside_this_one(bench, counting):
    """Offline and online, with the version that the other gave and how many times as fast this one is."""
    said, found = bench("peers", "--online", "--runner", f"counting={' '.join(counting)}")
    assert [one["name"] for one in found["offline"]] == ["slipstream", "counting"]
    assert found["versions"] == {"counting": "1.0"}
    assert found["offline"][0]["output_tokens"] == found["offline"][1]["output_tokens"]
    assert found["online"]["systems"].keys() == {"slipstream", "counting"}
    assert "picture: " in said


def test_a_peer_answers_in_its_own_process(counting):
    """Each request to its limit, at times that follow its arrival; again for the next workload."""
    peer = Peer("counting", counting)
    try:
        for _ in range(2):
            run = peer.run([Request([7, 8], 3), Request([9], 2)], [0.0, 0.02])
            assert run.token_ids == [[7, 7, 7], [9, 9]]
            assert run.times[1][0] > 0.02
    finally:
        peer.close()


def test_a_peer_that_dies_says_what_it_said_last(tmp_path: Path):
    """Its exit code and the end of its stderr, whether it dies at its start or later."""
    program = tmp_path / "dying.py"
    program.write_text("import sys; sys.exit('no such instruction set')")
    with pytest.raises(Wrong, match=r"exit code 1; it said: no such instruction set"):
        Peer("dying", [sys.executable, str(program)])
    with pytest.raises(Wrong, match="does not start"):
        Peer("missing", [str(tmp_path / "nowhere")])


def test_a_reader_who_has_enough_takes_no_more_although_guesses_bring_several_at_once(cache: Path):
    """The random model repeats itself, so guesses hold and a step gives more than is left: the rest is not counted."""
    engine = Engine.from_pretrained(models.random_llama(cache), max_rows=8, threads=1, step_time_s=None)
    enough = list(range(20, 36))
    asked = zip(enough, prompts_of(16, 12), strict=True)
    run = OnEngine(engine).run([Request(prompt, 200, ends_after=n) for n, prompt in asked])
    assert engine.stats.accepted_tokens > 0
    assert list(map(len, run.token_ids)) == enough
    assert list(map(len, run.times)) == enough
