"""Logits to token ids without a sort and without a [rows, vocab] tensor: see kernels/sample.py.

Three kernels: the greatest logit of each block; each row's greatest and the least likely token that its min-p, top-k
and top-p leave (kernels/gpu/cut.py); the greatest score plus noise of each block, and of the row by whichever of its
blocks is done last. Noise is exact in any case. The kernels know whether V is a multiple of 16, for wide reads: one
variant for each of the two.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.cut import CUT_LANES, CUT_WARPS, cut, cut_each, keys, scores, winner
from kernels.sample import SAMPLE_BLOCK, workspace_size


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
    cuts = workspace[2 * R * blocks + R : 2 * R * blocks + 4 * R].view(torch.int32)  # [R, 3]
    padded = triton.next_power_of_2(blocks)
    how = {"num_warps": 4, "enable_fp_fusion": False}
    _block_greatest[(R, blocks)](logits, values, ids, logits.stride(0), V, blocks, BLOCK=SAMPLE_BLOCK, **how)
    cut[(R,)](
        logits, values, ids, tops, cuts, temperature, top_k, top_p, min_p, out, logits.stride(0), V, blocks,
        BLOCKS=padded, LANES=CUT_LANES, EACH=cut_each(V, logits.element_size()), **{**how, "num_warps": CUT_WARPS},
    )  # fmt: skip
    _noisy[(R, blocks)](
        logits, values, ids, tops, cuts, temperature, seed, offset, out, logits.stride(0), V, blocks,
        BLOCK=SAMPLE_BLOCK, BLOCKS=padded, **how,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["blocks"])
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
    greatest, best = winner(logit, token, V)
    tl.store(values_ptr + row * blocks + block, greatest)
    tl.store(ids_ptr + row * blocks + block, best)


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


@triton.jit(do_not_specialize=["blocks"])
def _noisy(
    logits_ptr,  # [R, V]
    values_ptr,  # [R, blocks] fp32
    ids_ptr,  # [R, blocks] int32
    tops_ptr,  # [R] fp32
    cuts_ptr,  # [R, 3] int32: key, last id of that key, how many blocks are done
    temperature_ptr,  # [R] fp32
    seed_ptr,  # [R] int64
    offset_ptr,  # [R] int64
    out_ptr,  # [R] int64
    row_stride,
    V,
    blocks,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,  # the power of 2 from blocks up
):
    """Grid (R, blocks): the greatest score plus noise among the tokens that stay, and of the row where all others are
    done. Rows of temperature 0 have their result already."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    temperature = tl.load(temperature_ptr + row)
    if temperature > 0:
        token = block * BLOCK + tl.arange(0, BLOCK)
        logit = tl.load(logits_ptr + row * row_stride + token, mask=token < V, other=float("-inf")).to(tl.float32)
        score = scores(logit, tl.load(tops_ptr + row), temperature)
        key = keys(score)
        least = tl.load(cuts_ptr + row * 3).to(tl.uint32, bitcast=True)
        stays = (token < V) & ((key < least) | ((key == least) & (token <= tl.load(cuts_ptr + row * 3 + 1))))
        seed = tl.load(seed_ptr + row)
        own = _mixed(seed.to(tl.uint32) ^ 0x9747B28C)
        own = _mixed(_mixed(own ^ (seed >> 32).to(tl.uint32)) ^ tl.load(offset_ptr + row).to(tl.uint32))
        noise = _noise(_mixed(own ^ (token.to(tl.uint32) * 0x9E3779B1)))
        greatest, best = winner(tl.where(stays, score + noise, float("-inf")), token, V)
        tl.store(values_ptr + row * blocks + block, greatest)
        tl.store(ids_ptr + row * blocks + block, best)
        tl.debug_barrier()  # the block's result is stored before it is counted, whichever thread does either
        if tl.atomic_add(cuts_ptr + row * 3 + 2, 1, sem="acq_rel") == blocks - 1:
            each = tl.arange(0, BLOCKS)
            value = tl.load(values_ptr + row * blocks + each, mask=each < blocks, other=float("-inf"))
            token_id = tl.load(ids_ptr + row * blocks + each, mask=each < blocks, other=2147483647)
            _, best = winner(value, token_id, V)
            tl.store(out_ptr + row, best.to(tl.int64))
