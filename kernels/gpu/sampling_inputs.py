"""What seats are sampled by, gathered in one launch: see kernels/sampling_inputs.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.sampling_inputs import Inputs

DRAWS = 16  # of a program


def sampling_inputs(
    wholes: Tensor, reals: Tensor, stops: Tensor, owners: Tensor, lens: Tensor, seats: Tensor, logits: Tensor, /
) -> Inputs:
    """See SamplingInputs."""
    L, R, (S, N) = seats.shape[0], owners.shape[0], stops.shape
    real = torch.empty(3, L, dtype=torch.float32, device=logits.device)
    whole = torch.empty(3, L, dtype=torch.int64, device=logits.device)
    for tensor in (wholes, reals, stops, owners, lens, seats):
        assert tensor.is_contiguous()
    assert logits.stride(1) == 1
    count = max(L, R)
    if count:
        _sampling_inputs[(triton.cdiv(count, DRAWS),)](
            wholes, reals, stops, owners, lens, seats, logits, real, whole, logits.stride(0), S, R, L,
            STOPS=N, STOPS_PAD=triton.next_power_of_2(N), DRAWS=DRAWS, num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip
    (temperature, top_p, min_p), (top_k, seed, offset) = real, whole
    return temperature, top_k, top_p, min_p, seed, offset


@triton.jit(do_not_specialize=["row_stride", "S", "R", "L"])
def _sampling_inputs(
    wholes_ptr,  # [5, S] int64
    reals_ptr,  # [3, S] fp32
    stops_ptr,  # [S, STOPS] int32
    owners_ptr,  # [R] int64
    lens_ptr,  # [R] int64
    seats_ptr,  # [L] int64
    logits_ptr,  # [L, V]
    real_ptr,  # [3, L] fp32: temperature, top_p, min_p
    whole_ptr,  # [3, L] int64: top_k, seed, offset
    row_stride,
    S,
    R,
    L,
    STOPS: tl.constexpr,
    STOPS_PAD: tl.constexpr,  # the power of 2 from STOPS up
    DRAWS: tl.constexpr,
):
    """Grid (the more of L and R, / DRAWS): a draw is for the seat whose tokens its own program counts, or for one that
    gets none, so no program waits for another."""
    at = tl.program_id(0) * DRAWS + tl.arange(0, DRAWS)
    owned, drawn = at < R, at < L
    owner = tl.load(owners_ptr + at, mask=owned, other=-1)
    count = tl.load(lens_ptr + at, mask=owned, other=0)
    done = tl.load(wholes_ptr + owner, mask=owned, other=0) + count
    tl.store(wholes_ptr + owner, done, mask=owned & (count != 0))
    seat = tl.load(seats_ptr + at, mask=drawn, other=0)
    computed = tl.load(wholes_ptr + seat, mask=drawn & (seat != owner), other=0)
    offset = tl.where(seat == owner, done, computed) - tl.load(wholes_ptr + S + seat, mask=drawn, other=0)
    for part in tl.static_range(3):
        value = tl.load(reals_ptr + part * S + seat, mask=drawn, other=0.0)
        tl.store(real_ptr + part * L + at, value, mask=drawn)
    tl.store(whole_ptr + at, tl.load(wholes_ptr + 2 * S + seat, mask=drawn, other=0), mask=drawn)
    tl.store(whole_ptr + L + at, tl.load(wholes_ptr + 3 * S + seat, mask=drawn, other=0), mask=drawn)
    tl.store(whole_ptr + 2 * L + at, offset, mask=drawn)
    early = drawn & (offset < tl.load(wholes_ptr + 4 * S + seat, mask=drawn, other=0))
    column = tl.arange(0, STOPS_PAD)[None, :]
    stop = tl.load(stops_ptr + seat[:, None] * STOPS + column, mask=early[:, None] & (column < STOPS), other=-1)
    barred = tl.full([DRAWS, STOPS_PAD], float("-inf"), tl.float32).to(logits_ptr.dtype.element_ty)
    tl.store(logits_ptr + at.to(tl.int64)[:, None] * row_stride + stop, barred, mask=stop >= 0)
