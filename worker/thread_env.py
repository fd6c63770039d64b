"""What the engine's process is started with, beside what a user has set."""

from __future__ import annotations

THREAD_ENV = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "10000"}
"""How the engine's threads wait for each other: they spin for some tens of microseconds, which on idle cores saves a
sixth of a step, and then sleep; spinning on, they would take cores that the loop's process and Redis need."""
