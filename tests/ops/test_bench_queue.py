"""`python -m ops.bench queue` in its quick form: it runs to the end on real Redis, and its figures are of what it says.

No figure is held against a bar here: a machine that is busy would fail it.
"""

from __future__ import annotations

import pytest

from ops import redis_server
from ops.bench.__main__ import main
from ops.bench.queue_systems import PEERS
from tests.ops.conftest import kept
from tests.ops.test_bench import cells


def test_every_part_of_the_queue_bench_tells_its_figures(capsys):
    """Jobs and tokens a second, times to a reader and a step's price, as tables and as JSON that agree."""
    assert main(["queue", "--quick"]) == 0
    said = capsys.readouterr().out
    found = kept(said)
    (throughput,) = found["throughput"]
    (one,) = throughput["runs"]
    assert one["jobs"] == 400
    assert one["redis_cpu_us"] > 0
    (row,) = cells(said, "slipstream")
    assert row[1:3] == [f"{one['jobs_per_s']:.0f}", "1.00"]
    assert [each["step_ms"] for each in found["tokens"]] == [None, 20.0]
    assert all(each["tokens_per_s"] > 0 for each in found["tokens"])
    (latency,) = found["latency"]
    assert latency["events"] >= latency["readers"] * 1
    assert 0 < latency["from_flush"][0] <= latency["from_engine"][0]
    assert found["publish"]["jobs"] == 16
    assert found["publish"]["step_thread_us"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--parts", "speed"), "--parts: there is no 'speed'; there are throughput, tokens, latency, publish"),
        (("--peers", "sidekiq"), "--peers: there is no 'sidekiq'; there are arq, saq, streaq, taskiq-redis, celery"),
        (("--workers", "few"), "--workers: expected numbers like 1,4,10; got 'few'"),
        (("--jobs", "7"), "--jobs at least 100"),
    ],
)
def test_a_wrong_flag_of_the_queue_bench_is_one_clear_line(words: tuple[str, ...], said: str, capsys):
    """Exit code 2 and what there is instead."""
    with pytest.raises(SystemExit) as left:
        main(["queue", *words])
    assert left.value.code == 2
    assert said in capsys.readouterr().err


def test_a_peer_that_needs_a_newer_redis_says_so_before_anything_is_installed(monkeypatch, capsys):
    """streaq calls FUNCTION, which 6.2 does not have."""
    found = redis_server.find()
    assert found is not None
    old = redis_server.RedisBinary(found.path, "6.2.14", found.source)
    monkeypatch.setattr(redis_server, "find", lambda: old)
    assert main(["queue", "--peers", "streaq"]) == 1
    said = capsys.readouterr().err
    assert "streaq needs Redis 7 or later" in said
    assert ",".join(peer.name for peer in PEERS if peer.name != "streaq") in said
