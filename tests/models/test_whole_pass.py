"""The whole forward pass as one call: the same bits as its operations one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels.linear import int8_refused
from kernels.table import Backend, Ops
from kernels.whole_pass import no_whole_pass
from tests.kernels.backends import ops_or_skip
from tests.models.checkpoints import RECIPES, Shelf, random_prompts
from tests.models.direct import CHUNKS, PAGE_SIZE, TEXTS, DirectRun, decoder_of
from worker.models.decoder import Decoder

BF16 = torch.bfloat16


@pytest.fixture
def ops(shelf: Shelf) -> Ops:
    """The C kernels for bf16, where they have a whole pass."""
    ops = ops_or_skip(Backend.C, BF16)
    if decoder_of(shelf("llama, llama3 rope", BF16), ops, BF16)._whole_pass is None:
        pytest.skip("no whole pass: it takes a CPU with AVX512-BF16 and no AMX")
    return ops


@pytest.mark.parametrize(
    ("stored", "int8_pages"),
    [("auto", False), ("auto", True), ("int8", False)],
    ids=["bf16", "int8 pages", "int8 weights"],
)
@pytest.mark.parametrize("name", RECIPES)
def test_a_whole_pass_has_the_bits_of_its_operations(shelf: Shelf, ops: Ops, name: str, stored: str, int8_pages: bool):
    """Every position's logits of every family, in chunks of any size and as decode; and what it wrote of K and V."""
    apart = replace(ops, whole_pass_of=no_whole_pass)
    if stored == "int8" and (refused := int8_refused(torch.device("cpu"), BF16, ())):
        pytest.skip(refused)
    runs = [
        DirectRun(decoder_of(shelf(name, BF16), own, BF16, stored=stored), own, TEXTS, int8_pages=int8_pages)
        for own in (ops, apart)
    ]
    whole, parts = (run.run(CHUNKS) for run in runs)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert torch.equal(runs[0].kv.view(torch.int8), runs[1].kv.view(torch.int8))
    ours, theirs = (run.kv_scales for run in runs)
    if ours is not None and theirs is not None:
        assert torch.equal(ours.view(torch.int32), theirs.view(torch.int32))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("wanted", [[4], [1, 4, 5, 60, 96, 136], [136, 4, 4, 0], []], ids=str)
def test_a_whole_pass_gives_the_wanted_positions_alone(shelf: Shelf, ops: Ops, wanted: list[int], threads: int):
    """Of a decode row, the ends and the middles of chunks, in any order, some twice, or none; with any threads."""
    decoder = decoder_of(shelf("llama, llama3 rope", BF16), ops, BF16)
    everything = one_step(decoder, ops, None)
    torch.set_num_threads(threads)
    assert torch.equal(one_step(decoder, ops, wanted), everything[wanted])


def test_positions_of_padding_may_be_wanted(shelf: Shelf, ops: Ops):
    """Their logits mean nothing, and those of the others stay the same."""
    decoder = decoder_of(shelf("llama, llama3 rope", BF16), ops, BF16)
    assert torch.equal(one_step(decoder, ops, [4, 138, 60], pad_tokens=140)[::2], one_step(decoder, ops, None)[[4, 60]])


@torch.inference_mode()
def one_step(decoder: Decoder, ops: Ops, wanted: list[int] | None, *, pad_tokens: int = 0) -> Tensor:
    """Logits of a step of 1, 96 and 40 tokens, the first and last of them after others; None: of all positions."""
    run = DirectRun(decoder, ops, random_prompts((90, 96, 45)))
    run.step({0: 89, 2: 5})
    lens = torch.tensor([1, 96, 40])
    batch = ops.prepare_batch(
        run.tokens,
        run.computed,
        run.page_table,
        torch.tensor([0, 1, 2]),
        lens,
        torch.arange(3),
        page_size=PAGE_SIZE,
        num_decode=1,
        pad_tokens=pad_tokens,
    )
    index = torch.tensor(list(range(137)) if wanted is None else wanted, dtype=torch.int64)
    return decoder.forward(replace(batch, logits_index=index), run.kv)
