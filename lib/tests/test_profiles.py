import pytest

from lib import profiles

SMOKE = (profiles.FOLDER / "smoke.toml").read_text()


@pytest.mark.parametrize("name", profiles.names())
def test_profiles_of_the_project_load(name):
    assert profiles.load(name).name == name


def test_the_published_settings():
    p = profiles.load("gemma-2-2b")
    f, d = p.tool.finetune, p.tool.deltas
    assert (f.rank, f.alpha, f.dropout, f.lr, f.warmup, f.epochs, f.batch) == (16, 32, 0.1, 2e-5, 0.05, 5, 16)
    assert {t.removesuffix("_proj") for t in f.targets} == {"q", "k", "v", "o", "gate", "up", "down"}
    assert (p.tool.prompts.train, p.transcoders.width, p.transcoders.l0_ranks) == (5000, "16k", [0.25, 0.5, 0.75])
    assert (d.d_new, d.training.lr, d.training.batch, d.training.betas) == ([32, 64, 128], 7e-5, 2048, [0, 0.999])
    assert (d.training.l1, d.training.l1_warmup) == (1e-3, 1000)


def test_single_layers_have_the_alphas_of_all_together_unless_others_are_named(tmp_path):
    (tmp_path / "mine.toml").write_text(SMOKE)
    left_out = profiles.load(str(tmp_path / "mine.toml")).tool.evaluation
    assert left_out.alphas_by_layer == left_out.alphas == [0.0, 0.5, 1.0]
    (tmp_path / "mine.toml").write_text(SMOKE.replace("[tool.evaluation]", "[tool.evaluation]\nalphas_by_layer = [0.0, 1.0]"))
    named = profiles.load(str(tmp_path / "mine.toml")).tool.evaluation
    assert (named.alphas_by_layer, named.alphas) == ([0.0, 1.0], left_out.alphas)


def test_a_path_is_a_profile_too(tmp_path):
    (tmp_path / "mine.toml").write_text(SMOKE)
    assert profiles.load(str(tmp_path / "mine.toml")).name == "mine"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rank = 4", "rnak = 4", "unknown key 'tool.finetune.rnak'; known there: rank, alpha"),
        ("rank = 4", "rnak = 4", "key 'tool.finetune.rank' is missing; add it"),
        ("[model]", "colour = 1\n[model]", "unknown key 'colour'; known there: name, model"),
        ("probes = 4", "probs = 4", "unknown key 'organism.probs'"),
        (
            "l0_ranks = [0.0, 1.0]",
            "l0_ranks = [0.0, 1.5]",
            "transcoders.l0_ranks.1: Input should be less than or equal to 1, not 1.5",
        ),
        ("l0_ranks = [0.0, 1.0]", "l0_ranks = []", "transcoders.l0_ranks: List should have at least 1 item"),
        ("epochs = 1", 'epochs = "one"', "tool.finetune.epochs: Input should be a valid integer, not 'one'"),
        ("epochs = 1", "epochs = 0", "tool.finetune.epochs: Input should be greater than 0, not 0"),
        ("d_new = [2, 4]", "d_new = [2, -4]", "tool.deltas.d_new.1: Input should be greater than 0, not -4"),
        (
            "micro_batch = 4",
            "micro_batch = 6",
            "tool.finetune.batch is 8, not a multiple of tool.finetune.micro_batch, 6; write micro_batch = 4, the next lower",
        ),
        (
            "micro_batch = 4",
            "micro_batch = 16",
            "tool.finetune.batch is 8, not a multiple of tool.finetune.micro_batch, 16; write micro_batch = 8",
        ),
        (
            "l0_ranks = [0.0, 1.0]",
            "l0_ranks = [1.0, 0.0, 0.5]",
            "transcoders.l0_ranks: Levels should rise, each once: write [0.0, 0.5, 1.0], not [1.0, 0.0, 0.5]",
        ),
        (
            "l0_ranks = [0.0, 1.0]",
            "l0_ranks = [0.5, 0.5]",
            "transcoders.l0_ranks: Levels should rise, each once: write [0.5]",
        ),
        ("d_new = [2, 4]", "d_new = [4, 2]", "tool.deltas.d_new: Levels should rise, each once: write [2, 4], not [4, 2]"),
        (
            "alphas = [0.0, 0.5, 1.0]",
            "alphas = [1.0, 0.0]",
            "tool.evaluation.alphas: Levels should rise, each once: write [0.0, 1.0]",
        ),
        (
            "alphas = [0.0, 0.5, 1.0]",
            "alphas = [0.0, 0.121, 0.124]",
            "tool.evaluation.alphas: Alphas should have two decimals at most: write [0.0, 0.12], not [0.0, 0.121, 0.124]",
        ),
        (
            "alphas = [0.0, 0.5, 1.0]",
            "alphas = [0.0, inf]",
            "tool.evaluation.alphas.1: Input should be a finite number, not inf",
        ),
        (
            "[tool.controls.retrain]",
            "[tool.controls]\nlayers = [1, 0]\n[tool.controls.retrain]",
            "tool.controls.layers: Levels should rise, each once",
        ),
        ("train = 24", "train = 1e23", "tool.prompts.train: Input should be a valid integer, not 1e+23"),
        ("train = 24", "train = 1000000", "tool.prompts.train: Input should be less than or equal to 100000, not 1000000"),
        ("lr = 5e-3", "lr = inf", "tool.finetune.lr: Input should be a finite number, not inf"),
        ("lr = 5e-3", "lr = nan", "tool.finetune.lr: Input should be"),
        ("[model]", "seed = -1\n[model]", "seed: Input should be greater than or equal to 0, not -1"),
        ("[model]", "seed = 4294967296\n[model]", "seed: Input should be less than 4294967296"),
        ("[model]", 'name = "../../x"\n[model]', "name"),
        ('source = "data/smoke/model"', 'source = ""', "model.source"),
        ('source = "data/smoke/model"', 'source = "."', "model.source"),
        ('source = "data/smoke/model"', 'source = "a\\u0000b"', "model.source"),
        ('width = "64"', 'width = "../64"', "transcoders.width"),
        ("l0_ranks = [0.0, 1.0]", "l0_ranks = [0.0, 1.0]\nlayers = [0, 0]", "transcoders.layers: Levels should rise"),
        ('"q_proj", "k_proj"', '"q_proj", "q_proj"', "tool.finetune.targets"),
        ("[model]", "[model", "not TOML"),
        ("[model]", "a = " + "[" * 5000 + "\n[model]", "not TOML"),
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


def test_a_step_of_finetuning_has_the_prompts_that_the_profile_says():
    for settings in [p.tool.finetune for name in profiles.names() if (p := profiles.load(name)).tool]:
        assert settings.micro_batch * (settings.batch // settings.micro_batch) == settings.batch


def test_a_folder_is_no_profile(tmp_path):
    (tmp_path / "mine.toml").mkdir()
    with pytest.raises(profiles.ProfileError, match=r"mine\.toml: a folder, where a file is needed"):
        profiles.load(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize(
    ("left_out", "said"),
    [
        ("transcoders", r"tool: its deltas are trained on base transcoders; add a table \[transcoders\]"),
        ("tool", None),
        ("features", None),
    ],
)
def test_a_profile_may_lack_what_its_studies_do_not_need(tmp_path, left_out, said):
    tables = {}
    for part in SMOKE.split("\n["):
        tables.setdefault(part.lstrip("[").split("]")[0].split(".")[0], []).append(part)
    kept = [part for name, parts in tables.items() if name != left_out for part in parts]
    (tmp_path / "mine.toml").write_text("\n[".join(kept))
    if said:
        with pytest.raises(profiles.ProfileError, match=said):
            profiles.load(str(tmp_path / "mine.toml"))
    else:
        assert getattr(profiles.load(str(tmp_path / "mine.toml")), left_out) is None


def test_features_without_running_text_are_refused(tmp_path):
    gpt2 = (profiles.FOLDER / "gpt2.toml").read_text()
    (tmp_path / "mine.toml").write_text(gpt2.split("[features.text]")[0])
    with pytest.raises(profiles.ProfileError, match=r"features has no text besides its own; add a table \[features\.text\]"):
        profiles.load(str(tmp_path / "mine.toml"))
