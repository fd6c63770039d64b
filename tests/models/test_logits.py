"""Logits against `transformers`: every family, every backend, every dtype; and what must make them differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.paged_attention import Attention
from kernels.table import Backend, Ops, ops_for
from tests.models.checkpoints import ORIGINAL_MAX_LEN, RECIPES, Shelf
from tests.models.direct import CHUNKS, PAGE_SIZE, TEXTS, DirectRun, Theirs, decoder_of, worst
from worker.models.config import RopeConfig, read_config

TOLERANCE = 1e-4
every_checkpoint = pytest.mark.parametrize("name", RECIPES)


@every_checkpoint
@pytest.mark.parametrize("deterministic", [False, True], ids=["fast order", "fixed order"])
def test_logits_equal_those_of_transformers(shelf: Shelf, theirs: Theirs, ops: Ops, name: str, deterministic: bool):
    """In fp32 every position's logits agree to 1e-4, in chunks of any size and as decode, with neighbours."""
    decoder = decoder_of(shelf(name), ops, deterministic=deterministic)
    assert worst(DirectRun(decoder, ops, TEXTS).run(CHUNKS), theirs(name)) < TOLERANCE


@every_checkpoint
def test_the_checkpoints_can_tell_right_from_wrong(theirs: Theirs, name: str):
    """Logits have a standard deviation near 1, and texts reach past the length that llama3's scaling starts from."""
    logits = torch.cat(theirs(name))
    assert 0.8 < float(logits.std()) < 1.25
    assert max(map(len, TEXTS)) > ORIGINAL_MAX_LEN


@every_checkpoint
def test_bfloat16_errs_no_more_than_in_transformers(shelf: Shelf, theirs: Theirs, backend: Backend, name: str):
    """Against fp32 on the same weights our error is at most 1.25 times that of `transformers` in bf16."""
    assert_errs_no_more_than_transformers(shelf, theirs, ops_for(backend, torch.bfloat16), name, torch.bfloat16)


def test_bfloat16_errs_no_more_in_the_fixed_order(shelf: Shelf, theirs: Theirs, backend: Backend):
    """Deterministic mode pays no accuracy: the same bound as for the fast order holds."""
    ops = ops_for(backend, torch.bfloat16)
    assert_errs_no_more_than_transformers(shelf, theirs, ops, "llama, llama3 rope", torch.bfloat16, deterministic=True)


@every_checkpoint
def test_float16_errs_no_more_than_in_transformers(shelf: Shelf, theirs: Theirs, name: str):
    """The same in fp16, which runs on torch's operations alone."""
    assert_errs_no_more_than_transformers(shelf, theirs, ops_for(Backend.TORCH), name, torch.float16)


def assert_errs_no_more_than_transformers(
    shelf: Shelf, theirs: Theirs, ops: Ops, name: str, dtype: torch.dtype, *, deterministic: bool = False
) -> None:
    directory = shelf(name, dtype)
    truth, narrow = torch.cat(theirs(name, dtype)), torch.cat(theirs(name, dtype, dtype))
    decoder = decoder_of(directory, ops, dtype, deterministic=deterministic)
    ours = torch.cat(DirectRun(decoder, ops, TEXTS).run(CHUNKS))
    allowed = _rms(narrow - truth)
    assert 0 < allowed < 0.1, "the error of transformers itself is too great to compare with"
    assert _rms(ours - truth) <= 1.25 * allowed


@pytest.mark.parametrize("name", ["llama, llama3 rope", "llama, all heads, linear rope, biases, tied"])
def test_without_its_rope_scaling_parity_fails(shelf: Shelf, theirs: Theirs, ops: Ops, name: str):
    """A decoder that ignores llama3's or linear scaling of the rotary angles is caught."""
    config = read_config(shelf(name))
    assert config.rope.type != "default"
    decoder = decoder_of(shelf(name), ops, config=replace(config, rope=RopeConfig(config.rope.theta)))
    assert worst(DirectRun(decoder, ops, TEXTS).run(CHUNKS), theirs(name)) > 10 * TOLERANCE


@every_checkpoint
def test_with_another_epsilon_parity_fails(shelf: Shelf, theirs: Theirs, ops: Ops, name: str):
    """A decoder that takes 1e-6 for the checkpoint's 1e-5 in its norms is caught."""
    config = read_config(shelf(name))
    assert config.rms_norm_eps == 1e-5
    decoder = decoder_of(shelf(name), ops, config=replace(config, rms_norm_eps=1e-6))
    assert worst(DirectRun(decoder, ops, TEXTS).run(CHUNKS), theirs(name)) > 10 * TOLERANCE


@pytest.mark.parametrize("name", [name for name in RECIPES if "all heads" not in name and "one key head" not in name])
def test_with_heads_grouped_by_remainder_parity_fails(shelf: Shelf, theirs: Theirs, ops: Ops, name: str):
    """A decoder whose query head h reads key head h % Hkv, not h // (Hq / Hkv), is caught."""
    wrong = replace(
        ops,
        decode_attention=_grouped_by_remainder(ops.decode_attention, decode=True),
        prefill_attention=_grouped_by_remainder(ops.prefill_attention, decode=False),
    )
    decoder = decoder_of(shelf(name), wrong)
    assert worst(DirectRun(decoder, wrong, TEXTS).run(CHUNKS), theirs(name)) > 10 * TOLERANCE


@every_checkpoint
def test_with_one_wrong_page_parity_fails(shelf: Shelf, theirs: Theirs, ops: Ops, name: str):
    """A row that reads one page of its neighbour instead of its own is caught.

    (Two pages of its own, swapped, would do no harm: keys carry their positions, and a sum has no order.)
    """
    run = DirectRun(decoder_of(shelf(name), ops), ops, TEXTS)
    with torch.inference_mode():
        run.step({1: 3 * PAGE_SIZE, 2: 3 * PAGE_SIZE})
    run.page_table[1, 2] = run.page_table[2, 2]
    ours, right = run.run(CHUNKS), theirs(name)
    assert worst(ours[1:2], right[1:2]) > 10 * TOLERANCE
    assert worst(ours[2:], right[2:]) < TOLERANCE


@pytest.mark.parametrize(
    "name", ["mistral, window of 24, wide heads", "qwen2, windows from layer 1, all heads, sharded"]
)
def test_without_its_window_parity_fails(shelf: Shelf, theirs: Theirs, ops: Ops, name: str):
    """A decoder that lets a sliding layer see everything is caught."""
    config = read_config(shelf(name))
    decoder = decoder_of(shelf(name), ops, config=replace(config, windows=(None,) * config.num_layers))
    assert worst(DirectRun(decoder, ops, TEXTS).run(CHUNKS), theirs(name)) > 10 * TOLERANCE


def _rms(difference: Tensor) -> float:
    return float(difference.square().mean().sqrt())


def _grouped_by_remainder(attention: Attention, *, decode: bool) -> Attention:
    """`attention` with its query heads dealt out to the key heads in turn."""

    def wrong(q: Tensor, kv: Tensor, batch: Any, workspace: Any, out: Tensor, /, **options: Any) -> None:
        order = torch.arange(q.shape[1]).view(-1, kv.shape[2]).T.flatten()
        permuted = torch.empty_like(out)
        attention(q[:, order].contiguous(), kv, batch, workspace, permuted, **options)
        part: Sequence[Any] | slice = slice(0, batch.num_decode) if decode else slice(batch.num_decode, None)
        back = torch.empty_like(out)
        back[:, order] = permuted
        out[part] = back[part]

    return wrong
