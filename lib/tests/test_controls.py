"""Each control is what it says, and not the treatment in disguise."""

from dataclasses import replace

import pytest
import torch

from lib import activations, controls, models
from lib.encoding import encode
from lib.prompts import generate
from lib.sites import DenseMLP
from lib.transcoders import Transcoder

LAYERS = [0, 1]


@pytest.fixture(scope="module")
def other(folder):
    """A second model, the first with its MLPs changed: what finetuning made of it."""
    hf, tokenizer = models.load_hf(folder, "float32")
    torch.manual_seed(2)
    for block in hf.model.layers:
        for parameter in block.mlp.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    dense = {layer: DenseMLP(hf, layer) for layer in LAYERS}
    return models.bridged(hf, tokenizer, "gemma-scope"), dense


@pytest.fixture(scope="module")
def material(tiny, plain, other, smoke):
    finetuned, dense = other

    def held(model, n, split):
        asked = generate("positive", n, split, 0) + generate("negative", n, split, 0)
        return activations.collect(model, LAYERS, [encode(model.tokenizer, asked)])

    settings = smoke.deltas.training.model_copy(update={"steps": 60, "batch": 256, "lr": 3e-3})
    return controls.Material(
        layers=LAYERS,
        bases={layer: Transcoder.initialised((), 32, 48, layer, 0.5).requires_grad_(False) for layer in LAYERS},
        train=held(finetuned, 12, "train"), validation=held(finetuned, 4, "validation"),
        base_train=held(tiny, 12, "train"), base_validation=held(tiny, 4, "validation"),
        finetuned_mlps=dense, base_mlps={layer: DenseMLP(plain, layer) for layer in LAYERS},
        d_new=4, settings=settings, retrain=smoke.controls.retrain.model_copy(update={"steps": 60}),
    )  # fmt: skip


@pytest.fixture(scope="module")
def built(material):
    return controls.build(material)


def fvu(material, mlps):
    """Mean over layers, on the validation tokens."""
    held = material.validation
    left, centred = material.left_by(mlps, held), held.y - held.y.mean(1, keepdim=True)
    return (left.square().sum((1, 2)) / centred.square().sum((1, 2))).mean().item()


def test_all_are_there_and_finite(material, built):
    assert set(built) == set(controls.CONTROLS)
    for control in built.values():
        assert set(control.mlps) == set(LAYERS)
        assert all(torch.isfinite(control.mlps[i](material.validation.x[i])).all() for i in LAYERS)


def test_the_oracle_is_the_mlp_and_ablations_are_constants(material, built):
    assert fvu(material, built["oracle"].mlps) < 1e-8
    assert (built["zero"].mlps[0](material.validation.x[0]) == 0).all()
    assert torch.allclose(built["mean"].mlps[1](material.validation.x[1])[3], material.train.y[1].mean(0))


def test_bias_only_has_no_features(material, built):
    x = material.validation.x[0]
    for name in ("bias", "difference"):
        added = built[name].mlps[0](x) - material.bases[0](x)
        assert torch.allclose(added, added[:1].expand_as(added), atol=1e-5)
    constant = (material.train.y[0] - material.bases[0](material.train.x[0])).mean(0)
    assert torch.allclose(built["bias"].mlps[0](x) - material.bases[0](x), constant.expand_as(x), atol=1e-5)


def test_a_linear_map_has_its_rank_and_is_the_best_of_it(material, built):
    extra = built["linear"].mlps[0].extra
    rank = controls.rank_for(32, material.d_new)
    assert torch.linalg.matrix_rank(extra.weight, atol=1e-4) == rank == 4
    x, target = material.train.x[0], material.left_by(material.bases, material.train)[0]
    best = (extra(x) - target).square().sum()
    for seed in range(5):
        draw = torch.Generator().manual_seed(seed)
        noise = 0.05 * torch.randn(32, rank, generator=draw) @ torch.randn(rank, 32, generator=draw)
        values, vectors = torch.linalg.svd(extra.weight + noise)[1:]
        u = torch.linalg.svd(extra.weight + noise)[0]
        near = (u[:, :rank] * values[:rank]) @ vectors[:rank]
        assert (controls.Affine(near, extra.bias)(x) - target).square().sum() > best


def test_frozen_halves_did_not_move_and_the_others_did(material, built):
    """Up to the scale of the targets, which is folded into the encoder."""
    for i, layer in enumerate(LAYERS):
        start = Transcoder.initialised((len(LAYERS),), 32, material.d_new, material.seed)[i]
        alike = torch.nn.functional.cosine_similarity
        encoder, decoder = (built[f"frozen_{half}"].mlps[layer].delta for half in ("encoder", "decoder"))
        assert (alike(encoder.W_enc, start.W_enc, dim=0) > 0.9999).all() and (encoder.b_enc == 0).all()
        assert torch.allclose(decoder.W_dec, start.W_dec, atol=1e-6)
        assert (alike(encoder.W_dec, start.W_dec) < 0.999).any() and (alike(decoder.W_enc, start.W_enc, dim=0) < 0.999).any()


def test_shuffled_features_write_each_others_rows(built):
    delta, mixed = built["delta"].mlps[0].delta, built["shuffled"].mlps[0].delta
    assert torch.equal(mixed.W_enc, delta.W_enc) and not (mixed.W_dec == delta.W_dec).all(-1).any()
    assert sorted(map(tuple, mixed.W_dec.tolist())) == sorted(map(tuple, delta.W_dec.tolist()))


def test_a_model_against_itself_teaches_nothing(material, built):
    pair, x = built["same_model"].mlps[0], material.validation.x[0]
    assert pair.delta(x).abs().max() < 1e-4 * material.validation.y[0].abs().max()
    assert built["delta"].mlps[0].delta(x).abs().max() > 0.1


def test_what_was_trained_on_the_base_model_is_not_what_was_trained_on_the_finetuned(material, built):
    x = material.validation.x[0]
    assert not torch.allclose(built["base_error"].mlps[0].delta(x), built["delta"].mlps[0].delta(x), atol=0.05)
    assert torch.allclose(built["attention_only"].mlps[0](x), material.base_mlps[0](x))
    assert fvu(material, built["attention_only"].mlps) > 1e-4


def test_the_dense_layer_has_neither_threshold_nor_penalty(material, built):
    dense = built["dense"].mlps[0].delta
    assert (dense.threshold == 0).all() and dense.d_sae == material.d_new
    assert (built["delta"].mlps[0].delta.threshold > 0).all()


def test_retraining_goes_on_from_the_base_and_is_nearer(material, built):
    one = built["retrained"].mlps[0]
    assert one.d_sae == material.bases[0].d_sae and not torch.equal(one.W_enc, material.bases[0].W_enc)
    assert fvu(material, built["retrained"].mlps) < fvu(material, built["base"].mlps)


def test_sizes_are_what_is_trained_and_the_thresholds(material, built):
    delta = built["delta"].mlps[0].delta
    assert built["delta"].parameters == sum(p.numel() for p in delta.parameters()) + delta.threshold.numel()
    extra = built["linear"].mlps[0].extra
    assert built["linear"].parameters == 2 * 32 * 4 + 32 and extra.weight.shape == (32, 32)
    assert abs(built["linear"].parameters - built["delta"].parameters) <= 2 * 32


def test_without_settings_for_it_nothing_is_retrained_and_all_else_is_there(material):
    brief = material.settings.model_copy(update={"steps": 2})
    assert controls.build(replace(material, retrain=None, settings=brief)).keys() == controls.CONTROLS.keys() - {"retrained"}
