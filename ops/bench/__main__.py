"""`make bench`, `python -m ops.bench [engine|online|sweep|...]`: what the worker costs, measured.

Each bench is one file of this folder with a `main(arguments)`; a new one is a file and a line in BENCHES. `--help`
after a bench's name lists its flags. Kept beside them: LOG.md, what was tried and what came of it.

peers.py peer.py runners/  other systems in their own environments
models.py               the random model that is measured on
workload.py             the requests
systems.py              ways of answering them with this engine; what a run brings
transformers_static.py  the same with transformers
figures.py latencies.py  a run in numbers; what a reader feels of it
loop_worker.py          the worker that `loop` measures, in its three ways
queue_systems.py queue_throughput.py queue_latency.py queue_publish.py
                        what `queue` measures, a part each; and on whom
queue_worker.py queue_readers.py queue_peer.py
                        its programs: our worker without an engine, our readers, a peer's worker and client
machine.py              the machine, the versions, and what else keeps it busy
gpu_transformers.py     what `gpu_engine` is put beside; gpu_prompts.py its prompts
kernel_cases.py device.py ceilings.py  bytes and operations; ceilings of a GPU and of a CPU
report.py charts.py     flags, tables, JSON; pictures
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from ops.bench.report import BenchError
from worker.thread_env import THREAD_ENV

BENCHES = {
    "engine": "this engine beside transformers and beside itself in static batches (the default)",
    "online": "Poisson arrivals: first token, gaps and whole jobs by length",
    "sweep": "ms a step and tokens/s against width, context, queue length and job length, beside their floors",
    "static": "continuous batching against static batches, by how the outputs' lengths are spread",
    "pool": "a page pool of half of what is needed: head-room against reserving, and against admitting what fits",
    "long_prompts": "the worst gap of jobs that decode while long prompts keep coming",
    "prefix": "the prefix cache where prompts begin alike, and what it costs where none does",
    "peers": "beside OpenVINO, vLLM and llama.cpp, where they are given, offline and online",
    "startup": "seconds from the start of a process to its first token, and its memory",
    "overhead": "microseconds a step of the engine takes with the maths taken out",
    "int8": "K/V and weights of int8 beside bf16: exact match, logits, speed and memory",
    "speculation": "tokens/s with speculation by prompt lookup, as a multiple of those without",
    "loop": "a step's time while rows stream through Redis: the Redis half as a process and as a thread",
    "queue": "the queue layer by itself, with an engine that computes nothing; beside other queues",
    "gpu_engine": "decoding on a GPU against the floor, on random weights; without one the floors alone",
    "gpu_profile": "where a decode step's time goes on a GPU, by kernel, and the host's, by function",
    "kernels": "each Triton kernel against the roofline; without a GPU the floors alone, as predictions",
}

ON_GPU = ("gpu_engine", "gpu_profile", "kernels")
"""The others measure what runs on a CPU, everywhere."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench that the first argument names, `engine` if it names none. Returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] in (["-h"], ["--help"]):
        print("usage: python -m ops.bench [bench] [flags of the bench]\n")
        print("\n".join(f"  {name:<13}{what}" for name, what in BENCHES.items()))
        print("\n`python -m ops.bench engine --help` lists a bench's flags.")
        return 0
    named = bool(given) and not given[0].startswith("-")
    name = given[0] if named else "engine"
    if name not in BENCHES:
        print(f"bench: there is no bench {name!r}; there are {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    if name not in ON_GPU:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the engine would take a GPU, and the others would not
    try:
        code: int = importlib.import_module(f"ops.bench.{name}").main(given[1:] if named else given)
    except BenchError as error:
        return _complain(error, 1)
    except Exception as error:
        for where, kind, refused in (("ops.redis_server", "RedisUnavailable", 1), ("worker.engine", "ConfigError", 2)):
            loaded = sys.modules.get(where)  # what raises it has loaded it; a GPU machine has no redis to import
            if loaded is not None and isinstance(error, getattr(loaded, kind)):
                return _complain(error, refused)
        raise
    return code


def _complain(error: Exception, code: int) -> int:
    print(f"bench: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    for variable, value in THREAD_ENV.items():  # threads wait for each other as a worker's do; read as torch is loaded
        os.environ.setdefault(variable, value)
    sys.exit(main())
