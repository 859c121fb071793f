"""How a model wants its tokens chosen where nobody says otherwise: generation_config.json."""

from __future__ import annotations

import math
from pathlib import Path

from tpimpi.model.directory import read_configs
from tpimpi.model.fields import Fields

_FILE = "generation_config.json"
# Of each of its names ours, and the values that make sense.
_NUMBERS = {
    "temperature": ("temperature", 0.0, math.inf),
    "top_p": ("top_p", 0.0, 1.0),
    "min_p": ("min_p", 0.0, 1.0),
    "repetition_penalty": ("repeat_penalty", 1e-3, math.inf),
}


def sampling_defaults(directory: str | Path) -> dict[str, float | int]:
    """Return what generation_config.json says of sampling, by the names of SamplingSettings.

    `do_sample: false` is a temperature of 0. Raises UserError for a value that makes no sense.
    """
    fields = Fields(Path(directory).resolve().name, read_configs(directory)[1], _FILE)
    found: dict[str, float | int] = {}
    for name, (ours, least, most) in _NUMBERS.items():
        value = fields.get(name)
        if value is None:
            continue
        wrong = isinstance(value, bool) or not isinstance(value, int | float)
        if wrong or not least <= value <= most or not math.isfinite(value):
            limits = f"from {least:g} to {most:g}" if math.isfinite(most) else f"{least:g} or more"
            raise fields.refusal(name, f"which must be a number, {limits}")
        found[ours] = float(value)
    if fields.get("top_k") is not None:
        found["top_k"] = fields.count("top_k", least=0)
    if fields.flag("do_sample", True) is False:
        found["temperature"] = 0.0
    return found
