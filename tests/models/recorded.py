"""An engine whose steps are kept: each token's logits, and what stood in the batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kernels.prepare_batch import FlatBatch
from worker.engine import Engine, FinishReason, SequenceParams


class RecordedEngine:
    """Runs an engine, looking over its decoder's shoulder and checking its accounts after each step.

    tokens, logits and reasons are by sequence; a token's logits are [vocab] fp32.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.batches: list[FlatBatch] = []
        self.tokens: dict[int, list[int]] = {}
        self.logits: dict[int, list[Tensor]] = {}
        self.reasons: dict[int, FinishReason] = {}
        self.errors: dict[int, str] = {}
        self._last = torch.empty(0)
        self._params: dict[int, SequenceParams] = {}
        forward = engine._decoder.forward

        def recorded(batch: FlatBatch, kv: Tensor) -> Tensor:
            self.batches.append(batch)
            self._last = forward(batch, kv)
            return self._last

        engine._decoder.forward = recorded  # type: ignore[method-assign]

    def add(self, id_: int, prompt: Sequence[int], params: SequenceParams, output: Sequence[int] = ()) -> None:
        """Queue one; what it writes comes after `output`."""
        self.engine.add(id_, prompt, params, output=output)
        self._params[id_], self.tokens[id_], self.logits[id_] = params, list(output), []

    def step(self) -> None:
        """One step. Its logits and its emissions stand in the same order; a greedy token shows that they do."""
        emissions = self.engine.step().emissions
        self.engine.check()
        for emission, logits in zip(emissions, self._last[: len(emissions)], strict=True):
            if self._params[emission.id] == SequenceParams(self._params[emission.id].max_tokens) and emission.token_ids:
                assert emission.token_ids == [int(logits.argmax())]
            self.tokens[emission.id] += emission.token_ids
            self.logits[emission.id].append(logits.float().clone())
            if emission.reason is not None:
                self.reasons[emission.id] = emission.reason
            if emission.error is not None:
                self.errors[emission.id] = emission.error

    def run(self, prompts: Mapping[int, Sequence[int]], params: SequenceParams | Mapping[int, SequenceParams]) -> None:
        """Queue all, and step until nothing is left."""
        for id_, prompt in prompts.items():
            self.add(id_, prompt, params if isinstance(params, SequenceParams) else params[id_])
        while self.engine.has_work:
            self.step()
