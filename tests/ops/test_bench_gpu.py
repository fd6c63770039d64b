"""`ops/bench gpu_engine`: what it counts and says where there is no GPU, and its loop on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ops.bench import gpu_engine, gpu_profile, gpu_transformers, kernels
from ops.bench.device import Ceilings
from ops.bench.gpu_prompts import prompts
from ops.bench.kernel_cases import LLAMA_8B, QWEN_06B, QWEN_8B, Model
from ops.bench.models import VOCAB, random_llama
from worker.engine import Engine
from worker.models.config import parse_config


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here, and would be measured")
def test_without_a_gpu_the_floors_are_printed_as_predictions(capsys: pytest.CaptureFixture[str]):
    """Llama-3.1-8B at one row on an H200: 15 GB of weights at 4.8 TB/s."""
    assert gpu_engine.main(["--device", "h200"]) == 0
    said = capsys.readouterr().out
    assert "predictions" in said
    row = next(line for line in said.splitlines() if line.startswith("| Llama-3.1-8B |    1 "))
    assert [cell.strip() for cell in row.split("|")[3:5]] == ["3.14", "3.18"]


@pytest.mark.parametrize(("model", "billions"), [(LLAMA_8B, 8.03), (QWEN_06B, 0.596), (QWEN_8B, 8.19)])
def test_a_shape_is_that_of_the_model_it_is_named_for(model: Model, billions: float):
    """As config.json would have it: the parameters of products and embedding are those of the real one."""
    shape = parse_config(gpu_engine.config_of(model, 2048), None)
    assert shape.tied_embeddings == model.tied
    embedding = 0 if model.tied else shape.vocab_size * shape.hidden_size
    assert model.product_parameters + embedding == pytest.approx(billions * 1e9, rel=0.01)
    assert shape.qk_norm == model.name.startswith("Qwen3")


def test_the_requests_are_the_same_each_time_and_as_long_as_they_say():
    """256 of them, prompts and outputs from 100 to 1,024 tokens."""
    sent = gpu_engine.requests(QWEN_06B)
    assert sent == gpu_engine.requests(QWEN_06B)
    assert len(sent) == 256
    for lengths in ([len(prompt) for prompt, _ in sent], [limit for _, limit in sent]):
        assert (min(lengths) >= 100, max(lengths) <= 1024) == (True, True)
        assert sum(lengths) / 256 == pytest.approx(562, rel=0.1)


def test_steps_are_of_decodes_alone_from_the_first_on(cache: Path):
    """Contexts are there without their prompts being computed; what does not fit the pool is left out, and said."""
    threads = torch.get_num_threads()
    engine = Engine.from_pretrained(
        random_llama(cache), device="cpu", ahead=True, max_rows=4, num_pages=40, watermark=0.0, headroom=0.0,
        threads=1, step_time_s=None,
    )  # fmt: skip
    tiny = Model("tiny", 8, 384, 6, 2, 64, 1024, VOCAB, tied=False)
    found = list(gpu_engine.steps(engine, tiny, Ceilings("this", 1e10, 1e11, measured=False), (1, 4), (100, 400)))
    torch.set_num_threads(threads)
    assert [(one["width"], one["context"], "ms" in one) for one in found] == [
        (1, 100, True), (4, 100, True), (1, 400, True), (4, 400, False),
    ]  # fmt: skip
    assert found[-1]["left_out"] == "it takes 60 pages, fewer are free"
    assert all(0 < one["host_share"] <= 1 and one["floor_ms"] > 0 for one in found[:3])


def test_a_prompt_counts_what_its_tokens_would_count_one_by_one():
    """Operations: those of a decode step at each position, the head once. Bytes: the weights, and K/V written once."""
    (moved, operations), each = LLAMA_8B.prompt(50), [LLAMA_8B.step(1, context) for context in range(1, 51)]
    head = LLAMA_8B.hidden * LLAMA_8B.vocab
    assert operations == sum(one for _, one in each) - 49 * 2 * head
    assert moved == 2 * LLAMA_8B.product_parameters + 50 * LLAMA_8B.kv_bytes


def test_prompts_that_come_alone_are_timed_up_to_their_first_token(cache: Path):
    """Each length in one line, in several steps where the budget is less; nothing is left in the engine."""
    threads = torch.get_num_threads()
    engine = Engine.from_pretrained(
        random_llama(cache), device="cpu", ahead=True, max_rows=4, token_budget=64, threads=1, prefix_cache=False
    )
    found = list(prompts(engine, TINY_QWEN, Ceilings("this", 1e10, 1e11, measured=False), (20, 150)))
    torch.set_num_threads(threads)
    assert [one["prompt"] for one in found] == [20, 150]
    assert all(one["tokens_per_s"] == pytest.approx(1e3 * one["prompt"] / one["ms"]) for one in found)
    assert engine.stats.computed_tokens == 6 * (20 + 150)
    assert not engine.has_work


TINY_QWEN = Model("Qwen3 of nothing", 2, 64, 4, 2, 16, 128, 1000, tied=True)


def _some(count: int, limit: int) -> list[tuple[list[int], int]]:
    return [([1 + row] * (5 + row), limit - row) for row in range(count)]


def test_transformers_answers_all_requests_in_static_batches_and_in_its_continuous_ones():
    """To the token: random weights end no request early."""
    sent = _some(6, 12)
    tokens = sum(count for _, count in sent)
    *batches, whole = gpu_transformers.static(TINY_QWEN, sent, 4, device="cpu")
    assert [(one["steps"], one["answered"]) for one in batches] == [(12, 4), (8, 2)]
    for found in (whole, gpu_transformers.continuous(TINY_QWEN, sent, device="cpu")):
        assert (found["answered"], found["output_tokens"]) == (6, tokens)
        assert "error" not in found


def test_when_patience_ends_with_transformers_the_tokens_so_far_are_the_figure():
    """Outputs that would take seconds: neither way goes on with them, and neither leaves their tokens out."""
    sent = _some(3, 5_000)
    *_, whole = gpu_transformers.static(TINY_QWEN, sent, 3, 0.1, device="cpu")
    for found in (whole, gpu_transformers.continuous(TINY_QWEN, sent, 0.1, device="cpu")):
        assert found["answered"] == 0
        assert 0 < found["output_tokens"] < sum(count for _, count in sent)
        assert found["tokens_per_s"] == found["output_tokens"] / found["seconds"]


def test_flags_that_say_nothing_to_what_runs_are_refused(capsys: pytest.CaptureFixture[str]):
    """Settings of this engine beside transformers, no time, names of nothing, widths of no rows: a line says which,
    and code 2."""
    for main, flags, says in (
        (gpu_engine.main, ["--with", "transformers", "--deterministic"], "--deterministic are this engine's"),
        (gpu_engine.main, ["--patience", "100"], "--patience is for --with transformers"),
        (gpu_engine.main, ["--with", "transformers", "--patience", "0"], "expected seconds above 0, got 0"),
        (gpu_engine.main, ["--only", "nonsense"], "'nonsense' is in no name; there are Llama-3.1-8B steps"),
        (kernels.main, ["--only", "nonsense"], "'nonsense' is in no kernel's name; there are decode attention"),
        (gpu_profile.main, ["--widths", "1", "0"], "at least 1"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(flags)
        assert ended.value.code == 2
        assert says in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here, and would be profiled")
def test_without_a_gpu_there_is_nothing_to_profile(capsys: pytest.CaptureFixture[str]):
    """Code 1, and why."""
    assert gpu_profile.main([]) == 1
    assert "there is no GPU" in capsys.readouterr().err


def test_a_gpu_machine_needs_torch_triton_transformers_and_pytest_alone():
    """Both benches and the tests for a GPU load, and print floors, where nothing else that we depend on is there."""
    program = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"redis", "fakeredis", "msgpack", "structlog", "pydantic"}:
            raise ModuleNotFoundError(f"there is no {name} there")

sys.meta_path.insert(0, Missing())
import tests.gpu.test_engine_on_device, tests.gpu.test_on_device, ops.bench.gpu_transformers
from ops.bench.__main__ import main
sys.exit(main(["kernels", "--only", "rms"]) or main(["gpu_engine"]))
"""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "predictions" in ended.stdout
