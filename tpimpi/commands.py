"""What each subcommand does on all ranks; rank 0 alone reads the user's files and speaks."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import numpy as np

from tpimpi import report
from tpimpi.checkpoint import Checkpoint, expected_shapes
from tpimpi.comm import Group
from tpimpi.config import ModelConfig
from tpimpi.convert import ensure_shards
from tpimpi.encoding import ENCODINGS
from tpimpi.errors import UserError
from tpimpi.launch import cache_directory
from tpimpi.partition import Partition, pieces
from tpimpi.shard import Shard, shard_name
from tpimpi.tokenizer import TextStream, Tokenizer, load_tokenizer


def run(args, group: Group, threads: int) -> None:
    """Run the subcommand of `args` (collective)."""
    {
        "generate": _generate,
        "convert": _convert,
        "verify": _verify,
        "info": _info,
        "perplexity": _perplexity,
    }[args.command](args, group, threads)


class _Source:
    """The model directory: config and partition everywhere, checkpoint on rank 0 (collective)."""

    def __init__(self, args, group: Group):
        self.checkpoint: Checkpoint | None = None
        config = None
        with group.together():
            if group.rank == 0:
                config = ModelConfig.from_directory(args.model)
                self.checkpoint = Checkpoint(args.model, config)
        text, fingerprint = group.comm.bcast(
            (config.to_json(), self.checkpoint.fingerprint) if config else None
        )
        self.config = ModelConfig.from_json(text)
        self.partition = Partition.of(self.config, [1] * group.size)
        self.folder = self._folder(args, group, fingerprint)

    def _folder(self, args, group: Group, fingerprint: str) -> Path:
        if getattr(args, "save_dir", None):
            return Path(args.save_dir)
        name = f"{self.config.name}-{fingerprint}"
        return cache_directory() / name / self.partition.key

    def shard(self, args, group: Group) -> tuple[Shard, bool]:
        """Open this rank's shard, cutting the checkpoint where it is missing (collective)."""
        with group.together():
            if self.folder.exists() and not self.folder.is_dir():
                raise UserError(f"--save-dir {self.folder} is a file; it must be a folder")
        return ensure_shards(
            group, self.config, self.partition, self.checkpoint, self.folder, args.split_bin
        )


def _convert(args, group: Group, threads: int) -> None:
    source = _Source(args, group)
    shard, written = source.shard(args, group)
    sizes = group.comm.gather(sum(t.nbytes for t in shard.tensors))
    shard.close()
    if group.rank == 0:
        what = "cut" if written else "already there, checked:"
        total = sum(sizes) / 2**30
        print(f"{what} {len(sizes)} shards, {total:.3f} GiB, in {source.folder}")


def _verify(args, group: Group, threads: int) -> None:
    source = _Source(args, group)
    count = 0
    with group.together():
        path = source.folder / shard_name(group.rank, group.size)
        if not path.exists():
            raise UserError(f"{path} does not exist; `tpimpi convert` makes the shards")
        shard = Shard(path)
        shard.verify()
        count = len(shard.tensors)
        shard.close()
    counts = group.comm.gather(count)
    if group.rank == 0:
        print(f"{sum(counts)} tensors in {len(counts)} shards are whole, in {source.folder}")


def _info(args, group: Group, threads: int) -> None:
    source = _Source(args, group)
    if group.rank != 0:
        return
    config = source.config
    ranks = args.ranks or group.size
    partition = Partition.of(config, [1] * ranks)
    rows = []
    for mine in partition.ranks:
        size = sum(
            math.prod(p.shape)
            * ENCODINGS[source.checkpoint.weight(p.source).encoding].storage.itemsize
            for p in pieces(config, mine)
        )
        rows.append(
            {
                "rank": mine.rank,
                "query_heads": len(mine.q_heads),
                "kv_heads": len(mine.kv_heads),
                "mlp_columns": len(mine.columns),
                "vocabulary_rows": len(mine.rows),
                "shard_bytes": size,
            }
        )
    parameters = sum(math.prod(shape) for shape in expected_shapes(config).values())
    encodings = sorted({t.encoding for t in source.checkpoint.tensors.values()})
    if args.output == "json":
        what = json.loads(config.to_json())
        content = {"model": what, "parameters": parameters, "encodings": encodings}
        content |= {"fingerprint": source.checkpoint.fingerprint, "ranks": rows}
        print(json.dumps(content))
        return
    print(f"{config.name}: {parameters / 1e6:.1f} million parameters in {', '.join(encodings)}")
    print(
        f"  {config.num_layers} layers, hidden size {config.hidden_size}, MLP "
        f"{config.intermediate_size}, {config.num_heads} query and {config.num_kv_heads} key/value "
        f"heads of {config.head_dim}, vocabulary {config.vocab_size}, "
        f"context {config.max_positions} tokens"
    )
    print(f"cut over {ranks} rank{'s' if ranks > 1 else ''}:")
    print("  rank  query heads  kv heads  MLP columns  vocabulary rows  shard MiB")
    for r in rows:
        print(
            f"  {r['rank']:4d}  {r['query_heads']:11d}  {r['kv_heads']:8d}  {r['mlp_columns']:11d}"
            f"  {r['vocabulary_rows']:15d}  {r['shard_bytes'] / 2**20:9.1f}"
        )


def _read_text(path: str, flag: str) -> str:
    try:
        if path == "-":  # line by line: Open MPI's launcher never passes the end of stdin on
            return sys.stdin.read()
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{flag} {path} can't be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{flag} {path} is no UTF-8 text ({error.reason})") from error


def _prompt_ids(args, config: ModelConfig, tokenizer: Tokenizer) -> list[int]:
    text = args.prompt if args.prompt is not None else _read_text(args.prompt_file, "--prompt-file")
    text = args.prefix + text
    if not text:
        raise UserError("the prompt is empty; give some text with --prompt or --prompt-file")
    ids = tokenizer.encode(text, add_bos=not args.no_bos)
    if not ids:
        raise UserError("the prompt has no tokens; give some more text")
    if max(ids) >= config.vocab_size:
        raise UserError(
            f"the tokenizer gives id {max(ids)}, but the model's vocabulary has "
            f"{config.vocab_size} tokens; they are of different models"
        )
    if len(ids) >= config.max_positions:
        raise UserError(
            f"the prompt has {len(ids)} tokens and the model's context {config.max_positions}; "
            "shorten it so that something can follow"
        )
    return ids


def _load(args, group, source, shard, threads, context, max_logits):
    """Plan the memory, start the tape, compile the kernels (collective)."""
    from tpimpi import runtime

    return runtime.load(group, source, shard, args, threads, context, max_logits)


def _generate(args, group: Group, threads: int) -> None:
    from tpimpi.sampler import Sampler, SamplingSettings

    begin = time.perf_counter()
    source, tokenizer, ids = _Source(args, group), None, []
    with group.together():
        if group.rank == 0:
            tokenizer = load_tokenizer(args.model, source.config)
            ids = _prompt_ids(args, source.config, tokenizer)
    shard, _ = source.shard(args, group)
    context = min(group.comm.bcast(len(ids)) + args.length, source.config.max_positions)
    session = _load(args, group, source, shard, threads, context, 1)
    result: dict = {}
    with session:
        if group.rank == 0:
            settings = SamplingSettings(
                args.temperature, args.top_k, args.top_p, args.min_p, args.repeat_penalty, args.seed
            )
            length = min(args.length, context - len(ids))
            if length < args.length:
                print(
                    f"tpimpi: the context of {context} tokens leaves room for {length} new tokens "
                    f"of {args.length}",
                    file=sys.stderr,
                )
            result = _write_text(args, source.config, session.engine, tokenizer, ids,
                                 Sampler(settings), length)  # fmt: skip
        figures = session.finish()
    if group.rank == 0:
        summary = report.summary(figures, len(ids), len(result["generated_ids"]),
                                 result.pop("first"), result.pop("total"))  # fmt: skip
        summary["launch_to_end_seconds"] = time.perf_counter() - begin
        if args.report:
            report.write(args.report, summary, figures)
        if args.output == "json":
            print(json.dumps({"prompt_ids": ids} | result | {"figures": summary}), flush=True)
        else:
            print(report.line(summary, figures), file=sys.stderr, flush=True)


def _write_text(args, config, engine, tokenizer, ids, sampler, length) -> dict:
    """Generate on rank 0, showing the text as it is made."""
    show = args.output == "text"
    stream = TextStream(tokenizer, ids, args.stop)
    eos = () if args.ignore_eos else config.eos_token_ids
    start, first, reason = time.perf_counter(), 0.0, "length"
    generated: list[int] = []
    parts: list[str] = []

    def emit(text: str) -> None:
        parts.append(text)
        if show and text:
            print(text, end="", flush=True)

    if show:
        print(args.prefix + args.prompt if args.prompt is not None else "", end="", flush=True)
    for token in engine.generate(ids, sampler, length, eos):
        first = first or time.perf_counter() - start
        generated.append(token)
        if token in eos:
            reason = "stop"
            break
        emit(stream.push(token))
        if stream.stopped:
            break
    emit(stream.finish())
    if stream.stopped:
        reason = "stop"
    if show:
        print(flush=True)
    total = time.perf_counter() - start
    return {"generated_ids": generated, "text": "".join(parts), "finish_reason": reason,
            "first": first, "total": total}  # fmt: skip


def _perplexity(args, group: Group, threads: int) -> None:
    source, ids, window = _Source(args, group), [], 0
    config = source.config
    with group.together():
        if group.rank == 0:
            tokenizer = load_tokenizer(args.model, config)
            ids = tokenizer.encode(_read_text(args.file, "--file"), add_bos=False)
            if not ids:
                raise UserError(f"{args.file} has no tokens; give a text to score")
        window = args.window or min(512, config.max_positions)
        if window > config.max_positions:
            raise UserError(
                f"--window {window} is longer than the model's context of {config.max_positions}"
            )
    shard, _ = source.shard(args, group)
    max_logits = max(1, (32 << 20) // (4 * config.vocab_size))
    session = _load(args, group, source, shard, threads, window, min(max_logits, args.prompt_chunk))
    losses, start = [], time.perf_counter()
    with session:
        if group.rank == 0:
            bos = [config.bos_token_id] if config.bos_token_id is not None else []
            step = window - len(bos)
            for at in range(0, len(ids), step):
                part = bos + ids[at : at + step]
                if len(part) > 1:
                    losses.append(session.engine.score(part))
        figures = session.finish()
    if group.rank != 0:
        return
    total, count = float(np.sum(np.concatenate(losses))), sum(len(part) for part in losses)
    value = math.exp(total / count)
    summary = report.summary(figures, count, 0, 0.0, time.perf_counter() - start)
    if args.report:
        report.write(args.report, summary, figures)
    if args.output == "json":
        print(json.dumps({"perplexity": value, "tokens": count, "nll": total, "window": window,
                          "figures": summary}))  # fmt: skip
    else:
        print(f"perplexity {value:.4f} over {count} tokens ({total:.2f} nats, windows of {window})")
