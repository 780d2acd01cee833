"""sae-dashboard on an SAE and tokens in a folder; run by an interpreter of its own, for its pins are older than ours.

    .venv/dashboard/bin/python lib/bench/dashboard.py FOLDER N_FEATURES

reads a GPT-2 in `model/`, an SAE that sae-lens saved in `sae/`, and `tokens.safetensors`, gathers what its pages show of the
first features, and prints the seconds that it took. Nothing of `lib` is imported here.
"""

import json
import sys
import time
from pathlib import Path


def main(folder: Path, n_features: int) -> None:
    from sae_dashboard.sae_vis_data import SaeVisConfig
    from sae_dashboard.sae_vis_runner import SaeVisRunner
    from sae_lens import SAE, HookedSAETransformer
    from safetensors.torch import load_file
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

    hf = AutoModelForCausalLM.from_pretrained(folder / "model")
    special = dict(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<pad>")
    PreTrainedTokenizerFast(tokenizer_file=str(folder / "model/tokenizer.json"), **special).save_pretrained(
        folder / "tokenizer"
    )
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    c = hf.config
    config = HookedTransformerConfig(
        n_layers=c.n_layer, d_model=c.n_embd, n_ctx=c.n_positions, n_heads=c.n_head, d_head=c.n_embd // c.n_head, d_mlp=4 *
        c.n_embd, act_fn="gelu_new", d_vocab=c.vocab_size, eps=c.layer_norm_epsilon, normalization_type="LN",
        model_name="gpt2", default_prepend_bos=False,
    )  # fmt: skip
    model = HookedSAETransformer(config, tokenizer)
    model.load_and_process_state_dict(
        convert_gpt2_weights(hf, config),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    sae = SAE.load_from_disk(folder / "sae")
    tokens = load_file(folder / "tokens.safetensors")["tokens"].long()
    asked = SaeVisConfig(hook_point=sae.cfg.metadata.hook_name, features=list(range(n_features)), verbose=False)
    began = time.perf_counter()
    SaeVisRunner(asked).run(encoder=sae, model=model, tokens=tokens)
    print(json.dumps({"seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
