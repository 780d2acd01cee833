import pytest
import torch

from lib.dictionary.dictionaries import Dictionary
from lib.dictionary.gradients import gradients
from lib.dictionary.training import train, validate, variance
from lib.model import activations
from lib.model.encoding import batches
from lib.profiles.organism import Training
from lib.tests.at import sites
from lib.texts.prompts import written

SETTINGS = Training(lr=1e-2, batch=256, steps=600, check_every=50, patience=100)


def planted(n_features=4, d=16, seed=0):
    """Targets written by a known sparse transcoder."""
    torch.manual_seed(seed)
    true = Dictionary.initialised((), d, n_features, seed, threshold=1.0)
    x = torch.randn(6000, d)
    return x, true(x).detach(), true


def stream(x, y, batch, stack=()):
    for pick in activations.repeated(len(x), batch, 0):
        yield x[pick].expand(*stack, -1, -1), y[pick].expand(*stack, -1, -1)


def test_a_planted_delta_is_recovered():
    x, y, true = planted()
    stack = Dictionary.initialised((2,), 16, 8, 1, threshold=0.001)
    settings = SETTINGS.model_copy(update={"steps": 2000, "l1": 1e-3})  # the penalty keeps a feature from splitting in two
    [curves] = train([stack], stream(x[:5000], y[:5000], 256, (1,)), (x[5000:], y[5000:]), settings)
    assert curves[curves.step == curves.step.max()].fvu.max() < 0.1
    stack = stack[0]
    similarity = torch.cosine_similarity(true.W_dec[:, None], stack.W_dec[None], dim=-1)
    assert similarity.max(1).values.min() > 0.9


def test_l0_is_what_was_aimed_at():
    x, y, _ = planted(32)
    target = torch.tensor([2.0, 6.0])
    stack = Dictionary.initialised((2,), 16, 64, 1)
    train([stack], stream(x, y, 256, (1,)), (x, y), SETTINGS, target)
    _, l0 = validate(stack, (x, y), variance(y))
    assert torch.allclose(l0, target, rtol=0.15)
    assert (stack.threshold.amax(-1) == stack.threshold.amin(-1)).all()


def test_an_sae_is_one_whose_target_is_its_input(tiny):
    """Trained at a residual site of a model, at the L0 aimed at; x and y are the same there."""
    text = batches(tiny.tokenizer, written("negative", 60, "test", 0), 8)
    held = activations.collect(tiny, sites(tiny, [0, 1], "resid_post"), text)
    assert torch.equal(held.x, held.y)
    x, target = held.x[1], torch.tensor([6.0])
    stack = Dictionary.initialised((1,), tiny.d_model, 4 * tiny.d_model, 1)
    train([stack], stream(x, x, 256, (1,)), (x, x), SETTINGS, target)
    fvu, l0 = validate(stack, (x, x), variance(x))
    assert fvu.item() < 0.3 and l0.item() == pytest.approx(6, rel=0.2)


def test_l1_makes_fewer_features_active():
    x, y, _ = planted()
    l0 = []
    for l1 in (0.0, 0.3):
        stack = Dictionary.initialised((), 16, 32, 1, threshold=0.001)
        train([stack], stream(x, y, 256), (x, y), SETTINGS.model_copy(update={"l1": l1}))
        l0.append(validate(stack, (x, y), variance(y))[1].item())
    assert l0[1] < 0.7 * l0[0]


def test_members_do_not_influence_one_another():
    x, y, _ = planted()
    both = Dictionary.initialised((2,), 16, 8, 3, threshold=0.001)
    alone = Dictionary(*(getattr(both, n).detach()[0].clone() for n in ("W_enc", "b_enc", "threshold", "W_dec", "b_dec")))
    short = SETTINGS.model_copy(update={"steps": 60})
    train([both], stream(x, y, 256, (1,)), (x, y), short)
    train([alone], stream(x, y, 256), (x, y), short)
    assert torch.allclose(both[0](x), alone(x), atol=1e-4)


def test_stacks_of_several_widths_do_not_influence_one_another():
    x, y, _ = planted()
    short = SETTINGS.model_copy(update={"steps": 60, "l1": 1e-3})
    together, alone = ([Dictionary.initialised((2,), 16, d_sae, 3, threshold=0.001) for d_sae in (4, 8)] for _ in range(2))
    curves = train(together, stream(x, y, 256, (1,)), (x, y), short)
    for stack, same, curve in zip(together, alone, curves, strict=True):
        [own] = train([same], stream(x, y, 256, (1,)), (x, y), short)
        assert torch.allclose(stack(x), same(x), atol=1e-4)
        assert curve[["step", "member"]].equals(own[["step", "member"]])
        assert curve.fvu.to_numpy() == pytest.approx(own.fvu.to_numpy(), abs=1e-4)


def test_the_best_parameters_are_kept_and_training_stops():
    torch.manual_seed(0)
    x, noise = torch.randn(64, 16), torch.randn(64, 16)
    held_out = torch.randn(500, 16), torch.randn(500, 16)
    stack = Dictionary.initialised((), 16, 64, 0)
    settings = Training(lr=1e-2, batch=64, steps=2000, check_every=10, patience=3)
    [curves] = train([stack], stream(x, noise, 64), held_out, settings)
    assert curves.step.max() < 2000
    assert validate(stack, held_out, variance(held_out[1]))[0].item() <= curves.fvu.min() + 1e-5


def test_decoder_rows_stay_of_length_one():
    x, y, _ = planted()
    stack = Dictionary.initialised((), 16, 8, 0)
    train([stack], stream(x, y, 256), (x, y), SETTINGS.model_copy(update={"steps": 20}))
    assert torch.allclose(stack.W_dec.norm(dim=-1), torch.ones(8), atol=1e-5)


def test_one_pass_gives_every_layer_and_leaves_out_bos_and_padding(tiny):
    prompts = written("negative", 7, "test", 0)
    held = activations.collect(tiny, sites(tiny, [0, 1]), batches(tiny.tokenizer, prompts, 3))
    lengths = [
        batch.attention[i].sum().item() - 1 for batch in batches(tiny.tokenizer, prompts, 3) for i in range(len(batch.ids))
    ]
    assert held.x.shape == held.y.shape == (2, sum(lengths), tiny.d_model)
    assert held.prompt.bincount().tolist() == lengths


def test_the_buffer_hands_out_each_token_once(tiny):
    text = batches(tiny.tokenizer, written("negative", 40, "test", 0), 4)
    everything = activations.collect(tiny, sites(tiny, [0]), text).x[0]
    given = torch.cat([a.x[0] for a in activations.shuffled(activations.stream(tiny, sites(tiny, [0]), text), 16, 200, 0)])
    assert len(given) > 300
    nearest = torch.cdist(given, everything).argmin(1)
    assert torch.allclose(everything[nearest], given, atol=1e-4)
    assert (nearest[1:] == nearest[:-1] + 1).float().mean() < 0.2
    assert (nearest.bincount().float().mean() <= 1.2).item()


WIDTHS = {"fewer features than dimensions": [5], "more": [40], "several": [3, 5, 2], "several, one of more": [3, 40]}


@pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS.keys())
@pytest.mark.parametrize("skip", [False, True], ids=["plain", "affine skip"])
def test_gradients_are_those_of_autograd(widths, skip):
    torch.manual_seed(0)
    d, n, l1 = 16, 50, 0.3
    x, target = torch.randn(2, 1, n, d).double(), 3 * torch.randn(2, 3, n, d).double()
    scale = 1 + torch.rand(2, 3, 1).double()

    def stack(d_sae):
        one = Dictionary.initialised((2, 3), d, d_sae, 0, threshold=0.2).tensors
        tensors = {name: tensor.double() + 0.1 * torch.randn(tensor.shape).double() for name, tensor in one.items()}
        return Dictionary(**tensors, **({"W_skip": torch.randn(2, 3, d, d).double()} if skip else {}))

    stacks = [stack(d_sae) for d_sae in widths]
    for stack, (active, found) in zip(stacks, gradients(stacks, x, target, scale, l1), strict=True):
        p = x @ stack.W_enc + stack.b_enc[..., None, :]
        by_hand = p * (p > stack.threshold.clamp(min=0)[..., None, :])
        y = by_hand @ stack.W_dec + stack.b_dec[..., None, :] + (x @ stack.W_skip if skip else 0)
        squared = (y - target / scale[..., None]).square().mean((-1, -2))
        (squared + l1 / scale[..., 0] * by_hand.mean((-1, -2))).sum().backward()
        assert torch.equal(active, (by_hand > 0).sum(-2).float()) and 0.05 < active.mean() / n < 0.95
        assert found.keys() == dict(stack.named_parameters()).keys()
        for name, parameter in stack.named_parameters():
            assert torch.allclose(found[name], parameter.grad, atol=1e-12), name


def test_activations_that_are_not_finite_are_named_by_their_layer(tiny):
    weight = tiny.hf.model.layers[1].mlp.down_proj.weight
    kept, asked = weight[0, 0].item(), batches(tiny.tokenizer, written("positive", 2, "test", 0), 2)
    try:
        weight.data[0, 0] = torch.inf
        with pytest.raises(
            ValueError, match=r"layer 1: the model's activations are not finite there; choose another model\.dtype"
        ):
            activations.collect(tiny, sites(tiny, [0, 1]), asked)
        assert activations.collect(tiny, sites(tiny, [0]), asked).y.isfinite().all()
    finally:
        weight.data[0, 0] = kept
