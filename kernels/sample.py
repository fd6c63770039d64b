"""Logits to token ids, a row at a time in effect: no row's result depends on its neighbours.

In this order: banned tokens, temperature, min-p, top-k, top-p, then the Gumbel maximum: the token with the greatest
logit / temperature - log(E), E exponential. E comes from a counter, a hash of (seed, offset, token), so a draw can be
made again anywhere, by another worker, in another batch. Temperature 0 is the plain maximum, ties to the lowest id.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

_NONE = float("-inf")


SAMPLE_BLOCK = 1024  # tokens that a program of a device takes


def workspace_size(rows: int, vocab: int) -> int:
    """Elements of scratch that sampling may use: two for each block of a row's tokens, four for the row."""
    return rows * (2 * -(-vocab // SAMPLE_BLOCK) + 4)


class Sample(Protocol):
    """sample(logits, temperature, top_k, top_p, min_p, seed, offset, ...) -> ids.

    logits       [R, V] model dtype
    temperature  [R] fp32, >= 0; 0 takes the maximum and ignores what follows
    top_k        [R] int64, 0: off
    top_p        [R] fp32 in (0, 1], 1: off;  min_p [R] fp32 in [0, 1], 0: off
    seed         [R] int64, any value;  offset [R] int64: the place of the token among its row's outputs
    banned       (row [B] int64, token [B] int64) or None: logits taken as -inf
    exact_noise  noise that is the same to the bit whatever the batch (costs fp64 logarithms)
    out          [R] int64 for the ids, or None: a new tensor
    workspace    fp32 scratch that a backend may use instead of its own, `workspace_size(R, V)` elements, or None
    returns ids  [R] int64

    A row whose logits are all -inf or hold a NaN gives some id of the vocabulary: the caller decides what that means.
    """

    def __call__(
        self,
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
    ) -> Tensor: ...


def sample_torch(
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
    """Reference: see Sample."""
    if banned is not None:
        logits = logits.index_put(banned, torch.tensor(_NONE, dtype=logits.dtype, device=logits.device))
    warm = (temperature > 0).nonzero().squeeze(1)
    ids = torch.argmax(logits, -1, out=out) if out is not None else logits.argmax(-1)
    if warm.numel() == 0:
        return ids
    scores = candidates(logits[warm], temperature[warm], top_k[warm], top_p[warm], min_p[warm])
    ids[warm] = (scores + gumbel(seed[warm], offset[warm], scores.shape[1], exact=exact_noise)).argmax(-1)
    return ids


def candidates(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """[R, V] fp32: (logits - their greatest) / temperature (> 0); -inf for tokens that min-p, top-k or top-p rule out.

    The greatest score is 0, so that a temperature near 0 overflows to -inf alone.
    """
    wide = logits.float()
    scores = (wide - wide.amax(-1, keepdim=True)) / temperature.unsqueeze(1)
    return _keep_top(_drop_unlikely(scores, min_p), top_k, top_p)


def _drop_unlikely(scores: Tensor, min_p: Tensor) -> Tensor:
    """Tokens less likely than min_p times the likeliest get -inf (Nguyen et al. 2024, arXiv 2407.01082)."""
    if not bool((min_p > 0).any()):
        return scores
    floor = torch.log(min_p.double()).float().unsqueeze(1)  # log 0 is -inf: nothing is dropped; fp64: see gumbel
    return scores.masked_fill(scores < floor, _NONE)


def _keep_top(scores: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """All but the top_k likeliest, then all but the fewest that hold top_p of what is left, get -inf.

    Equal scores at the edge stay together for top-k; top-p takes the likeliest first, ties by lower id.
    """
    V = scores.shape[1]
    rows = ((top_k > 0) & (top_k < V) | (top_p < 1)).nonzero().squeeze(1)
    if rows.numel() == 0:
        return scores
    kept, k, p = scores[rows], top_k[rows], top_p[rows].unsqueeze(1)
    ordered, index = kept.sort(dim=-1, descending=True, stable=True)
    k = torch.where((k > 0) & (k < V), k, V)
    edge = ordered.gather(1, (k - 1).unsqueeze(1))
    ordered = ordered.masked_fill(ordered < edge, _NONE)
    likely = torch.softmax(ordered, dim=-1)
    before = likely.cumsum(-1) - likely  # what the likelier ones hold together
    ordered = ordered.masked_fill((before >= p) & (p < 1), _NONE)
    result = scores.clone()
    result[rows] = torch.full_like(kept, _NONE).scatter(1, index, ordered)
    return result


def gumbel(seed: Tensor, offset: Tensor, vocab: int, *, exact: bool) -> Tensor:
    """[R, vocab] fp32 Gumbel noise of (seed, offset, token), finite everywhere.

    u in (0, 1) from 32 hashed bits, E = -log(1 - u), noise = -log(E): the winners, small E, come from small u, where
    fp32 is finest. `exact` takes the logarithms in fp64 and rounds: torch's vectorised fp32 logarithm may differ in
    its last bit from the scalar one at the ends of a thread's share, which depends on the batch.
    """
    bits = _hash(seed, offset, vocab)
    dtype = torch.float64 if exact else torch.float32
    u = bits.to(dtype).add_(bits.lt(0).to(dtype).mul_(2.0**32)).add_(0.5).mul_(2.0**-32)  # int32 seen as unsigned
    u.clamp_(max=1.0 - 2.0**-24)
    return u.neg_().log1p_().neg_().log_().neg_().float()


def _hash(seed: Tensor, offset: Tensor, vocab: int) -> Tensor:
    """[R, vocab] int32: murmur3's finaliser over (seed, offset) folded into a key a row, and the token.

    int32 arithmetic that wraps around; shifts are made logical by masks. Any backend can give the same bits.
    """
    key = row_keys(seed, offset)
    token = torch.arange(vocab, dtype=torch.int32, device=seed.device) * _signed(0x9E3779B1)
    return _mix(key.unsqueeze(1) ^ token.unsqueeze(0))


def row_keys(seed: Tensor, offset: Tensor) -> Tensor:
    """[R] int32: seed and offset folded; token t's 32 bits are the finaliser of key ^ (t * 0x9E3779B1)."""
    low, high = _wrap(seed), _wrap(seed >> 32)
    return _mix(_mix(_mix(low ^ _signed(0x9747B28C)) ^ high) ^ _wrap(offset))


def _mix(h: Tensor) -> Tensor:
    h = h ^ ((h >> 16) & 0xFFFF)
    h = h * _signed(0x85EBCA6B)
    h = h ^ ((h >> 13) & 0x7FFFF)
    h = h * _signed(0xC2B2AE35)
    return h ^ ((h >> 16) & 0xFFFF)


def _signed(value: int) -> int:
    """The int32 with the same bits as the uint32 `value`."""
    return value - (1 << 32) if value >= 1 << 31 else value


def _wrap(value: Tensor) -> Tensor:
    """The low 32 bits, as int32."""
    value = value & 0xFFFFFFFF
    return torch.where(value >= 1 << 31, value - (1 << 32), value).to(torch.int32)
