"""Texts through Decoder.forward without the engine: rows, pages and chunk sizes are laid out here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from kernels.table import Ops
from tests.models.checkpoints import random_prompts
from worker.models.config import ModelConfig, read_config
from worker.models.decoder import Decoder

PAGE_SIZE = 16


def decoder_of(
    directory: Path,
    ops: Ops,
    dtype: torch.dtype = torch.float32,
    *,
    config: ModelConfig | None = None,
    **how: Any,
) -> Decoder:
    """The checkpoint's decoder; `config` in place of what its config.json says; how: further arguments of Decoder."""
    config = config or read_config(directory)
    with torch.inference_mode():
        return Decoder(directory, config, ops, dtype, max_len=config.max_len, **{"deterministic": False, **how})


class DirectRun:
    """Rows that share batches until each has gone through its text, in chunks of its own size.

    Pages are handed out in no order, and hold NaN until something is written: a read past a row's length shows.
    """

    def __init__(self, decoder: Decoder, ops: Ops, texts: Sequence[Sequence[int]], *, int8_pages: bool = False) -> None:
        config = decoder.config
        self._decoder, self._ops = decoder, ops
        self._lengths = [len(text) for text in texts]
        longest = max(self._lengths)
        pages = -(-longest // PAGE_SIZE)
        self.tokens = torch.zeros(len(texts), longest, dtype=torch.int32)
        for row, text in enumerate(texts):
            self.tokens[row, : len(text)] = torch.tensor(text)
        self.computed = torch.zeros(len(texts), dtype=torch.int64)
        order = torch.randperm(len(texts) * pages, generator=torch.Generator().manual_seed(1))
        self.page_table = order.view(len(texts), pages).int()
        shape = (config.num_layers, len(order), 2, config.num_kv_heads, PAGE_SIZE, config.head_dim)
        dtype, poison = (torch.int8, -128) if int8_pages else (decoder.dtype, float("nan"))
        self.kv = torch.full(shape, poison, dtype=dtype)
        self.kv_scales = torch.full(shape[:-1], float("nan")) if int8_pages else None
        self._logits: list[list[Tensor]] = [[] for _ in texts]

    def step(self, counts: Mapping[int, int]) -> None:
        """One forward pass: how many tokens of which rows."""
        ordered = sorted(counts.items(), key=lambda item: item[1] > 1)
        rows, lens = (torch.tensor(column) for column in zip(*ordered, strict=True))
        batch = self._ops.prepare_batch(
            self.tokens,
            self.computed,
            self.page_table,
            rows,
            lens,
            torch.arange(len(rows)),
            page_size=PAGE_SIZE,
            num_decode=int((lens == 1).sum()),
            pad_tokens=2,  # the fixed order takes two or more
        )
        everything = replace(batch, logits_index=torch.arange(len(batch.input_ids)))
        logits = self._decoder.forward(everything, self.kv, self.kv_scales).float()[: batch.num_tokens]
        for row, part in zip(rows.tolist(), logits.split(lens.tolist()), strict=True):
            self._logits[row].append(part)
        self.computed[rows] += lens

    @torch.inference_mode()
    def run(self, chunks: Sequence[int]) -> list[Tensor]:
        """Go on to the end of every text, row i by chunks[i] tokens a step. A text's logits [length, vocab] fp32."""
        while True:
            left = [length - done for length, done in zip(self._lengths, self.computed.tolist(), strict=True)]
            counts = {row: min(chunk, left[row]) for row, chunk in enumerate(chunks) if left[row]}
            if not counts:
                return [torch.cat(parts) for parts in self._logits]
            self.step(counts)


TEXTS = random_prompts((20, 100, 130, 90, 5))
CHUNKS = (1, 7, 64, 1000, 3)
"""Of TEXTS: one decodes from the start, some go in chunks that cut pages, one in a single piece."""


class Theirs(Protocol):
    """theirs(name, weights, dtype) -> logits [length, vocab] fp32 of each of TEXTS; see the fixture."""

    def __call__(
        self, name: str, weights: torch.dtype = torch.float32, dtype: torch.dtype = torch.float32
    ) -> list[Tensor]: ...


def worst(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The greatest difference of two lists of logits, infinite where either isn't finite."""
    differences = [(a - b).abs().max() for a, b in zip(ours, theirs, strict=True)]
    return float(torch.stack(differences).nan_to_num(nan=float("inf")).max())
