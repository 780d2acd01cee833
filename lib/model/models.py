"""Loading a model and its tokenizer, and putting transformer-lens hooks on that very model."""

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lib.book import arrays, files, hub
from lib.book.hub import local_or_hub
from lib.model import precision
from lib.model.sites import Site, site
from lib.profiles.tables import Profile

transformers.utils.logging.disable_progress_bar()


@dataclass(frozen=True)
class LanguageModel:
    """A Hugging Face model, its tokenizer, and a TransformerBridge around that same model.

    Hooks set on `bridge` act on `hf` too, its `generate` included; without hooks the logits are those
    of the model before it was bridged, bit for bit (GPT-2's up to rounding).
    """

    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    bridge: TransformerBridge
    lock: threading.RLock = field(default_factory=threading.RLock, compare=False, repr=False)
    """Held by the thread that has hooks on the model; another one waits, and never runs with hooks that are not its own."""

    @property
    def n_layers(self) -> int:
        return self.hf.config.num_hidden_layers

    @property
    def d_model(self) -> int:
        return self.hf.config.hidden_size

    def width(self, site: Site | None = None) -> int:
        """Numbers that a dictionary reads at a site: of z those of all heads, else d_model."""
        heads = self.hf.config.num_attention_heads * getattr(self.hf.config, "head_dim", 0)
        return heads if site is not None and site.name == "z" and heads else self.d_model

    @cached_property
    def points(self) -> dict[str, HookPoint]:
        """Every hook point of the bridge, by each of its names."""
        return self.bridge.hook_dict

    @contextmanager
    def hooks(self, hooks: Sequence[tuple[str, Callable]]) -> Iterator[None]:
        """`bridge.hooks`, which makes that table anew for every name: some milliseconds each, as long as a block takes.

        One thread at a time: another waits until these hooks are gone.
        """
        with self.lock:
            yield from self._hooked(hooks)

    def _hooked(self, hooks: Sequence[tuple[str, Callable]]) -> Iterator[None]:
        self.bridge.context_level += 1
        level, added = self.bridge.context_level, []
        try:
            for name, hook in hooks:
                self.points[name].add_hook(hook, level=level)
                added.append(self.points[name])
            yield
        finally:
            for point in added:
                point.remove_hooks(level=level)
            self.bridge.context_level -= 1

    def site(self, name: str, layer: int) -> Site:
        """The site of that name in a layer (`lib.model.sites`)."""
        return site(self.hf.config.model_type, name, layer, self.d_model)


def load_hf(source: Path | str, dtype: str, revision: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in evaluation mode, and its tokenizer, from a folder or the hub.

    Attention is eager: Gemma-2's soft-capping has no fused kernel. `ValueError`, one line, for what
    cannot be fetched, for a folder that lacks a file or holds a damaged one, and for weights that are missing, of another
    shape or not finite. Warns of a dtype that is slow here.
    """
    folder = hub.folder(source, revision)
    check_folder(folder)
    tokenizer = load_tokenizer(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for note in precision.slow(getattr(torch, dtype), device):
        warnings.warn(note, stacklevel=2)
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation="eager", device_map=device,
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    except Exception as error:  # a damaged file may end in any of them
        raise ValueError(
            f"{folder}: transformers cannot load it ({files.first_line(error)}); make or download it again"
        ) from None
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"{folder}: no weights for {_some(missing)}; make or download the model again")
    if other := sorted(str(name) for name, *_ in found["mismatched_keys"]):
        raise ValueError(f"{folder}: {_some(other)} is of another shape than config.json says; make or download it again")
    arrays.finite(folder, dict(model.named_parameters()), "train or download the model again")
    return model.eval(), tokenizer


def load_tokenizer(source: Path | str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model in a folder or on the hub; `ValueError`, one line, without one that ends texts."""
    folder = hub.folder(source, revision, hub.TOKENIZER)
    if not (folder / "tokenizer_config.json").exists():
        raise ValueError(f"{folder}: no tokenizer_config.json, which says how texts begin and end; save the tokenizer there")
    for file in sorted(folder.glob("*.json")):
        files.json_object(file)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # tokenizers raises plain Exception for what it cannot read
        raise ValueError(
            f"{folder}: its tokenizer cannot be loaded ({files.first_line(error)}); save or download it again"
        ) from None
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{folder}: its tokenizer has no eos_token, and answers must end; name one in tokenizer_config.json")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # padding is masked, so any token will do
    tokenizer.split_special_tokens = True  # "<eos>" that somebody has written in a prompt is text, and ends nothing
    return tokenizer


def check_folder(folder: Path) -> None:
    """Raise a one-line `ValueError` where a model folder lacks its configuration or (a file of) its weights, or one is cut."""
    if not (folder / "config.json").exists() or not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder}: no config.json and *.safetensors there; make or download the model again")
    files.json_object(folder / "config.json")
    index = folder / "model.safetensors.index.json"
    parts = files.json_object(index).get("weight_map", {}).values() if index.exists() else ()
    for file in sorted({folder / str(part) for part in parts} | set(folder.glob("*.safetensors"))):
        files.present(file)
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{file}: damaged or truncated ({error}); make or download it again") from None


def _some(names: list[str]) -> str:
    """The first of many names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def bridged(hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> LanguageModel:
    """Put hook points on a loaded model. From now on it is run through the bridge's modules."""
    # booting gives a tokenizer the BOS and the padding side that it wants itself, so it gets one of its own
    bridge = TransformerBridge.boot_transformers(tokenizer.name_or_path, hf_model=hf, tokenizer=deepcopy(tokenizer))
    return LanguageModel(hf, tokenizer, bridge)


def load_plain(profile: Profile, folder: Path | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The profile's model and tokenizer, or those in `folder`, as transformers has them."""
    if folder is None:
        return load_hf(local_or_hub(profile.model.source), profile.model.dtype, profile.model.revision)
    return load_hf(folder, profile.model.dtype)


def load(profile: Profile, folder: Path | None = None) -> LanguageModel:
    """The profile's model with hooks; or the one in `folder`, such as the finetuned one."""
    return bridged(*load_plain(profile, folder))


def layers_of(profile: Profile, n_layers: int) -> list[int]:
    """The layers the profile studies; a one-line `ValueError` for a layer the model lacks."""
    layers = list(range(n_layers)) if profile.transcoders.layers is None else profile.transcoders.layers
    for layer in layers:
        if layer >= n_layers:
            raise ValueError(
                f"profile {profile.name}: transcoders.layers has {layer}, but {profile.model.source} "
                f"has layers 0 to {n_layers - 1}; name one of these"
            )
    return layers


def studied(profile: Profile, model: LanguageModel, name: str = "") -> list[Site]:
    """The sites of all the layers studied, under that name; under that of the profile's protocol where it is left out."""
    return [model.site(name or profile.tool.protocol.site, layer) for layer in layers_of(profile, model.n_layers)]


def control_sites(profile: Profile, model: LanguageModel) -> list[Site]:
    """The sites that chapter 8 replaces together."""
    return [model.site(profile.tool.protocol.site, layer) for layer in control_layers(profile, model.n_layers)]


def control_layers(profile: Profile, n_layers: int) -> list[int]:
    """The layers that chapter 8 replaces together; a one-line `ValueError` for one that the profile does not study."""
    studied = layers_of(profile, n_layers)
    layers = studied if profile.tool.controls.layers is None else profile.tool.controls.layers
    if unknown := set(layers) - set(studied):
        raise ValueError(
            f"profile {profile.name}: tool.controls.layers has {min(unknown)}, but the layers studied are {studied}"
        )
    return layers
