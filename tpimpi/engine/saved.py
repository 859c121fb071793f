"""Keys and values of a text on disk, an HDF5 file a rank, so that none is computed again.

L layers, K heads of this rank, Hd head size, Hd' padded, P positions of a page.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from tpimpi.engine.kvcache import KVCache
from tpimpi.errors import UserError
from tpimpi.shards.layout import Identity

FORMAT = 1
_AGAIN = "the conversation goes on, and computes its past again"


def path_of(folder: str | Path, identity: Identity) -> Path:
    """Return where a rank's file lies in a folder."""
    return Path(folder) / f"kv-{identity.rank}-of-{identity.size}.h5"


def write(
    folder: str | Path, identity: Identity, ids: Sequence[int], cache: KVCache,
    pages: Sequence[int],
) -> None:  # fmt: skip
    """Save this rank's pages, which hold the tokens `ids`, whole or not at all.

    It is a conversation, so nobody else may read it. Raises OSError.
    """
    path = path_of(folder, identity)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        os.close(os.open(partial, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600))
        with h5py.File(partial, "w", libver=("v110", "v110")) as file:
            file.attrs.update(_about(identity, ids))
            for name, memory in (("keys", cache.keys), ("values", cache.values)):
                shape = (len(pages), *memory[:, 0].shape)  # [pages, L, K, Hd, P] or [.., P, Hd']
                made, check = file.create_dataset(name, shape, np.float32), 0
                for index, page in enumerate(pages):
                    part = np.ascontiguousarray(memory[:, page])
                    made[index] = part
                    check = zlib.crc32(part, check)
                made.attrs["crc32"] = check
        with open(partial, "rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read(
    folder: str | Path, identity: Identity, ids: Sequence[int], cache: KVCache,
    pages: Sequence[int],
) -> None:  # fmt: skip
    """Read this rank's pages of the tokens `ids` back.

    Raises UserError for a file that is missing, another model's or text's, or damaged.
    """
    path = path_of(folder, identity)
    try:
        with h5py.File(path, "r") as file:
            for key, wanted in _about(identity, ids).items():
                if np.any(file.attrs[key] != wanted):
                    raise UserError(f"{path} was saved of another {_WHAT[key]}; {_AGAIN}")
            for name, memory in (("keys", cache.keys), ("values", cache.values)):
                saved, check = file[name], 0
                for index, page in enumerate(pages):
                    part = saved[index]
                    memory[:, page] = part
                    check = zlib.crc32(part, check)
                if check != saved.attrs["crc32"]:
                    raise UserError(
                        f"{path} is damaged: its {name} are not what was saved; {_AGAIN}"
                    )
    except FileNotFoundError:
        raise UserError(f"{_missing(path, identity.size)}; {_AGAIN}") from None
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:  # as HDF5 puts it
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} can't be read ({error}); {_AGAIN}") from None


def _missing(path: Path, size: int) -> str:
    """Return what is said of a file that does not exist: another number of ranks may have some."""
    sizes = {found.stem.rpartition("-of-")[2] for found in path.parent.glob("kv-*-of-*.h5")}
    others = sorted(int(one) for one in sizes if one.isdecimal() and int(one) != size)
    if not others:
        return f"{path} does not exist"
    ranks = " or ".join(f"{n} rank{'' if n == 1 else 's'}" for n in others)
    return f"the keys and values in {path.parent} are of {ranks}, this run has {size}"


_WHAT = {
    "format": "version of tpimpi", "fingerprint": "model", "partition": "cut over the ranks",
    "rank": "rank", "size": "number of ranks", "tokens": "length", "text": "text",
}  # fmt: skip


def _about(identity: Identity, ids: Sequence[int]) -> dict[str, object]:
    text = hashlib.blake2b(np.array(ids, "<i8").tobytes(), digest_size=16).hexdigest()
    partition = hashlib.blake2b(identity.partition.encode(), digest_size=16).hexdigest()
    return {
        "format": FORMAT, "fingerprint": np.bytes_(identity.fingerprint),
        "partition": np.bytes_(partition), "rank": identity.rank, "size": identity.size,
        "tokens": len(ids), "text": np.bytes_(text),
    }  # fmt: skip
