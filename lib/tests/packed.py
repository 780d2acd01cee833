"""A small random Llama as a GGUF file, quantized as llama.cpp does, in a wheel that pip finds without a network."""

import base64
import csv
import hashlib
import io
import zipfile
from pathlib import Path

import gguf
import numpy as np
import torch

from lib.tests import real

NAME, VERSION, FILE = "tiny-model", "0.1", "tiny_model/tiny.Q4_1.gguf"
_TENSORS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def theirs(name: str) -> str:
    """GGUF's name of a tensor of transformers."""
    if name.startswith("model.layers."):
        _, _, layer, *rest = name.removesuffix(".weight").split(".")
        return f"blk.{layer}.{_TENSORS['.'.join(rest)]}.weight"
    return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys in the order in which llama.cpp turns them: the two halves of a head by turns."""
    of_head = weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1)
    return of_head.swapaxes(1, 2).reshape(weight.shape)


def halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """The reverse of `interleaved`."""
    of_head = weight.reshape(heads, weight.shape[0] // heads // 2, 2, -1)
    return of_head.swapaxes(1, 2).reshape(weight.shape)


def heads(name: str, config) -> int:
    """How many heads a tensor's rows are of, where llama.cpp orders them its own way; else 0."""
    return {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2], 0)


def write(path: Path, n_layers: int = 2) -> None:
    """The file: matrices in 4 bits, the embedding in 8, norms as they are."""
    hf, tokenizer = real.model("llama", n_layers, ends=3.0), real.tokenizer("llama")
    config, writer = hf.config, gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(n_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    special = set(tokenizer.all_special_tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens])
    _, merges = real.learned(real.PRETOKENIZE_REGEX, True)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.convert_tokens_to_ids("<|im_start|>"))
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(CHAT)
    for name, tensor in hf.model.named_parameters(prefix="model"):
        array = tensor.detach().float().numpy()
        if n := heads(name, config):
            array = interleaved(array, n)
        kind = gguf.GGMLQuantizationType.Q8_0 if "embed" in name else gguf.GGMLQuantizationType.Q4_1
        if array.ndim == 1:
            writer.add_tensor(theirs(name), array)
        else:
            writer.add_tensor(theirs(name), gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def wheel(folder: Path) -> str:
    """The package, in a folder; returns the hash of its wheel."""
    inside = folder / "inside.gguf"
    write(inside)
    about = f"{NAME.replace('-', '_')}-{VERSION}.dist-info"
    held = {
        FILE: inside.read_bytes(),
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\n".encode(),
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = io.StringIO()
    for name, content in held.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        csv.writer(record).writerow([name, f"sha256={digest}", len(content)])
    csv.writer(record).writerow([f"{about}/RECORD", "", ""])
    path = folder / f"{NAME.replace('-', '_')}-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**held, f"{about}/RECORD": record.getvalue().encode()}.items():
            archive.writestr(name, content)
    inside.unlink()
    return hashlib.sha256(path.read_bytes()).hexdigest()


def dequantized(path: Path, config) -> dict[str, torch.Tensor]:
    """Every tensor of a file by its name in transformers, by gguf's own arithmetic, heads in transformers' order."""
    found = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(path).tensors}
    ours = {}
    for name, _ in real.model("llama", config.num_hidden_layers).model.named_parameters(prefix="model"):
        array = np.array(found[theirs(name)])
        n = heads(name, config)
        ours[name] = torch.from_numpy(halves(array, n) if n else array)
    return ours
