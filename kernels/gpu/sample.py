"""Logits to token ids without a sort and without a [rows, vocab] tensor: see kernels/sample.py.

Four kernels: the greatest logit of each block; each row's greatest and what its min-p, top-k and top-p rule out; the
greatest score plus noise of each block; the row's. Tokens are ruled out by one number a row, the `key` of the least
likely that stays: a score's bits without its sign, so that of scores up to 0 the likelier has the smaller key. top-k
and top-p look for the least key up to which there are k tokens, or p of the mass, with sixteen pivots at once: four
bits a pass.

A row is summed in one order, by one program, so its result depends on nothing else; noise is exact in any case.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.sample import SAMPLE_BLOCK, workspace_size

SEARCH_BLOCK = 512  # tokens that a row's program compares with all pivots at once


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    offset: Tensor,
    /,
    *,
    banned: tuple[Tensor, Tensor] | None = None,
    exact_noise: bool = False,
    out: Tensor | None = None,
    workspace: Tensor | None = None,
) -> Tensor:
    """See Sample."""
    R, V = logits.shape
    if banned is not None:
        logits = logits.index_put(banned, torch.full((), float("-inf"), dtype=logits.dtype, device=logits.device))
    if out is None:
        out = torch.empty(R, dtype=torch.int64, device=logits.device)
    if workspace is None:
        workspace = torch.empty(workspace_size(R, V), dtype=torch.float32, device=logits.device)
    if not R:
        return out
    assert logits.stride(1) == 1
    assert workspace.numel() >= workspace_size(R, V), (
        f"workspace: {workspace.numel()} < {workspace_size(R, V)} elements"
    )
    blocks = triton.cdiv(V, SAMPLE_BLOCK)
    values = workspace[: R * blocks]  # [R, blocks], of the two kernels over blocks in turn
    ids = workspace[R * blocks : 2 * R * blocks].view(torch.int32)  # [R, blocks]
    tops = workspace[2 * R * blocks : 2 * R * blocks + R]  # [R]
    cuts = workspace[2 * R * blocks + R : 2 * R * blocks + 3 * R].view(torch.int32)  # [R, 2]: key, last id of that key
    padded = triton.next_power_of_2(blocks)
    how = {"num_warps": 4, "enable_fp_fusion": False}
    _block_greatest[(R, blocks)](logits, values, ids, logits.stride(0), V, blocks, BLOCK=SAMPLE_BLOCK, **how)
    _cut[(R,)](
        logits, values, ids, tops, cuts, temperature, top_k, top_p, min_p, out, logits.stride(0), V, blocks,
        BLOCKS=padded, BLOCK=SEARCH_BLOCK, **{**how, "num_warps": 8},
    )  # fmt: skip
    _block_noisy[(R, blocks)](
        logits, values, ids, tops, cuts, temperature, seed, offset, logits.stride(0), V, blocks, BLOCK=SAMPLE_BLOCK,
        **how,
    )  # fmt: skip
    _row_noisy[(R,)](values, ids, temperature, out, V, blocks, BLOCKS=padded, **how)
    return out


@triton.jit
def _winner(value, token_id, V):
    """(the greatest, the lowest id that has it); where all are NaN an id of the vocabulary."""
    greatest = tl.max(value, 0)
    return greatest, tl.minimum(tl.min(tl.where(value == greatest, token_id, 2147483647), 0), V - 1)


@triton.jit(do_not_specialize=["V", "blocks"])
def _block_greatest(
    logits_ptr,  # [R, V]
    values_ptr,  # [R, blocks] fp32
    ids_ptr,  # [R, blocks] int32
    row_stride,
    V,
    blocks,
    BLOCK: tl.constexpr,
):
    """Grid (R, blocks)."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    token = block * BLOCK + tl.arange(0, BLOCK)
    logit = tl.load(logits_ptr + row * row_stride + token, mask=token < V, other=float("-inf")).to(tl.float32)
    greatest, winner = _winner(logit, token, V)
    tl.store(values_ptr + row * blocks + block, greatest)
    tl.store(ids_ptr + row * blocks + block, winner)


@triton.jit
def _scores(logits, top, temperature):
    """(logit - top) / temperature: 0 at the top, whatever the temperature; fp32."""
    return tl.where(logits == top, 0.0, (logits - top) / temperature)


@triton.jit
def _keys(scores):
    """uint32: small for likely tokens, in the order of the scores, which are 0 or less."""
    return tl.abs(scores).to(tl.uint32, bitcast=True)


@triton.jit
def _search(row_ptr, top, temperature, limit, target, V, MASS: tl.constexpr, BLOCK: tl.constexpr):
    """The least key c with (tokens, or if MASS their mass) of key <= min(c, limit) at least `target`."""
    pivot = tl.arange(0, 16).to(tl.uint32)
    low = tl.zeros([16], tl.uint32)
    shift = tl.full([], 28, tl.uint32)
    for _ in tl.range(0, 8):
        most = low + ((pivot + 1) << shift) - 1  # [16]; 2^32 - 1 at the very end
        reached = tl.zeros([16], tl.float32)
        for start in tl.range(0, V, BLOCK):
            token = start + tl.arange(0, BLOCK)
            logit = tl.load(row_ptr + token, mask=token < V, other=float("-inf")).to(tl.float32)
            score = _scores(logit, top, temperature)
            key = _keys(score)
            weight = tl.exp(score) if MASS else tl.full([BLOCK], 1.0, tl.float32)
            weight = tl.where((token < V) & (key <= limit), weight, 0.0)
            reached += tl.sum(tl.where(key[:, None] <= most[None, :], weight[:, None], 0.0), 0)
        below = tl.minimum(tl.sum((reached < target).to(tl.int32), 0), 15)
        low += below.to(tl.uint32) << shift
        shift -= 4
    return tl.max(low, 0)


@triton.jit
def _mass(row_ptr, top, temperature, limit, V, BLOCK: tl.constexpr):
    """Of the tokens with key < limit, and with key == limit."""
    less = tl.zeros([BLOCK], tl.float32)
    equal = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, V, BLOCK):
        token = start + tl.arange(0, BLOCK)
        logit = tl.load(row_ptr + token, mask=token < V, other=float("-inf")).to(tl.float32)
        score = _scores(logit, top, temperature)
        key = _keys(score)
        weight = tl.where(token < V, tl.exp(score), 0.0)
        less += tl.where(key < limit, weight, 0.0)
        equal += tl.where(key == limit, weight, 0.0)
    return tl.sum(less, 0), tl.sum(equal, 0)


@triton.jit
def _last_of(row_ptr, top, temperature, cut, count, V, BLOCK: tl.constexpr):
    """The id of the count-th token with key == cut, ids upward."""
    seen = tl.full([], 0, tl.int32)
    last = tl.full([], 0, tl.int32)
    for start in tl.range(0, V, BLOCK):
        token = start + tl.arange(0, BLOCK)
        logit = tl.load(row_ptr + token, mask=token < V, other=float("-inf")).to(tl.float32)
        equal = (_keys(_scores(logit, top, temperature)) == cut) & (token < V)
        rank = seen + tl.cumsum(equal.to(tl.int32), 0)
        last = tl.maximum(last, tl.max(tl.where(equal & (rank <= count), token, 0), 0))
        seen += tl.sum(equal.to(tl.int32), 0)
    return last


@triton.jit(do_not_specialize=["V", "blocks"])
def _cut(
    logits_ptr,  # [R, V]
    values_ptr,  # [R, blocks] fp32
    ids_ptr,  # [R, blocks] int32
    tops_ptr,  # [R] fp32
    cuts_ptr,  # [R, 2] int32
    temperature_ptr,  # [R] fp32
    top_k_ptr,  # [R] int64
    top_p_ptr,  # [R] fp32
    min_p_ptr,  # [R] fp32
    out_ptr,  # [R] int64
    row_stride,
    V,
    blocks,
    BLOCKS: tl.constexpr,  # the power of 2 from blocks up
    BLOCK: tl.constexpr,
):
    """Grid (R,). Writes the greatest logit and, for a row of temperature 0, its id as the result; else the cut."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCKS)
    inside = block < blocks
    value = tl.load(values_ptr + row * blocks + block, mask=inside, other=float("-inf"))
    token_id = tl.load(ids_ptr + row * blocks + block, mask=inside, other=2147483647)
    top, winner = _winner(value, token_id, V)
    tl.store(out_ptr + row, winner.to(tl.int64))
    tl.store(tops_ptr + row, top)
    temperature = tl.load(temperature_ptr + row)
    if temperature > 0:
        row_ptr = logits_ptr + row * row_stride
        k = tl.load(top_k_ptr + row)
        p = tl.load(top_p_ptr + row)
        floor = tl.log(tl.load(min_p_ptr + row).to(tl.float64)).to(tl.float32)  # log 0 is -inf: nothing is below it
        cut = _keys(floor)
        last = V - 1
        if (k > 0) & (k < V):
            cut = tl.minimum(cut, _search(row_ptr, top, temperature, cut, k.to(tl.float32), V, False, BLOCK))
        if p < 1.0:
            less, equal = _mass(row_ptr, top, temperature, cut, V, BLOCK)
            target = p * (less + equal)
            cut = tl.minimum(cut, _search(row_ptr, top, temperature, cut, target, V, True, BLOCK))
            less, equal = _mass(row_ptr, top, temperature, cut, V, BLOCK)
            one = tl.exp(-cut.to(tl.float32, bitcast=True))
            if (one > 0) & (less + equal > target):  # else all that are as likely as the last stay
                count = tl.maximum(tl.ceil((target - less) / one), 1.0).to(tl.int32)
                last = _last_of(row_ptr, top, temperature, cut, count, V, BLOCK)
        tl.store(cuts_ptr + row * 2, cut.to(tl.int32, bitcast=True))
        tl.store(cuts_ptr + row * 2 + 1, last)


@triton.jit
def _mixed(h):
    """murmur3's finaliser, uint32."""
    h = (h ^ (h >> 16)) * 0x85EBCA6B
    h = (h ^ (h >> 13)) * 0xC2B2AE35
    return h ^ (h >> 16)


@triton.jit
def _noise(bits):
    """-log(-log(1 - u)), u in (0, 1) of 32 bits; the logarithm of 1 - u with what rounding took from it given back."""
    u = tl.minimum((bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 1.0 - 5.9604644775390625e-8)
    rest = 1.0 - u
    return -tl.log(((rest - 1.0) + u) / rest - tl.log(rest))


@triton.jit(do_not_specialize=["V", "blocks"])
def _block_noisy(
    logits_ptr,  # [R, V]
    values_ptr,  # [R, blocks] fp32
    ids_ptr,  # [R, blocks] int32
    tops_ptr,  # [R] fp32
    cuts_ptr,  # [R, 2] int32
    temperature_ptr,  # [R] fp32
    seed_ptr,  # [R] int64
    offset_ptr,  # [R] int64
    row_stride,
    V,
    blocks,
    BLOCK: tl.constexpr,
):
    """Grid (R, blocks): the greatest score plus noise among the tokens that stay. Nothing for rows of temperature 0."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    temperature = tl.load(temperature_ptr + row)
    if temperature > 0:
        token = block * BLOCK + tl.arange(0, BLOCK)
        logit = tl.load(logits_ptr + row * row_stride + token, mask=token < V, other=float("-inf")).to(tl.float32)
        score = _scores(logit, tl.load(tops_ptr + row), temperature)
        key = _keys(score)
        cut = tl.load(cuts_ptr + row * 2).to(tl.uint32, bitcast=True)
        stays = (token < V) & ((key < cut) | ((key == cut) & (token <= tl.load(cuts_ptr + row * 2 + 1))))
        seed = tl.load(seed_ptr + row)
        own = _mixed(seed.to(tl.uint32) ^ 0x9747B28C)
        own = _mixed(_mixed(own ^ (seed >> 32).to(tl.uint32)) ^ tl.load(offset_ptr + row).to(tl.uint32))
        noise = _noise(_mixed(own ^ (token.to(tl.uint32) * 0x9E3779B1)))
        greatest, winner = _winner(tl.where(stays, score + noise, float("-inf")), token, V)
        tl.store(values_ptr + row * blocks + block, greatest)
        tl.store(ids_ptr + row * blocks + block, winner)


@triton.jit(do_not_specialize=["V", "blocks"])
def _row_noisy(
    values_ptr,  # [R, blocks] fp32
    ids_ptr,  # [R, blocks] int32
    temperature_ptr,  # [R] fp32
    out_ptr,  # [R] int64
    V,
    blocks,
    BLOCKS: tl.constexpr,
):
    """Grid (R,): the greatest of a row's blocks; rows of temperature 0 have their result already."""
    row = tl.program_id(0).to(tl.int64)
    if tl.load(temperature_ptr + row) > 0:
        block = tl.arange(0, BLOCKS)
        inside = block < blocks
        value = tl.load(values_ptr + row * blocks + block, mask=inside, other=float("-inf"))
        token_id = tl.load(ids_ptr + row * blocks + block, mask=inside, other=2147483647)
        _, winner = _winner(value, token_id, V)
        tl.store(out_ptr + row, winner.to(tl.int64))
