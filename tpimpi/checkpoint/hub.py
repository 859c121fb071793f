"""From what --model names to a directory: one that is there, or a model on the Hugging Face hub.

A directory goes first, then the hub's cache, then the hub. What is fetched is fetched in a process
of its own, see `download`: the hub's library and its buffers would else stay in this rank's memory.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from tpimpi import status
from tpimpi.checkpoint.hub_cache import HubId, hub_cache, lack, offline
from tpimpi.checkpoint.hub_errors import GOES_ON
from tpimpi.child import Child
from tpimpi.console import say
from tpimpi.errors import MachineError, UserError
from tpimpi.model.directory import exists
from tpimpi.progress import Progress
from tpimpi.units import size

DEMO, _OWN_DEMO = "tpimpi/demo", Path(__file__).resolve().parent.parent / "demo"
_PROGRAM = """
import sys
sys.path[:] = {path!r}
from tpimpi.checkpoint.download import serve
serve({repo!r}, {revision!r})
"""
_SETTINGS = {  # of the hub's library
    "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HUB_VERBOSITY": "error",
    "HF_HUB_DISABLE_XET": "1",  # files then come by plain HTTP, which can go on in their middle
}  # fmt: skip


def local_directory(given: str | Path) -> Path:
    """Return the directory of a model; one that is on the hub alone is downloaded.

    `given` is a path or, if a str, it may be `org/name` or `org/name@revision`. A path that is
    nothing like that is returned as it is, whatever is there; `tpimpi/demo` is this package's own,
    in whichever folder it is asked for. Raises UserError and MachineError.
    """
    model = _on_hub(given)
    if model is None:
        return _path(given)
    snapshot = model.snapshot()
    lacks = lack(snapshot) if snapshot else None
    if snapshot and not lacks:
        return snapshot
    _refuse_without_hub(model, lacks)
    snapshot = _download(model, lacks)
    if lacks := lack(snapshot):
        raise UserError(f"{model} on the hub is no whole model: {lacks}")
    return snapshot


def cached_directory(given: str | Path) -> Path:
    """Return the directory of a model as `local_directory` does, but download nothing."""
    model = _on_hub(given)
    if model is None:
        return _path(given)
    snapshot = model.snapshot()
    if snapshot is None:
        raise UserError(f"{model} is neither a directory nor in the hub's cache {hub_cache()}")
    return snapshot


def _on_hub(given: str | Path) -> HubId | None:
    """Return the model on the hub that is meant; None for a path, also for a mistyped one."""
    model = HubId.of(given) if isinstance(given, str) and given != DEMO else None
    return None if model is None or exists(Path(given)) else model


def _path(given: str | Path) -> Path:
    """Return what is no model of the hub as a path."""
    path = Path(given)
    return _OWN_DEMO if given == DEMO and not exists(path) else path


def _refuse_without_hub(model: HubId, lacks: str | None) -> None:
    """Raise UserError where the hub can't be asked."""
    variable = offline()
    state = f"and only a part of it is in the hub's cache ({lacks})"
    if not lacks:
        state = f"and not in the hub's cache {hub_cache()}"
    if variable:
        raise UserError(
            f"{model} is no directory here {state}, and {variable} forbids to ask the hub; unset "
            "it, or give a directory with --model"
        )
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError(
            f"{model} is no directory here {state}, and to fetch it from there the hub's library "
            "is needed: pip install 'tpimpi[hub]'"
        )


def _download(model: HubId, lacks: str | None) -> Path:
    """Fetch a model's files into the hub's cache, telling how far it is; return their directory."""
    status.current.begin(f"asking the hub for {model}")
    with _Download(model) as child:
        plan = child.answer()
        if "missing" in plan:
            missing, files = plan["missing"], plan["files"]
            say(
                f"downloading {model}, {size(missing)} in {files} file{'s' * (files != 1)}, from "
                f"{plan['endpoint']} into {hub_cache()}"
            )
            before = status.current.own.doing
            status.current.begin(before, GOES_ON, unfinished=True)
            with Progress(f"downloading {model}", missing) as progress:
                come = 0
                while "come" in (answer := child.answer()):
                    progress.update(answer["come"] - come)
                    come = answer["come"]
        else:
            answer = plan
    status.current.begin("starting", status.AGAIN)
    return Path(answer["directory"])


class _Download(Child):
    """The process that downloads a model."""

    def __init__(self, model: HubId):
        self._model = model
        program = _PROGRAM.format(path=sys.path, repo=model.repo, revision=model.revision)
        super().__init__(program, os.environ | _SETTINGS)

    def answer(self) -> dict:
        """Return what it says next. Raises the error that it tells, or that it ended without."""
        answer = super().answer()
        if "error" in answer:
            raise (UserError if answer["users"] else MachineError)(answer["error"])
        return answer

    def in_words(self, code: int, last: str) -> MachineError:
        """Return the error for its sudden end."""
        return MachineError(
            f"the process that downloaded {self._model} came to a sudden end ({last}); {GOES_ON}"
        )
