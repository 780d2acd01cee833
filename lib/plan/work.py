"""The shapes of a profile's work."""

import re
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from lib.book.hub import local_or_hub
from lib.book.paths import ROOT
from lib.dictionary import deltas
from lib.dictionary.bases import on_offer
from lib.dictionary.layouts import LAYOUTS
from lib.model import encoding, models
from lib.model.adapters import with_lora
from lib.model.encoding import Encoded
from lib.model.sites import ARCHITECTURES
from lib.profiles.tables import Profile
from lib.studies.tool import splits
from lib.texts import jsonl, prompts

STAND_IN = ROOT / "data/nano/model"
"""Its tokenizer counts where a model's own is not here; with far fewer words it gives more tokens, never fewer."""


def to_be_made(source: str, how: object) -> bool:
    """Whether a folder is not there yet, and the profile says how it is made."""
    return how is not None and not (ROOT / source).is_dir()


def config_of(profile: Profile) -> PreTrainedConfig:
    """The model's config, from its folder or the hub's cache; or else the one in the profile. Nothing is downloaded."""
    try:
        if to_be_made(profile.model.source, profile.model.package):
            raise OSError
        return AutoConfig.from_pretrained(
            local_or_hub(profile.model.source), revision=profile.model.revision, local_files_only=True
        )
    except OSError:
        if profile.model.config:
            return AutoConfig.for_model(**profile.model.config)
        raise ValueError(
            f"profile {profile.name}: {profile.model.source} is not on this machine and model.config is not in the profile; "
            "add it (model_type, hidden_size, ... as in its config.json), or download the model"
        ) from None


def tokenizer_of(profile: Profile) -> tuple[PreTrainedTokenizerBase, bool]:
    """The model's tokenizer, or the stand-in; and whether it is the model's own."""
    try:
        if to_be_made(profile.model.source, profile.model.package):
            raise OSError
        source, revision = local_or_hub(profile.model.source), profile.model.revision
        return AutoTokenizer.from_pretrained(source, revision=revision, local_files_only=True), True
    except OSError:
        return AutoTokenizer.from_pretrained(STAND_IN), False


def is_here(profile: Profile) -> bool:
    """Whether a model need not be downloaded."""
    source = profile.model.source
    if to_be_made(source, profile.model.package):
        return False
    files = ("model.safetensors", "model.safetensors.index.json")
    here = local_or_hub(source)
    return isinstance(here, Path) or any(isinstance(try_to_load_from_cache(here, file), str) for file in files)


def bases_to_download(work: "Work") -> int:
    """Files of transcoders that are neither in a folder here nor in the hub's cache."""
    settings = work.profile.transcoders
    if settings.made or isinstance(source := local_or_hub(settings.source), Path):
        return 0
    cache = Path(HF_HUB_CACHE, f"models--{source.replace('/', '--')}", "snapshots")
    here = {"/".join(path.relative_to(cache).parts[1:]) for path in cache.rglob("*") if path.is_file()}
    patterns = [re.compile(LAYOUTS[settings.layout].files.format(layer=layer, width=settings.width)) for layer in work.layers]
    found = [name for name in here if any(pattern.fullmatch(name) for pattern in patterns)]
    return max(0, len(work.layers) * len(settings.l0_ranks) - len(found))


def d_sae_of(profile: Profile) -> int:
    """Features of a base: from a file of them, or from the width's name, such as 16k."""
    settings = profile.transcoders
    if to_be_made(settings.source, settings.made):
        return settings.made.d_sae
    if isinstance(local_or_hub(settings.source), Path):
        layer = settings.layers[0] if settings.layers else 0
        return next(iter(on_offer(settings, layer).values()))().d_sae
    if not (name := re.fullmatch(r"(\d+)([km]?)", settings.width)):
        raise ValueError(f"profile {profile.name}: transcoders.width {settings.width!r} is not like 16k; say it so")
    return int(name[1]) * {"": 1, "k": 2**10, "m": 2**20}[name[2]]


def used(batches: list[Encoded]) -> int:
    """Tokens without padding and the first of each row."""
    return sum(int(batch.attention.sum()) - len(batch.ids) for batch in batches)


@dataclass(frozen=True)
class Work:
    """The shapes of a profile's work."""

    profile: Profile
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    own_tokenizer: bool
    d_sae: int

    @classmethod
    def of(cls, profile: Profile) -> "Work":
        return cls(profile, config_of(profile), *tokenizer_of(profile), d_sae_of(profile))

    @property
    def d_model(self) -> int:
        return self.config.hidden_size

    @cached_property
    def layers(self) -> list[int]:
        return models.layers_of(self.profile, self.config.num_hidden_layers)

    @property
    def at_once(self) -> int:
        return len(deltas.groups(self.profile, self.layers)[0])

    @property
    def n_bytes(self) -> int:
        """Of a number of the model."""
        return getattr(torch, self.profile.model.dtype).itemsize

    @cached_property
    def splits(self) -> dict[str, list[prompts.Prompt]]:
        asked = self.profile.tool.prompts
        on_hub = asked.copies and "://" in asked.copies  # nothing is downloaded; the project's own sentences stand in
        return splits.splits(asked.model_copy(update={"copies": None}) if on_hub else asked, self.profile.tool.grammar)

    @cached_property
    def encoded(self) -> dict[str, list[Encoded]]:
        size = self.profile.tool.evaluation.forward_batch
        return {split: encoding.streamed(self.tokenizer, asked, size) for split, asked in self.splits.items()}

    def tokens(self, *splits: str, padded: bool = False) -> int:
        """Tokens whose activations are used; or, `padded`, all that go through the model."""
        batches = [batch for split in splits for batch in self.encoded[split]]
        return sum(batch.ids.numel() for batch in batches) if padded else used(batches)

    @property
    def each_split(self) -> tuple[int, int]:
        """Tokens that deltas are trained on, and validated on."""
        return self.tokens("train"), self.tokens("validation")

    @cached_property
    def longest(self) -> int:
        return max(batch.ids.shape[1] for batches in self.encoded.values() for batch in batches)

    @cached_property
    def answer(self) -> int:
        """Tokens that a generation is allowed."""
        longest = max(int(batch.answer.sum(1).max()) for batch in self.encoded["test"])
        return longest + self.profile.tool.evaluation.margin

    @cached_property
    def control_tokens(self) -> int:
        """Tokens that controls are made from."""
        asked = [
            q
            for split in ("train", "validation")
            for q in jsonl.at_most(self.splits[split], self.profile.tool.controls.prompts)
        ]
        return used(encoding.streamed(self.tokenizer, asked, 64))

    @cached_property
    def mlp(self) -> int:
        """Parameters of an MLP with its norms."""
        architecture = ARCHITECTURES[self.config.model_type]
        block = getattr(self.meta.base_model, architecture.blocks)[0]
        return sum(p.numel() for name in architecture.modules for p in getattr(block, name).parameters())

    @cached_property
    def meta(self) -> torch.nn.Module:
        """The model without memory."""
        return self.built()

    def built(self) -> torch.nn.Module:
        dtype = getattr(torch, self.profile.model.dtype)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(deepcopy(self.config), dtype=dtype, attn_implementation="eager")

    @cached_property
    def parameters(self) -> int:
        return self.meta.num_parameters()

    @cached_property
    def flops_a_token(self) -> float:
        """Of a forward pass."""
        ids = torch.zeros(1, self.longest, dtype=torch.long, device="meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.meta(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        return counter.get_total_flops() / ids.numel()

    @cached_property
    def learning(self) -> tuple[int, float, float]:
        """Trained parameters of the LoRA; and of one micro-batch, bytes kept for backpropagation and operations."""
        with torch.device("meta"):
            model = with_lora(self.built(), self.profile.tool.finetune)
        ids = torch.zeros(self.profile.tool.finetune.micro_batch, self.longest, dtype=torch.long, device="meta")
        own, kept = {p.untyped_storage()._cdata for p in model.parameters()}, {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage()._cdata] = tensor
            return tensor

        with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
        size = sum(tensor.untyped_storage().nbytes() for storage, tensor in kept.items() if storage not in own)
        return sum(p.numel() for p in model.parameters() if p.requires_grad), size, counter.get_total_flops()
