"""What controls are made from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from lib.dictionary import bases, deltas
from lib.dictionary.dictionaries import Dictionary
from lib.model import activations, encoding, models
from lib.model.activations import Activations
from lib.model.hooks import Condition
from lib.model.models import LanguageModel
from lib.model.sites import DenseMLP, Site
from lib.profiles.organism import Training
from lib.profiles.tables import Profile
from lib.studies.tool import splits


def dense_mlps(profile: Profile, sites: Sequence[Site], folder: Path | None = None) -> dict[Site, DenseMLP]:
    """The MLPs of the profile's model, or of the one in `folder`, each by itself."""
    hf, _ = models.load_plain(profile, folder)
    return {site: DenseMLP(hf, site.layer) for site in sites}


@dataclass(frozen=True)
class Material:
    """What controls are made from, in the order of `sites`; `original`: of the model before it was finetuned."""

    sites: Sequence[Site]
    bases: dict[Site, Dictionary]
    train: Activations
    """The finetuned model's (x, y); `validation` likewise, and `original_*` the original's on the same prompts."""
    validation: Activations
    original_train: Activations
    original_validation: Activations
    finetuned_mlps: dict[Site, DenseMLP]
    original_mlps: dict[Site, DenseMLP]
    d_new: int
    settings: Training
    retrain: Training | None
    seed: int = 0
    left: list[tuple[Condition, Activations, Tensor]] = field(default_factory=list, compare=False, repr=False)
    """What `unexplained` found last."""

    def unexplained(self, mlps: Condition, of: Activations) -> Float[Tensor, "site token d_model"]:
        """y - mlp(x) at every site.

        Two are kept: most controls learn from what the bases leave of the same training and validation activations.
        """
        for known, there, found in self.left:
            if known is mlps and there is of:
                return found
        if len(self.left) == 2:
            self.left.clear()
        found = deltas.unexplained([[mlps[site]] for site in self.sites], of.x, of.y)[:, 0]
        self.left.append((mlps, of, found))
        return found


def seen_in(profile: Profile, model: LanguageModel, sites: Sequence[Site], split: str, of: str = "finetuned") -> Activations:
    """What flows through the sites on the prompts of a split from which controls are made."""
    asked = splits.read(profile, split, profile.tool.controls.prompts)
    batches = encoding.streamed(model.tokenizer, asked, profile.tool.evaluation.forward_batch)
    return activations.collect(model, sites, batches, f"{split}, {of} model")


def material(profile: Profile, model: LanguageModel, sites: Sequence[Site]) -> Material:
    """Of the widest delta at the middle L0 rank, `model` being the finetuned one."""
    (d_new, rank), study, original = deltas.widest(profile), profile.tool, models.load(profile)
    return Material(
        sites, bases.at_rank(profile, model, sites, rank),
        seen_in(profile, model, sites, "train"), seen_in(profile, model, sites, "validation"),
        seen_in(profile, original, sites, "train", "original"), seen_in(profile, original, sites, "validation", "original"),
        dense_mlps(profile, sites, profile.paths.finetuned), dense_mlps(profile, sites),
        d_new, study.deltas.training, study.controls.retrain, profile.seed,
    )  # fmt: skip


@dataclass(frozen=True)
class Control:
    """A replacement at every site, and what it cost."""

    mlps: Condition
    parameters: int
    """Trained ones, at each site; 0 where nothing is trained anew."""
    seconds: float
    """Of making it, for all sites."""
