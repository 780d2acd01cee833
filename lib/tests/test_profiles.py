import pytest

from lib import profiles

SMOKE = (profiles.FOLDER / "smoke.toml").read_text()


@pytest.mark.parametrize("name", profiles.names())
def test_profiles_of_the_project_load(name):
    assert profiles.load(name).name == name


def test_the_published_settings():
    p = profiles.load("gemma-2-2b")
    f, d = p.finetune, p.deltas
    assert (f.rank, f.alpha, f.dropout, f.lr, f.warmup, f.epochs, f.batch) == (16, 32, 0.1, 2e-5, 0.05, 5, 16)
    assert {t.removesuffix("_proj") for t in f.targets} == {"q", "k", "v", "o", "gate", "up", "down"}
    assert (p.prompts.train, p.transcoders.width, p.transcoders.percentiles) == (5000, "16k", [0.25, 0.5, 0.75])
    assert (d.d_new, d.training.lr, d.training.batch, d.training.betas) == ([32, 64, 128], 7e-5, 2048, [0, 0.999])
    assert (d.training.l1, d.training.l1_warmup) == (1e-3, 1000)


def test_a_path_is_a_profile_too(tmp_path):
    (tmp_path / "mine.toml").write_text(SMOKE)
    assert profiles.load(str(tmp_path / "mine.toml")).name == "mine"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rank = 4", "rnak = 4", "unknown key 'finetune.rnak'; known there: rank, alpha"),
        ("rank = 4", "rnak = 4", "key 'finetune.rank' is missing; add it"),
        ("[model]", "colour = 1\n[model]", "unknown key 'colour'; known there: name, model"),
        ("probes = 4", "probs = 4", "unknown key 'organism.probs'"),
        (
            "percentiles = [0.0, 1.0]",
            "percentiles = [0.0, 1.5]",
            "transcoders.percentiles.1: Input should be less than or equal to 1, not 1.5",
        ),
        ("percentiles = [0.0, 1.0]", "percentiles = []", "transcoders.percentiles: List should have at least 1 item"),
        ("epochs = 1", 'epochs = "one"', "finetune.epochs: Input should be a valid integer, not 'one'"),
        ("epochs = 1", "epochs = 0", "finetune.epochs: Input should be greater than 0, not 0"),
        ("d_new = [2, 4]", "d_new = [2, -4]", "deltas.d_new.1: Input should be greater than 0, not -4"),
        ("[model]", "[model", "not TOML"),
    ],
)
def test_a_bad_profile_is_one_line(tmp_path, old, new, message):
    assert old in SMOKE
    file = tmp_path / "bad.toml"
    file.write_text(SMOKE.replace(old, new))
    with pytest.raises(profiles.ProfileError) as error:
        profiles.load(str(file))
    assert str(file) in str(error.value) and message in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_profile_names_the_known_ones():
    known = ", ".join(profiles.names())
    with pytest.raises(profiles.ProfileError, match=f"nanno: no such profile; use one of {known}, or the path"):
        profiles.load("nanno")
