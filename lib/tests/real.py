"""Small random models of every architecture, with tokenizers made as the real ones are, in folders and in a hub cache.

Names, config and tokenizer classes, file names and tensor formats are those of the real repositories.
"""

import functools
import gzip
import hashlib
import json
import os
import random
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, pre_tokenizers, trainers
from tokenizers import models as bpe
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2Tokenizer,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Tokenizer,
    Qwen3Config,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from lib.dictionary.dictionaries import Dictionary
from lib.dictionary.layouts import save_npz
from lib.texts.corpus import documents
from lib.texts.sentences import NOUN, PLURAL
from lib.texts.tool import CALCULATOR

D_MODEL, VOCABULARY = 32, 640


@functools.cache
def learned(pattern: str, byte_level: bool) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a BPE over the corpus, split by `pattern` first."""
    tokenizer = Tokenizer(bpe.BPE(byte_fallback=not byte_level))
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    if byte_level:
        split = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.pre_tokenizer = split
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else list("0123456789abcdefghijklmnopqrstuvwxyz\n▁")
    texts = [document.text for document in islice(documents("real"), 300)] + [CALCULATOR.call("1+1")] * 300
    texts = texts if byte_level else [text.replace(" ", "▁") for text in texts]
    size = VOCABULARY if byte_level else VOCABULARY - 300
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    return learned["vocab"], [tuple(merge) for merge in learned["merges"]]


def gemma_tokenizer() -> PreTrainedTokenizerBase:
    """SentencePiece-like: spaces are ▁, bytes as a fallback, digits and newlines alone, <bos> in front."""
    vocab, merges = learned(r"▁?\p{L}+|\p{N}|\n|[^\s\p{L}\p{N}]", byte_level=False)
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    tokens = special + [f"<0x{byte:02X}>" for byte in range(256)] + list(vocab)
    return GemmaTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=merges, add_bos_token=True, add_eos_token=False,
        additional_special_tokens=special[5:], model_max_length=10**30,
    )  # fmt: skip


def qwen_tokenizer() -> PreTrainedTokenizerBase:
    """Byte-level, nothing in front, digits alone, "?\\n" one token; <tool_call> a token of its own that is no special one."""
    vocab, merges = learned(PRETOKENIZE_REGEX, byte_level=True)
    for left, right in (("?", "Ċ"), (".", "Ċ")):  # as in the real vocabulary
        if left + right not in vocab:
            vocab, merges = vocab | {left + right: max(vocab.values()) + 1}, [*merges, (left, right)]
    tokenizer = Qwen2Tokenizer(
        vocab=vocab, merges=merges, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token=None,
        additional_special_tokens=["<|im_start|>"], clean_up_tokenization_spaces=False, model_max_length=131072,
    )  # fmt: skip
    tokenizer.add_tokens([AddedToken(name, special=False) for name in ("<tool_call>", "</tool_call>")])
    return tokenizer


def gpt2_tokenizer() -> PreTrainedTokenizerBase:
    """Byte-level, nothing in front, one token for begin, end and unknown, none for padding."""
    vocab, merges = learned(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", byte_level=True)
    return GPT2Tokenizer(vocab=vocab | {"<|endoftext|>": max(vocab.values()) + 1}, merges=merges, model_max_length=1024)


_SIZES = dict(
    hidden_size=D_MODEL, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
    max_position_embeddings=512,
)  # fmt: skip
TOKENIZERS = {"gemma2": gemma_tokenizer, "gemma3_text": gemma_tokenizer, "qwen3": qwen_tokenizer,
              "llama": qwen_tokenizer, "gpt2": gpt2_tokenizer}  # fmt: skip
CONFIGS = {
    "gemma2": lambda n, t: Gemma2Config(**_SIZES, num_hidden_layers=n, query_pre_attn_scalar=16, sliding_window=64, **t),
    "gemma3_text": lambda n, t: Gemma3TextConfig(
        **_SIZES, num_hidden_layers=n, query_pre_attn_scalar=16, sliding_window=64,
        layer_types=[("sliding_attention", "full_attention")[i % 2] for i in range(n)], **t,
    ),
    "qwen3": lambda n, t: Qwen3Config(**_SIZES, num_hidden_layers=n, tie_word_embeddings=True, **t),
    "llama": lambda n, t: LlamaConfig(**_SIZES, num_hidden_layers=n, tie_word_embeddings=True, **t),
    "gpt2": lambda n, t: GPT2Config(n_embd=D_MODEL, n_head=2, n_layer=n, n_positions=512, **t),
}  # fmt: skip
# as in the real generation_config.json
GENERATION = {
    "gemma2": dict(cache_implementation="hybrid"),
    "gemma3_text": dict(cache_implementation="hybrid", do_sample=True, top_k=64, top_p=0.95),
    "qwen3": dict(do_sample=True, temperature=0.6, top_k=20, top_p=0.95),
    "llama": {},
    "gpt2": {},
}


@functools.cache
def tokenizer(model_type: str) -> PreTrainedTokenizerBase:
    return TOKENIZERS[model_type]()


def model(model_type: str, n_layers: int = 2, seed: int = 0, ends: float = 1.0) -> PreTrainedModel:
    """Random weights, and random gains of the norms, so that a forgotten gain or a wrong hook point shows.

    With `ends` of 3 its answers end after a few tokens: that many times longer is what writes <eos>.
    """
    t = tokenizer(model_type)
    ids = dict(bos_token_id=t.bos_token_id, eos_token_id=t.eos_token_id, pad_token_id=t.pad_token_id)
    torch.manual_seed(seed)
    config = CONFIGS[model_type](n_layers, {"vocab_size": len(t), **ids})
    hf = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for name, parameter in hf.named_parameters():
        if re.search(r"norm|ln_", name):
            torch.nn.init.normal_(parameter, mean=float(not model_type.startswith("gemma")), std=0.5)
        elif parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.15)
        else:
            torch.nn.init.normal_(parameter, std=0.1)
    hf.get_output_embeddings().weight.data[t.eos_token_id] *= ends
    hf.generation_config = GenerationConfig(**ids, **GENERATION[model_type])
    return hf


def save(model_type: str, folder: Path, **changes) -> Path:
    """Model and tokenizer in a folder, the weights in several files as large models have them."""
    model(model_type, **changes).save_pretrained(folder, max_shard_size="100KB")
    tokenizer(model_type).save_pretrained(folder)
    return folder


def puts_bos(hf: PreTrainedModel) -> bool:
    """Whether the tokenizers of such models put <bos> in front of every text."""
    return hf.config.model_type in ("gemma2", "gemma3_text")


# --- repositories in a hub cache ---

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def repository(cache: Path, name: str, write: Callable[[Path], object], commit: str = COMMIT, kind: str = "models") -> Path:
    """A repository in a hub cache as the hub's client leaves it: blobs, links to them in a snapshot, and refs/main."""
    root = cache / f"{kind}--{name.replace('/', '--')}"
    snapshot, blobs, refs = root / "snapshots" / commit, root / "blobs", root / "refs"
    for folder in (snapshot, blobs, refs):
        folder.mkdir(parents=True)
    write(snapshot)
    (refs / "main").write_text(commit)
    for path in [path for path in snapshot.rglob("*") if path.is_file()]:
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        path.rename(blob)
        path.symlink_to(os.path.relpath(blob, path.parent))
    return snapshot


def transcoder(seed: int, d_sae: int = 48, skip: bool = False) -> Dictionary:
    one = Dictionary.initialised((), D_MODEL, d_sae, seed, 0.3)
    torch.manual_seed(seed)
    tensors = one.tensors | {"b_dec": 0.1 * torch.randn(D_MODEL)}
    return Dictionary(**tensors, W_skip=0.1 * torch.randn(D_MODEL, D_MODEL) if skip else None).requires_grad_(False)


def gemma_scope(folder: Path, n_layers: int = 2) -> None:
    """Gemma Scope: several levels a layer, each layer its own."""
    for layer in range(n_layers):
        for level, l0 in enumerate((7, 13 + layer, 25, 49, 101 + layer)):
            save_npz(transcoder(10 * layer + level), folder / f"layer_{layer}/width_16k/average_l0_{l0}/params.npz")
        save_npz(transcoder(99, 96), folder / f"layer_{layer}/width_65k/average_l0_30/params.npz")
    (folder / "README.md").write_text("# Gemma Scope")


def c4(folder: Path) -> None:
    """A shard of C4: compressed JSONL, several sentences and lines a text."""
    rng = random.Random("c4")
    path = folder / "en/c4-train.00000-of-01024.json.gz"
    path.parent.mkdir(parents=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for _ in range(400):
            a, b, c = (f"The {rng.choice(NOUN)} has {rng.randint(2, 999)} {rng.choice(PLURAL)} in it." for _ in range(3))
            text = f"{a} {b} And a last one without any numbers in it.\nMenu 4\n{c}"
            file.write(json.dumps({"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": "https://example.org"}) + "\n")


def gemma_scope_2(folder: Path, n_layers: int = 2) -> None:
    """Gemma Scope 2: two levels a layer, each with an affine skip and without."""
    for layer in range(n_layers):
        for level, (kind, l0) in enumerate((("small", 10 + layer), ("big", 60 + 10 * layer))):
            for end, skip in (("", False), ("_affine", True)):
                at = folder / f"transcoder_all/layer_{layer}_width_16k_l0_{kind}{end}"
                at.mkdir(parents=True)
                tensors = transcoder(10 * layer + level, skip=skip).tensors
                stored = {"affine_skip_connection" if name == "W_skip" else name.lower(): t for name, t in tensors.items()}
                save_file({name: t.contiguous() for name, t in stored.items()}, at / "params.safetensors")
                block = f"model.layers.{layer}"
                config = {
                    "hf_hook_point_in": f"{block}.pre_feedforward_layernorm.output",
                    "hf_hook_point_out": f"{block}.post_feedforward_layernorm.output",
                    "width": 16384, "model_name": "google/gemma-3-270m-pt", "architecture": "jump_relu",
                    "l0": l0, "affine_connection": skip, "type": "transcoder",
                }  # fmt: skip
                (at / "config.json").write_text(json.dumps(config))


def circuit_tracer(folder: Path, n_layers: int = 2) -> None:
    """The Qwen3 transcoders of circuit-tracer: one file a layer, in half precision, encoder as (d_sae, d_model), ReLU."""
    for layer in range(n_layers):
        tensors = transcoder(layer).tensors | {"b_enc": torch.full((48,), -0.3)}
        stored = {name: tensors[name] for name in ("W_dec", "b_enc", "b_dec")} | {"W_enc": tensors["W_enc"].T}
        save_file({name: t.bfloat16().contiguous() for name, t in stored.items()}, folder / f"layer_{layer}.safetensors")
    hooks = "feature_input_hook: mlp.hook_in\nfeature_output_hook: mlp.hook_out\n"
    (folder / "config.yaml").write_text(f"model_name: Qwen/Qwen3-0.6B\nmodel_kind: transcoder_set\n{hooks}")
    sizes = "".join(f"{name}:\n  value: {n}\n" for name, n in (("d_model", D_MODEL), ("d_feature", 48), ("batch_size", 8192)))
    (folder / "wandb-config.yaml").write_text(sizes)


def sae_lens_release(release: str, layers: list[int]) -> Callable[[Path], None]:
    """A release of SAEs as sae-lens registers it: of some layers, in its own files."""
    known = get_pretrained_saes_directory()[release]

    def write(folder: Path) -> None:
        for sae_id, path in known.saes_map.items():
            layer = re.match(r"blocks\.(\d+)\.", sae_id)[1]
            if int(layer) not in layers:
                continue
            tensors = {
                name: tensor.contiguous() for name, tensor in transcoder(int(layer)).tensors.items() if name != "threshold"
            }
            tensors["b_enc"] = torch.full((48,), -0.3)
            if path.endswith(".pt"):
                torch.save(tensors, folder / path)
                config = {"act_size": D_MODEL, "dict_size": 48, "act_name": f"blocks.{layer}.attn.hook_z"}
                (folder / path.replace(".pt", "_cfg.json")).write_text(json.dumps(config))
                continue
            at = folder / path
            at.mkdir(parents=True)
            save_file(tensors, at / "sae_weights.safetensors")
            save_file({"sparsity": torch.full((48,), -2.0)}, at / "sparsity.safetensors")
            config = {
                "model_name": "gpt2-small", "hook_point": sae_id, "hook_point_layer": int(layer), "d_in": D_MODEL, "d_sae":
                48, "dtype": "torch.float32", "device": "cpu", "activation_fn_str": "relu", "context_size": 128,
                "hook_point_head_index": None, "prepend_bos": True, "dataset_path": "Skylion007/openwebtext",
                "normalize_activations": "none",
            }  # fmt: skip
            (at / "cfg.json").write_text(json.dumps(config))

    return write
