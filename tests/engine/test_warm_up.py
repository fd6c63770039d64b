"""What is compiled before the first job, seen without a GPU: every launch of Triton is recorded, and none runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import sys

import torch
from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any
from unittest.mock import patch

from kernels.gpu.architectures import Architecture
from kernels.table import Backend, ops_for
from ops.aot.record import record
from worker.engine import Engine, EngineConfig, SequenceParams
from worker.engine.device_runner import DeviceRunner
from worker.engine.devices import HostDevice
from worker.models.config import parse_config
from worker.models.decoder import Decoder
from worker.models.projections import Keep
from worker.models.random_weights import RandomWeights

with patch("torch.cuda.is_available", lambda: True):
    triton, reference = ops_for(Backend.TRITON), ops_for(Backend.TORCH)

def both(name):
    def call(*given, **how):
        getattr(triton, name)(*given, **how)
        return getattr(reference, name)(*given, **how)
    return call

# what these give is used as an index: it has to be real
real = ("write_spans", "prepare_batch", "sampling_inputs", "sample", "append_tokens", "token_logprobs")
ops = replace(triton, **{name: both(name) for name in real})
shape = parse_config({"architectures": ["Qwen3ForCausalLM"], "vocab_size": 320, "hidden_size": 64, "head_dim": 32,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "intermediate_size": 128,
    "max_position_embeddings": 512, "tie_word_embeddings": True}, None)
config = EngineConfig(max_rows=10, token_budget=int(sys.argv[2]), page_size=16, step_time_s=None, ahead=True,
    device="cpu")
with torch.inference_mode():
    decoder = Decoder(RandomWeights(torch.device("cpu"), tied=True), shape, ops, torch.bfloat16, max_len=512,
        deterministic=False, keep=Keep(sys.argv[1]))
    kv = torch.zeros(2, 60, 2, 2, 16, 32, dtype=torch.bfloat16)
    runner = DeviceRunner(decoder, ops, HostDevice(), kv, config.max_rows, 512, config.token_budget, exact_noise=False)
    warm = {launch.key for launch in record(runner.warm_up, Architecture.SM_90)}
engine = Engine(decoder, ops, config, kv, runner, 512, ahead=True)
drawn = Random(1)

def run():
    while engine.stats.steps <= 60:  # what a text draws is anything here, its end too
        prompts = [[drawn.randrange(320) for _ in range(drawn.choice([1, 2, 5, 17, 60, 100]))] for _ in range(13)]
        params = [SequenceParams(drawn.randint(1, 12), temperature=drawn.choice([0.0, 1.0]), seed=drawn.randrange(99))
            for _ in prompts]
        params[::3] = [replace(own, presence_penalty=0.5, logit_bias=((3, 1.0),), bad_words=((5, 6),), logprobs=at % 3,
            allowed_token_ids=tuple(range(200))) for at, own in enumerate(params[::3])]
        engine.generate(prompts, params)

cold = Counter(launch.key for launch in record(run, Architecture.SM_90) if launch.key not in warm)
print(engine.stats.steps, len(warm), dict(cold))
"""


@pytest.mark.parametrize(("keep", "token_budget"), [("as read", "48"), ("int4", "96")])
def test_nothing_is_compiled_once_the_engine_is_warm(keep: str, token_budget: str):
    """Every variant of every kernel that mixed steps and decodes of all widths launch was launched in warm-up, those
    that adjust logits and tell log-probabilities too; with quantised weights in steps of few, some and so many tokens
    that they are written out."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, keep, token_budget],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    steps, variants, cold = ran.stdout.split(" ", 2)
    assert int(steps) > 60
    assert int(variants) < 50
    assert cold.strip() == "{}"
