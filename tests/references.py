"""Make tiny random checkpoints of every family, and what Transformers computes from them in FP32.

`python references.py DIR` writes DIR/NAME/ (a Hugging Face directory) and DIR/NAME/reference.npz:
prompt ids, logits of every prompt position and of the first decode steps, 64 greedy ids.
Sizes don't divide by anything on purpose.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np

PROMPT, STEPS, COMPARED = 37, 64, 8
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 8.0}  # of the positions it was trained for
# name: (dtype, hidden, MLP, layers, query heads, kv heads, head_dim, vocabulary, extras)
FAMILIES = {
    "llama2": ("float32", 60, 100, 3, 5, 5, 12, 101, {"rope_parameters": DEFAULT}),
    "llama3": (
        "bfloat16", 96, 131, 2, 6, 2, 16, 257,
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    ),
    "llama31": ("float16", 80, 77, 2, 10, 5, 8, 199, {"rope_parameters": LLAMA3_ROPE}),
    "llama32": (
        "bfloat16", 64, 150, 2, 4, 2, 16, 311,
        {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True},
    ),
    "yi": (
        "bfloat16", 84, 200, 2, 14, 2, 6, 503,
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e6}},
    ),
    "tinyllama": ("float16", 64, 75, 3, 8, 4, 8, 320, {"rope_parameters": DEFAULT}),
    "mistral": (
        "bfloat16", 72, 90, 2, 3, 1, 32, 211,
        {"rope_parameters": DEFAULT, "sliding_window": None},
    ),
    "linear": (
        "float32", 48, 300, 2, 4, 4, 12, 130,
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}},
    ),
    "biased": (
        "float16", 64, 83, 2, 4, 2, 16, 149,
        {"rope_parameters": DEFAULT, "attention_bias": True, "mlp_bias": True},
    ),
    "mistral_window": (
        "bfloat16", 72, 90, 2, 3, 1, 32, 211, {"rope_parameters": DEFAULT, "sliding_window": 13},
    ),
    "qwen2": ("bfloat16", 70, 93, 3, 5, 1, 14, 223, {"rope_parameters": DEFAULT}),
    "qwen2_window": (
        "float32", 60, 80, 3, 6, 3, 10, 157,
        {"rope_parameters": DEFAULT, "use_sliding_window": True, "sliding_window": 11,
         "max_window_layers": 1},
    ),
    "qwen3": (
        "bfloat16", 64, 101, 3, 6, 2, 24, 307,
        {"rope_parameters": DEFAULT | {"rope_theta": 1e6}, "tie_word_embeddings": True},
    ),
    "qwen3_window": (
        "float16", 56, 72, 3, 5, 5, 16, 163,
        {"rope_parameters": DEFAULT, "attention_bias": True, "sliding_window": 20,
         "use_sliding_window": True, "max_window_layers": 0},
    ),
    "yarn": (
        "float32", 64, 75, 2, 4, 2, 16, 181,
        {"rope_parameters": DEFAULT | {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 48}},
    ),
    "dynamic": (
        "bfloat16", 64, 75, 2, 4, 2, 16, 181,
        {"rope_parameters": DEFAULT | DYNAMIC, "positions": 24},
    ),
    "dynamic_later": (
        "float32", 64, 75, 2, 4, 2, 16, 181,
        {"rope_parameters": DEFAULT | DYNAMIC, "positions": 48},
    ),
    "sharded": ("bfloat16", 128, 96, 3, 4, 2, 64, 333, {"rope_parameters": DEFAULT}),
}  # fmt: skip


def build(name):
    """Return a random model of a family, its stored dtype, and its seed's generator state."""
    import torch
    import transformers

    dtype, hidden, mlp, layers, heads, kv_heads, head_dim, vocabulary, extras = FAMILIES[name]
    extras = {"max_position_embeddings": extras.get("positions", 192)} | extras
    extras.pop("positions", None)
    kind = {"mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}.get(
        name.split("_")[0], "Llama"
    )
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim,
        vocab_size=vocabulary, rms_norm_eps=1e-5,
        initializer_range=0.12, attn_implementation="eager", **extras,
    )  # fmt: skip
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            elif parameter_name.endswith("bias"):
                parameter.copy_(0.3 * torch.randn_like(parameter))
    return model.to(getattr(torch, dtype))


def reference(model, vocabulary):
    """Return prompt ids, logits and greedy ids of a model in FP32, and the least margin."""
    import torch

    model = model.eval()
    ids = torch.randint(3, vocabulary, (1, PROMPT))
    with torch.no_grad():
        out = model(ids, use_cache=True)
        prompt_logits, steps, greedy, margin = out.logits[0], [], [], np.inf
        logits = out.logits[0, -1]
        for _ in range(STEPS):
            top = logits.topk(2).values
            margin = min(margin, float((top[0] - top[1]) / (logits.max() - logits.min())))
            greedy.append(int(logits.argmax()))
            out = model(
                torch.tensor([[greedy[-1]]]), past_key_values=out.past_key_values, use_cache=True
            )
            logits = out.logits[0, -1]
            steps.append(logits)
    return {
        "prompt_ids": ids[0].numpy(),
        "prompt_logits": prompt_logits.numpy(),
        "greedy_ids": np.array(greedy),
        "decode_logits": torch.stack(steps[:COMPARED]).numpy(),
    }, margin


def make(name, directory):
    """Write one family's checkpoint and reference."""
    import torch

    vocabulary = FAMILIES[name][7]
    for seed in range(50):
        torch.manual_seed(seed)
        model = build(name)
        directory.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(directory, max_shard_size="60KB" if name == "sharded" else "1GB")
        # Loaded anew: .to() would have rounded RoPE's frequencies to the stored dtype too.
        loaded = type(model).from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager"
        )
        arrays, margin = reference(loaded, vocabulary)
        if margin > 1e-3:
            break
        shutil.rmtree(directory)
    else:
        raise AssertionError(f"{name}: no seed has greedy ids without near ties")
    np.savez(directory / "reference.npz", **arrays)
    old_spelling(name, directory / "config.json")
    write_tokenizer(directory, vocabulary)


def old_spelling(name, path):
    """Write half of the configs as older versions of Transformers did."""
    if name not in ("llama2", "llama31", "linear", "yi", "yarn", "dynamic"):
        return
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {"type": kind} | rope
    if "dtype" in config:
        config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config))


def write_tokenizer(directory, vocabulary):
    """Write a tokenizer.json of single words, so that a directory is complete."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {"<unk>": 0, "<s>": 1, "</s>": 2}
    words |= {f"w{i}": i for i in range(3, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"})
    )


def main():
    """Make what is not there yet."""
    base = Path(sys.argv[1])
    for name in FAMILIES:
        if not (base / name / "complete").exists():
            shutil.rmtree(base / name, ignore_errors=True)
            make(name, base / name)
            (base / name / "complete").touch()


if __name__ == "__main__":
    main()
