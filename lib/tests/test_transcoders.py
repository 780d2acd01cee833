import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lib.dictionary import bases
from lib.dictionary.bases import choose
from lib.dictionary.dictionaries import BaseDelta, Dictionary
from lib.dictionary.layouts import LAYOUTS, levels, load_level, load_npz, read, save_npz
from lib.profiles import tables


@pytest.fixture
def one():
    t = Dictionary.initialised((), 6, 10, 0, 0.3)
    torch.manual_seed(0)
    for parameter in t.parameters():
        torch.nn.init.normal_(parameter)
    return t.requires_grad_(False)


def test_the_formula_feature_by_feature(one):
    x = torch.randn(6)
    y = one.b_dec.clone()
    for i in range(10):
        p = x @ one.W_enc[:, i] + one.b_enc[i]
        if p > 0.3:
            y += p * one.W_dec[i]
    assert torch.allclose(one(x[None])[0], y, atol=1e-6)


def test_sae_lens_reads_what_we_wrote_and_agrees(one):
    """sae-lens's own JumpReLU transcoder with our parameters gives our features and our output."""
    from sae_lens import JumpReLUTranscoder, JumpReLUTranscoderConfig

    theirs = JumpReLUTranscoder(
        JumpReLUTranscoderConfig(d_in=6, d_out=6, d_sae=10, dtype="float32", device="cpu", apply_b_dec_to_input=False)
    )
    theirs.load_state_dict({name: getattr(one, name).detach() for name in ("W_enc", "b_enc", "threshold", "W_dec", "b_dec")})
    x = torch.randn(20, 6)
    assert torch.allclose(theirs.encode(x), one.encode(x), atol=1e-6)
    assert torch.allclose(theirs(x), one(x), atol=1e-6)


def test_negative_pre_activations_are_silent_whatever_the_threshold():
    t = Dictionary(torch.eye(2), torch.zeros(2), torch.full((2,), -5.0), torch.eye(2), torch.zeros(2))
    assert t.encode(torch.tensor([[-1.0, 2.0]])).tolist() == [[0, 2]]


def test_a_stack_is_its_members_side_by_side():
    stack = Dictionary.initialised((2, 3), 6, 10, 0)
    x = torch.randn(2, 1, 7, 6)
    out = stack(x)
    assert out.shape == (2, 3, 7, 6)
    for i in range(2):
        for j in range(3):
            assert torch.allclose(out[i, j], stack[i, j](x[i, 0]), atol=1e-6)


def test_base_plus_alpha_delta(one):
    delta = Dictionary.initialised((), 6, 2, 1)
    x = torch.randn(4, 6)
    assert torch.allclose(BaseDelta(one, delta, 0.5)(x), one(x) + 0.5 * delta(x))
    assert torch.allclose(BaseDelta(one, delta, 0.0)(x), one(x))


def test_round_trip_and_the_arrays_of_gemma_scope(one, tmp_path):
    save_npz(one, tmp_path / "params.npz")
    with np.load(tmp_path / "params.npz") as file:
        assert set(file) == {"W_enc", "b_enc", "threshold", "W_dec", "b_dec"} and file["W_enc"].shape == (6, 10)
    x = torch.randn(4, 6)
    assert torch.equal(load_npz(tmp_path / "params.npz", 6)(x), one(x))


def test_choice_by_percentile():
    l0s = [72.0, 7.0, 31.0, 14.0, 150.0]
    assert [choose(l0s, q) for q in (0, 0.25, 0.5, 0.75, 1)] == [7, 14, 31, 72, 150]
    assert choose([10.0], 0.9) == 10
    with pytest.raises(ValueError, match=r"L0 rank 1.5 is outside 0\.\.1"):
        choose(l0s, 1.5)


def test_levels_are_listed_from_the_folder(one, tmp_path):
    for l0 in ("9", "31.5", "120"):
        save_npz(one, tmp_path / f"layer_3/width_1k/average_l0_{l0}/params.npz")
    settings = tables.Transcoders(source=str(tmp_path), width="1k", l0_ranks=[0.5])
    assert levels(settings, 3) == {float(l0): f"layer_3/width_1k/average_l0_{l0}/params.npz" for l0 in ("9", "31.5", "120")}
    with pytest.raises(ValueError, match=re.escape("no file of layer 4 like layer_4/width_1k/average_l0_")):
        levels(settings, 4)


def test_a_truncated_file_is_named(one, tmp_path):
    path = tmp_path / "params.npz"
    save_npz(one, path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="damaged or not of its kind") as error:
        load_npz(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_shapes_that_do_not_fit_are_named(one, tmp_path):
    path = tmp_path / "params.npz"
    save_npz(one, path)
    with pytest.raises(ValueError, match=r"params.npz: W_enc is \(6, 10\), not \(8, 10\); it is not for this model"):
        load_npz(path, 8)


def test_missing_arrays_are_named(tmp_path):
    np.savez(tmp_path / "params.npz", W_enc=np.zeros((2, 3)))
    with pytest.raises(ValueError, match="no array b_enc, threshold, W_dec, b_dec; expected W_enc, b_enc"):
        load_npz(tmp_path / "params.npz")


def test_a_pickle_is_never_opened(tmp_path):
    class Evil:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was executed",))

    np.savez(tmp_path / "params.npz", W_enc=np.array([Evil()], dtype=object))
    with pytest.raises(ValueError, match="damaged or not of its kind"):
        load_npz(tmp_path / "params.npz")


# --- the files of other releases, and the affine skip ---


RELU = [name for name, layout in LAYOUTS.items() if layout.folded is None]


def arrays_of_a_release(layout, folder):
    """One file as the release has it, with random numbers; and x and y of its formula, summed by hand in float64."""
    torch.manual_seed(0)
    d, n = 6, 10
    W_enc, W_dec, b_enc, b_dec = torch.randn(d, n), torch.randn(n, d), torch.randn(n), torch.randn(d)
    threshold, W_skip = torch.rand(n), torch.randn(d, d)
    files = {
        "gemma-scope": dict(W_enc=W_enc, W_dec=W_dec, b_enc=b_enc, b_dec=b_dec, threshold=threshold),
        "gemma-scope-2": dict(w_enc=W_enc, w_dec=W_dec, b_enc=b_enc, b_dec=b_dec, threshold=threshold),
        # circuit-tracer computes input @ W_enc.T and input @ W_skip.T
        "circuit-tracer": dict(W_enc=W_enc.T.contiguous(), W_dec=W_dec, b_enc=b_enc, b_dec=b_dec),
    }
    # Gemma Scope 2 computes x @ affine_skip_connection
    files["gemma-scope-2-affine"] = files["gemma-scope-2"] | {"affine_skip_connection": W_skip}
    arrays, x, y = files[layout], torch.randn(20, d), []
    for row in x.double():
        out = b_dec.double().clone()
        for i in range(n):
            p = row @ W_enc[:, i].double() + b_enc[i]
            if p > (0 if layout == "circuit-tracer" else threshold[i]):
                out += p * W_dec[i]
        y.append(out + row @ W_skip.double() * (layout == "gemma-scope-2-affine"))
    if layout == "gemma-scope":
        path = folder / "params.npz"
        np.savez(path, **{name: array.numpy() for name, array in arrays.items()})
    else:
        path = folder / "params.safetensors"
        save_file(arrays, path)
    return path, x, torch.stack(y)


def check_release(name, layout, folder):
    """What is read from a file of this release computes what its formula says."""
    path, x, y = arrays_of_a_release(name, folder)
    transcoder = read(path, layout, 6)
    assert torch.allclose(transcoder(x).double(), y, atol=1e-5)
    delta = Dictionary.initialised((), 6, 2, 1)
    assert torch.allclose(BaseDelta(transcoder, delta, 0.5)(x).double(), y + 0.5 * delta(x), atol=1e-5)
    assert torch.allclose(Dictionary.stacked([transcoder])[0](x), transcoder(x))


@pytest.mark.parametrize("name", RELU)
def test_every_release_is_read_as_it_computes(name, tmp_path):
    check_release(name, LAYOUTS[name], tmp_path)


def test_a_transposed_or_dropped_skip_is_caught(tmp_path):
    affine = LAYOUTS["gemma-scope-2-affine"]
    without = {name: theirs for name, theirs in affine.arrays.items() if name != "W_skip"}
    with pytest.raises(AssertionError):
        check_release("gemma-scope-2-affine", replace(affine, transposed=("W_skip",)), tmp_path)
    with pytest.raises(ValueError, match="array affine_skip_connection is not one of this layout"):
        check_release("gemma-scope-2-affine", replace(affine, arrays=without), tmp_path)


def test_a_transposed_encoder_is_caught(tmp_path):
    with pytest.raises(ValueError, match=r"W_enc is \(10, 6\), not \(6, 10\)"):
        check_release("circuit-tracer", replace(LAYOUTS["circuit-tracer"], transposed=()), tmp_path)


@pytest.mark.parametrize("name", RELU)
def test_a_subtracted_b_dec_is_caught(name, tmp_path, monkeypatch):
    encode = Dictionary.encode
    monkeypatch.setattr(Dictionary, "encode", lambda self, x: encode(self, x - self.b_dec.unsqueeze(-2)))
    with pytest.raises(AssertionError):
        check_release(name, LAYOUTS[name], tmp_path)


def test_an_affine_release_must_have_its_skip(tmp_path):
    path, *_ = arrays_of_a_release("gemma-scope-2", tmp_path)
    with pytest.raises(ValueError, match=r"params\.safetensors: no array affine_skip_connection; expected w_enc"):
        read(path, LAYOUTS["gemma-scope-2-affine"], 6)


def test_a_skip_is_never_left_out_in_silence(tmp_path):
    path, x, _ = arrays_of_a_release("gemma-scope-2-affine", tmp_path)
    transcoder = read(path, LAYOUTS["gemma-scope-2-affine"], 6)
    with pytest.raises(ValueError, match="affine skip; give decode the input too"):
        transcoder.decode(transcoder.encode(x))


def test_sae_lens_computes_the_same_with_a_skip(tmp_path):
    """Its class with what its loader makes of the file: W_skip is (d_out, d_in) there, the transpose of what is stored."""
    from sae_lens import JumpReLUSkipTranscoder, JumpReLUSkipTranscoderConfig
    from safetensors.torch import load_file

    path, x, y = arrays_of_a_release("gemma-scope-2-affine", tmp_path)
    stored = load_file(path)
    theirs = JumpReLUSkipTranscoder(
        JumpReLUSkipTranscoderConfig(d_in=6, d_out=6, d_sae=10, dtype="float32", device="cpu", apply_b_dec_to_input=False)
    )
    theirs.load_state_dict(
        {"W_enc": stored["w_enc"], "W_dec": stored["w_dec"], "W_skip": stored["affine_skip_connection"].T.contiguous()}
        | {name: stored[name] for name in ("b_enc", "b_dec", "threshold")}
    )
    assert torch.allclose(theirs(x).double(), y, atol=1e-5)
    assert torch.allclose(theirs(x), read(path, LAYOUTS["gemma-scope-2-affine"])(x), atol=1e-5)


def test_levels_of_gemma_scope_2_are_what_its_configs_say(tmp_path):
    for l0, kind in ((120, "big_affine"), (20, "small_affine"), (60, "small")):
        folder = tmp_path / f"transcoder_all/layer_3_width_16k_l0_{kind}"
        folder.mkdir(parents=True)
        arrays_of_a_release("gemma-scope-2-affine", folder)
        (folder / "config.json").write_text(json.dumps({"l0": l0}))
    settings = tables.Transcoders(source=str(tmp_path), layout="gemma-scope-2-affine", width="16k", l0_ranks=[0.5])
    found = levels(settings, 3)
    assert list(found) == [20, 120] and load_level(settings, found[20], 6).W_skip is not None


def test_a_release_with_one_transcoder_a_layer_has_one_level(tmp_path):
    path, x, y = arrays_of_a_release("circuit-tracer", tmp_path)
    path.rename(tmp_path / "layer_3.safetensors")
    settings = tables.Transcoders(source=str(tmp_path), layout="circuit-tracer", l0_ranks=[0.5])
    [(l0, file)] = levels(settings, 3).items()
    assert np.isnan(l0) and np.isnan(choose([l0], 0.75))
    assert torch.allclose(load_level(settings, file, 6)(x).double(), y, atol=1e-5)


def test_a_stack_with_a_skip_is_retrained_with_it(smoke):
    """From parameters that already fit it goes on, and its skip with it, in the units of the targets."""
    from lib.dictionary.training import train

    torch.manual_seed(0)
    x, one = torch.randn(2, 64, 6), Dictionary.initialised((2,), 6, 10, 0)
    stack = Dictionary(**one.tensors, W_skip=torch.randn(2, 6, 6))
    y = stack(x).detach()
    settings = smoke.tool.controls.retrain.model_copy(update={"lr": 1e-5, "steps": 2})
    [curve] = train([stack], iter([(x, y)] * 3), (x, y), settings, warm=True)
    assert curve.fvu.max() < 1e-3 and stack.W_skip is not None
    assert torch.allclose(stack(x), y, atol=0.05)


@torch.no_grad()
@pytest.mark.parametrize("transcode", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_a_folder_of_sparsify_is_topk(tmp_path, transcode, skip):
    """Against a computation in float64 from the arrays as sparsify stores them, and against the library where it is there."""
    d, n, k = 6, 20, 3
    draw = torch.Generator().manual_seed(0)
    arrays = {"encoder.weight": (n, d), "encoder.bias": (n,), "W_dec": (n, d), "b_dec": (d,)} | (
        {"W_skip": (d, d)} if skip else {}
    )
    arrays = {name: torch.randn(shape, generator=draw) for name, shape in arrays.items()}
    place = tmp_path / "layers.3.mlp"
    place.mkdir()
    save_file(arrays, place / "sae.safetensors")
    config = {"activation": "topk", "expansion_factor": 0, "normalize_decoder": True, "num_latents": n, "k": k,
              "multi_topk": False, "skip_connection": skip, "transcode": transcode, "d_in": d}  # fmt: skip
    (place / "cfg.json").write_text(json.dumps(config))
    settings = tables.Transcoders(source=str(tmp_path), layout="sparsify", l0_ranks=[0.5])
    [(l0, load)] = bases.on_offer(settings, 3).items()
    ours, x = load(), torch.randn(40, d, generator=draw)
    a = {name: array.double() for name, array in arrays.items()}
    p = ((x.double() if transcode else x.double() - a["b_dec"]) @ a["encoder.weight"].T + a["encoder.bias"]).relu()
    f = p * (p >= p.topk(k).values[:, -1:])
    y = f @ a["W_dec"] + a["b_dec"] + (x.double() @ a["W_skip"].T if skip else 0)
    assert l0 == k and torch.allclose(ours.encode(x).double(), f, atol=1e-4) and torch.allclose(ours(x).double(), y, atol=1e-4)
    assert (ours.encode(x) > 0).sum(-1).max() == k
    (place / "cfg.json").write_text(json.dumps(config | {"activation": "groupmax"}))
    with pytest.raises(ValueError, match=r"its activation is groupmax, which ours cannot be; check transcoders\.layout"):
        load()
    sparsify = pytest.importorskip("sparsify", reason="eai-sparsify is not installed: make bench installs it")
    (place / "cfg.json").write_text(json.dumps(config))
    theirs = sparsify.SparseCoder.load_from_disk(place)
    found = theirs.encode(x)
    dense = torch.zeros(40, n).scatter_(1, found.top_indices, found.top_acts)
    assert torch.allclose(ours.encode(x), dense, atol=1e-4)
    y = theirs.decode(found.top_acts, found.top_indices) + (x @ theirs.W_skip.mT if skip else 0)
    assert torch.allclose(ours(x), y, atol=1e-4)


def test_a_topk_dictionary_has_no_place_in_gemma_scopes_layout(one, tmp_path):
    topk = one.changed()
    topk.k = 3
    with pytest.raises(ValueError, match="no place for a TopK"):
        save_npz(topk, tmp_path / "params.npz")
    assert topk.changed(b_dec=one.b_dec.detach() * 2).k == 3 and Dictionary.stacked([topk, topk])[1].k == 3
