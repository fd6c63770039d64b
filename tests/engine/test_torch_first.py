"""How the engine is imported: quickly, and leaving the collector as it was."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("before", ["enable", "disable"])
def test_the_collector_is_left_as_it_was_and_looks_at_none_of_torch(before: str):
    """On or off; over 100,000 objects are set aside."""
    program = f"import gc; gc.{before}(); import worker.engine; print(gc.isenabled(), gc.get_freeze_count() > 100_000)"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.split() == [str(before == "enable"), "True"]
