"""Repositories from a hub (one that a server here plays), from its cache without a network, and what goes wrong with either."""

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading

import pytest
import torch
from tokenizers.normalizers import Replace

from lib import profiles
from lib.base import make
from lib.book import hub
from lib.book.paths import ROOT, Paths
from lib.dictionary import bases
from lib.dictionary.bases import choose
from lib.dictionary.layouts import levels
from lib.model import models
from lib.profiles import tables
from lib.profiles.tool import Controls
from lib.tests import real
from lib.tests.at import other

OPEN, GATED = "owner/scope", "owner/gated"


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """The repositories of the hub: transcoders open to all, and a model behind a licence."""
    folder = tmp_path_factory.mktemp("content")
    real.gemma_scope(folder / OPEN)
    real.save("gemma2", folder / GATED)
    return folder


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as its client asks for: what a repository is, its files, and each of them."""

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), "X-Repo-Commit": real.COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.asked.append(path)
        repository = next((name for name in (OPEN, GATED) if name in path), None)
        if repository is None:
            return self.answer(404, b"{}", X_Error_Code="RepoNotFound")
        folder = self.content / repository
        if "/tree/" in path:
            files = [file for file in folder.rglob("*") if file.is_file()]
            listed = [
                {"type": "file", "path": file.relative_to(folder).as_posix(), "size": file.stat().st_size, "oid": "0" * 40}
                for file in files
            ]
            return self.answer(200, json.dumps(listed).encode(), Content_Type="application/json")
        if path.startswith("/api/"):
            if "nowhere" in path:
                return self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
            return self.answer(
                200, json.dumps({"id": repository, "sha": real.COMMIT}).encode(), Content_Type="application/json"
            )
        if repository == GATED:
            return self.answer(403, b"{}", X_Error_Code="GatedRepo")
        file = folder / re.split(r"/resolve/[^/]+/", path)[1]
        if not file.is_file():
            return self.answer(404, b"{}", X_Error_Code="EntryNotFound")
        return self.answer(200, file.read_bytes(), ETag=f'"{abs(hash(path))}"')

    do_HEAD = do_GET  # noqa: N815


@pytest.fixture
def ask(content, tmp_path):
    """Runs Python with an empty cache and a server for the hub, or with HF_HUB_OFFLINE=1; returns what it printed."""
    handler = type("Handler", (Hub,), {"content": content, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def run(code, offline=False):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | {
            "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HUB_OFFLINE": str(int(offline)), "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
        return result.stdout + result.stderr

    run.asked = handler.asked
    yield run
    server.shutdown()


LEVELS = f"""
from lib.dictionary import bases, layouts
from lib.profiles.tables import Transcoders
s = Transcoders(source="{OPEN}", width="16k", l0_ranks=[0.5])
found = layouts.levels(s, 1)
l0 = bases.choose(list(found), 0.5)
print(list(found), l0, layouts.load_level(s, found[l0], {real.D_MODEL}).d_sae)
"""


def test_levels_are_listed_on_the_hub_and_one_is_fetched_and_then_found_without_a_network(ask):
    wanted = "[7.0, 14.0, 25.0, 49.0, 102.0] 25.0 48"
    assert ask(LEVELS).strip().endswith(wanted)
    assert [path for path in ask.asked if path.endswith(".npz")] and all("l0_25" in p for p in ask.asked if p.endswith(".npz"))
    # the choice is the same although only one level is here, because the list of all was kept
    assert ask(LEVELS, offline=True).strip() == wanted


SAY = "from lib.book import hub\ntry:\n    {}\nexcept ValueError as error:\n    print(error)"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            f"hub.file('{GATED}', 'config.json')",
            f"{GATED}: accept its licence at https://huggingface.co/{GATED} first, then log in with `.venv/bin/hf auth login`,"
            " and start again",
        ),
        (f"hub.folder('{GATED}')", f"{GATED}: accept its licence at"),
        (
            "hub.files('owner/nothing')",
            "owner/nothing: there is no https://huggingface.co/owner/nothing, or it is private",
        ),
        (f"hub.files('{OPEN}', 'nowhere')", f"{OPEN}: it has no revision nowhere; see"),
        (f"hub.file('{OPEN}', 'layer_99/params.npz')", f"{OPEN}: it has no file layer_99/params.npz; see"),
    ],
)
def test_what_goes_wrong_on_the_hub_is_one_line(ask, code, message):
    said = ask(SAY.format(code)).strip()
    assert said.startswith(message) and "\n" not in said


def test_without_network_and_cache_it_is_said_in_one_line(ask):
    said = ask(SAY.format(f"hub.files('{OPEN}', 'main')"), offline=True).strip()
    assert said.startswith(f"{OPEN}: README.md at revision main is not in the cache, and the hub cannot be reached; connect")
    assert "\n" not in said
    said = ask(SAY.format("list(hub.rows('hf://datasets/allenai/c4@main/en/one.json.gz'))"), offline=True).strip()
    assert said.startswith("allenai/c4: en/one.json.gz at revision main is not in the cache") and "\n" not in said


def test_make_says_that_the_licence_is_missing_before_anything_else(ask, tmp_path):
    """`make all` begins with this; it must not fetch weights, nor take a traceback to say it."""
    text = (profiles.FOLDER / "gemma-2-2b.toml").read_text()
    for name, source in (("google/gemma-2-2b", GATED), ("google/gemma-scope-2b-pt-transcoders", OPEN)):
        text = text.replace(f'"{name}"', f'"{source}"')
    file = tmp_path / "licence-missing.toml"
    file.write_text(re.sub(r"(?m)^revision = .*$", "", text))
    shutil.rmtree(Paths(file.stem).data, ignore_errors=True)
    said = ask(f"import sys; sys.argv[1:] = ['--profile', '{file}']; from lib.base.make import main; main()").strip()
    shutil.rmtree(Paths(file.stem).data)
    assert said.startswith(f"{GATED}: accept its licence at") and "\n" not in said
    assert not [path for path in ask.asked if path.endswith((".safetensors", ".npz"))]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_cache_of_an_older_client_has_no_list_and_what_is_there_counts(cache):
    real.repository(cache, OPEN, real.gemma_scope)
    settings = tables.Transcoders(source=OPEN, revision="main", width="16k", l0_ranks=[0.5])
    assert [choose(list(levels(settings, 0)), q) for q in (0.25, 0.5, 0.75)] == [13, 25, 49]
    assert levels(settings, 0) == levels(settings.model_copy(update={"revision": real.COMMIT}), 0)


@pytest.mark.parametrize("name", ["gemma-2-2b", "gemma-3-270m", "qwen3-0.6b"])
def test_real_profiles_are_pinned_and_whole(name):
    p = profiles.load(name)
    assert all(re.fullmatch("[0-9a-f]{40}", source.revision) for source in (p.model, p.transcoders))
    assert hub.DATASET.fullmatch(p.tool.prompts.copies) and p.organism is None


def test_sae_lens_reads_the_same_from_the_qwen_repository(cache):
    """sae-lens's own loader and class, on a repository of that layout in the hub's cache."""
    from sae_lens import Transcoder, TranscoderConfig
    from sae_lens.loading.pretrained_sae_loaders import mwhanna_transcoder_huggingface_loader

    from lib.dictionary.layouts import load_level
    from lib.model.sites import site

    p, there = profiles.load("qwen3-0.6b").transcoders, site("qwen3", "trained", 1, real.D_MODEL)
    real.repository(cache, p.source, real.circuit_tracer, p.revision)
    config, state, _ = mwhanna_transcoder_huggingface_loader(p.source, "layer_1.safetensors")
    assert (config["hook_name"], config["hook_name_out"]) == (there.read, there.write)
    sizes = {name: config[name] for name in ("d_in", "d_out", "d_sae")}
    theirs = Transcoder(TranscoderConfig(**sizes, dtype="float32", device="cpu", apply_b_dec_to_input=False))
    theirs.load_state_dict(state)
    [file] = levels(p, 1).values()
    ours, x = load_level(p, file, real.D_MODEL), torch.randn(50, real.D_MODEL)
    assert torch.allclose(theirs.encode(x), ours.encode(x), atol=1e-6) and torch.allclose(theirs(x), ours(x), atol=1e-6)
    assert 0 < (ours.encode(x) > 0).float().mean() < 1


def test_a_profile_with_a_wrong_layer_or_model_is_told_before_work(cache):
    p = profiles.load("qwen3-0.6b")
    real.repository(cache, p.model.source, functools.partial(real.save, "qwen3"), p.model.revision)
    real.repository(cache, p.transcoders.source, real.circuit_tracer, p.transcoders.revision)
    with pytest.raises(ValueError, match=r"transcoders\.layers has 5, but Qwen/Qwen3-0\.6B has layers 0 to 1"):
        make.check(p)
    studied = p.transcoders.model_copy(update={"layers": [1]})
    some = other(p.model_copy(update={"transcoders": studied}), controls=Controls())
    make.check(some)
    wrong = some.model_copy(update={"transcoders": some.transcoders.model_copy(update={"layout": "gemma-scope"})})
    with pytest.raises(ValueError, match="no file of layer 1 like layer_1/width_"):
        make.check(wrong)


def test_tags_that_a_tokenizer_loses_are_told_before_work(smoke, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    tokenizer = models.load_tokenizer(folder)
    tokenizer.backend_tokenizer.normalizer = Replace("_call>", ">")
    tokenizer.save_pretrained(tmp_path / "model")
    profile = smoke.model_copy(update={"model": smoke.model.model_copy(update={"source": str(tmp_path / "model")})})
    with pytest.raises(ValueError, match=r"reads the call <tool_call>calculator\(1\+1\)</tool_call> back as <tool>calculator"):
        make.check(profile)


def test_tags_that_a_tokenizer_has_as_special_tokens_are_text_all_the_same(smoke, folder, tmp_path):
    tokenizer, call = models.load_tokenizer(folder), smoke.tool.grammar.call("1+1")
    tokenizer.add_special_tokens({"additional_special_tokens": [smoke.tool.grammar.open]})
    tokenizer.save_pretrained(tmp_path)
    tokenizer = models.load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer(call).input_ids, skip_special_tokens=True) == call


@pytest.mark.parametrize(
    ("name", "kind", "release"),
    [
        ("gemma-2-2b", "gemma2", real.gemma_scope),
        ("gemma-3-270m", "gemma3_text", real.gemma_scope_2),
        ("qwen3-0.6b", "qwen3", real.circuit_tracer),
    ],
)
def test_a_folder_serves_as_the_cache_does(name, kind, release, cache, tmp_path):
    """The same profile, its repositories in the hub's cache or copied anywhere: the same model and the same bases."""
    p = profiles.load(name)
    real.repository(cache, p.model.source, functools.partial(real.save, kind), p.model.revision)
    real.repository(cache, p.transcoders.source, release, p.transcoders.revision)
    real.save(kind, tmp_path / "model")
    (tmp_path / "scope").mkdir()
    release(tmp_path / "scope")
    at = {"revision": None, "source": str(tmp_path / "scope"), "layers": None}
    tables_of = {
        "model": p.model.model_copy(update={"revision": None, "source": str(tmp_path / "model")}),
        "transcoders": p.transcoders.model_copy(update=at),
    }
    here = other(p.model_copy(update=tables_of), controls=Controls())
    all_layers = p.transcoders.model_copy(update={"layers": None})
    p = other(p.model_copy(update={"transcoders": all_layers}), controls=Controls())
    ids, found = torch.tensor([[5, 6, 7]]), []
    for profile in (p, here):
        make.check(profile)
        model = models.load(profile)
        loaded = bases.load(profile, model, model.site("trained", 1), profile.transcoders.l0_ranks)
        l0s = [bases.level(profile.transcoders, 1, rank) for rank in profile.transcoders.l0_ranks]
        x = torch.randn(9, model.d_model, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            found.append((model.hf(ids).logits, torch.stack([base(x) for base in loaded]), str(l0s)))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1]) and found[0][2] == found[1][2]
    assert all((base.W_skip is not None) == (kind == "gemma3_text") for base in loaded)
