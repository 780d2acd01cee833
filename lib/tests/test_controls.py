"""Each control is what it says, and not the treatment in disguise."""

from dataclasses import replace

import pytest
import torch

from lib.dictionary import dictionaries
from lib.dictionary.dictionaries import Dictionary
from lib.model import activations, models
from lib.model.encoding import encode
from lib.model.sites import DenseMLP, site
from lib.studies.tool import controls, ingredients, leftover
from lib.texts.prompts import written

LAYERS = [0, 1]
SITES = [site("gemma2", "trained", layer, 32) for layer in LAYERS]


@pytest.fixture(scope="module")
def other(folder):
    """A second model, the first with its MLPs changed: what finetuning made of it."""
    hf, tokenizer = models.load_hf(folder, "float32")
    torch.manual_seed(2)
    for block in hf.model.layers:
        for parameter in block.mlp.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    dense = {s: DenseMLP(hf, s.layer) for s in SITES}
    return models.bridged(hf, tokenizer), dense


@pytest.fixture(scope="module")
def material(tiny, plain, other, smoke):
    finetuned, dense = other

    def held(model, n, split):
        asked = written("positive", n, split, 0) + written("negative", n, split, 0)
        return activations.collect(model, SITES, [encode(model.tokenizer, asked)])

    settings = smoke.tool.deltas.training.model_copy(update={"steps": 60, "batch": 256, "lr": 3e-3})
    return ingredients.Material(
        sites=SITES,
        bases={s: Dictionary.initialised((), 32, 48, s.layer, 0.5).requires_grad_(False) for s in SITES},
        train=held(finetuned, 12, "train"), validation=held(finetuned, 4, "validation"),
        original_train=held(tiny, 12, "train"), original_validation=held(tiny, 4, "validation"),
        finetuned_mlps=dense, original_mlps={s: DenseMLP(plain, s.layer) for s in SITES},
        d_new=4, settings=settings, retrain=smoke.tool.controls.retrain.model_copy(update={"steps": 60}),
    )  # fmt: skip


@pytest.fixture(scope="module")
def built(material):
    return controls.build(material)


def fvu(material, mlps):
    """Mean over layers, on the validation tokens."""
    held = material.validation
    left, centred = material.unexplained(mlps, held), held.y - held.y.mean(1, keepdim=True)
    return (left.square().sum((1, 2)) / centred.square().sum((1, 2))).mean().item()


def test_all_are_there_and_finite(material, built):
    assert set(built) == set(controls.CONTROLS)
    for control in built.values():
        assert set(control.mlps) == set(SITES)
        assert all(torch.isfinite(control.mlps[SITES[i]](material.validation.x[i])).all() for i in LAYERS)


def test_the_oracle_is_the_mlp_and_ablations_are_constants(material, built):
    assert fvu(material, built["oracle"].mlps) < 1e-8
    assert (built["zero"].mlps[SITES[0]](material.validation.x[0]) == 0).all()
    assert torch.allclose(built["mean"].mlps[SITES[1]](material.validation.x[1])[3], material.train.y[1].mean(0))


def test_bias_only_has_no_features(material, built):
    x = material.validation.x[0]
    for name in ("bias", "difference"):
        added = built[name].mlps[SITES[0]](x) - material.bases[SITES[0]](x)
        assert torch.allclose(added, added[:1].expand_as(added), atol=1e-5)
    constant = (material.train.y[0] - material.bases[SITES[0]](material.train.x[0])).mean(0)
    assert torch.allclose(built["bias"].mlps[SITES[0]](x) - material.bases[SITES[0]](x), constant.expand_as(x), atol=1e-5)


def test_a_linear_map_has_its_rank_and_is_the_best_of_it(material, built):
    extra = built["linear"].mlps[SITES[0]].extra
    rank = controls.rank_for(32, material.d_new)
    assert torch.linalg.matrix_rank(extra.weight, atol=1e-4) == rank == 4
    x, target = material.train.x[0], material.unexplained(material.bases, material.train)[0]
    best = (extra(x) - target).square().sum()
    for seed in range(5):
        draw = torch.Generator().manual_seed(seed)
        noise = 0.05 * torch.randn(32, rank, generator=draw) @ torch.randn(rank, 32, generator=draw)
        values, vectors = torch.linalg.svd(extra.weight + noise)[1:]
        u = torch.linalg.svd(extra.weight + noise)[0]
        near = (u[:, :rank] * values[:rank]) @ vectors[:rank]
        assert (dictionaries.Affine(near, extra.bias)(x) - target).square().sum() > best


def test_frozen_halves_did_not_move_and_the_others_did(material, built):
    """Up to the scale of the targets, which is folded into the encoder."""
    for i, layer in enumerate(LAYERS):
        start = Dictionary.initialised((len(LAYERS),), 32, material.d_new, material.seed)[i]
        alike = torch.nn.functional.cosine_similarity
        encoder, decoder = (built[f"frozen_{half}"].mlps[SITES[layer]].delta for half in ("encoder", "decoder"))
        assert (alike(encoder.W_enc, start.W_enc, dim=0) > 0.9999).all() and (encoder.b_enc == 0).all()
        assert torch.allclose(decoder.W_dec, start.W_dec, atol=1e-6)
        assert (alike(encoder.W_dec, start.W_dec) < 0.999).any() and (alike(decoder.W_enc, start.W_enc, dim=0) < 0.999).any()


def test_shuffled_features_write_each_others_rows(built):
    delta, mixed = built["delta"].mlps[SITES[0]].delta, built["shuffled"].mlps[SITES[0]].delta
    assert torch.equal(mixed.W_enc, delta.W_enc) and not (mixed.W_dec == delta.W_dec).all(-1).any()
    assert sorted(map(tuple, mixed.W_dec.tolist())) == sorted(map(tuple, delta.W_dec.tolist()))


def test_a_model_against_itself_teaches_nothing(material, built):
    pair, x = built["same_model"].mlps[SITES[0]], material.validation.x[0]
    assert pair.delta(x).abs().max() < 1e-4 * material.validation.y[0].abs().max()
    assert built["delta"].mlps[SITES[0]].delta(x).abs().max() > 0.1


def test_what_was_trained_on_the_base_model_is_not_what_was_trained_on_the_finetuned(material, built):
    x = material.validation.x[0]
    assert not torch.allclose(built["base_error"].mlps[SITES[0]].delta(x), built["delta"].mlps[SITES[0]].delta(x), atol=0.05)
    assert torch.allclose(built["attention_only"].mlps[SITES[0]](x), material.original_mlps[SITES[0]](x))
    assert fvu(material, built["attention_only"].mlps) > 1e-4


def active(material, control):
    """Share of features active at a validation token, over layers."""
    shares = []
    for n, i in enumerate(LAYERS):
        x, extra = material.validation.x[n], control.mlps[SITES[i]]
        f = extra.extra[:2](x) if isinstance(extra, dictionaries.Sum) else extra.delta.encode(x)
        shares.append((f != 0).float().mean().item())
    return sum(shares) / len(shares)


def test_the_dense_control_is_dense_and_the_sparse_ones_as_sparse_as_they_say(material, built):
    """In effect, not in setting: a delta without threshold and penalty was once called dense, and was the treatment."""
    found = {name: active(material, built[name]) for name in ("dense", "delta", "quarter", "eighth", "sixteenth")}
    assert found["dense"] > 0.99 and found["delta"] < 0.75
    assert found["quarter"] < 0.4 and found["sixteenth"] < found["eighth"] < found["quarter"] < found["delta"]
    assert fvu(material, built["dense"].mlps) < fvu(material, built["bias"].mlps)


@pytest.mark.parametrize("name", sorted(set(controls.CONTROLS) - {"delta", "no_penalty"}))
def test_no_control_does_what_the_treatment_does(material, built, name):
    """Each differs in what it writes by a tenth of what the delta adds, or more; the one named as alike does not."""
    held = material.validation

    def apart(name):
        pairs = [
            (built[name].mlps[SITES[i]](held.x[n]), built["delta"].mlps[SITES[i]](held.x[n])) for n, i in enumerate(LAYERS)
        ]
        added = [built["delta"].mlps[SITES[i]].delta(held.x[n]) for n, i in enumerate(LAYERS)]
        return sum((a - b).norm() for a, b in pairs) / sum(d.norm() for d in added)

    assert apart(name) > 0.1 > 0.05 > apart("delta")


def test_retraining_goes_on_from_the_base_and_is_nearer(material, built):
    one = built["retrained"].mlps[SITES[0]]
    assert one.d_sae == material.bases[SITES[0]].d_sae and not torch.equal(one.W_enc, material.bases[SITES[0]].W_enc)
    assert fvu(material, built["retrained"].mlps) < fvu(material, built["base"].mlps)


def test_sizes_are_what_is_trained_and_the_thresholds(material, built):
    delta = built["delta"].mlps[SITES[0]].delta
    assert built["delta"].parameters == sum(p.numel() for p in delta.parameters()) + delta.threshold.numel()
    extra = built["linear"].mlps[SITES[0]].extra
    assert built["linear"].parameters == 2 * 32 * 4 + 32 and extra.weight.shape == (32, 32)
    assert abs(built["linear"].parameters - built["delta"].parameters) <= 2 * 32


def test_without_settings_for_it_nothing_is_retrained_and_all_else_is_there(material):
    brief = material.settings.model_copy(update={"steps": 2})
    assert controls.build(replace(material, retrain=None, settings=brief)).keys() == controls.CONTROLS.keys() - {"retrained"}


def test_what_is_left_at_alpha_0_goes_from_the_original_mlps_to_the_bases(material):
    made, x = leftover.conditions(material.original_mlps, material.bases), material.validation.x[0]
    mlp, base = material.original_mlps[SITES[0]](x), material.bases[SITES[0]](x)
    assert torch.equal(made["original MLPs"][SITES[0]](x), mlp) and torch.equal(
        made["bases: all of their error"][SITES[0]](x), base
    )
    assert torch.allclose(made["50% of the bases' error"][SITES[0]](x), (mlp + base) / 2, atol=1e-5)
    noise = made["noise as long as the error"][SITES[0]](x) - mlp
    assert torch.allclose(noise.norm(dim=-1), (base - mlp).norm(dim=-1), rtol=1e-4)
    assert torch.cosine_similarity(noise, base - mlp, -1).abs().mean() < 0.3
    assert torch.equal(noise, made["noise as long as the error"][SITES[0]](x) - mlp), "the same noise each time"
