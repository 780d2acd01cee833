"""The organism's tokenizer and language model, from nothing: a small real Gemma-2.

The tokenizer is a byte-level BPE that splits digits one by one and keeps Gemma's special tokens. The
model is `Gemma2ForCausalLM` as transformers has it. Training packs whole documents into rows that
begin with <bos>, in one pass over an endless corpus; an interrupted run resumes from its last
checkpoint.
"""

import json
import math
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm.auto import tqdm
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

from lib.book import arrays
from lib.book.fingerprint import code, fingerprint
from lib.book.paths import replacing
from lib.dictionary.checkpoint import Checkpoint
from lib.model import precision
from lib.model.encoding import Encoded
from lib.model.models import LanguageModel
from lib.profiles.organism import Organism, OrganismModel
from lib.texts.corpus import documents

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
CHECKPOINT_EVERY = 500  # steps
DOCUMENTS = 30_000  # that a tokenizer is made from
_PIECES = r"\n+| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|[^\S\n]+(?!\S)|[^\S\n]+"
_CHAT = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def train_tokenizer(organism: OrganismModel, n_documents: int | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE over the corpus: digits one by one, runs of newlines whole, <bos> in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_PIECES), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    stream = documents(f"tokenizer/{organism.seed}")
    tokenizer.train_from_iterator(
        (next(stream).text for _ in range(n_documents or DOCUMENTS)),
        trainers.BpeTrainer(
            vocab_size=organism.vocab_size,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL[4:],
        model_max_length=2 * organism.context,
        chat_template=_CHAT,
    )


def build_model(organism: OrganismModel) -> Gemma2ForCausalLM:
    """The untrained model."""
    torch.manual_seed(organism.seed)
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=organism.vocab_size,
            hidden_size=organism.d_model,
            intermediate_size=organism.d_mlp,
            num_hidden_layers=organism.n_layers,
            num_attention_heads=organism.n_heads,
            num_key_value_heads=organism.n_key_value_heads,
            head_dim=organism.d_head,
            query_pre_attn_scalar=organism.d_head,
            sliding_window=organism.sliding_window,
            max_position_embeddings=2 * organism.context,
            attn_implementation="eager",
        )
    )


class Rows:
    """Rows of `context` tokens, each begun by a document; the last document of a row is cut.

    `kinds` counts the tokens of each kind of document that were handed out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, context: int, seed: int | str):
        self.tokenizer, self.context = tokenizer, context
        self.rng = random.Random(f"corpus/{seed}")
        self.stream = documents(self.rng)
        self.kinds: dict[str, int] = {}

    def batch(self, size: int) -> torch.Tensor:
        """Token ids, (size, context)."""
        rows = []
        while len(rows) < size:
            row: list[int] = []
            while len(row) < self.context:
                document = next(self.stream)
                ids = [*self.tokenizer(document.text).input_ids, self.tokenizer.eos_token_id]
                ids = ids[: self.context - len(row)]
                self.kinds[document.kind] = self.kinds.get(document.kind, 0) + len(ids)
                row += ids
            rows.append(row)
        return torch.tensor(rows)


def corpus_batches(model: LanguageModel, organism: Organism, seed: str) -> Iterator[Encoded]:
    """Rows of the corpus without end; the same seed gives the same rows."""
    rows = Rows(model.tokenizer, organism.model.context, seed)
    while True:
        ids = rows.batch(organism.model.batch)
        yield Encoded(ids, torch.ones_like(ids), torch.zeros_like(ids, dtype=torch.bool))


def corpus_tokens(model: LanguageModel, organism: Organism, seed: str, tokens: int) -> list[Encoded]:
    """At least `tokens` tokens of the corpus."""
    n = -(-tokens // (organism.model.batch * organism.model.context))
    return list(islice(corpus_batches(model, organism, seed), n))


def next_token_loss(model, ids: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy (nats) of every token given those before it; `ids` is (batch, pos)."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def learning_rate(step: int, organism: OrganismModel) -> float:
    """Linear warm-up over the first 2%, then a cosine to a hundredth of the peak."""
    warmup = max(1, organism.steps // 50)
    if step < warmup:
        return organism.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, organism.steps - warmup)
    return organism.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def pretrain(organism: OrganismModel, tokenizer: PreTrainedTokenizerFast, checkpoint: Path) -> tuple[Gemma2ForCausalLM, dict]:
    """Train the model; returns it with a record of losses, tokens by kind and seconds.

    Every `CHECKPOINT_EVERY` steps the state goes to `checkpoint`; a run that finds its own there goes on from it, to the
    same result. `ValueError` where training comes apart.
    """
    model = build_model(organism)
    decay = [p for p in model.parameters() if p.ndim == 2]
    other = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": other, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    rows, losses = Rows(tokenizer, organism.context, f"train/{organism.seed}/0"), []
    kept = Checkpoint(checkpoint, fingerprint(organism, tokenizer.get_vocab(), code(__file__)))
    if saved := kept.state:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        rows.rng.setstate(saved["rng"])
        losses, rows.kinds = saved["losses"], saved["kinds"]
    dtype = getattr(torch, organism.precision)
    loss_of = torch.compile(next_token_loss) if organism.compile else next_token_loss
    model.train()
    with tqdm(total=organism.steps, initial=kept.step, desc="pretraining", mininterval=5) as bar:
        for step in range(kept.step, organism.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, organism)
            ids = rows.batch(organism.batch)
            with precision.products(dtype, "cpu"):
                loss = loss_of(model, ids)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            bar.update()
            if step % 50 == 0:
                losses.append([step, loss.item()])
                bar.set_postfix(loss=f"{losses[-1][1]:.3f}", refresh=False)
            if (step + 1) % CHECKPOINT_EVERY == 0:
                kept.save(
                    model=model.state_dict(), optimizer=optimizer.state_dict(), step=step + 1, losses=losses,
                    kinds=rows.kinds, rng=rows.rng.getstate(),
                )  # fmt: skip
    arrays.finite(checkpoint, dict(model.named_parameters()), "pretraining came apart: lower organism.model.lr")
    model.eval()
    record = {"tokens": organism.tokens, "kinds": rows.kinds, "losses": losses, "seconds": kept.seconds}
    return model, record


def make_model(organism: OrganismModel, folder: Path, checkpoint: Path, record: Path) -> None:
    """Tokenizer and model, trained, in a folder; in half precision."""
    tokenizer = train_tokenizer(organism)
    model, history = pretrain(organism, tokenizer, checkpoint)
    with replacing(record) as temporary:
        temporary.write_text(json.dumps(history))
    with replacing(folder) as temporary:
        model.half().save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
