"""The same jobs on this machine or on a Ray cluster, with the same results.

`ENGINE=local`, the default, runs them here, one after another. `ENGINE=ray` spreads them over the cluster at
`RAY_ADDRESS`, or over one started on this machine: a GPU to each job where the cluster has any, else a CPU core. A
job whose worker dies is done again, by another, and nothing else is. Workers read and write the project's
folder, which all machines of a cluster must share.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

from tqdm.auto import tqdm

from lib.book.paths import ROOT

RETRIES = 3  # of a job whose worker died


def each(function: Callable, arguments: Sequence[tuple], progress: str = "jobs") -> list[Any]:
    """`function(*a)` for each `a`, in their order. An exception in a job is raised here."""
    if _engine() == "local":
        return [function(*a) for a in arguments]
    ray = _ray()
    # one worker process a job at a time; what it loads stays loaded for its next job
    remote = ray.remote(max_retries=RETRIES, **_a_slot())(function)
    waiting = [remote.remote(*a) for a in arguments]
    place, found = {ref: i for i, ref in enumerate(waiting)}, [None] * len(waiting)
    for _ in tqdm(arguments, desc=f"{progress} on {slots()} workers"):
        [done], waiting = ray.wait(waiting)
        found[place[done]] = ray.get(done)
    return found


def slots() -> int:
    """How many jobs run at once."""
    if _engine() == "local":
        return 1
    [kind] = [name[4:-1].upper() for name, n in _a_slot().items() if n]
    return int(_ray().cluster_resources()[kind])


def _engine() -> str:
    engine = os.environ.get("ENGINE", "local")
    if engine not in ("local", "ray"):
        raise ValueError(f"ENGINE={engine}: no such engine; use local or ray")
    return engine


def _ray():
    """The ray module, connected to its cluster."""
    try:
        import ray
    except ImportError:
        raise ValueError("ENGINE=ray: ray is not installed; run `make .venv/ray`") from None
    if not ray.is_initialized():
        # workers import `lib` from this folder
        ray.init(runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}}, include_dashboard=False, logging_level="warning")
    return ray


def _a_slot() -> dict[str, int]:
    """What one job takes: a GPU, or a core."""
    return {"num_gpus": 1, "num_cpus": 0} if _ray().cluster_resources().get("GPU") else {"num_cpus": 1}
