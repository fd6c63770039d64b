"""Jobs that decode while long prompts keep coming: the worst gap between two of their tokens, against one step's time.

A prompt is computed in chunks, so a running job waits for one step at most, whatever is queued: it is counted that
every step brings each of them a token, and the slowest step is set against the slowest of `token_budget` tokens of the
same prompts with no one beside them. Three settings: prompts whole (what a scheduler with phases does),
chunks by the budget, chunks by the clock (a step time that is aimed at).

Exit codes: 0 measured, 1 a request failed or a job waited for more than one step, 2 bad flags or settings.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from ops.bench import report
from ops.bench.charts import Line, Panel, draw
from ops.bench.latencies import distribution, percentile
from ops.bench.machine import BUSY_CORES, Machine, Others
from ops.bench.online import model_of
from ops.bench.systems import Step, Wrong
from ops.bench.workload import prompts_of
from worker.engine import Engine, SequenceParams

WAITING = 2  # long prompts that are here at any time
RUNNING_PROMPT = 64  # tokens


def main(arguments: Sequence[str] | None = None) -> int:
    parser = report.parser("long_prompts", __doc__, runs=1)
    parser.add_argument("--workload", choices=("small", "mid"), default="small", help="the model (%(default)s)")
    parser.add_argument("--running", type=report.at_least_1, default=16, help="jobs that decode (%(default)s)")
    parser.add_argument(
        "--prompts", type=report.at_least_1, default=16, help="long ones, two waiting at any time (%(default)s)"
    )
    parser.add_argument("--length", type=report.at_least_1, default=3072, help="tokens of a long prompt (%(default)s)")
    parser.add_argument("--budget", type=report.at_least_1, default=512, help="token_budget (%(default)s)")
    parser.add_argument("--step-time-s", type=float, help="of the third setting (default: 0.02, mid 0.25)")
    given = parser.parse_args(arguments)
    if given.quick:
        given.prompts, given.length, given.running = 2, 200, 2
    return _bench(given)


def _bench(given: argparse.Namespace) -> int:
    machine = Machine.here(quick=given.quick)
    print("\n".join(machine.lines()))
    others = Others()
    aimed = given.step_time_s or (0.25 if given.workload == "mid" else 0.02)
    settings: dict[str, tuple[int, float | None]] = {
        "prompts whole": (given.length + given.running, None),
        f"chunks of {given.budget} tokens": (given.budget, None),
        f"chunks of {1000 * aimed:g} ms": (given.budget, aimed),
    }
    found, gaps, alone = [], dict[str, list[float]](), dict[int, list[float]]()
    for name, (budget, step_time_s) in settings.items():
        one, gaps[name] = _measure(name, budget, step_time_s, alone, given)
        found.append(one)
    model = model_of(given.workload, given.cache).name
    print(
        f"{model}, {given.threads} threads, bfloat16, backend {found[0]['backend']}; {given.running} jobs decode while "
        f"{given.prompts} prompts of {given.length} tokens come, two waiting at any time\n\n{_table(found)}"
    )
    names = ("threads", "backend", "running", "prompts", "length", "budget", "quick")
    kept = {name: getattr(given, name) for name in names} | {"model": model}
    busy = others.cores()
    path = report.keep("long_prompts", machine, kept, {"settings_found": found, "others_cores": busy}, save=given.save)
    if busy > BUSY_CORES:
        print(f"WARNING: other processes took {busy} cores: these figures say little")
    title = f"{given.running} jobs decode while prompts of {given.length} tokens come; {model}, {machine.cpu}"
    lines = [Line(name, *distribution(some)) for name, some in gaps.items()]
    panel = Panel("gap between two tokens of a running job", "ms", "share of gaps", lines, "x", True)
    print(f"picture: {draw(path.with_suffix('.png'), title, [panel])}")
    print(f"JSON: {path}")
    return 0


def _measure(
    name: str,
    budget: int,
    step_time_s: float | None,
    alone: dict[int, list[float]],
    given: argparse.Namespace,
) -> tuple[dict[str, Any], list[float]]:
    """One setting: its figures, and the gaps in ms. Raises Wrong if a running job got no token in a step.

    alone: by budget, seconds of steps that nobody decoded in; measured here where they are not there.
    """
    engine = Engine.from_pretrained(
        model_of(given.workload, given.cache),
        dtype="bfloat16",
        max_rows=given.running + WAITING,
        token_budget=budget,
        step_time_s=step_time_s,
        threads=given.threads,
        backend=given.backend,
        prefix_cache=False,
    )
    prompts = prompts_of(given.prompts, given.length)
    if budget not in alone:
        alone[budget] = _alone(engine, prompts)
    for row in range(given.running):
        (prompt,) = prompts_of(1, RUNNING_PROMPT, seed=row + 2)
        engine.add(row, prompt, SequenceParams(engine.max_len - RUNNING_PROMPT))
    while engine.step().tokens != given.running:
        pass
    decoding = [_timed(engine).seconds for _ in range(4 if given.quick else 40)]
    steps, first_s = _under_long_prompts(engine, prompts, given.running)
    gaps = [1000 * step.seconds for step in steps]
    slowest = 1000 * max(alone[budget])
    return {
        "setting": name,
        "token_budget": budget,
        "step_time_s": step_time_s,
        "backend": engine.backend.value,
        "steps": len(steps),
        "most_steps_between_tokens": 1,  # else it would have raised
        "most_tokens_a_step": max(step.tokens for step in steps),
        "gap_alone_ms": round(1000 * statistics.median(decoding), 2),
        "gap_p50_ms": round(percentile(gaps, 50), 2),
        "gap_p99_ms": round(percentile(gaps, 99), 2),
        "gap_worst_ms": round(max(gaps), 2),
        "step_of_budget_ms": round(slowest, 2),
        "worst_over_step": round(max(gaps) / slowest, 3),
        "first_token_p50_ms": round(1000 * statistics.median(first_s), 1),
        "prompt_tokens_per_s": round(given.prompts * given.length / sum(step.seconds for step in steps), 1),
    }, gaps


def _alone(engine: Engine, prompts: list[list[int]]) -> list[float]:
    """Seconds of each step of the whole budget that the prompts take with no one beside them, after one to warm up.

    As many steps as will be measured with others: the slowest of many is slower than the slowest of few.
    """
    steps = list[list[Step]]()
    for prompt in [prompts[0], *prompts]:
        engine.add(0, prompt, SequenceParams(1))
        steps.append([])
        while engine.has_work:
            steps[-1].append(_timed(engine))
    most = max(step.tokens for step in steps[0])
    return [step.seconds for several in steps[1:] for step in several if step.tokens == most]


def _timed(engine: Engine) -> Step:
    began = time.perf_counter()
    output = engine.step()
    return Step(time.perf_counter() - began, output.rows, output.tokens)


def _under_long_prompts(engine: Engine, prompts: list[list[int]], running: int) -> tuple[list[Step], list[float]]:
    """The steps, each from the end of the one before to its own, and each long prompt's seconds to its first token.

    Raises Wrong if one of the `running` sequences, 0 and up, got no token in a step.
    """
    coming, entered = deque(enumerate(prompts, running)), dict[int, float]()
    steps, first_s = list[Step](), list[float]()
    now = time.perf_counter()
    while coming or entered:
        while coming and len(entered) < WAITING:
            id_, prompt = coming.popleft()
            engine.add(id_, prompt, SequenceParams(1))  # ended by its first token
            entered[id_] = now
        output = engine.step()
        before, now = now, time.perf_counter()
        steps.append(Step(now - before, output.rows, output.tokens))
        emitted = {emission.id for emission in output.emissions}
        if not emitted.issuperset(range(running)):
            raise Wrong(f"{running - len(emitted & set(range(running)))} running jobs got no token in a step")
        first_s += [now - entered.pop(id_) for id_ in emitted if id_ >= running]
    return steps, first_s


def _table(found: list[dict[str, Any]]) -> str:
    rows = [
        [
            one["setting"],
            f"{one['gap_alone_ms']:.1f}",
            f"{one['gap_p50_ms']:.1f}/{one['gap_p99_ms']:.1f}",
            f"{one['gap_worst_ms']:.1f}",
            f"{one['step_of_budget_ms']:.1f}",
            f"{one['worst_over_step']:.2f}",
            f"{one['first_token_p50_ms']:.0f}",
            f"{one['prompt_tokens_per_s']:.0f}",
        ]
        for one in found
    ]
    head = ["ms", "gap without prompts", "with, p50/p99", "worst", "a step of the budget alone", "worst over step"]
    return report.table([*head, "first token of prompts", "prompt tokens/s"], rows)
