"""On the path of every worker of tests/worker/process.py: what a test has its engine do. Python runs this at its start.

SLOW names a file: while it is there, each of a sequence's tokens takes as many seconds as it says, on any machine. And
POISON is a prompt, as ids: the step in which it takes part kills engine and worker, as a job does that makes a kernel
fault or memory run out, whoever its neighbours are.
"""

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

if "worker.engine.serve" in sys.orig_argv:
    from worker.engine import Engine, StepOutput
    from worker.engine.scheduler import Scheduler

    slow = Path(os.environ["SLOW"])
    poison = [int(token) for token in os.environ.get("POISON", "").split()]
    plan, step = Scheduler.plan, Engine.step

    def deadly_plan(self: Scheduler) -> object:
        made = plan(self)
        if any(list(sequence.prompt) == poison for sequence in made.tokens):
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        return made

    def slow_step(self: Engine) -> StepOutput:
        output = step(self)  # the pause is not part of it: what steps cost is measured within
        with suppress(FileNotFoundError):
            token_s = float(slow.read_text())
            time.sleep(token_s * max((len(emission.token_ids) for emission in output.emissions), default=0))
        return output

    Engine.step = slow_step  # type: ignore[method-assign]
    if poison:
        Scheduler.plan = deadly_plan  # type: ignore[method-assign,assignment]
