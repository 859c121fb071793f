"""What of a download failed, in one sentence with the way out, whichever version of the library."""

from __future__ import annotations

import errno

from tpimpi.checkpoint.hub_cache import HubId, hub_cache
from tpimpi.errors import MachineError, UserError, describe

GOES_ON = "the same command goes on with what has come"
AGAIN = "the same command fetches that file again"
_LOST = {"TransportError", "ConnectionError", "Timeout"}  # of httpx and its like, and of requests
_CONSISTENCY = "Consistency check failed"  # how the library tells of a wrong number of bytes
_OUT_OF_RANGE = 416
_MOST = 200  # characters of what others say


def of_wrong_size(model: HubId, name: str, have: int, want: int) -> MachineError:
    """Return the error for a file that has another number of bytes than its repository says."""
    return MachineError(
        f"{name} of {model} came with {have} bytes and must have {want}; {AGAIN}, and if it comes "
        "so again, the hub or a proxy in between is at fault"
    )


def lost_connection(error: BaseException) -> bool:
    """Tell whether an error is of the network, so that another try may do better."""
    return bool(_LOST & {kind.__name__ for kind in type(error).__mro__})


def is_size(error: BaseException) -> bool:
    """Tell whether more or fewer bytes came than must, or none are left to come."""
    return _CONSISTENCY in str(error) or _status(error) == _OUT_OF_RANGE


def in_words(error: BaseException, model: HubId) -> UserError | MachineError:
    """Return what is told of an error while a model was downloaded."""
    from huggingface_hub import constants, errors, get_token

    hub = constants.ENDPOINT
    key = "with your token" if get_token() else "without a token"
    if isinstance(error, UserError | MachineError):
        return error
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__  # why the hub wasn't asked
    if isinstance(error, errors.GatedRepoError):
        return UserError(
            f"{model} is gated on {hub}, and {key} it can't be read; ask for access at "
            f"{hub}/{model.repo}, and set HF_TOKEN to a token of the account that has it"
        )
    if isinstance(error, errors.RepositoryNotFoundError) or _status(error) in (401, 403):
        return UserError(
            f"{model} is neither a directory here nor a model on {hub} that can be read "
            f"{key}; correct its name or, if it is private or gated, ask for access there and set "
            "HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(
            f"{model.repo} on {hub} has no revision {model.revision}; name a branch, a tag or a "
            "commit of it after the @, or leave it out"
        )
    if isinstance(error, errors.EntryNotFoundError) or _status(error) == 404:
        return MachineError(f"{hub} has lost a file of {model} that it lists: {_short(error)}")
    if status := _status(error):
        return MachineError(
            f"{hub} answered with status {status} while {model} was downloaded ({_short(error)}); "
            f"try again later: {GOES_ON}"
        )
    if lost_connection(error):
        return MachineError(
            f"{model} is no directory here, and {hub} can't be reached to fetch it "
            f"({_short(error)}); connect this machine, or give a directory with --model: {GOES_ON}"
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return MachineError(
            f"the disk of {hub_cache()} became full while {model} was downloaded; free some space, "
            f"and {GOES_ON}"
        )
    if isinstance(error, OSError) and error.filename:
        return MachineError(
            f"the hub's cache can't be written ({describe(error)}); set HF_HUB_CACHE to a folder "
            "that can"
        )
    return MachineError(f"{model} can't be downloaded from {hub} ({_short(error)}); {GOES_ON}")


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an error tells of."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _short(error: BaseException) -> str:
    """Return the first line of an error's text."""
    text = (describe(error) if getattr(error, "strerror", None) else str(error)).strip()
    line = text.splitlines()[0] if text else type(error).__name__
    return line if len(line) <= _MOST else f"{line[:_MOST]}..."
