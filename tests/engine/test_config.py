"""What can be set, what fits this machine, and what is said where it doesn't."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.cpu import library
from kernels.linear import can_pack
from tests.engine.conftest import EngineOf
from tests.models.checkpoints import Shelf
from worker.engine import ConfigError, Engine, EngineConfig, SlowerBackend
from worker.engine.memory import free_bytes
from worker.models.errors import ModelError

CORES = len(os.sched_getaffinity(0))
GIB = 1 << 30


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"max_rows": 0}, "max_rows must be at least 1; got 0"),
        (
            {"max_rows": 4, "token_budget": 15, "page_size": 16},
            r"token_budget must be at least page_size \(16\), .*; got 15",
        ),
        ({"max_rows": 64, "token_budget": 63}, r"token_budget must be at least max_rows \(64\), .*; got 63"),
        ({"page_size": 17}, r"page_size must be one of \(16, 32, 64, 128\); got 17"),
        ({"page_size": 128, "deterministic": True}, "page_size must be a divisor of 64 in deterministic mode; got 128"),
        ({"num_pages": 0}, "num_pages must be at least 1; got 0"),
        ({"max_len": 1}, "max_len must be at least 2; got 1"),
        ({"watermark": 1.0}, r"watermark must be in \[0, 1\); got 1.0"),
        ({"watermark": -0.1}, "watermark must be in"),
        ({"headroom": 1.1}, r"headroom must be in \[0, 1\]; got 1.1"),
        ({"max_drafts": -1}, r"max_drafts must be 0 \(off\) or more; got -1"),
        ({"step_time_s": 0.0}, "step_time_s must be above 0 and at most 60 seconds, or None; got 0.0"),
        ({"watermark": float("nan")}, "watermark must be in"),
        ({"dtype": "int8"}, r"dtype must be one of \('auto', 'bfloat16', 'float16', 'float32'\); got 'int8'"),
        ({"weights": "int2"}, r"weights must be one of \('auto', 'int8', 'int4', 'fp8'\); got 'int2'"),
        ({"backend": "cuda"}, "backend must be .*; got 'cuda'"),
        ({"threads": 0}, f"threads must be between 1 and the {CORES} cores this process may run on; got 0"),
        ({"threads": CORES + 1}, f"threads must be between 1 and the {CORES} cores .*; got {CORES + 1}"),
    ],
    ids=str,
)
def test_a_setting_out_of_range_is_refused_by_name(given: dict[str, Any], says: str):
    """Which, what was expected, what was given."""
    with pytest.raises(ConfigError, match=f"^{says}$" if says.endswith(("0", "1", "'")) else f"^{says}"):
        EngineConfig(**given)


def test_an_unknown_setting_is_refused_by_name(model: Path):
    """As a field that isn't there."""
    with pytest.raises(TypeError, match="max_row"):
        Engine.from_pretrained(model, max_row=3)


def test_a_config_and_settings_beside_it_are_refused(model: Path):
    """One of the two would be passed over."""
    with pytest.raises(ConfigError, match="give a config or settings, not both; got a config and max_rows"):
        Engine.from_pretrained(model, EngineConfig(), max_rows=3)


def test_a_length_beyond_the_models_is_refused(engine_of: EngineOf):
    """Both lengths are given."""
    with pytest.raises(ConfigError, match="max_len must be at most the model's 1024; got 1025"):
        engine_of(max_len=1025)


def test_deterministic_mode_refuses_a_dtype_without_a_fixed_order(engine_of: EngineOf):
    """fp16 products have none on a CPU; the message says what to give instead."""
    with pytest.raises(ConfigError, match="deterministic mode has no float16 on this CPU; give --dtype float32"):
        engine_of(dtype="float16", deterministic=True)


@pytest.mark.parametrize(
    ("settings", "on_cpu", "on_gpu"),
    [({}, 512, 4096), ({"max_rows": 600}, 600, 4096), ({"token_budget": 100}, 100, 100)],
    ids=["by default", "more rows than that", "given"],
)
def test_a_step_has_as_many_tokens_as_suit_the_device(settings: dict[str, Any], on_cpu: int, on_gpu: int):
    """Room for a decode in every row in any case; what is given counts."""
    config = EngineConfig(**{"max_rows": 64, **settings})
    assert (config.tokens_a_step("cpu"), config.tokens_a_step("cuda")) == (on_cpu, on_gpu)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_asked_for_is_taken(engine_of: EngineOf, dtype: str):
    """For weights and K/V; and it generates."""
    engine = engine_of(dtype=dtype)
    assert engine.describe()["dtype"] == dtype
    assert engine._kv.dtype == getattr(torch, dtype)


def test_auto_takes_the_checkpoints_dtype_where_this_cpu_is_good_at_it(tmp_path: Path, engine_of: EngineOf):
    """bf16 where it packs; fp16, which doesn't, becomes fp32."""
    shelf = Shelf(tmp_path)
    packs = can_pack(torch.device("cpu"), torch.bfloat16)
    assert engine_of(shelf("qwen2, tied", torch.bfloat16)).describe()["dtype"] == ("bfloat16" if packs else "float32")
    assert engine_of(shelf("qwen2, tied", torch.float16)).describe()["dtype"] == "float32"


@pytest.fixture
def with_config(model: Path, tmp_path: Path) -> Callable[..., Path]:
    """with_config(key=value): a copy of the model whose config.json says so."""

    def make(**change: Any) -> Path:
        directory = Path(shutil.copytree(model, tmp_path / "changed", dirs_exist_ok=True))
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**config, **change}))
        return directory

    return make


def test_a_dtype_that_torch_does_not_have_is_refused(with_config: Callable[..., Path], engine_of: EngineOf):
    """As config.json names it."""
    with pytest.raises(ConfigError, match=r"config\.json names dtype 'posit8'; give --dtype"):
        engine_of(with_config(dtype="posit8"))


@pytest.mark.parametrize(
    ("change", "given", "says"),
    [
        ({"intermediate_size": 100}, {"backend": "c"}, r"backend c can't run this model: .* multiples of 16"),
        ({}, {"backend": "c", "dtype": "float16"}, "backend c can't run this model: .* not torch.float16"),
    ],
    ids=["sizes", "dtype"],
)
def test_a_backend_that_cannot_run_the_model_is_refused(
    with_config: Callable[..., Path], engine_of: EngineOf, change: dict[str, Any], given: dict[str, Any], says: str
):
    """Before a weight is read; the message says what to give instead."""
    with pytest.raises(ConfigError, match=f"{says}.*; give --backend auto or torch"):
        engine_of(with_config(**change), **given)


def test_auto_says_why_no_faster_backend_runs(engine_of: EngineOf):
    """As a warning, and in what the engine says of itself."""
    with pytest.warns(SlowerBackend, match=r"runs slower than it might: .*not torch\.float16"):
        described = engine_of(dtype="float16").describe()
    assert described["backend"] == "torch"
    assert "not torch.float16" in described["slower_because"]


@pytest.fixture
def nothing_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place for kernels with none in it; what this process has loaded already is forgotten meanwhile."""
    monkeypatch.setenv("SLIPSTREAM_KERNEL_CACHE", str(tmp_path / "kernels"))
    library.load.cache_clear()
    yield tmp_path / "kernels"
    library.load.cache_clear()


def lacks_compiler(place: Path, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("PATH", str(place.parent))
    environment.delenv("CC", raising=False)


def can_not_write(place: Path, environment: pytest.MonkeyPatch) -> None:
    place.write_text("a file where a directory should be, which stops root too")


def has_no_home(place: Path, environment: pytest.MonkeyPatch) -> None:
    for name in ("SLIPSTREAM_KERNEL_CACHE", "XDG_CACHE_HOME", "HOME"):
        environment.delenv(name, raising=False)

    def unknown(number: int) -> None:
        raise KeyError(number)

    environment.setattr(pwd, "getpwuid", unknown)  # as for a user that a container was given at random


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        (lacks_compiler, "no C compiler"),
        (can_not_write, "can't be written .*; set SLIPSTREAM_KERNEL_CACHE"),
        (has_no_home, "no home .*; set SLIPSTREAM_KERNEL_CACHE"),
    ],
)
def test_a_machine_that_can_not_compile_falls_back_to_torch_and_says_so(
    engine_of: EngineOf,
    nothing_compiled: Path,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Callable[[Path, pytest.MonkeyPatch], None],
    says: str,
):
    """With auto it runs on torch and says so once; with backend c it is refused."""
    trouble(nothing_compiled, monkeypatch)
    with pytest.warns(SlowerBackend, match=says) as warned:
        described = engine_of().describe()
    assert len(warned) == 1
    assert described["backend"] == "torch"
    assert re.search(says, described["slower_because"])
    with pytest.raises(ConfigError, match=f"backend c can't be had here: .*{says}"):
        engine_of(backend="c")


def test_a_pool_that_was_asked_for_has_to_fit_the_memory(engine_of: EngineOf):
    """A billion pages: what they take, what is free, and how many there may be."""
    with pytest.raises(ConfigError, match=r"num_pages 1,000,000,000: it takes .* bytes, .* are free; give at most "):
        engine_of(num_pages=10**9)


def test_a_model_of_which_no_page_fits_the_memory_is_refused(with_config: Callable[..., Path], engine_of: EngineOf):
    """Heads so wide that one page is more than a quarter of what is free."""
    with pytest.raises(ConfigError, match="not enough memory for a page pool: one page takes"):
        engine_of(with_config(head_dim=10**12))


def test_the_pool_is_as_large_as_the_rows_can_use(engine_of: EngineOf):
    """Rows times length, in pages, where memory allows."""
    assert engine_of(max_rows=3, max_len=100).describe()["num_pages"] == 3 * 7


@pytest.mark.parametrize(
    ("where", "says"), [("/nowhere", "does not exist"), (__file__, "is a file; expected a directory")]
)
def test_a_model_that_is_not_there_is_one_clear_line(where: str, says: str):
    """A ModelError, before anything is set up."""
    with pytest.raises(ModelError, match=says):
        Engine.from_pretrained(where)


@pytest.mark.parametrize(
    ("limit", "used", "droppable", "free"),
    [
        (None, None, None, 8 * GIB),
        ("max", 5 * GIB, None, 8 * GIB),
        (4 * GIB, 1 * GIB, None, 3 * GIB),
        (4 * GIB, 3 * GIB, 2 * GIB, 3 * GIB),
        (64 * GIB, 1 * GIB, 1 * GIB, 8 * GIB),
        (4 * GIB, 5 * GIB, None, 0),
    ],
    ids=["no cgroup", "no limit", "the cgroup's is less", "of it files", "the machine's is less", "over the limit"],
)
def test_free_memory_is_the_least_of_the_machines_and_the_cgroups(
    tmp_path: Path, limit: object, used: object, droppable: int | None, free: int
):
    """MemAvailable, or the cgroup's limit less what it uses; files it could drop don't count as used."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(
        f"MemTotal:  16777216 kB\nMemFree:  1 kB\nMemAvailable:  {8 * GIB // 1024} kB\nHugePages_Total: 0\n"
    )
    if limit is not None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text(f"{used}\n")
    if droppable is not None:
        (tmp_path / "memory.stat").write_text(f"anon 7\nactive_file 9\ninactive_file {droppable}\n")
    assert free_bytes(tmp_path, meminfo) == free


def test_this_machine_says_how_much_memory_is_free():
    """A number that fits it."""
    assert 0 < free_bytes() < 1 << 50
