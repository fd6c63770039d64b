"""OpenVINO GenAI's continuous batching, stepped by hand. Arguments: the exported model, threads, rows.

The model is exported by ops/bench/peers.py. The settings are those it was fastest with: weights in
fp16, products in bf16, steps of 1,024 tokens, no prefix cache; K/V in its default of eight bits, which is smaller than
ours.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import openvino
import openvino_genai

from ops.bench.runners.answering import Stepped, serve

KV_GIB = 2


class OpenVino:
    def __init__(self, model: str, threads: int, rows: int) -> None:
        schedule = openvino_genai.SchedulerConfig()
        schedule.max_num_batched_tokens, schedule.max_num_seqs, schedule.cache_size = 1024, rows, KV_GIB
        schedule.dynamic_split_fuse, schedule.enable_prefix_caching = True, False
        properties = {
            "INFERENCE_PRECISION_HINT": "bf16",
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(model, schedule, "CPU", properties)
        self._here: dict[int, tuple[Any, int]] = {}  # its handle, tokens to come

    def add(self, id_: int, prompt: list[int], max_tokens: int) -> None:
        greedy = openvino_genai.GenerationConfig(max_new_tokens=max_tokens, do_sample=False, ignore_eos=True)
        ids = openvino.Tensor(np.array([prompt], dtype=np.int64))
        self._here[id_] = self._pipeline.add_request(id_, ids, greedy), max_tokens

    def step(self) -> dict[int, list[int]]:
        self._pipeline.step()
        new: dict[int, list[int]] = {}
        for id_, (handle, left) in list(self._here.items()):
            ids: list[int] = []
            while handle.can_read():
                for output in handle.read().values():
                    ids += output.generated_ids
            if ids:
                new[id_] = ids
                self._here[id_] = handle, left - len(ids)
            if left <= len(ids):
                del self._here[id_]
        return new

    def close(self) -> None:
        """It is all in this process, which ends."""


def _load() -> tuple[Stepped, str]:
    model, threads, rows = sys.argv[1:]
    return OpenVino(model, int(threads), int(rows)), str(openvino_genai.__version__)


if __name__ == "__main__":
    serve("openvino", _load)
