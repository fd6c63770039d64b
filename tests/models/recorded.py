"""An engine whose steps are kept: each token's logits, and what stood in the batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from kernels.kv_scales import KvScales
from kernels.prepare_batch import FlatBatch
from worker.engine import Engine, FinishReason, SequenceParams
from worker.engine.rows import Place
from worker.engine.runner import PlainRunner


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
        self._last: dict[
            tuple[int, int], Tensor
        ] = {}  # by sequence and offset, what each place of a step was drawn from
        self._params: dict[int, SequenceParams] = {}
        runner = engine._runner
        assert isinstance(runner, PlainRunner)
        forward, sample = engine._decoder.forward, runner._rows.sample

        def recorded(batch: FlatBatch, kv: Tensor, kv_scales: KvScales | None = None) -> Tensor:
            self.batches.append(batch)
            return forward(batch, kv, kv_scales)

        def sampled(logits: Tensor, places: list[Place], *, exact_noise: bool) -> Tensor:
            self._last = {(s.id, offset): row for (s, offset), row in zip(places, logits[: len(places)], strict=True)}
            return sample(logits, places, exact_noise=exact_noise)

        engine._decoder.forward = recorded  # type: ignore[method-assign]
        runner._rows.sample = sampled  # type: ignore[method-assign]

    def add(self, id_: int, prompt: Sequence[int], params: SequenceParams, output: Sequence[int] = ()) -> None:
        """Queue one; what it writes comes after `output`."""
        self.engine.add(id_, prompt, params, output=output)
        self._params[id_], self.tokens[id_], self.logits[id_] = params, list(output), []

    def step(self) -> None:
        """One step. Each token beside the logits of its place; a greedy token shows that they belong together."""
        emissions = self.engine.step().emissions
        self.engine.check()
        for emission in emissions:
            first = len(self.tokens[emission.id])
            logits = [self._last[emission.id, first + at] for at in range(max(1, len(emission.token_ids)))]
            if self._params[emission.id] == SequenceParams(self._params[emission.id].max_tokens) and emission.token_ids:
                assert emission.token_ids == [int(row.argmax()) for row in logits]
            self.tokens[emission.id] += emission.token_ids
            self.logits[emission.id] += [row.float().clone() for row in logits]
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
