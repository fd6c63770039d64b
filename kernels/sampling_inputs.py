"""Before a draw: a step's tokens are counted as computed, and what its seats are sampled by is gathered."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""temperature, top_k, top_p, min_p, seed, offset: [L] each, as Sample takes them."""


class SamplingInputs(Protocol):
    """sampling_inputs(wholes, reals, stops, owners, lens, seats, logits) -> Inputs.

    wholes  [5, S] int64, contiguous: computed, prompt_len, top_k, seed, min_tokens of each seat. computed[owners[r]] +=
            lens[r], before anything else
    reals   [3, S] fp32, contiguous: temperature, top_p, min_p
    stops   [S, N] int32, contiguous: ids below V; negative: none
    owners  [R] int64: the seats whose rows the step has computed, each once; lens [R] int64, >= 0. Padding is a seat
            with 0, as often as one likes
    seats   [L] int64: which seat a draw is for. That of draw r < R is owners[r] or one that gets no tokens in this step
    logits  [L, V] model dtype, written in place: -inf for the stop ids of a seat that has fewer outputs than min_tokens

    offset is computed - prompt_len: the place of the token to be drawn among its seat's outputs.
    """

    def __call__(
        self,
        wholes: Tensor,
        reals: Tensor,
        stops: Tensor,
        owners: Tensor,
        lens: Tensor,
        seats: Tensor,
        logits: Tensor,
        /,
    ) -> Inputs: ...


def sampling_inputs_torch(
    wholes: Tensor, reals: Tensor, stops: Tensor, owners: Tensor, lens: Tensor, seats: Tensor, logits: Tensor, /
) -> Inputs:
    """Reference: see SamplingInputs. Waits for the device to know what is barred."""
    wholes[0].index_add_(0, owners, lens)
    computed, prompt_len, top_k, seed, min_tokens = wholes.index_select(1, seats)
    temperature, top_p, min_p = reals.index_select(1, seats)
    offset = computed - prompt_len
    ids = stops.index_select(0, seats)  # [L, N]
    draw, at = ((offset < min_tokens).unsqueeze(1) & (ids >= 0)).nonzero(as_tuple=True)
    logits[draw, ids[draw, at].long()] = float("-inf")
    return temperature, top_k, top_p, min_p, seed, offset
