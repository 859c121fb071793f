#!/usr/bin/env python3
"""Train the demo model: a small Llama on one plain text, with its own tokenizer.

The last tenth of the text is held out and scored at the end; the best weights are chosen on the
last twentieth of the rest. Needs the `train` extra. Any plain text of Shakespeare's plays serves.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY, CONTEXT, BOS = 1024, 512, 1


def split(text: str) -> tuple[str, str]:
    """Cut the held-out last tenth off, at the beginning of a line."""
    at = text.index("\n", len(text) * 9 // 10) + 1
    return text[:at], text[at:]


def train_tokenizer(text: str, output: Path) -> sentencepiece.SentencePieceProcessor:
    """Train a byte-fallback BPE on `text` and save it as Hugging Face directories have it."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()),
        model_prefix=str(output / "tokenizer"),
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        character_coverage=1.0,
        minloglevel=2,
    )
    (output / "tokenizer.vocab").unlink()
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": False,
        "model_max_length": CONTEXT,
    }
    (output / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return sentencepiece.SentencePieceProcessor(model_file=str(output / "tokenizer.model"))


def build(dropout: float) -> LlamaForCausalLM:
    """Build the model: 6 query heads on 2 key/value heads, which no 4 ranks share evenly."""
    config = LlamaConfig(
        hidden_size=192,
        intermediate_size=480,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        bos_token_id=BOS,
        eos_token_id=2,
        tie_word_embeddings=False,
        attention_dropout=dropout,
    )
    model = LlamaForCausalLM(config)

    def drop(module, _inputs, output):
        return torch.nn.functional.dropout(output, dropout, module.training)

    model.model.embed_tokens.register_forward_hook(drop)
    for layer in model.model.layers:
        layer.self_attn.o_proj.register_forward_hook(drop)
        layer.mlp.register_forward_hook(drop)
    return model


def windows(ids: np.ndarray, length: int) -> list[np.ndarray]:
    """Cut ids into windows of <s> and `length` - 1 ids, so that each id is scored once."""
    step = length - 1
    return [np.concatenate(([BOS], ids[i : i + step])) for i in range(0, len(ids), step)]


@torch.no_grad()
def nats(model: LlamaForCausalLM, ids: np.ndarray, length: int) -> tuple[float, int]:
    """Return the sum of -log p over all ids in nats, and their number."""
    model.eval()
    total = 0.0
    for window in windows(ids, length):
        tokens = torch.from_numpy(window)[None]
        logits = model(tokens).logits[0, :-1].double()
        total += torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum").item()
    model.train()
    return total, len(ids)


def save(model: LlamaForCausalLM, output: Path) -> None:
    """Save bf16 weights without disturbing the float32 ones."""
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(output)
    config = json.loads((output / "config.json").read_text())
    config["attention_dropout"] = 0.0
    (output / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def train(model: LlamaForCausalLM, ids: np.ndarray, output: Path, minutes: float) -> None:
    """Train for `minutes` by the clock, keeping the weights that are best on validation."""
    cut = len(ids) * 19 // 20
    training, validation = torch.from_numpy(ids[:cut]), ids[cut:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1, weight_decay=0.1, betas=(0.9, 0.95))
    begin, step, best, evaluated = time.time(), 0, math.inf, 0.0
    while (done := (time.time() - begin) / (60 * minutes)) < 1:
        rate = (
            2e-3 * min(1.0, (step + 1) / 100) * (0.05 + 0.95 * (1 + math.cos(math.pi * done)) / 2)
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = torch.randint(len(training) - 256, (12,))
        rows = torch.stack([training[s : s + 255] for s in starts])
        rows = torch.cat([torch.full((len(rows), 1), BOS), rows], dim=1)  # [B, 256]
        loss = model(rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if done - evaluated > 0.05:
            evaluated = done
            total, count = nats(model, validation, 256)
            mark = ""
            if total / count < best:
                best, mark = total / count, "  saved"
                save(model, output)
            print(
                f"step {step}: training {loss.item():.3f}, validation {total / count:.3f}{mark}",
                flush=True,
            )


def main() -> None:
    """Train, save and score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True, help="plain text to learn")
    parser.add_argument("--output", type=Path, default=Path("tpimpi/demo"), help="directory")
    parser.add_argument("--minutes", type=float, default=25, help="time to train (default: 25)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--dropout", type=float, default=0.1, help="(default: 0.1)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(42)
    args.output.mkdir(parents=True, exist_ok=True)
    known, held_out = split(args.text.read_text())
    tokenizer = train_tokenizer(known, args.output)
    model = build(args.dropout)
    train(model, np.array(tokenizer.encode(known)), args.output, args.minutes)
    best = LlamaForCausalLM.from_pretrained(args.output, dtype=torch.float32)
    total, count = nats(best, np.array(tokenizer.encode(held_out)), CONTEXT)
    size = sum(file.stat().st_size for file in args.output.iterdir())
    print(
        f"held-out perplexity {math.exp(total / count):.4f} over {count} tokens "
        f"({total:.2f} nats); {size} bytes in {args.output}"
    )


if __name__ == "__main__":
    main()
