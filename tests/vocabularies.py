"""Tokenizer directories for tests: the demo's sentencepiece model, a byte-level one, and others."""

import json
from pathlib import Path

import tpimpi
from tpimpi.model.config import ModelConfig

DEMO = Path(tpimpi.__file__).parent / "demo"
DEMO_SIZE = 1024
LINE = "the quick brown fox jumps over the lazy dog, said the hen\n"


def train_marked(folder):
    """Write a sentencepiece model with control and user-defined pieces, as Yi's has."""
    import sentencepiece

    (folder / "text").write_text(LINE * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "tokenizer"), vocab_size=310,
        model_type="bpe", byte_fallback=True, normalization_rule_name="identity", minloglevel=2,
        remove_extra_whitespaces=False, control_symbols=["<|startoftext|>"],
        user_defined_symbols=["<|im_start|>", "<|im_end|>"], num_threads=1,
    )  # fmt: skip
    return folder / "tokenizer.model"


def copied(folder, model, size, settings):
    """Write a directory with a tokenizer.model and settings; return its ModelConfig."""
    base = json.loads((DEMO / "config.json").read_text()) | {"vocab_size": size + 1}
    text = json.dumps({"tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>"} | settings)
    (folder / "config.json").write_text(json.dumps(base))
    (folder / "tokenizer_config.json").write_text(text.replace("SIZE", str(size)))
    (folder / "tokenizer.model").write_bytes(model.read_bytes())
    return ModelConfig.from_directory(folder)


def changed(folder, settings=None, vocabulary=DEMO_SIZE + 76, **config):
    """Write the demo's tokenizer.model with other settings; return its ModelConfig."""
    base = json.loads((DEMO / "config.json").read_text()) | {"vocab_size": vocabulary} | config
    (folder / "config.json").write_text(json.dumps(base))
    settings = {"tokenizer_class": "LlamaTokenizer"} if settings is None else settings
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.model").write_bytes((DEMO / "tokenizer.model").read_bytes())
    return ModelConfig.from_directory(folder)


def as_json(folder):
    """Put a tokenizer.json, made by Transformers, in the place of a folder's tokenizer.model."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    (folder / "tokenizer.model").unlink()
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))


def byte_level(folder, size=400):
    """Write a byte-level tokenizer.json, as Llama 3's; return its ModelConfig."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    config = changed(folder, {"tokenizer_class": "PreTrainedTokenizerFast"}, size + 4)
    (folder / "tokenizer.model").unlink()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=["<|begin|>", "<|end|>"],
    )  # fmt: skip
    tokenizer.train_from_iterator([LINE + "日本語 é 😀\n"] * 50, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return config
