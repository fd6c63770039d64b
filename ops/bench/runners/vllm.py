"""vLLM on a CPU, its engine stepped by hand; bf16, no prefix cache. Arguments: the model, threads, rows."""

from __future__ import annotations

import os
import sys

from ops.bench.runners.answering import Stepped, serve

KV_GIB = 2


class Vllm:
    def __init__(self, model: str, rows: int) -> None:
        from vllm import EngineArgs, LLMEngine

        self._engine = LLMEngine.from_engine_args(
            EngineArgs(
                model=model,
                dtype="bfloat16",
                max_model_len=2048,
                max_num_seqs=rows,
                max_num_batched_tokens=2048,
                enable_prefix_caching=False,
                disable_log_stats=True,
            )
        )

    def add(self, id_: int, prompt: list[int], max_tokens: int) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        greedy = SamplingParams(
            temperature=0.0,
            max_tokens=max_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        self._engine.add_request(str(id_), {"prompt_token_ids": prompt}, greedy)

    def step(self) -> dict[int, list[int]]:
        outputs = [(int(one.request_id), list(one.outputs[0].token_ids)) for one in self._engine.step()]
        return {id_: ids for id_, ids in outputs if ids}

    def close(self) -> None:
        """It is all in this process, which ends."""


def _load() -> tuple[Stepped, str]:
    model, threads, rows = sys.argv[1:]
    os.environ |= {  # all threads to the model, no second process, nothing told to anyone
        "VLLM_CPU_KVCACHE_SPACE": str(KV_GIB),
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{int(threads) - 1}",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": threads,
    }
    import vllm

    return Vllm(model, int(rows)), str(vllm.__version__)


if __name__ == "__main__":
    serve("vllm", _load)
