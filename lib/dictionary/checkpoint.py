"""Where a training stood, in a file."""

import pickle
import time
import warnings
from pathlib import Path

import torch

from lib.book.paths import replacing


class Checkpoint:
    """Where a training stood at its last check, in a file.

    `of` says which training; what another one left in the file is passed over with a warning. `ValueError` for a damaged file.
    """

    def __init__(self, path: Path, of: str, device: torch.device | str = "cpu"):
        self.path, self.of, self.state = path, of, {}
        if path.exists():
            try:
                state = torch.load(path, device, weights_only=True)
            except (RuntimeError, OSError, EOFError, pickle.UnpicklingError):
                raise ValueError(f"{path}: damaged or not a checkpoint; delete it to train from the start") from None
            if not isinstance(state, dict) or state.get("of") != of:
                warnings.warn(f"{path}: of another training (other settings, data or code); begun anew", stacklevel=3)
                state = {}
            self.state = state
        self.began = time.time() - self.state.get("seconds", 0.0)

    @property
    def seconds(self) -> float:
        """How long it took, in all its runs, up to now."""
        return time.time() - self.began

    @property
    def step(self) -> int:
        """How many steps are done."""
        return self.state.get("step", 0)

    def save(self, **state) -> None:
        with replacing(self.path) as temporary:
            torch.save({"of": self.of, "seconds": self.seconds, **state}, temporary)
