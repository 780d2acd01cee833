"""The feature browser beside sae-dashboard: the same SAE, the same tokens, the same weights; seconds a feature.

    python -m lib.bench.browsing

makes the environment that sae-dashboard needs, whole or not at all.
"""

import importlib.metadata
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

from lib.bench.timing import Run
from lib.book.paths import ROOT, discard
from lib.dictionary.dictionaries import Dictionary
from lib.measure import browse, browser
from lib.model import models
from lib.model.encoding import Encoded

DASHBOARD = "sae-dashboard==0.8.0"
ENVIRONMENT = ROOT / ".venv/dashboard/bin/python"
"""Of its own, for it wants an older transformers."""


@dataclass(frozen=True)
class Scene:
    """A GPT-2 of some size with random weights, an SAE in the middle of it, and tokens."""

    d_model: int = 256
    n_layers: int = 4
    d_sae: int = 4096
    rows: int = 128
    context: int = 128
    features: int = 256
    """That sae-dashboard looks at; ours looks at all in the same pass and makes a page of as many."""

    @cached_property
    def folder(self) -> tempfile.TemporaryDirectory:
        """Model, SAE and tokens in files, for the other interpreter."""
        return tempfile.TemporaryDirectory()

    @cached_property
    def made(self) -> tuple[models.LanguageModel, Dictionary, torch.Tensor]:
        """The model, the SAE and the tokens, which lie in `folder` too."""
        from sae_lens import StandardSAE, StandardSAEConfig
        from sae_lens.saes.sae import SAEMetadata

        place, tokenizer = Path(self.folder.name), models.load_tokenizer(ROOT / "data/nano/model")
        torch.manual_seed(0)
        config = GPT2Config(
            n_embd=self.d_model, n_layer=self.n_layers, n_head=4, n_positions=self.context, vocab_size=len(tokenizer),
            bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        hf = GPT2LMHeadModel(config).eval()
        hf.save_pretrained(place / "model")
        tokenizer.save_pretrained(place / "model")
        tokens = torch.randint(10, len(tokenizer), (self.rows, self.context))
        save_file({"tokens": tokens}, place / "tokens.safetensors")
        point = f"blocks.{self.n_layers // 2}.hook_resid_pre"
        theirs = StandardSAE(StandardSAEConfig(d_in=self.d_model, d_sae=self.d_sae, metadata=SAEMetadata(hook_name=point)))
        dictionary = Dictionary.initialised((), self.d_model, self.d_sae, 0)
        with torch.no_grad():
            x = hf(tokens[:2], output_hidden_states=True).hidden_states[self.n_layers // 2].flatten(0, 1)
            bias = -(x @ dictionary.W_enc).flatten().quantile(0.99)  # a hundredth of the features at a token
            theirs.W_enc.copy_(dictionary.W_enc)
            theirs.W_dec.copy_(dictionary.W_dec)
            theirs.b_enc.fill_(float(bias))
        theirs.save_model(place / "sae")
        model = models.bridged(*models.load_hf(place / "model", "float32"))
        return model, dictionary.changed(b_enc=torch.full((self.d_sae,), float(bias))), tokens

    def ours(self) -> Run:
        """Seconds a feature, of a pass that looks at all and a page of some."""
        model, dictionary, tokens = self.made
        site = model.site("resid_pre", self.n_layers // 2)
        batches = [Encoded(ids, torch.ones_like(ids), torch.zeros_like(ids, dtype=torch.bool)) for ids in tokens.split(64)]
        began = time.perf_counter()
        listed = list(range(self.features))
        found = browse.browse(model, site, dictionary, batches, chosen=listed)
        listed = [i for i in listed if found.active[i]]
        logits = browse.promoted(model, site, dictionary, listed, batches[0])
        data = browser.data(found, dictionary, model.tokenizer, tokens.tolist(), listed, {}, logits=logits)
        browser.page(data, "bench")
        return Run((time.perf_counter() - began) / self.features)

    def theirs(self) -> Run:
        """Seconds a feature of sae-dashboard."""
        command = [str(ENVIRONMENT), str(Path(__file__).with_name("dashboard.py")), self.folder.name, str(self.features)]
        said = subprocess.run(command, capture_output=True, text=True)
        if said.returncode:
            raise RuntimeError(f"{DASHBOARD} failed: {said.stderr.strip().splitlines()[-1]:.300}")
        return Run(json.loads(said.stdout.strip().splitlines()[-1])["seconds"] / self.features)


def install() -> None:
    """Make the environment; `sys.exit` with one line where that fails."""
    place = ENVIRONMENT.parents[1]
    torch_here = f"torch=={importlib.metadata.version('torch').split('+')[0]}"
    print(f"  {DASHBOARD} gets an environment of its own, {place.relative_to(ROOT)} ...", flush=True)
    for command in (
        [sys.executable, "-m", "venv", str(place)],
        [str(place / "bin/pip"), "install", "--quiet", "--disable-pip-version-check", torch_here, DASHBOARD, "pyarrow<21"],
        [str(place / "bin/pip"), "uninstall", "--quiet", "--yes", "torchvision", "torchaudio"],  # of another torch
    ):
        said = subprocess.run(command, capture_output=True, text=True)
        if said.returncode:
            discard(place)
            sys.exit(f"  {DASHBOARD} cannot be installed: {said.stderr.strip().splitlines()[-1]:.300}")


if __name__ == "__main__":
    install()
