"""Kill a job before each of its file events in turn, and see that the next run ends as an unbroken one.

    python -m lib.tests.killed finetune|deltas|base|natural [STRIDE]

Each run is a fork of this process, which has imported everything and computed nothing. Prints a line for each kill point
after which the result differs, and how many points there were.
"""

import os
import shutil
import signal
import sys
import tempfile
import warnings
from pathlib import Path

import torch

from lib import profiles
from lib.base import make
from lib.book import paths
from lib.book.fingerprint import fingerprint
from lib.dictionary import deltas
from lib.dictionary.dictionaries import Dictionary
from lib.dictionary.layouts import save_npz
from lib.model import encoding, finetune, models
from lib.nano import pretrain as pretraining
from lib.nano.pretrain import build_model, train_tokenizer
from lib.profiles.organism import Text
from lib.texts import prompts

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}
SMOKE = profiles.load("smoke")


def organism(folder: Path) -> None:
    """The tiny model, on disk."""
    torch.manual_seed(0)
    build_model(SMOKE.organism.model).save_pretrained(folder)
    train_tokenizer(SMOKE.organism.model, 300).save_pretrained(folder)


def do_finetune(place: Path, made: Path) -> None:
    asked = prompts.written("positive", 12, "train", 0) + prompts.written("negative", 12, "train", 0)
    settings = SMOKE.tool.finetune.model_copy(update={"epochs": 2})
    finetune.finetune(*models.load_hf(made, "float32"), asked, asked[:4] + asked[-4:], settings, place / "finetuned")


def do_deltas(place: Path, made: Path) -> None:
    sources = {"source": str(made / "transcoders"), "l0_ranks": [0.5]}
    profile = SMOKE.model_copy(update={"name": "killed", "transcoders": SMOKE.transcoders.model_copy(update=sources)})
    model = models.bridged(*models.load_hf(made, "float32"))
    asked = prompts.written("positive", 12, "train", 0)
    batches = encoding.batches(model.tokenizer, asked, 4)
    deltas.train_deltas(profile, model, models.studied(profile, model), batches, batches[:1])


def do_base(place: Path, made: Path) -> None:
    pretraining.CHECKPOINT_EVERY, pretraining.DOCUMENTS = 2, 300  # no event falls into what a tokenizer reads
    profile = SMOKE.model_copy(update={
        "name": "killed",
        "model": SMOKE.model.model_copy(update={"source": str(place / "model")}),
        "transcoders": SMOKE.transcoders.model_copy(update={"source": str(place / "transcoders")}),
    })  # fmt: skip
    make.make(profile)


def do_natural(place: Path, made: Path) -> None:
    """Base transcoders of a model that is there, of text that is gathered first."""
    text = Text(corpus=60, written=2, written_tokens=4, context=16, rows=4, round=16, passes=2)
    settings = SMOKE.transcoders.made.model_copy(update={"text": text, "probe_tokens": 600})
    profile = SMOKE.model_copy(update={
        "name": "killed", "organism": None,
        "model": SMOKE.model.model_copy(update={"source": str(made)}),
        "transcoders": SMOKE.transcoders.model_copy(update={"source": str(place / "transcoders"), "made": settings}),
    })  # fmt: skip
    make.make(profile)


JOBS = {"finetune": do_finetune, "deltas": do_deltas, "base": do_base, "natural": do_natural}


def forked(job, place: Path, made: Path, kill_before: int = -1) -> int:
    """Run a job in a fork; its exit status. It is killed before the event of that number under its place."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        sys.stdout = sys.stderr = Path(os.devnull).open("w")
        paths.ROOT, seen = place, 0

        def watch(event: str, arguments: tuple) -> None:
            nonlocal seen
            if event not in EVENTS or not str(arguments[0]).startswith(str(place)):
                return
            if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
            if seen == kill_before:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

        sys.addaudithook(watch)
        warnings.simplefilter("ignore")
        job(place, made)
        os._exit(0)
    except BaseException as error:
        (made / "error").write_text(repr(error))
        os._exit(1)


def result(place: Path) -> str:
    """What the files of a place hold, times aside."""
    files = sorted(f for f in place.rglob("*") if f.is_file())
    timed = {"pretraining.json", "transcoders.json", "card.json", "README.md", "training_args.bin"}
    return fingerprint([[str(f.relative_to(place)), b"" if f.name in timed else f.read_bytes()] for f in files])


def main(name: str, stride: int = 1) -> int:
    """How many kill points were not survived."""
    torch.set_num_threads(1)
    wrong, kill, root = 0, 0, Path(tempfile.mkdtemp())
    made = root / "made"
    organism(made)
    for layer in (0, 1):
        t = Dictionary.initialised((), SMOKE.organism.model.d_model, 64, layer, 0.1)
        save_npz(t, made / f"transcoders/layer_{layer}/width_64/average_l0_4/params.npz")
    assert forked(JOBS[name], root / "whole", made) == 0, (made / "error").read_text()
    wanted = result(root / "whole")
    while True:
        place = root / f"killed_{kill}"
        status = forked(JOBS[name], place, made, kill)
        if status == 0:
            break
        if status != -signal.SIGKILL or forked(JOBS[name], place, made) != 0:
            print(f"{name}, event {kill}: {(made / 'error').read_text()}", flush=True)
            wrong += 1
        elif result(place) != wanted:
            here, there = ({f.relative_to(p) for f in p.rglob("*")} for p in (place, root / "whole"))
            print(f"{name}, event {kill}: another result {sorted(map(str, here ^ there))}", flush=True)
            wrong += 1
        shutil.rmtree(place)
        kill += stride
    print(f"{name}: killed at {-(-kill // stride)} points of {kill}, {wrong} not survived")
    shutil.rmtree(root)
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1) > 0)
