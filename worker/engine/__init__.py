"""Continuous batching over paged K/V: token ids in, token ids out. No Redis and no text in here.

engine.py     Engine: add, cancel, step, generate; what a step does, from top to bottom
config.py     EngineConfig: everything that can be set, checked in one place
sequence.py   SequenceParams, Sequence: its tokens while it is here
scheduler.py  which sequences run in a step and how many tokens of each; admit and preempt
plan.py       Plan: what a step is to compute
outcome.py    what comes out: of a step, of a sequence, counted since the start
speculation.py  guesses of what comes next, by prompt lookup; whether they pay
budget.py     how many tokens the next step may take, from what steps have taken
headroom.py   how many pages admission leaves free
kv_format.py  what pages hold: the model's dtype, or a smaller one with scales
weight_form.py  what projections are kept as, and what weights take
resolve.py    what a configuration comes to on this machine: device, dtype, operations, pages
gpu_fit.py    whether a model can run on the GPU that is here
cpu_start.py  what an engine runs with on a CPU
gpu_start.py  what an engine runs with on a GPU, in the order in which it needs memory
cuda.py       a GPU as a DeviceRunner sees it: pinned buffers, graphs, memory
pages.py      PagePool: pages of K/V memory, counted references, and the cache of those that are full
prefix.py     the keys that pages are found by
runner.py     Runner: what a plan is handed to; PlainRunner, one step after the other
adjustments.py  bias, penalties and the like, for rows that ask for them; log-probabilities
rows.py       RowTable: its rows, the state of every seat of the batch, as tensors
device_runner.py  DeviceRunner: rows on a device, so that steps can run ahead of what has been read
row_state.py  RowState: those rows, and the changes staged for them
step_shape.py  what steps are padded to, so that a device can keep them as graphs
devices.py    what a DeviceRunner asks of a device; the CPU
memory.py     how much memory the pool may take
torch_first.py  torch, imported faster
serve.py      the engine in a process of its own, behind one connection
"""

from worker.engine import torch_first  # noqa: F401 (before all that imports torch)
from worker.engine.config import ConfigError, EngineConfig, SlowerBackend
from worker.engine.engine import Engine
from worker.engine.outcome import Completion, Emission, StepOutput
from worker.engine.sequence import FinishReason, SequenceParams, Unservable

__all__ = [
    "Completion",
    "ConfigError",
    "Emission",
    "Engine",
    "EngineConfig",
    "FinishReason",
    "SequenceParams",
    "SlowerBackend",
    "StepOutput",
    "Unservable",
]
