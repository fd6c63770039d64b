"""A decoder's whole forward pass as one operation, for backends whose small operations cost less than a call of them.

What it computes is what worker/models/decoder.py spells out with the table's other operations, to the bit: embedding;
for each layer norm, QKV, rotation and K/V write, attention, output projection, norm, gate-up, SiLU-mul, down; norm and
head of the wanted positions. In the last layer only these go on once K and V are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from kernels.linear import Linear
from kernels.prepare_batch import FlatBatch


class LayerWeights(Protocol):
    """One decoder layer. Norms [hidden], those of heads [D], model dtype; window: keys seen, None for all."""

    qkv: Linear
    o: Linear
    gate_up: Linear
    down: Linear
    input_norm: Tensor
    post_norm: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    window: int | None


@dataclass(frozen=True)
class DecoderWeights:
    """All that a pass reads but the batch and the pages."""

    layers: Sequence[LayerWeights]
    embedding: Tensor  # [vocab, hidden] model dtype
    norm: Tensor  # [hidden] model dtype
    head: Linear
    cos_sin: Tensor  # [max_len, D] fp32
    heads: int
    kv_heads: int
    eps: float
    scale: float


class WholePass(Protocol):
    """whole_pass(batch, kv, kv_scales=None) -> logits [L, vocab] model dtype, a new tensor; writes the batch's K and V.

    kv [layers, pages, 2, Hkv, page_size, D] model dtype; or int8 with kv_scales, of kv's shape without D. Any T and L
    do: a token's values depend on no other's.
    """

    def __call__(self, batch: FlatBatch, kv: Tensor, kv_scales: Tensor | None = None, /) -> Tensor: ...


class WholePassOf(Protocol):
    """whole_pass_of(weights) -> the pass over these weights, or None where this backend or processor has none."""

    def __call__(self, weights: DecoderWeights, /) -> WholePass | None: ...


def no_whole_pass(weights: DecoderWeights, /) -> WholePass | None:
    """See WholePassOf."""
    return None
