"""Log-probabilities of some tokens: see kernels/token_logprobs.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


def token_logprobs(logits: Tensor, ids: Tensor, /) -> Tensor:
    """See TokenLogprobs."""
    (R, V), K = logits.shape, ids.shape[1]
    logprobs = torch.empty(R, K, dtype=torch.float32, device=logits.device)
    assert logits.stride(1) == 1
    assert ids.is_contiguous()
    if R and K:
        _token_logprobs[(R,)](
            logits, ids, logprobs, logits.stride(0), V, K, WANTED=triton.next_power_of_2(K), BLOCK=BLOCK,
            num_warps=8, enable_fp_fusion=False,
        )  # fmt: skip
    return logprobs


@triton.jit(do_not_specialize=["V", "K"])
def _token_logprobs(
    logits_ptr,  # [R, V]
    ids_ptr,  # [R, K] int64
    logprobs_ptr,  # [R, K] fp32
    row_stride,
    V,
    K,
    WANTED: tl.constexpr,  # the power of 2 from K up
    BLOCK: tl.constexpr,
):
    """Grid (R,): one walk over the row, with an online sum of exponentials in fp32."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * row_stride
    wanted = tl.arange(0, WANTED)
    real = wanted < K
    token_id = tl.load(ids_ptr + row * K + wanted, mask=real, other=0)
    chosen = tl.load(row_ptr + token_id, mask=real, other=0.0).to(tl.float32)  # [WANTED]
    top = tl.full([BLOCK], float("-inf"), tl.float32)  # by place in the block: reduced once, at the end
    total = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, V, BLOCK):
        token = start + tl.arange(0, BLOCK)
        logit = tl.load(row_ptr + token, mask=token < V, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(top, logit)
        steady = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(top - steady) + tl.exp(logit - steady)
        top = higher
    greatest = tl.max(top, 0)
    mass = tl.sum(total * tl.exp(top - greatest), 0)
    tl.store(logprobs_ptr + row * K + wanted, chosen - greatest - tl.log(mass), mask=real)
