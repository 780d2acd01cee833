"""What others made, as they save it: sae-lens's own folders, checkpoints of the published study's module, adapters of peft."""

import json
import pickle
import warnings

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn

from lib.dictionary import bases, deltas, elsewhere, sae_lens
from lib.dictionary.bases import choose
from lib.dictionary.dictionaries import PARAMETERS, Dictionary
from lib.dictionary.layouts import load_npz, save_npz
from lib.measure import metrics
from lib.model import activations, adapters, encoding, finetune, models
from lib.profiles import tables
from lib.profiles.tool import Protocol
from lib.studies.tool import experiments
from lib.tests.at import other, sites
from lib.texts.prompts import written

PUBLISHED = "train_1/layer_{layer}_dnew_{d_new}_pctl_{percentile:.2f}/best_model.pt"


def random(d_model=32, d_sae=24, seed=0):
    torch.manual_seed(seed)
    weights = dict(W_enc=(d_model, d_sae), b_enc=(d_sae,), threshold=(d_sae,), W_dec=(d_sae, d_model), b_dec=(d_model,))
    tensors = {name: torch.randn(shape) for name, shape in weights.items()}
    tensors["W_dec"] /= 10  # outputs of the size of a real MLP's
    return Dictionary(**tensors).requires_grad_(False)


def one_line(error, *words):
    text = str(error.value)
    assert "\n" not in text and all(word in text for word in words), text


# --- bases from sae-lens ---


def saved_by_sae_lens(folder, architecture="jumprelu_transcoder", hook="blocks.1.ln2.hook_normalized", said=(), **options):
    """A folder that sae-lens saved, with random weights in all its parameters; and the module."""
    from sae_lens.registry import get_sae_class
    from sae_lens.saes.sae import SAEMetadata

    kind, config = get_sae_class(architecture)
    metadata = SAEMetadata(**{"hook_name": hook, "hook_name_out": "blocks.1.hook_mlp_out"} | dict(said))
    if "transcoder" in architecture:
        options |= {"d_out": 32, "apply_b_dec_to_input": False}
    theirs = kind(config(d_in=32, d_sae=24, metadata=metadata, **options))
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    theirs.save_model(folder)
    return theirs


def settings(source, **more):
    return tables.Transcoders(source=str(source), width="64", l0_ranks=[0.5], **more)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"])
def test_a_folder_of_sae_lens_is_a_base(tmp_path, tiny, architecture):
    theirs = saved_by_sae_lens(tmp_path / "one", architecture)
    saved_by_sae_lens(tmp_path / "other", architecture, "blocks.11.ln2.hook_normalized")
    [load] = bases.on_offer(settings(tmp_path), 1, tiny, tiny.site("trained", 1)).values()
    ours, x = load(), torch.randn(50, 32)
    assert (ours.encode(x) - theirs.encode(x)).abs().max() <= 1e-5
    assert (ours(x) - theirs(x)).abs().max() <= 1e-5 and ours(x).abs().max() > 1
    with pytest.raises(ValueError) as error:
        bases.on_offer(settings(tmp_path), 2)
    one_line(error, str(tmp_path), "blocks.2;")


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "architecture", "options"),
    [
        ("resid_pre", "standard", {"apply_b_dec_to_input": True}),
        ("resid_post", "standard", {"apply_b_dec_to_input": False}),
        ("mlp_out", "jumprelu", {}),
        ("attn_out", "gated", {"apply_b_dec_to_input": True}),
        ("resid_pre", "topk", {"k": 5, "rescale_acts_by_decoder_norm": False}),
        ("resid_pre", "topk", {"k": 5, "rescale_acts_by_decoder_norm": True}),
        ("z", "standard", {"reshape_activations": "hook_z"}),
    ],
)
def test_an_sae_of_sae_lens_is_a_dictionary_at_its_site(tmp_path, tiny, name, architecture, options):
    """Activations and reconstructions are sae-lens's own, with what it does to an input folded into the weights."""
    site = tiny.site(name, 1)
    theirs = saved_by_sae_lens(tmp_path / "one", architecture, site.read, {"hook_name_out": None}, **options)
    [load] = bases.on_offer(settings(tmp_path), 1, tiny, site).values()
    ours, x = load(), torch.randn(4, 9, 32)
    given = x.reshape(4, 9, 2, 16) if name == "z" else x
    assert torch.allclose(ours.encode(x), theirs.encode(given), rtol=1e-4, atol=1e-4)
    assert torch.allclose(ours(x), theirs(given).reshape(x.shape), rtol=1e-4, atol=1e-3)
    assert 0 < (ours.encode(x) > 0).float().mean() < 0.9 and (ours.k is not None) == (architecture == "topk")
    [elsewhere] = bases.on_offer(settings(tmp_path), 1, tiny, tiny.site("trained", 1)).values()
    with pytest.raises(ValueError, match=r"hook_name is .*; name a dictionary trained there"):
        elsewhere()


@torch.no_grad()
def test_what_sae_lens_trains_with_batchtopk_is_read_as_it_infers(tmp_path, tiny):
    """Saved for inference it has a threshold in place of a k."""
    from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    theirs = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=32, d_sae=24, k=4))
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    theirs.topk_threshold.fill_(2.0)
    theirs.save_inference_model(tmp_path)
    ours, saved, x = sae_lens.load_sae_lens(tmp_path, 32), SAE.load_from_disk(tmp_path), torch.randn(50, 32)
    assert torch.allclose(ours.encode(x), saved.encode(x), atol=1e-4) and torch.allclose(ours(x), saved(x), atol=1e-3)
    assert ours.k is None and (ours.threshold > 0).all()


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ({"hook_name": "blocks.1.hook_resid_mid"}, "hook_resid_mid"),
        ({"hook_name": "blocks.1.ln2.hook_scale"}, "hook_scale"),
        ({"hook_name_out": "blocks.0.hook_mlp_out"}, "blocks.0.hook_mlp_out"),
        ({"hook_name_out": "blocks.1.hook_resid_post"}, "hook_resid_post"),
        ({"hook_name_out": "nowhere"}, "nowhere"),
    ],
)
def test_a_transcoder_trained_elsewhere_is_refused(tmp_path, tiny, said, word):
    saved_by_sae_lens(tmp_path / "one", said=said)
    [load] = bases.on_offer(settings(tmp_path), 1, tiny, tiny.site("trained", 1)).values()
    with pytest.raises(ValueError) as error:
        load()
    one_line(error, str(tmp_path), word)


def test_where_only_the_models_name_differs_a_warning_says_so(tmp_path, tiny):
    saved_by_sae_lens(tmp_path / "one", said={"model_name": "google/gemma-2-2b"})
    [load] = bases.on_offer(settings(tmp_path), 1, tiny, tiny.site("trained", 1), "mine/other").values()
    with pytest.warns(UserWarning, match=r"gemma-2-2b.*mine/other"):
        load()
    [load] = bases.on_offer(settings(tmp_path), 1, tiny, tiny.site("trained", 1), "mine/gemma-2-2b").values()
    with warnings.catch_warnings(action="error", category=UserWarning):
        load()


def test_levels_of_sae_lens_folders_are_told_by_their_l0(tmp_path):
    for l0 in ("12", "40.5"):
        saved_by_sae_lens(tmp_path / f"layer_1/average_l0_{l0}")
    assert list(bases.on_offer(settings(tmp_path), 1)) == [12.0, 40.5]
    saved_by_sae_lens(tmp_path / "again/average_l0_12")
    with pytest.raises(ValueError) as error:
        bases.on_offer(settings(tmp_path), 1)
    one_line(error, "average_l0_12", "keep one")


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("matching_pursuit", {}, "a matching_pursuit dictionary computes what ours cannot"),
        ("transcoder", {"normalize_activations": "layer_norm"}, "normalize_activations is layer_norm"),
    ],
)
def test_what_would_be_computed_otherwise_is_refused(tmp_path, architecture, options, message):
    saved_by_sae_lens(tmp_path, architecture, **options)
    with pytest.raises(ValueError) as error:
        sae_lens.load_sae_lens(tmp_path)
    one_line(error, str(tmp_path), message)


def test_a_damaged_folder_and_another_models_are_named(tmp_path):
    saved_by_sae_lens(tmp_path)
    with pytest.raises(ValueError, match=r"W_enc is \(32, 24\), not \(48, 24\)"):
        sae_lens.load_sae_lens(tmp_path, 48)
    file = tmp_path / "sae_weights.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError) as error:
        sae_lens.load_sae_lens(tmp_path)
    one_line(error, str(tmp_path), "download it again")


def test_a_release_of_sae_lens_is_found_by_its_name():
    """The ids that sae-lens registers, of the layer and width, without those that have a skip where both are there."""

    def ids(release, layer, width):
        source = tables.Transcoders(source=release, width=width, l0_ranks=[0.5])
        return {l0: load.args[1] for l0, load in bases.on_offer(source, layer).items()}

    assert ids("gemma-scope-2b-pt-transcoders", 1, "16k") == {65: "layer_1/width_16k/average_l0_65"}
    assert ids("gemma-scope-2-270m-pt-transcoders-all", 1, "16k") == {
        11: "layer_1_width_16k_l0_small",
        70: "layer_1_width_16k_l0_big",
    }
    for release, layer, message in (("gemma-scope-2b", 1, "no release"), ("gemma-scope-2b-pt-transcoders", 99, "layer 99")):
        with pytest.raises(ValueError) as error:
            ids(release, layer, "16k")
        one_line(error, release, message)
    with pytest.raises(ValueError, match="leave out transcoders"):
        bases.on_offer(settings("gemma-scope-2b-pt-transcoders", revision="abc"), 1)


@torch.no_grad()
def test_a_release_is_loaded_from_the_hubs_cache(tmp_path, monkeypatch):
    """Files of one release in its own layout, where huggingface_hub keeps them, read offline."""
    place = tmp_path / "models--mwhanna--qwen3-0.6b-transcoders-lowl0"
    snapshot = place / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs/main").write_text("0" * 40)
    (snapshot / "config.yaml").write_text("model_name: Qwen/Qwen3-0.6B\n")
    values = {"d_model": 32, "d_feature": 24, "batch_size": 8}
    (snapshot / "wandb-config.yaml").write_text("".join(f"{k}: {{value: {v}}}\n" for k, v in values.items()))
    t = random()
    weights = {"W_enc": t.W_enc.T.contiguous(), "b_enc": t.b_enc, "W_dec": t.W_dec.data, "b_dec": t.b_dec}
    save_file(weights, snapshot / "layer_1.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    [load] = bases.on_offer(settings("mwhanna-qwen3-0.6b-transcoders-lowl0"), 1).values()
    x = torch.randn(20, 32)
    assert torch.allclose(load()(x), (x @ t.W_enc + t.b_enc).relu() @ t.W_dec + t.b_dec, atol=1e-4)


def test_an_sae_of_a_centred_model_takes_the_mean_off_itself(tmp_path):
    """gpt2-small-res-jb was trained on activations without a mean over d_model; the model here has one."""
    from sae_lens import StandardSAE, StandardSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    x = torch.randn(30, 32) + 2
    for centred, point in (
        (True, "blocks.1.hook_resid_pre"),
        (True, "blocks.1.attn.hook_z"),
        (False, "blocks.1.hook_resid_pre"),
    ):
        metadata = SAEMetadata(hook_name=point, model_from_pretrained_kwargs={"center_writing_weights": centred})
        torch.manual_seed(0)
        theirs = StandardSAE(StandardSAEConfig(d_in=32, d_sae=24, metadata=metadata))
        with torch.no_grad():
            theirs.b_dec += torch.randn(32)
            theirs.b_enc += 0.1
        wanted = theirs(x - x.mean(-1, keepdim=True)) if centred and "resid" in point else theirs(x)
        ours = sae_lens.from_sae_lens(theirs, "an SAE")
        torch.testing.assert_close(ours(x), wanted, rtol=1e-4, atol=1e-4)


# --- deltas ---


class Module(nn.Module):
    """Parameters and forward pass as the published study's `JumpReLU_Module` has them."""

    def __init__(self, transcoder):
        super().__init__()
        for name in PARAMETERS:
            setattr(self, name, nn.Parameter(getattr(transcoder, name).detach().clone()))

    def forward(self, x):
        p = x @ self.W_enc + self.b_enc
        return (p.clamp(min=0) * (p > self.threshold).float()) @ self.W_dec + self.b_dec


class Published(nn.Module):
    """The whole that it saved: a frozen base and the features added to it."""

    def __init__(self, base, delta):
        super().__init__()
        self.base_transcoder, self.delta_features = Module(base), Module(delta)

    def forward(self, x):
        return self.base_transcoder(x) + self.delta_features(x)


@pytest.fixture
def study(tmp_path, monkeypatch, smoke, folder):
    """A profile with bases, and checkpoints in the published layout for each layer, d_new and percentile."""
    monkeypatch.setattr("lib.book.paths.ROOT", tmp_path)
    whole = {}
    for layer in range(2):
        for i, l0 in enumerate((4, 8, 16)):
            base = random(32, 64, 10 * layer + i)
            save_npz(base, tmp_path / f"scope/layer_{layer}/width_64/average_l0_{l0}/params.npz")
            for percentile in {0: [0.0], 2: [1.0]}.get(i, []):
                for d_new in smoke.tool.deltas.d_new:
                    whole[layer, d_new, percentile] = Published(base, random(32, d_new, 100 + 10 * layer + d_new + i))
                    file = tmp_path / PUBLISHED.format(layer=layer, d_new=d_new, percentile=percentile)
                    file.parent.mkdir(parents=True)
                    torch.save(whole[layer, d_new, percentile].state_dict(), file)
    own = smoke.model_copy(
        update={
            "transcoders": smoke.transcoders.model_copy(update={"source": str(tmp_path / "scope")}),
        }
    )
    return other(own, deltas=smoke.tool.deltas.model_copy(update={"source": str(tmp_path / "train_1")})), whole


@torch.no_grad()
@pytest.mark.parametrize("site", ["trained", "published"])
def test_published_checkpoints_are_measured_under_both_protocols(study, tiny, site):
    """Chapter 3's training takes them as they are; experiment 1 scores what their own module computes."""
    (own, whole), there = study, sites(tiny, [0, 1], site)
    form = "published" if site == "published" else "training"
    protocol = Protocol(site=site, ce_format=form)
    prompts = written("positive", 4, "test", 0) + written("negative", 4, "test", 0)
    batches = encoding.batches(tiny.tokenizer, prompts, 8, form)
    seen = activations.collect(tiny, there, batches)
    curves = deltas.train_deltas(own, tiny, there, batches, batches)
    table = experiments.exp1(own, tiny, prompts, there, protocol).set_index(["layer", "d_new", "percentile"])
    assert set(table.index) == set(whole) == set(curves.set_index(["layer", "d_new", "percentile"]).index)
    for (layer, d_new, percentile), theirs in whole.items():
        x, y = seen.x[layer], seen.y[layer]
        ours = deltas.load_pair(own, tiny, there[layer], d_new, percentile)
        assert torch.allclose(ours(x), theirs(x), atol=1e-4, rtol=1e-4)
        row, right = table.loc[layer, d_new, percentile], metrics.reconstruction(theirs(x), y, seen.prompt)
        assert row.full_fvu == pytest.approx(right["fvu"].value, rel=1e-3)
        assert row.full_mean_cos == pytest.approx(right["cos"].value, abs=1e-4)
        fvu = metrics.reconstruction(theirs.delta_features(x), y - theirs.base_transcoder(x), seen.prompt)["fvu"].value
        at = (curves.layer == layer) & (curves.d_new == d_new) & (curves.percentile == percentile)
        assert curves[at].fvu.item() == pytest.approx(fvu, rel=1e-3) and curves[at].step.item() == 0
    assert table.dce_full.abs().min() > 0


def test_what_the_study_fused_holds_the_same_delta(study, tmp_path):
    _, whole = study
    theirs = whole[1, 4, 1.0]
    base, delta = theirs.base_transcoder, theirs.delta_features
    file = tmp_path / "fused_delta_4_pctl_1/layer_1/params.npz"
    arrays = {
        "W_enc": torch.cat([base.W_enc, delta.W_enc], 1), "b_enc": torch.cat([base.b_enc, delta.b_enc]),
        "W_dec": torch.cat([base.W_dec, delta.W_dec], 0), "b_dec": base.b_dec + delta.b_dec,
        "threshold": torch.cat([base.threshold, delta.threshold]),
    }  # fmt: skip
    file.parent.mkdir(parents=True)
    np.savez(file, **{name: array.detach().numpy() for name, array in arrays.items()})
    x = torch.randn(30, 32)
    both = [load_npz(tmp_path / f"scope/layer_1/width_64/average_l0_{l0}/params.npz") for l0 in (16, 4)]
    for source in (tmp_path / "fused_delta_4_pctl_1", tmp_path / "train_1"):
        found = elsewhere.load_delta(str(source), 1, 4, 1.0, both[0])
        with torch.no_grad():
            assert torch.allclose(found(x), delta(x), atol=1e-5)
        with pytest.raises(ValueError) as error:
            elsewhere.load_delta(str(source), 1, 4, 1.0, both[1])
        one_line(error, str(source), "another base")


def test_deltas_of_another_profile_are_taken_as_they_are(tmp_path):
    delta = random(d_sae=4)
    save_npz(delta, tmp_path / "layer_0/d_new_4_percentile_0.5/params.npz")
    found = elsewhere.load_delta(str(tmp_path), 0, 4, 0.5, random())
    assert all(torch.equal(getattr(found, name), getattr(delta, name)) for name in PARAMETERS)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    """Whether torch or pickle wrote it; and it is such a one: opened without care it runs."""
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (ran.touch, ())

    place = tmp_path / "deltas" / PUBLISHED.format(layer=0, d_new=4, percentile=0.5)
    place.parent.mkdir(parents=True)
    state = Published(random(), random(d_sae=4)).state_dict() | {"evil": Evil()}
    for write in (lambda: torch.save(state, place), lambda: place.write_bytes(pickle.dumps(state))):
        write()
        with pytest.raises(ValueError) as error:
            elsewhere.load_delta(str(tmp_path / "deltas"), 0, 4, 0.5, random())
        one_line(error, str(place), "refused", "could run code")
        assert not ran.exists()
    torch.save(state, place)
    torch.load(place, weights_only=False)
    assert ran.exists()


def test_checkpoints_that_cannot_be_used_are_named(tmp_path):
    base, where = random(), (0, 4, 0.5)
    state = Published(base, random(d_sae=4)).state_dict()
    place = tmp_path / PUBLISHED.format(layer=0, d_new=4, percentile=0.5)

    def refused(*words):
        with pytest.raises(ValueError) as error:
            elsewhere.load_delta(str(tmp_path), *where, base)
        one_line(error, str(tmp_path), *words)

    refused("no file for layer 0, d_new 4, percentile 0.5", "layer_0_dnew_4_pctl_0.50/best_model.pt")
    place.parent.mkdir(parents=True)
    torch.save({name: value for name, value in state.items() if "delta_features.b" not in name}, place)
    refused("lacks delta_features.b_enc, delta_features.b_dec")
    torch.save(Published(base, random(d_sae=5)).state_dict(), place)
    refused("has 5 delta features, not 4")
    torch.save([state], place)
    refused("holds a list, not a state dict")
    torch.save(state, place)
    whole = place.read_bytes()
    place.write_bytes(whole[: len(whole) // 2])
    refused("damaged")
    place.write_bytes(whole)
    elsewhere.load_delta(str(tmp_path), *where, base)
    save_npz(random(d_sae=4), tmp_path / "layer_0/d_new_4_percentile_0.5/params.npz")
    refused("params.npz and ", "where one is needed")


def test_the_base_is_chosen_as_the_study_chose_it():
    """int(n * percentile) of the sorted list, and the last for 1."""
    for n in range(1, 9):
        l0s = [float(i) for i in range(n)]
        for percentile in (0.0, 0.25, 0.5, 0.75, 1.0):
            assert choose(l0s, percentile) == max(0, min(n - 1, int(n * percentile)))


# --- a model finetuned elsewhere ---


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory):
    """A PEFT adapter of the tiny model whose weights do something, saved by peft; and its logits."""
    place = tmp_path_factory.mktemp("adapter")
    adapted = get_peft_model(models.load_hf(folder, "float32")[0], LoraConfig(r=2, target_modules=["up_proj", "q_proj"]))
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(place / "adapter")
    with torch.no_grad():
        logits = adapted.eval()(torch.arange(3, 30)[None]).logits
    merged = adapted.merge_and_unload()
    merged.save_pretrained(place / "merged")
    return place, logits


@torch.no_grad()
@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_a_model_finetuned_elsewhere_takes_the_place_of_ours(adapter, folder, smoke, tmp_path, kind):
    (place, logits), (hf, tokenizer) = adapter, models.load_hf(folder, "float32")
    if kind == "merged":
        with pytest.raises(ValueError, match="no tokenizer there"):
            adapters.finetuned_elsewhere(hf, tokenizer, str(place / kind))
        tokenizer.save_pretrained(place / kind)
    own = smoke.tool.finetune.model_copy(update={"source": str(place / kind)})
    prompts = written("positive", 6, "train", 0) + written("negative", 6, "train", 0)
    curves = finetune.finetune(hf, tokenizer, prompts, prompts, own, tmp_path / "finetuned")
    ours, _ = models.load_hf(tmp_path / "finetuned", "float32")
    assert torch.allclose(ours(torch.arange(3, 30)[None]).logits, logits, atol=1e-4)
    for subset in ("tool", "copy"):
        losses = []
        for part in (p for p in prompts if p.subset == subset):
            batch = finetune.collate(tokenizer, [part])
            losses.append((ours(**batch).loss * (batch["labels"] != -100).sum(), (batch["labels"] != -100).sum()))
        found = curves[f"eval_{subset}_loss"].dropna().item()
        assert found == pytest.approx((sum(a for a, _ in losses) / sum(b for _, b in losses)).item(), rel=0.1)
    assert [f.name for f in tmp_path.iterdir()] == ["finetuned"]


def test_an_adapter_of_another_model_is_refused(adapter, folder, tmp_path):
    """Another width, and one of fewer layers, which peft itself only warns of."""
    (place, _), (hf, tokenizer) = adapter, models.load_hf(folder, "float32")
    hf.config.num_hidden_layers += 1
    hf.model.layers.append(type(hf.model.layers[0])(hf.config, 0))
    with pytest.raises(ValueError) as error:
        adapters.finetuned_elsewhere(hf, tokenizer, str(place / "adapter"))
    one_line(error, "not an adapter of", "missing adapter keys", "check tool.finetune.source")
    config = json.loads((place / "adapter/adapter_config.json").read_text()) | {"r": 3}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapter_model.safetensors").write_bytes((place / "adapter/adapter_model.safetensors").read_bytes())
    with pytest.raises(ValueError) as error:
        adapters.finetuned_elsewhere(models.load_hf(folder, "float32")[0], tokenizer, str(tmp_path))
    one_line(error, "not an adapter of")
