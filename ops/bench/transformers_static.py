"""`transformers.generate` in static batches, as its documentation has it for many prompts: padded on the left, greedy,
SDPA, each batch until its longest output has ended.
"""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, StoppingCriteriaList
from transformers.utils import logging

from ops.bench.machine import Others
from ops.bench.systems import Run, Wrong
from ops.bench.workload import Request


class TransformersStatic:
    """Batches of `batch` requests in the order they stand in."""

    def __init__(self, model: Path, batch: int, dtype: str) -> None:
        logging.disable_progress_bar()
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            model, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        ).eval()
        self._batch = batch
        self._pad = self._model.config.pad_token_id
        self.name = f"transformers static {batch}"

    def run(self, requests: list[Request]) -> Run:
        """Raises Wrong if a batch ends early."""
        token_ids: list[list[int]] = []
        times: list[list[float]] = []
        gc.collect()
        others, began, steps = Others(), time.perf_counter(), 0
        for first in range(0, len(requests), self._batch):
            batch = requests[first : first + self._batch]
            rows, stamps = self._generate(batch)
            steps += len(stamps)
            for request, row in zip(batch, rows, strict=True):
                ids = _until_its_end(request, row)
                token_ids.append(ids)
                times.append([stamp - began for stamp in stamps[: len(ids)]])
        wall_s = time.perf_counter() - began
        return Run(token_ids, times, wall_s, sum(map(len, token_ids)) / steps, others.cores())

    def _generate(self, batch: list[Request]) -> tuple[list[list[int]], list[float]]:
        """Output ids of each row, up to where the batch ended, and when each step had its tokens."""
        width = max(len(request.prompt) for request in batch)
        ids = torch.full((len(batch), width), self._pad)
        mask = torch.zeros(len(batch), width, dtype=torch.int64)
        for row, request in enumerate(batch):
            ids[row, width - len(request.prompt) :] = torch.tensor(request.prompt)
            mask[row, width - len(request.prompt) :] = 1
        stamps: list[float] = []

        def note(seen: Tensor, *_: object, **__: object) -> Tensor:
            """A stopping criterion that only looks at the clock: it is asked once a step, after the tokens."""
            stamps.append(time.perf_counter())
            return torch.zeros(len(seen), dtype=torch.bool)

        stop_ids = frozenset[int]().union(*(request.stop_ids for request in batch))
        longest = max(request.max_tokens for request in batch)
        # None here would be filled from the model's own; and so would what is not said below
        self._model.generation_config.eos_token_id = sorted(stop_ids) or None
        wanted = GenerationConfig(max_new_tokens=longest, do_sample=False, pad_token_id=self._pad, use_cache=True)
        output = self._model.generate(
            ids, attention_mask=mask, generation_config=wanted, stopping_criteria=StoppingCriteriaList([note])
        )
        steps = output.shape[1] - width
        if len(stamps) != steps or (not stop_ids and steps != longest):
            raise Wrong(f"{self.name}: {steps} steps ({len(stamps)} seen), expected {longest}")
        return output[:, width:].tolist(), stamps


def _until_its_end(request: Request, row: list[int]) -> list[int]:
    """A row's own output: what follows is padding, or tokens it would not have asked for."""
    row = row[: request.max_tokens]
    return next((row[: at + 1] for at, token in enumerate(row) if token in request.stop_ids), row)
