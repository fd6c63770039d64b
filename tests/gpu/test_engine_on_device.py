"""The engine on a GPU: `make gpu-test`. Where there is none, some of these run in Triton's interpreter, on fewer
tokens, so that they are in order when there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import transformers

from kernels.errors import KernelsUnavailable
from kernels.table import Backend, ops_for
from tests.models.checkpoints import VOCAB, Shelf, load, random_prompts
from tests.models.quantised import write
from worker.engine import Engine, EngineConfig, SequenceParams
from worker.models.config import parse_config
from worker.models.random_weights import RandomWeights

transformers.utils.logging.disable_progress_bar()

THERE = torch.cuda.is_available()
on_gpu = pytest.mark.skipif(not THERE, reason="no GPU here")
PLACE: dict[str, Any] = {"device": "cuda"} if THERE else {"device": "cpu", "backend": "triton", "ahead": True}
LENGTHS, TOKENS = ((5, 40, 17, 200, 3, 33), 40) if THERE else ((5, 20), 3)
FAMILIES = (
    ["llama, llama3 rope", "mistral, window of 24, wide heads", "qwen2, tied", "qwen3, sharded"]
    if THERE
    else ["qwen3, sharded"]
)
PROMPTS = random_prompts(LENGTHS)
MIXED = [
    SequenceParams(TOKENS, temperature=temperature, seed=seed, top_k=top_k, top_p=top_p)
    for seed, (temperature, top_k, top_p) in enumerate(
        [(0.0, 0, 1.0), (0.9, 0, 1.0), (0.8, 20, 0.9), (0.0, 0, 1.0), (1.0, 0, 0.8), (0.7, 5, 1.0)]
    )
]

STOPS = frozenset(range(0, VOCAB, 9))
ASKING = [
    SequenceParams(TOKENS, repetition_penalty=1.5, logprobs=2),
    SequenceParams(TOKENS, temperature=0.9, seed=1, frequency_penalty=0.7, allowed_token_ids=tuple(range(60))),
    SequenceParams(TOKENS, logit_bias=((7, 9.0), (8, 9.0)), bad_words=((7,), (8, 8)), presence_penalty=0.1),
    SequenceParams(TOKENS, min_tokens=3, stop_ids=STOPS, logprobs=20),
    SequenceParams(TOKENS, temperature=0.8, top_k=20, top_p=0.9, seed=4, presence_penalty=-0.5, logprobs=0),
    SequenceParams(TOKENS),
]


@pytest.fixture(scope="module", autouse=True)
def there_are_kernels() -> Iterator[None]:
    try:
        ops_for(Backend.TRITON)
    except KernelsUnavailable as error:
        pytest.skip(str(error))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("shelf"))


EngineOf = Callable[..., Engine]


@pytest.fixture(scope="module")
def engine_of(shelf: Shelf) -> EngineOf:
    """engine_of(name or directory, **settings): an engine on a tiny checkpoint, in fp32 unless said."""

    def make(model: str | Path = "llama, llama3 rope", **settings: Any) -> Engine:
        directory = model if isinstance(model, Path) else shelf(model)
        shape = {"max_rows": 6, "token_budget": 64, "page_size": 16, "max_len": 320, "step_time_s": None}
        return Engine.from_pretrained(directory, **{"dtype": "float32", "num_pages": 200, **shape, **PLACE, **settings})

    return make


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_tokens_are_those_of_transformers(shelf: Shelf, engine_of: EngineOf, name: str):
    """Each family, side by side here, one at a time there, on the same device, in fp32."""
    model = load(shelf(name)).to("cuda" if THERE else "cpu")
    model.generation_config.eos_token_id = None  # some configurations name one, which `min_new_tokens` would bar
    ours = engine_of(name).generate(PROMPTS, SequenceParams(TOKENS))
    for prompt, completion in zip(PROMPTS, ours, strict=True):
        ids = torch.tensor([prompt], device=model.device)
        how = {"do_sample": False, "max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "pad_token_id": 0}
        theirs = model.generate(ids, attention_mask=torch.ones_like(ids), **how)[0, len(prompt) :]
        assert completion.token_ids == theirs.tolist()


@on_gpu
def test_graphs_change_no_token(engine_of: EngineOf):
    """With graphs, without, and without running ahead: the same, sampled ones too."""
    expected = engine_of(graphs=False, ahead=False).generate(PROMPTS, MIXED)
    for way in ({}, {"graphs": False}, {"ahead": False}):
        engine = engine_of(**way)
        assert bool(engine.describe()["graphs"]) == way.get("graphs", True)
        assert engine.generate(PROMPTS, MIXED) == expected
        engine.check()


def test_adjusted_draws_are_those_of_the_plain_loop_on_the_cpu(engine_of: EngineOf):
    """Bias, allowed tokens, penalties, bad words and log-probabilities, in fp32; with graphs, whose logits are drawn
    from again, as without."""
    place = {"device": "cpu", "backend": "torch", "ahead": False}
    asking = ASKING if THERE else ASKING[:2]
    expected = engine_of(**place).generate(PROMPTS, asking)
    for way in ({}, {"graphs": False}) if THERE else ({},):
        got = engine_of(**way).generate(PROMPTS, asking)
        assert [one.token_ids for one in got] == [one.token_ids for one in expected]
        for ours, theirs in zip(got, expected, strict=True):
            for (own, top, values), (their_own, their_top, theirs_values) in zip(
                ours.logprobs or (), theirs.logprobs or (), strict=True
            ):
                assert own == pytest.approx(their_own, abs=1e-3)
                assert values == pytest.approx(theirs_values, abs=1e-3)
                assert len(top) == len(their_top)


@on_gpu
def test_the_triton_kernels_give_the_tokens_of_the_reference(engine_of: EngineOf):
    """On the same device, one after the other."""
    assert engine_of().generate(PROMPTS, MIXED) == engine_of(backend="torch", graphs=False).generate(PROMPTS, MIXED)


PACKED = ("awq", "gptq of 8 bits", "gptq, act-order") if THERE else ("awq",)


@pytest.mark.parametrize("layout", PACKED)
def test_packed_weights_give_the_tokens_of_the_same_weights_written_out(
    tmp_path: Path, engine_of: EngineOf, layout: str
):
    """A quantised checkpoint in fp32, its codes multiplied as they are, against the plain one with the same weights."""
    made = write(tmp_path, layout)
    packed, plain = (
        engine_of(directory).generate(PROMPTS, MIXED[: len(PROMPTS)]) for directory in (made.packed, made.plain)
    )
    assert packed == plain


@on_gpu
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_rounded_weights_give_the_tokens_of_the_reference_with_graphs_and_without(
    tmp_path: Path, engine_of: EngineOf, weights: str
):
    """On the Triton kernels and on torch's operations, in fp32."""
    plain = write(tmp_path, "awq").plain
    expected = engine_of(plain, weights=weights, backend="torch", graphs=False).generate(PROMPTS, MIXED)
    for graphs in (True, False):
        assert engine_of(plain, weights=weights, graphs=graphs).generate(PROMPTS, MIXED) == expected


def true_shape(**settings: Any) -> Engine:
    """Four layers of Llama-3.1-8B's shape, random, in bf16; on a CPU one tiny layer."""
    sizes = (4096, 14336, 32, 8, 4, 32000) if THERE else (64, 128, 4, 2, 1, VOCAB)
    hidden, inner, heads, kv_heads, layers, vocab = sizes
    shape = parse_config(
        {
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": vocab,
            "hidden_size": hidden,
            "intermediate_size": inner,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "num_hidden_layers": layers,
            "max_position_embeddings": 2048,
            "dtype": "bfloat16",
        },
        None,
    )
    config = EngineConfig(**{"max_rows": 32, "token_budget": 512, "step_time_s": None, **settings})
    return Engine.from_weights(RandomWeights(torch.device("cuda"), tied=False), shape, config)


def texts(lengths: list[int]) -> list[list[int]]:
    drawn = Random(3)
    return [[drawn.randrange(32000) for _ in range(length)] for length in lengths]


@on_gpu
@pytest.mark.parametrize("weights", ["auto", "int4", "fp8"])
def test_in_deterministic_mode_a_sequence_gets_the_same_tokens_alone_among_others_and_after_preemption(weights: str):
    """bf16 at true width: chunks of another size, neighbours, too few pages, another engine; to the token."""
    if weights == "fp8" and not torch.version.hip and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU multiplies no FP8")
    prompts = texts([700, 30, 1, 511, 513, 90, 260, 33])
    params = [SequenceParams(60, temperature=0.8 * (at % 2), seed=at) for at in range(len(prompts))]
    among = true_shape(deterministic=True, weights=weights).generate(prompts, params)
    alone = true_shape(deterministic=True, weights=weights, token_budget=100, max_rows=4)
    for at in (0, 1, 4, 7):
        assert alone.generate([prompts[at]], params[at]) == [among[at]]
    tight = true_shape(deterministic=True, weights=weights, num_pages=40, watermark=0.0, headroom=0.0)
    assert tight.generate(prompts, params) == among
    assert tight.stats.preemptions > 0


@on_gpu
@pytest.mark.parametrize(
    ("weights", "deterministic"), [("auto", False), ("auto", True), ("int8", False), ("int4", False), ("fp8", False)]
)
def test_no_step_waits_for_the_device_but_to_read_tokens_and_none_compiles(weights: str, deterministic: bool):
    """Prompts in chunks and decodes, arriving in between: torch raises at a synchronising call, Triton's hook at a
    compilation. The read waits for an event, which torch does not count. Whatever weights are kept as, and in the
    fixed order."""
    if weights == "fp8" and not torch.version.hip and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU multiplies no FP8")
    engine = true_shape(weights=weights, deterministic=deterministic)
    assert engine.compiled is not None
    prompts = texts([300, 5, 64, 700, 17, 1, 33, 200])
    engine.generate(prompts, SequenceParams(4))
    torch.cuda.set_sync_debug_mode("error")
    try:
        with engine.compiled.raising():
            for id_, prompt in enumerate(prompts):
                engine.add(id_, prompt, SequenceParams(20, temperature=0.5 * (id_ % 2), seed=id_))
                engine.step()
            for id_, params in enumerate(ASKING, start=len(prompts)):
                engine.add(id_, prompts[id_ % len(prompts)], params)
                engine.step()
            while engine.has_work:
                engine.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert engine.compiled.late == []


@on_gpu
def test_the_pool_takes_what_is_left_and_the_start_is_told_by_part():
    """Pages fill the share that may be taken; seconds and bytes stand in the description, which the worker logs."""
    engine = true_shape(max_rows=256, memory_share=0.5)
    described = engine.describe()
    assert set(described["start_s"]) >= {"weights", "memory", "warm-up", "capture"}
    memory = described["memory_bytes"]
    assert described["pool_bytes"] <= memory["pages"]
    assert torch.cuda.memory_reserved() < 0.55 * memory["total"]


@on_gpu
def test_memory_that_runs_out_sheds_work_and_goes_on():
    """A step that can't be had, as the allocator says it: the tokens are those of an engine that had room. Without
    graphs, which have their memory."""
    engine = true_shape(deterministic=True, graphs=False)
    prompts = texts([300, 400, 100, 200])
    expected = engine.generate(prompts, SequenceParams(10))
    engine.forget_prefixes()
    forward = engine._decoder.forward

    def limited(batch: Any, kv: torch.Tensor, *scales: Any, **out: Any) -> torch.Tensor:
        if len(batch.input_ids) > 300:
            torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
        return forward(batch, kv, *scales, **out)

    engine._decoder.forward = limited  # type: ignore[method-assign]
    assert engine.generate(prompts, SequenceParams(10)) == expected
    assert engine.stats.ran_out_of_memory > 0
