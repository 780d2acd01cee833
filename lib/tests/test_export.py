"""What is exported, read again by sae-lens, by circuit-tracer's rules and by ourselves: same features, same output."""

import json
import math
import shutil
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from huggingface_hub.errors import LocalTokenNotFoundError
from safetensors.torch import load_file

from lib import export, profiles
from lib.dictionary import bases, deltas, elsewhere, release
from lib.dictionary.dictionaries import PARAMETERS, BaseDelta, Dictionary
from lib.dictionary.layouts import load_npz, save_npz
from lib.model import models
from lib.model.hooks import replaced
from lib.model.sites import ARCHITECTURES
from lib.profiles.tool import Protocol
from lib.tests import real
from lib.tests.at import other
from lib.tests.test_imports import one_line, random

ALPHA, D_NEW, PERCENTILE = 0.5, 4, 1.0
PLACE = "layer_1/d_new_4_percentile_1/"


@pytest.fixture(scope="module")
def home(tmp_path_factory, folder):
    """A project with a profile whose model is the tiny one, and random bases and deltas; and the profile's file."""
    root = tmp_path_factory.mktemp("home")
    text = (profiles.FOLDER / "smoke.toml").read_text()
    text = text.replace('"data/smoke/model"', f'"{folder}"').replace('"data/smoke/transcoders"', f'"{root}/scope"')
    (root / "mine.toml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lib.book.paths.ROOT", root)
        profile = profiles.load(str(root / "mine.toml"))
        shutil.copytree(folder, profile.paths.finetuned)
        rows = []
        for layer in range(2):
            for i, l0 in enumerate((4, 8, 16)):
                save_npz(random(32, 64, 10 * layer + i), root / f"scope/layer_{layer}/width_64/average_l0_{l0}/params.npz")
            place = profile.paths.deltas / f"trained/layer_{layer}/d_new_{D_NEW}_percentile_{PERCENTILE:g}/params.npz"
            save_npz(random(32, D_NEW, 100 + layer), place)
            found = dict(layer=layer, d_new=D_NEW, percentile=PERCENTILE, n=9)
            for name, value in (("base_fvu", 0.3), ("full_fvu", 0.2), ("full_cos", 0.9), ("delta_l0", 1.5 + layer)):
                found |= {name: value, f"{name}_low": value - 0.1, f"{name}_high": value + 0.1}
            rows.append(found)
        profile.paths.results.mkdir()
        pd.DataFrame(rows).to_csv(profile.paths.results / "deltas.csv", index=False)
        yield root, profile


@pytest.fixture(scope="module")
def job(home):
    return export.collect(home[1], None, D_NEW, PERCENTILE, ALPHA)


@pytest.fixture(scope="module")
def pair(job):
    """What layer 1's export has to equal, from the files and not from the job."""
    base = load_npz(profiles.ROOT / job.profile.transcoders.source / "layer_1/width_64/average_l0_16/params.npz")
    return BaseDelta(base, random(32, D_NEW, 101), ALPHA)


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(200, 32)


@torch.no_grad()
def test_sae_lens_loads_base_plus_delta_as_one_transcoder(job, pair, x, tmp_path):
    from sae_lens import SAE, JumpReLUTranscoder

    export.export(job, "sae-lens", tmp_path / "out")
    theirs = SAE.load_from_disk(tmp_path / "out" / PLACE / "base_plus_delta_alpha_0.5")
    assert type(theirs) is JumpReLUTranscoder and theirs.cfg.d_sae == 64 + D_NEW and theirs.cfg.d_out == 32
    assert theirs.cfg.metadata.hook_name == "blocks.1.ln2.hook_normalized"
    assert theirs.cfg.metadata.hook_name_out == "blocks.1.hook_mlp_out"
    assert (theirs.encode(x) - torch.cat(pair.encode(x), -1)).abs().max() <= 1e-5
    assert (theirs(x) - pair(x)).abs().max() <= 1e-5 and pair(x).abs().max() > 1
    assert (pair(x) - pair.base(x)).abs().max() > 0.1  # the delta says something
    alone = SAE.load_from_disk(tmp_path / "out" / PLACE / "delta")
    assert (alone.encode(x) - pair.delta.encode(x)).abs().max() <= 1e-5
    assert (alone(x) - pair.delta(x)).abs().max() <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attached_by_sae_lens_the_model_is_as_with_our_hooks(job, architecture, tmp_path, monkeypatch):
    """sae-lens finds both hook points by the names in the config; it acts on every token, so here ours do too."""
    from sae_lens import SAE
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge

    place = real.save(architecture, tmp_path / "model")
    model = models.bridged(*models.load_hf(place, "float32"))
    pair = BaseDelta(random(model.d_model), random(model.d_model, D_NEW, 1), ALPHA)
    site = model.site("trained", 1)
    found = release.Delta(site, lambda: pair, 16.0)
    export.export(replace(job, model=model, deltas=[found]), "sae-lens", tmp_path / "out")
    theirs = SAE.load_from_disk(tmp_path / "out" / PLACE / "base_plus_delta_alpha_0.5")
    hf, tokenizer = models.load_hf(place, "float32")
    bridge = SAETransformerBridge.boot_transformers(str(place), hf_model=hf, tokenizer=tokenizer)
    ids = torch.arange(300, 340).reshape(2, 20)
    monkeypatch.setattr("lib.model.hooks.acted_on", lambda tokenizer, ids, attention: torch.ones_like(ids).bool())
    with replaced(model, {site: pair}):
        ours = model.hf(ids).logits
    assert torch.allclose(bridge.run_with_saes(ids, saes=[theirs]), ours, atol=1e-3)
    assert (model.hf(ids).logits - ours).abs().max() > 0.1


@torch.no_grad()
def test_gemma_scopes_layout_is_a_base_again(job, pair, x, tmp_path):
    """L0 is the base's 16 and the delta's 2.5, from the table; the arrays are Gemma Scope's."""
    export.export(job, "gemma-scope", tmp_path / "out")
    settings = job.profile.transcoders.model_copy(update={"source": str(tmp_path / "out"), "width": "68"})
    offer = bases.on_offer(settings, 1)
    assert list(offer) == [18.5] and (offer[18.5]()(x) - pair(x)).abs().max() <= 1e-5
    alone = tmp_path / "out/layer_1/width_4/average_l0_2.5/params.npz"
    assert (load_npz(alone)(x) - pair.delta(x)).abs().max() <= 1e-5
    with np.load(alone) as file:
        assert set(file) == set(PARAMETERS) and file["W_enc"].shape == (32, 4)


def by_circuit_tracer(folder, skip=False):
    """The set as circuit-tracer reads it (0.5): `layer_<i>.safetensors` for consecutive i, W_enc (F, d_model), strict keys,
    `x * (x > threshold)` without a relu; hook points are named within a block."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    files = sorted(folder.glob("layer_*.safetensors"))
    assert [f.name for f in files] == [f"layer_{i}.safetensors" for i in range(len(files))]

    def transcoder(t):
        assert set(t) == {"W_enc", "W_dec", "b_enc", "b_dec", "activation_function.threshold"} | ({"W_skip"} if skip else set())
        assert t["W_enc"].shape == t["W_dec"].shape == (len(t["b_enc"]), len(t["b_dec"]))

        def features(x):
            p = torch.nn.functional.linear(x, t["W_enc"], t["b_enc"])
            return p * (p > t["activation_function.threshold"])

        return features, lambda x: features(x) @ t["W_dec"] + t["b_dec"] + (x @ t["W_skip"].T if skip else 0)

    return config, [transcoder(load_file(f)) for f in files]


@torch.no_grad()
def test_circuit_tracer_reads_every_layer(job, pair, x, tmp_path):
    export.export(job, "circuit-tracer", tmp_path / "out")
    config, transcoders = by_circuit_tracer(tmp_path / "out")
    assert config == {
        "model_name": job.profile.model.source,
        "model_kind": "transcoder_set",
        "feature_input_hook": "ln2.hook_normalized",
        "feature_output_hook": "hook_mlp_out",
    }
    features, whole = transcoders[1]
    assert len(transcoders) == 2 and (pair.base.threshold < 0).any()
    assert (features(x) - torch.cat(pair.encode(x), -1)).abs().max() <= 1e-5
    assert (whole(x) - pair(x)).abs().max() <= 1e-5
    settings = job.profile.transcoders.model_copy(update={"source": str(tmp_path / "out"), "layout": "circuit-tracer"})
    [again] = bases.on_offer(settings, 1).values()
    assert (again()(x) - pair(x)).abs().max() <= 1e-5


@torch.no_grad()
def test_an_affine_skip_goes_along_or_is_refused(job, x, tmp_path):
    """To sae-lens and circuit-tracer, which apply it as (out, in); Gemma Scope's layout has no place for one."""
    from sae_lens import SAE

    def with_skip(delta):
        pair = delta.load()
        pair = replace(pair, base=Dictionary(**pair.base.tensors, W_skip=torch.randn(32, 32) / 6))
        return replace(delta, load=lambda: pair)

    job = replace(job, deltas=[with_skip(delta) for delta in job.deltas])
    pair = job.deltas[1].load()
    right = pair(x)
    assert (right - pair.decode(pair.encode(x), 0 * x)).abs().max() > 1
    export.export(job, "hub", tmp_path / "hub")
    assert release.SKIP in (tmp_path / "hub/README.md").read_text()
    theirs = SAE.load_from_disk(tmp_path / "hub" / PLACE / "base_plus_delta_alpha_0.5")
    assert theirs.cfg.architecture() == "jumprelu_skip_transcoder" and (theirs(x) - right).abs().max() <= 1e-5
    export.export(job, "circuit-tracer", tmp_path / "circuit-tracer")
    _, transcoders = by_circuit_tracer(tmp_path / "circuit-tracer", skip=True)
    assert (transcoders[1][1](x) - right).abs().max() <= 1e-5
    with pytest.raises(ValueError) as error:
        export.export(job, "gemma-scope", tmp_path / "gemma-scope")
    one_line(error, "layer 0", "affine skip")


def test_an_l0_that_nobody_states_is_unknown(job, tmp_path):
    job = replace(job, deltas=[replace(delta, base_l0=math.nan) for delta in job.deltas])
    export.export(job, "hub", tmp_path / "hub")
    assert "average L0 by layer: unknown, unknown" in (tmp_path / "hub/README.md").read_text()
    assert all("NaN" not in file.read_text() for file in (tmp_path / "hub").rglob("cfg.json"))
    with pytest.raises(ValueError) as error:
        export.export(job, "gemma-scope", tmp_path / "gemma-scope")
    one_line(error, "layer 0", "L0")


def test_circuit_tracer_is_not_given_what_it_refuses(home, job, tmp_path):
    one = export.collect(home[1], [1], D_NEW, PERCENTILE, ALPHA)
    with pytest.raises(ValueError) as error:
        export.export(one, "circuit-tracer", tmp_path / "out")
    one_line(error, "every layer from 0 to 1, not [1]")
    narrow = replace(job.deltas[0], load=lambda: BaseDelta(random(32, 48), random(32, D_NEW)))
    uneven = release.Job(job.profile, job.model, D_NEW, PERCENTILE, [narrow, job.deltas[1]])
    with pytest.raises(ValueError) as error:
        export.export(uneven, "circuit-tracer", tmp_path / "out")
    one_line(error, "equal widths in all layers, not [52, 68]")
    assert not list(tmp_path.iterdir())


def test_the_card_says_what_was_measured_and_what_it_says_can_be_run(job, x, tmp_path, monkeypatch):
    export.export(job, "hub", tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["library_name"] == "saelens" and "transcoder" in front["tags"]
    assert "| 0.300 [0.200, 0.400] | 0.200 [0.100, 0.300] | 0.900 [0.800, 1.000] |" in text
    assert text.count("Not measured.") == 2 and "None" not in text and "nan" not in text
    assert release.SKIP not in text
    for expected in (
        "`blocks.0.ln2.hook_normalized`",
        "average L0 by layer: 16, 16",
        "24 tool and 24 copy prompts",
        "4, 1, 0.5",
    ):
        assert expected in text
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path / "out")
    scope = {"x": x}
    exec("\n".join(line for line in code.splitlines() if "OWNER/NAME" not in line), scope)
    assert scope["y"].shape == x.shape


def test_what_is_exported_is_taken_in_again(job, pair, tmp_path, monkeypatch):
    """As `tool.deltas.source`, from a folder or the hub: the delta alone, on its base."""
    export.export(job, "hub", tmp_path / "out")
    place = tmp_path / "hub/models--someone--deltas"
    shutil.copytree(tmp_path / "out", place / "snapshots" / ("0" * 40))
    (place / "refs").mkdir()
    (place / "refs/main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for source, revision in ((str(tmp_path / "out"), None), ("someone/deltas", None), ("someone/deltas", "0" * 40)):
        found = elsewhere.load_delta(source, 1, D_NEW, PERCENTILE, pair.base, revision)
        assert all(torch.equal(getattr(found, name), getattr(pair.delta, name)) for name in PARAMETERS)
    with pytest.raises(ValueError, match=f"at revision {'1' * 40} is not in the cache"):
        elsewhere.load_delta("someone/deltas", 1, D_NEW, PERCENTILE, pair.base, "1" * 40)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["lib.export", *map(str, arguments)])
    export.main()


def test_from_the_command_line_to_the_hub(home, tmp_path, monkeypatch, capsys):
    """All that the upload is told, and that the folder is whole by then."""
    told = []
    monkeypatch.setattr(export.HfApi, "create_repo", lambda self, repo, **options: told.append((repo, options)))

    def upload(self, *, repo_id, folder_path, commit_message):
        told.append((repo_id, sorted(f.relative_to(folder_path).as_posix() for f in folder_path.rglob("*") if f.is_file())))

    monkeypatch.setattr(export.HfApi, "upload_folder", upload)
    given = ("--profile", home[0] / "mine.toml", "--layer", 1, "--alpha", 2, "--as", "hub", "--to", tmp_path / "out")
    run(monkeypatch, *given, "--push", "someone/deltas")
    parts = [PLACE + part + "/" for part in ("base_plus_delta_alpha_2", "delta")]
    files = sorted([part + file for part in parts for file in ("cfg.json", "sae_weights.safetensors")] + ["README.md"])
    assert told == [("someone/deltas", {"exist_ok": True}), ("someone/deltas", files)]
    assert f"{tmp_path / 'out'}: layers 1, as hub" in capsys.readouterr().out
    metadata = json.loads((tmp_path / "out" / parts[0] / "cfg.json").read_text())["metadata"]
    assert metadata["profile"] == "mine" and metadata["base_l0"] == 16


def test_an_upload_that_fails_is_one_line_and_the_folder_stays(home, tmp_path, monkeypatch):
    def refuse(self, repo, **options):
        raise LocalTokenNotFoundError("Token is required,\nbut no token found")

    monkeypatch.setattr(export.HfApi, "create_repo", refuse)
    given = ("--profile", home[0] / "mine.toml", "--layer", 1, "--as", "hub", "--to", tmp_path / "out")
    with pytest.raises(SystemExit) as error:
        run(monkeypatch, *given, "--push", "someone/deltas")
    one_line(error, "someone/deltas: not uploaded (Token is required,)", "hf auth login")
    assert (tmp_path / "out/README.md").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--d-new", 3], "layer_0/d_new_3_percentile_1/params.npz: no such delta; profile mine has d_new [2, 4]"),
        (["--percentile", 0.3], "L0 ranks [0.0, 1.0]"),
        (["--layer", 7], "layers below 2"),
        (["--profile", "nanno"], "nanno: no such profile"),
    ],
)
def test_what_is_not_there_is_one_line(home, tmp_path, monkeypatch, options, message):
    given = ["--profile", home[0] / "mine.toml", "--as", "sae-lens", "--to", tmp_path / "out", *options]
    with pytest.raises(SystemExit) as error:
        run(monkeypatch, *given)
    one_line(error, message)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_left_alone(job, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError) as error:
        export.export(job, "sae-lens", tmp_path)
    one_line(error, str(tmp_path), "name a new folder")
    assert [f.name for f in tmp_path.iterdir()] == ["mine.txt"]


def test_an_l0_that_was_not_measured_is_not_made_up(home, job, tmp_path):
    (home[1].paths.results / "deltas.csv").rename(tmp_path / "deltas.csv")
    try:
        with pytest.raises(ValueError) as error:
            export.export(job, "gemma-scope", tmp_path / "out")
        one_line(error, "deltas.csv", "run chapter 3")
    finally:
        (tmp_path / "deltas.csv").rename(home[1].paths.results / "deltas.csv")


def test_a_site_that_no_library_shares_is_not_exported(home):
    profile = home[1]
    published = other(profile, protocol=Protocol(site="published"))
    with pytest.raises(ValueError) as error:
        export.collect(published, None, D_NEW, PERCENTILE, 1.0)
    one_line(error, "tool.protocol.site 'published' scales by sqrt(d_model)")


def test_deltas_of_the_job_are_those_of_the_book(job, pair, x):
    ours = deltas.load_pair(job.profile, job.model, job.model.site("trained", 1), D_NEW, PERCENTILE)
    assert torch.equal(ours.base(x), pair.base(x)) and torch.equal(ours.delta(x), pair.delta(x))
