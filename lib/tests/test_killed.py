"""Killed at any file event, a run leaves what the next one finishes to the same result (`lib.tests.killed` tries all)."""

import os
import re
import subprocess
import sys

import pytest

from lib.book.paths import ROOT


@pytest.mark.parametrize(("job", "stride"), [("finetune", 24), ("deltas", 21), ("base", 61), ("natural", 13)])
def test_every_kill_point_is_survived(job, stride):
    command = [sys.executable, "-m", "lib.tests.killed", job, str(stride)]
    quiet = os.environ | {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=quiet, timeout=600)
    assert done.returncode == 0 and done.stdout.endswith(", 0 not survived\n"), done.stdout + done.stderr[-2000:]
    assert int(re.search(r"points of (\d+)", done.stdout)[1]) >= 30, "as many as there are file events"
