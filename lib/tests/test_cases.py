"""Inputs that once failed, as they were found (`../shared/cases`); their kinds are rebuilt in the other tests."""

import shutil

import pytest
import torch

from lib.dictionary import bases
from lib.model import models
from lib.model.generation import generate
from lib.score import score
from lib.tests.test_generation import TEXTS, by_argmax
from lib.tests.test_imports import saved_by_sae_lens, settings
from lib.tests.test_make import built, make


@pytest.fixture
def cases(shared):
    return shared.parent / "cases"


def test_a_byte_order_mark_is_no_text(cases):
    assert score(cases / "score_bom.jsonl")["n"] == 2


def test_a_number_of_5000_digits_is_one_line_with_its_place(cases):
    with pytest.raises(ValueError, match=r"score_bigint.jsonl:1: not JSON .* mend or download it again") as error:
        score(cases / "score_bigint.jsonl")
    assert "\n" not in str(error.value)


@torch.no_grad()
@pytest.mark.parametrize("name", ["generation_config_repetition_penalty.json", "generation_config_other_eos.json"])
def test_greedy_is_argmax(cases, folder, plain, tmp_path, name):
    shutil.copytree(folder, tmp_path / "model")
    shutil.copy(cases / name, tmp_path / "model/generation_config.json")
    hf, tokenizer = models.load_hf(tmp_path / "model", "float32")
    assert generate(hf, tokenizer, tokenizer(TEXTS).input_ids, 10) == [by_argmax(plain, tokenizer, text, 10) for text in TEXTS]


def test_metadata_of_another_hook_point_is_refused(cases, tiny, tmp_path):
    said = dict(pair.split() for pair in (cases / "sae_lens_metadata.txt").read_text().strip().split(", "))
    saved_by_sae_lens(tmp_path / "one", said=said)
    [load] = bases.on_offer(settings(tmp_path), 1, tiny, tiny.site("trained", 1)).values()
    with pytest.raises(ValueError, match=said["hook_name"]):
        load()


def test_odd_names_of_sources_are_names(cases, tmp_path):
    place, file = (line.split(": ", 1)[1] for line in (cases / "names_in_sources.txt").read_text().strip().splitlines())
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / file).touch()
    with built(tmp_path, "case-names", tmp_path / place) as profile:
        found = [make("-n", "all", f"PROFILE={profile}") for _ in range(2)]
    assert all(done.returncode == 0 and "-m lib.run" in done.stdout for done in found)
    assert not list(tmp_path.rglob("MARKER")) and "MARKER" not in found[0].stdout
