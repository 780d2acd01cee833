import numpy as np
import pytest
import torch

from lib.transcoders import BaseDelta, Transcoder, choose, levels, load_npz, save_npz


@pytest.fixture
def one():
    t = Transcoder.initialised((), 6, 10, 0, 0.3)
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
    t = Transcoder(torch.eye(2), torch.zeros(2), torch.full((2,), -5.0), torch.eye(2), torch.zeros(2))
    assert t.encode(torch.tensor([[-1.0, 2.0]])).tolist() == [[0, 2]]


def test_a_stack_is_its_members_side_by_side():
    stack = Transcoder.initialised((2, 3), 6, 10, 0)
    x = torch.randn(2, 1, 7, 6)
    out = stack(x)
    assert out.shape == (2, 3, 7, 6)
    for i in range(2):
        for j in range(3):
            assert torch.allclose(out[i, j], stack[i, j](x[i, 0]), atol=1e-6)


def test_base_plus_alpha_delta(one):
    delta = Transcoder.initialised((), 6, 2, 1)
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
    with pytest.raises(ValueError, match=r"percentile 1.5 is outside 0\.\.1"):
        choose(l0s, 1.5)


def test_levels_are_listed_from_the_folder(one, tmp_path):
    for l0 in ("9", "31.5", "120"):
        save_npz(one, tmp_path / f"layer_3/width_1k/average_l0_{l0}/params.npz")
    assert levels(tmp_path, 3, "1k") == {
        float(l0): f"layer_3/width_1k/average_l0_{l0}/params.npz" for l0 in ("9", "31.5", "120")
    }
    with pytest.raises(ValueError, match="nothing under layer_4/width_1k/average_l0_"):
        levels(tmp_path, 4, "1k")


def test_a_truncated_file_is_named(one, tmp_path):
    path = tmp_path / "params.npz"
    save_npz(one, path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="damaged or not an npz") as error:
        load_npz(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_shapes_that_do_not_fit_are_named(one, tmp_path):
    path = tmp_path / "params.npz"
    save_npz(one, path)
    with pytest.raises(ValueError, match=r"params.npz: W_enc is \(6, 10\), not \(8, 10\); it is not for this model"):
        load_npz(path, 8)


def test_missing_arrays_are_named(tmp_path):
    np.savez(tmp_path / "params.npz", W_enc=np.zeros((2, 3)))
    with pytest.raises(ValueError, match="b_enc is not a file in the archive; expected arrays W_enc, b_enc"):
        load_npz(tmp_path / "params.npz")


def test_a_pickle_is_never_opened(tmp_path):
    class Evil:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was executed",))

    np.savez(tmp_path / "params.npz", W_enc=np.array([Evil()], dtype=object))
    with pytest.raises(ValueError, match="damaged or not an npz"):
        load_npz(tmp_path / "params.npz")
