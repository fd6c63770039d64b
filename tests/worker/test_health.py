"""`python -m worker health`: what a container's health check runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import pytest

from tests.worker.process import ROOT


@pytest.fixture
def health(tmp_path):
    """Run it on a health file; exit code and what it says."""

    def run(**environment):
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SLIPSTREAM_")}
        command = [sys.executable, "-m", "worker", "health"]
        done = subprocess.run(
            command, cwd=ROOT, env={**kept, **environment}, capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, done.stdout + done.stderr

    return run


def test_a_worker_that_is_well_touches_its_file(worker, health_file, wait_until, health):
    """While it is idle and while it works the file stays fresh."""
    wait_until(health_file.exists, 30, "the health file is there")
    touched = health_file.stat().st_mtime
    wait_until(lambda: health_file.stat().st_mtime > touched, 30, "the health file is touched again")
    assert health(SLIPSTREAM_HEALTH_FILE=str(health_file)) == (0, "healthy\n")


def test_a_file_that_has_grown_old_is_ill(tmp_path, health):
    """No progress: exit code 1, and for how long."""
    file = tmp_path / "healthy"
    file.touch()
    os.utime(file, (time.time() - 60,) * 2)
    code, said = health(SLIPSTREAM_HEALTH_FILE=str(file))
    assert code == 1
    assert re.search(r"last touched \d\d+ s ago: the worker makes no progress", said)


def test_no_file_is_ill(tmp_path, health):
    """Not started yet, or started without the setting."""
    code, said = health(SLIPSTREAM_HEALTH_FILE=str(tmp_path / "nothing"))
    assert code == 1
    assert "has not started" in said


def test_no_setting_is_a_mistake_of_the_caller(health):
    """Exit code 2, which says that nothing is known of the worker's health."""
    code, said = health()
    assert code == 2
    assert "SLIPSTREAM_HEALTH_FILE is not set" in said
