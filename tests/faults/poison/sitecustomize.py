"""On the path of a worker's engine: the step in which a prompt of POISON's ids takes part kills engine and worker.

As a job does that makes a kernel fault or memory run out, whoever its neighbours are. Python runs this at its start.
"""

import os
import signal
import sys

if "worker.engine.serve" in sys.orig_argv:
    from worker.engine.scheduler import Scheduler

    poison = [int(token) for token in os.environ["POISON"].split()]
    plan = Scheduler.plan

    def deadly_plan(self: Scheduler) -> object:
        made = plan(self)
        if any(list(sequence.prompt) == poison for sequence in made.tokens):
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        return made

    Scheduler.plan = deadly_plan  # type: ignore[method-assign,assignment]
