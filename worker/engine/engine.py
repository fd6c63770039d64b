"""Engine: sequences in, tokens out, one step at a time.

A step's life: the scheduler plans it (scheduler.py) and a runner launches it (runner.py): rows become the flat batch,
the decoder gives the logits of those that have caught up (worker/models/decoder.py), sampling gives each its next token
(kernels/sample.py). Once it is read, what ended leaves its row. Where steps run ahead, the next step is launched before
this one is read; a sequence that turns out to have ended is in it once too often, and what that drew is dropped.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass
from itertools import count, islice, repeat
from math import isfinite
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from kernels.table import Ops
from worker.engine.adjustments import Logprob
from worker.engine.config import ConfigError, EngineConfig, SlowerBackend
from worker.engine.cpu_start import start as start_on_cpu
from worker.engine.cuda import CompileWatch
from worker.engine.gpu_fit import find_gpu, refuse_fp8_products, refuse_unfit
from worker.engine.kv_format import KvFormat
from worker.engine.outcome import Completion, Emission, EngineStats, StepOutput
from worker.engine.pages import PagePool
from worker.engine.plan import Plan
from worker.engine.resolve import device_of, gpu_dtype, max_len_of, num_pages_of
from worker.engine.runner import Drawn, PlainRunner, Read, Runner
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import FinishReason, Sequence, SequenceParams, State, refuse_unservable
from worker.engine.speculation import Speculation
from worker.engine.weight_form import is_fp8, keep_of, loading_bytes_of, weight_bytes_of, words_of
from worker.models.checkpoint import Checkpoint, Weights, locate
from worker.models.config import ModelConfig, read_config
from worker.models.decoder import Decoder


@dataclass(frozen=True)
class _Flight:
    """A step that was launched: who fills pages in it, computed how far, and how to read what was drawn."""

    plan: Plan
    filled: list[tuple[Sequence, int]]
    read: Read


class Engine:
    """Continuous batching of one model. Not thread-safe: one loop owns it."""

    def __init__(
        self, decoder: Decoder, ops: Ops, config: EngineConfig, kv: Tensor, runner: Runner, max_len: int, *, ahead: bool
    ) -> None:
        """Use from_pretrained or from_weights. kv [layers, pages, 2, Hkv, page_size, D]; max_len (tokens) is resolved.

        ahead: launch a step before the one before it is read, which the runner must allow.
        """
        self.model = decoder.config
        self.config, self.max_len = config, max_len
        self.stats = EngineStats()
        self.backend = ops.backend
        self.slower_because: str | None = None  # why no faster backend runs, or weights are not stored as was asked
        self.compiled: CompileWatch | None = None  # what Triton compiled once this was warm; None: nothing watches
        self.start_figures: dict[str, Any] = {}  # what a start on a GPU took, by part
        self._decoder, self._kv, self._runner, self._ahead = decoder, kv, runner, ahead
        self._pool = PagePool(kv.shape[1], config.page_size)
        guesses = config.max_drafts > 0 and isinstance(runner, PlainRunner)  # a guess needs the last token at hand
        speculation = Speculation(config.max_drafts) if guesses else None
        self._scheduler = Scheduler(config, self._pool, self.stats, speculation, decoder.device.type)
        self._flight: _Flight | None = None  # launched and not read
        self._ran_out = False  # of memory, in the launch before
        self._hopeless: Sequence | None = None  # it did so for this one alone
        self._sequences: dict[int, Sequence] = {}
        self._arrivals = count()

    @classmethod
    def from_pretrained(
        cls, model: str | os.PathLike[str], config: EngineConfig | None = None, **settings: Any
    ) -> Engine:
        """An engine for a directory in Hugging Face format or a hub id; settings are EngineConfig's fields.

        Raises ModelError (files, architecture), ConfigError (a setting, this machine's GPU, or too little memory).
        Warns with SlowerBackend where a CPU's own operations, or weights as asked for, can't be had; it does without.
        """
        if config is not None and settings:
            raise ConfigError(f"give a config or settings, not both; got a config and {', '.join(settings)}")
        config = config or EngineConfig(**settings)
        torch.set_num_threads(config.threads or len(os.sched_getaffinity(0)))
        directory = locate(os.fspath(model))
        shape = read_config(directory)
        if device_of(config) == "cuda":
            gpu = find_gpu()
            dtype, keep = gpu_dtype(config, shape.dtype), keep_of(config, shape, narrow=True)
            if is_fp8(keep, shape.quantisation):
                refuse_fp8_products(gpu, dtype)
            kv_format = KvFormat.of(config.kv_dtype, dtype, is_amd=gpu.is_amd)
            sizes = weight_bytes_of(shape, keep, dtype), loading_bytes_of(shape, keep)
            refuse_unfit(gpu, shape, kv_format, config.page_size, sizes[0], loading_bytes=sizes[1])
            return cls.from_weights(Checkpoint(directory, torch.device("cuda")), shape, config)
        made = start_on_cpu(directory, shape, config)
        engine = cls(made.decoder, made.ops, config, made.kv, made.runner, made.max_len, ahead=bool(config.ahead))
        engine.slower_because = made.slower_because
        if made.slower_because is not None:
            warnings.warn(f"this model runs slower than it might: {made.slower_because}", SlowerBackend, 2)
        return engine

    @classmethod
    def from_weights(cls, weights: Weights, shape: ModelConfig, config: EngineConfig) -> Engine:
        """An engine on the GPU where `weights` are to lie. Raises as from_pretrained does."""
        from worker.engine.gpu_start import start  # a CPU worker's start does without it

        dtype, max_len = gpu_dtype(config, shape.dtype), max_len_of(config, shape)

        def num_pages(free: int) -> int:
            kv = KvFormat.of(config.kv_dtype, dtype)
            return num_pages_of(config, shape, kv, max_len, free, share=1.0)

        made = start(weights, shape, config, dtype, max_len, num_pages, keep_of(config, shape, narrow=True))
        max_len = min(max_len, made.kv.shape[1] * config.page_size)
        ahead = config.ahead is not False
        engine = cls(made.decoder, made.ops, config, made.kv, made.runner, max_len, ahead=ahead)
        engine.compiled, engine.start_figures = made.compiled, made.figures
        return engine

    def add(
        self,
        sequence_id: int,
        prompt: Items[int],
        params: SequenceParams,
        *,
        output: Items[int] = (),
        priority: int = 0,
    ) -> None:
        """Queue a sequence; `output` are tokens it already has, from an earlier owner. A lower priority runs first.

        Raises Unservable if it can never run here; nothing is queued then.
        """
        assert sequence_id not in self._sequences, f"sequence {sequence_id} is here already"
        refuse_unservable(prompt, params, output, vocab_size=self.model.vocab_size, max_len=self.max_len)
        sequence = Sequence(sequence_id, prompt, params, priority, next(self._arrivals), list(output))
        self._sequences[sequence_id] = sequence
        self._scheduler.add(sequence)

    def cancel(self, sequence_id: int) -> None:
        """Forget a sequence; its row and pages are free at once. Unknown ids are fine: it may just have ended."""
        sequence = self._sequences.pop(sequence_id, None)
        if sequence is not None:
            self._scheduler.finish(sequence)

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._sequences)

    @property
    def num_running(self) -> int:
        """Rows in use."""
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Sequences without a row."""
        return self._scheduler.num_waiting

    @property
    def num_free_pages(self) -> int:
        """Pages that can be taken."""
        return self._pool.num_free

    @torch.inference_mode()
    def step(self) -> StepOutput:
        """Launch a step over the batch and read one, the same or the one before; without work it does nothing.

        Emissions come in no particular order.
        """
        if not self.has_work:
            return StepOutput([], 0, 0, 0)
        began, computed_s = time.perf_counter(), time.process_time()
        flight = self._flight or self._launch()
        self._flight = self._launch() if self._ahead and not self._ran_out else None
        if flight is None:  # memory ran out
            return StepOutput(self._fail_hopeless(), 0, 0, 0)
        emissions, generated = self._land(flight)
        plan = flight.plan
        self._count(plan, generated, began, computed_s)
        self._scheduler.took(plan, time.perf_counter() - began)
        return StepOutput(emissions, len(plan.tokens), plan.num_tokens, len(plan.preempted))

    def _launch(self) -> _Flight | None:
        """Plan a step and hand it to the runner; None if there is nothing to do until a step is read.

        None too if memory runs out: then some of the work makes way for the rest, which the next launch goes on with.
        """
        if self._ran_out:  # whatever was launched before has been read since
            self._runner.restore(self._scheduler.running)
            self._ran_out = False
        plan = self._scheduler.plan()
        if not plan.tokens:
            return None
        assert not set(plan.preempted) & set(plan.admitted), "what is read next would go to another stay in the batch"
        try:
            read = self._runner.launch(plan)
        except torch.OutOfMemoryError:
            self._ran_out = True
            self.stats.ran_out_of_memory += 1
            self._hopeless = self._scheduler.shed(plan)
            return None
        filled = self._scheduler.launched(plan)
        for sequence in plan.caught_up:
            sequence.pending += 1
        return _Flight(plan, filled, read)

    def _fail_hopeless(self) -> list[Emission]:
        """End the sequence that memory ran out for alone and in the smallest of steps, if there is one."""
        sequence, self._hopeless = self._hopeless, None
        if sequence is None or sequence.state is not State.RUNNING:
            return []
        self.cancel(sequence.id)
        error = (
            f"memory ran out in a step of this sequence alone, at token {sequence.computed} of {sequence.num_tokens}"
        )
        return [Emission(sequence.id, [], FinishReason.FAILED, error, sequence.cached or 0)]

    def _land(self, flight: _Flight) -> tuple[list[Emission], int]:
        """Read a step. What it gave to sequences that have ended or lost their row since is dropped. Returns how many
        tokens it gave to the others too."""
        began = time.perf_counter()
        draws, plan = flight.read(), flight.plan
        self.stats.waited_s += time.perf_counter() - began
        for sequence, computed in flight.filled:
            if sequence.state is _RUNNING:
                self._scheduler.enter(sequence, computed)
        if plan.drafts or draws.sound is not None or draws.told is not None:
            each = draws.each()
            groups = [(s, list(islice(each, len(plan.drafts.get(s, ())) + 1))) for s in plan.caught_up]
            emissions = [self._advance(s, group, plan.drafts.get(s, ())) for s, group in groups if s.state is _RUNNING]
            generated = sum(map(len, map(_TOKENS_OF, emissions)))
        else:
            emissions = self._advance_each(plan.caught_up, draws.ids)
            generated = len(emissions)
        self._runner.appended(plan.caught_up)
        return emissions, generated

    def generate(self, prompts: Items[Items[int]], params: SequenceParams | Items[SequenceParams]) -> list[Completion]:
        """Run all prompts to their ends, offline; completions in the order of the prompts.

        Raises Unservable before anything runs if one of them can't, RuntimeError if other sequences are here.
        """
        if self.has_work:
            raise RuntimeError(f"generate takes the engine for itself, and {len(self._sequences)} sequences are here")
        each = list(repeat(params, len(prompts)) if isinstance(params, SequenceParams) else params)
        if len(each) != len(prompts):
            raise ValueError(f"params: expected one, or one for each of {len(prompts)} prompts; got {len(each)}")
        for prompt, own in zip(prompts, each, strict=True):
            refuse_unservable(prompt, own, (), vocab_size=self.model.vocab_size, max_len=self.max_len)
        tokens: list[list[int]] = [[] for _ in prompts]
        told: list[list[Logprob]] = [[] for _ in prompts]
        ended: dict[int, Emission] = {}
        for index, (prompt, own) in enumerate(zip(prompts, each, strict=True)):
            self.add(index, prompt, own)
        try:
            for emission in self._run_all():
                tokens[emission.id] += emission.token_ids
                told[emission.id] += emission.logprobs or ()
                if emission.reason is not None:
                    ended[emission.id] = emission
        finally:  # interrupted, it leaves nothing behind
            for index in range(len(prompts)):
                self.cancel(index)
        return [
            Completion(
                tokens[index],
                ended[index].reason or FinishReason.FAILED,
                ended[index].error,
                None if own.logprobs is None else told[index],
            )
            for index, own in enumerate(each)
        ]

    def describe(self) -> dict[str, Any]:
        """What there is of what, as plain values: for logs, and for whoever feeds this engine."""
        kv_format = KvFormat.of(self.config.kv_dtype, self._decoder.dtype)
        return {
            "architecture": self.model.architecture,
            "device": self._kv.device.type,
            "backend": self.backend.value,
            "slower_because": self.slower_because,
            "dtype": str(self._decoder.dtype).removeprefix("torch."),
            "weights": words_of(self.model, self._decoder.keep, self._decoder.dtype, self._decoder.stored),
            "kv_dtype": str(self._kv.dtype).removeprefix("torch."),
            "vocab_size": self.model.vocab_size,
            "max_rows": self.config.max_rows,
            "max_len": self.max_len,
            "token_budget": self.config.tokens_a_step(self._decoder.device.type),
            "page_size": self.config.page_size,
            "num_pages": self._pool.num_pages,
            "pool_bytes": self._pool.num_pages * kv_format.page_bytes(self.model, self.config.page_size),
            "deterministic": self.config.deterministic,
            "threads": torch.get_num_threads(),
            **self.start_figures,
        }

    def load(self) -> dict[str, int]:
        """How full it is now, and counters since the start, as plain values."""
        return {
            "running": self.num_running,
            "waiting": self.num_waiting,
            "free_pages": self.num_free_pages,
            "steps": self.stats.steps,
            "row_steps": self.stats.row_steps,
            "computed_tokens": self.stats.computed_tokens,
            "generated_tokens": self.stats.generated_tokens,
            "preemptions": self.stats.preemptions,
            "admitted_tokens": self.stats.admitted_tokens,
            "cached_tokens": self.stats.cached_tokens,
            "recomputed_tokens": self.stats.recomputed_tokens,
            "ran_out_of_memory": self.stats.ran_out_of_memory,
            "compiled_late": len(self.compiled.late) if self.compiled else 0,
            "drafted_tokens": self.stats.drafted_tokens,
            "accepted_tokens": self.stats.accepted_tokens,
            "longest_step_ms": round(self.stats.longest_step_s * 1000),
        }

    def forget_prefixes(self) -> None:
        """Empty the prefix cache: what follows finds nothing of what was before."""
        self._pool.forget()

    def check(self) -> None:
        """Assert that rows and pages add up."""
        self._scheduler.check()
        assert len(self._sequences) == self.num_running + self.num_waiting, "a sequence is lost"

    def _run_all(self) -> Iterator[Emission]:
        while self.has_work:
            yield from self.step().emissions

    def _advance_each(self, sequences: list[Sequence], ids: list[int]) -> list[Emission]:
        """_advance, at a fifth of its time: each sequence that still runs gets the one token drawn for it, and nothing
        more is to be told."""
        emissions: list[Emission] = []
        guesses, made = self._scheduler.speculation is not None, tuple.__new__  # as Emission's own __new__ has it
        for sequence, token in zip(sequences, ids, strict=True):
            if sequence.state is not _RUNNING:
                continue
            sequence.pending -= 1
            output, params, reason = sequence.output, sequence.params, None
            output.append(token)
            if guesses and sequence.wants_lookup:
                self._scheduler.drew(sequence, [token])
            if token in params.stop_ids or len(output) >= params.max_tokens:  # it may have ended
                reason = _end(sequence, token)
                if reason is not None:
                    self.cancel(sequence.id)
            emissions.append(made(Emission, (sequence.id, [token], reason, None, sequence.cached or 0, None)))
        return emissions

    def _advance(self, sequence: Sequence, drawn: Items[Drawn], drafts: Items[int]) -> Emission:
        """Give a sequence what was drawn behind its last token and each draft, and let go of it if that ends it.

        What was drawn behind a draft counts if that draft and all before it are what was drawn in their places.
        """
        sequence.pending -= 1
        taken: list[int] = []
        told: list[Logprob] | None = None
        reason = None
        for (token, sound, logprob), guess in zip(drawn, (*drafts, None), strict=True):
            if not sound or (logprob is not None and not isfinite(logprob[0])):
                break  # behind a draft that held, the next step finds the same
            sequence.output.append(token)
            taken.append(token)
            if logprob is not None:
                told = [*(told or ()), logprob]
            reason = _end(sequence, token)
            if reason is not None or token != guess:
                break
        if not taken:
            self.cancel(sequence.id)
            error = f"the model gave no finite logit for output token {len(sequence.output)}"
            if sequence.params.adjusts:
                error += ", or bias, penalties, allowed tokens and bad words left none"
            return Emission(sequence.id, [], FinishReason.FAILED, error, sequence.cached or 0)
        self._scheduler.drew(sequence, taken)
        if reason is not None:
            self.cancel(sequence.id)
        return Emission(sequence.id, taken, reason, None, sequence.cached or 0, told)

    def _count(self, plan: Plan, generated: int, began: float, computed_s: float) -> None:
        stats = self.stats
        stats.steps += 1
        stats.row_steps += len(plan.tokens)
        stats.computed_tokens += plan.num_tokens
        stats.generated_tokens += generated
        took = time.perf_counter() - began
        stats.busy_seconds += took
        stats.longest_step_s = max(stats.longest_step_s, min(took, time.process_time() - computed_s))


_RUNNING, _TOKENS_OF = State.RUNNING, attrgetter("token_ids")  # looked up once


def _end(sequence: Sequence, token: int) -> FinishReason | None:
    params, said = sequence.params, len(sequence.output)
    if token in params.stop_ids and said > params.min_tokens:
        return FinishReason.STOP
    return FinishReason.LENGTH if said >= params.max_tokens else None
