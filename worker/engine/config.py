"""Everything about the engine that can be set, as one frozen value checked in one place."""

from __future__ import annotations

import os
from dataclasses import dataclass

from kernels.paged_attention import KEY_BLOCK
from kernels.table import Backend

DTYPES = ("auto", "bfloat16", "float16", "float32")
KV_DTYPES = ("auto", "int8", "fp8")
WEIGHTS = ("auto", "int8", "int4", "fp8")
DEVICES = ("auto", "cpu", "cuda")
PAGE_SIZES = (16, 32, 64, 128)


class ConfigError(Exception):
    """A setting is out of range or does not fit this machine: which, got against expected, what to do."""


class SlowerBackend(UserWarning):
    """The operations that a model runs on are not the fastest there are for this kind of machine: why not."""


@dataclass(frozen=True)
class EngineConfig:
    """Settings of one engine.

    max_rows       seats in the batch: sequences decoded at once
    token_budget   most tokens in a step, prompt chunks and decodes together; at least max_rows and page_size; None:
                   512, on a GPU 4,096 (see tokens_a_step)
    step_time_s    seconds that a step with a chunk of a prompt aims to take while others decode, which is how long a
                   long prompt holds them up: the chunk is made shorter for it (to 64 tokens at least); None: it is not
    page_size      tokens a page: 16, 32, 64 or 128
    num_pages      pages in the pool; None: what rows times max_len need, at most a quarter of the free memory
    max_len        longest sequence, prompt and output, in tokens; None: the model's
    prefix_cache   keep full pages after their sequences ended, for those that begin alike
    watermark      share of the pool that admitting a sequence leaves free, so that running ones can grow
    headroom       and share of what they could still grow by, at the start; it rises when pages run out and decays
    max_drafts     most tokens of a sequence that are guessed from its prompt and output and checked in one step, where
                   that pays; 0: none. Not with device_rows
    dtype          of weights, K/V and activations: auto (the checkpoint's, or float32 where the CPU lacks it),
                   bfloat16, float16, float32
    kv_dtype       of K/V in the pages: auto (dtype), int8 (a scale a token and head), fp8 (where rows are on the
                   device, on the backends torch and triton)
    weights        how those of the layers' linears are stored: auto (as the checkpoint has them), or rounded at load to
                   int8 (a scale an output), int4 (a scale and a zero for 128 inputs), fp8 (a scale an output;
                   activations too, a scale a token); embedding, head and norms stay in dtype. int4 and fp8 on a GPU
                   alone; where a CPU has no product with int8 they are stored as with auto, and Engine.slower_because
                   says so
    backend        of the operations: auto (c where it can be had, else torch), c, torch, triton
    deterministic  a token's values do not depend on what else is in the batch
    device         auto (cuda where there is a GPU that torch can use, else cpu), cpu, cuda
    device_rows    keep rows where the model is and let drawn tokens go into them there; always so on a GPU
    ahead          launch a step before the one before it is read, with device_rows; None: on a GPU
    graphs         on a GPU, keep steps as graphs
    memory_share   of a GPU's memory that weights, pages and scratch may take together
    threads        of the CPU that a step may use; None: all cores this process may run on
    """

    max_rows: int = 64
    token_budget: int | None = None
    step_time_s: float | None = 0.1
    page_size: int = 32
    num_pages: int | None = None
    max_len: int | None = None
    prefix_cache: bool = True
    watermark: float = 0.02
    headroom: float = 0.2
    max_drafts: int = 16
    dtype: str = "auto"
    kv_dtype: str = "auto"
    weights: str = "auto"
    backend: str = "auto"
    deterministic: bool = False
    device: str = "auto"
    device_rows: bool = False
    ahead: bool | None = None
    graphs: bool = True
    memory_share: float = 0.9
    threads: int | None = None

    def __post_init__(self) -> None:
        self._expect(self.max_rows >= 1, "max_rows", self.max_rows, "at least 1")
        self._expect(
            self.token_budget is None or self.token_budget >= self.max_rows,
            "token_budget",
            self.token_budget,
            f"at least max_rows ({self.max_rows}), so that every running sequence can decode in each step",
        )
        self._expect(
            self.step_time_s is None or 0.0 < self.step_time_s <= 60.0,
            "step_time_s",
            self.step_time_s,
            "above 0 and at most 60 seconds, or None",
        )
        self._expect(self.page_size in PAGE_SIZES, "page_size", self.page_size, f"one of {PAGE_SIZES}")
        self._expect(
            self.token_budget is None or self.token_budget >= self.page_size,
            "token_budget",
            self.token_budget,
            f"at least page_size ({self.page_size}), so that a prompt fills a page in a step",
        )
        self._expect(
            not self.deterministic or KEY_BLOCK % self.page_size == 0,
            "page_size",
            self.page_size,
            f"a divisor of {KEY_BLOCK} in deterministic mode",
        )
        self._expect(self.num_pages is None or self.num_pages >= 1, "num_pages", self.num_pages, "at least 1")
        self._expect(self.max_len is None or self.max_len >= 2, "max_len", self.max_len, "at least 2")
        self._expect(0.0 <= self.watermark < 1.0, "watermark", self.watermark, "in [0, 1)")
        self._expect(0.0 <= self.headroom <= 1.0, "headroom", self.headroom, "in [0, 1]")
        self._expect(self.max_drafts >= 0, "max_drafts", self.max_drafts, "0 (off) or more")
        self._expect(self.dtype in DTYPES, "dtype", self.dtype, f"one of {DTYPES}")
        self._expect(self.kv_dtype in KV_DTYPES, "kv_dtype", self.kv_dtype, f"one of {KV_DTYPES}")
        self._expect(self.weights in WEIGHTS, "weights", self.weights, f"one of {WEIGHTS}")
        self._expect(self.backend in ("auto", *Backend), "backend", self.backend, "auto, c, torch or triton")
        self._expect(self.device in DEVICES, "device", self.device, f"one of {DEVICES}")
        self._expect(0.0 < self.memory_share <= 1.0, "memory_share", self.memory_share, "above 0 and at most 1")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._expect(
            self.threads is None or 1 <= self.threads <= cores,
            "threads",
            self.threads,
            f"between 1 and the {cores} cores this process may run on",
        )

    def tokens_a_step(self, device: str) -> int:
        """token_budget, or what it is by default on a `cpu` or a GPU; max_rows where that is more.

        A GPU computes 512 tokens of a small model in a millisecond or two, and reads all weights for them. 4,096 are
        still below step_time_s for 8B parameters on an H100 (counted: 66 TFLOP, 0.1 s at two thirds of its peak);
        beyond, the clock cuts chunks.
        """
        return self.token_budget or max(512 if device == "cpu" else 4096, self.max_rows)

    @staticmethod
    def _expect(fine: bool, name: str, got: object, expected: str) -> None:
        if not fine:
            raise ConfigError(f"{name} must be {expected}; got {got!r}")
