"""RoPE's frequencies: default, linear, llama3, YaRN and dynamic.

Su et al. 2021, arXiv:2104.09864; YaRN: Peng et al. 2023, arXiv:2309.00071. The roundings to float32
are those of Transformers, so that the angles of late positions agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tpimpi.errors import UserError
from tpimpi.model.fields import LARGEST, MOST, Fields, shown

KINDS = ("default", "linear", "llama3", "yarn", "dynamic")
_LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class RopeConfig:
    """RoPE's type and constants; those that its type doesn't use keep their defaults."""

    kind: str
    head_dim: int
    theta: float
    factor: float = 1.0
    original_max_positions: int = 0  # of llama3, yarn and dynamic: the length it was trained on
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0  # of yarn: both cos and sin are multiplied by it

    @classmethod
    def of(cls, config: Fields, head_dim: int, positions: int) -> RopeConfig:
        """Read RoPE's constants in the old spelling (rope_scaling) or the new (rope_parameters).

        Precedence is that of Transformers: `rope_scaling` where both are given, RoPE's own object
        before the top level, but `original_max_position_embeddings` from the top level first.
        """
        given = config.object("rope_scaling") or config.object("rope_parameters")
        for key in _LAYER_TYPES:
            if key in given:
                raise UserError(
                    f"{config.name} has RoPE constants of its own for {key}, which is not supported"
                )
        top = ("rope_theta", "partial_rotary_factor")
        merged = {key: config.get(key) for key in top} | given
        if config.get("original_max_position_embeddings") is not None:
            merged["original_max_position_embeddings"] = config.get(
                "original_max_position_embeddings"
            )
        fields = Fields(config.name, merged)
        kind = given.get("rope_type", given.get("type"))
        kind = "default" if kind is None else kind
        if kind not in KINDS:
            raise UserError(
                f"{config.name} has rope type {shown(kind)}; supported are {', '.join(KINDS)}"
            )
        if fields.number("partial_rotary_factor", 1.0) != 1.0:
            raise fields.refusal(
                "partial_rotary_factor", "but only whole heads (1.0) are supported"
            )
        rope = cls(kind, head_dim, fields.number("rope_theta", 10000.0))
        rope = replace(rope, **_constants(kind, fields, positions))
        _check(config.name, rope)
        return rope

    @property
    def reach(self) -> int:
        """The tokens up to which yarn and dynamic stretch what the model was trained on, else 0."""
        if self.kind not in ("yarn", "dynamic"):
            return 0
        return int(min(self.original_max_positions * self.factor, MOST))

    def inverse_frequencies(self, length: int | None = None) -> np.ndarray:
        """Return the angles from one token to the next, float32 [Hd/2].

        Type `dynamic` stretches them for a text of `length` tokens; others are the same for all.
        """
        even = np.arange(0, self.head_dim, 2, dtype=np.float32)  # [Hd/2]
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # see _check
            theta = np.float32(self.theta)
            if self.kind == "dynamic":
                theta = self._stretched_theta(length or 0)
            powers = np.power(theta, even / np.float32(self.head_dim))  # [Hd/2]
            if self.kind == "yarn":
                return self._yarn(powers)
            inverse = np.float32(1.0) / powers  # [Hd/2]
            if self.kind == "linear":
                return inverse / np.float32(self.factor)
            return self._llama3(inverse) if self.kind == "llama3" else inverse

    def _stretched_theta(self, length: int) -> np.float32:
        """Return the base of dynamic NTK: larger for a text longer than those of the training."""
        original, factor = self.original_max_positions, np.float32(self.factor)
        ratio = factor * np.float32(max(length, original)) / np.float32(original)
        growth = ratio - np.float32(self.factor - 1)
        power = np.float32(self.head_dim / (self.head_dim - 2))
        return np.float32(self.theta) * np.power(growth, power)

    def _llama3(self, inverse: np.ndarray) -> np.ndarray:
        """Stretch the long waves only, as in Llama 3.1."""
        low, high = self.low_freq_factor, self.high_freq_factor
        original, factor = self.original_max_positions, np.float32(self.factor)
        waves = np.float32(2 * math.pi) / inverse  # [Hd/2] positions a turn
        smooth = (np.float32(original) / waves - np.float32(low)) / np.float32(high - low)
        between = (1 - smooth) * inverse / factor + smooth * inverse
        stretched = np.where(waves > original / low, inverse / factor, between)
        return np.where(waves < original / high, inverse, stretched).astype(np.float32)

    def _yarn(self, powers: np.ndarray) -> np.ndarray:
        """Stretch the pairs that turn less than `beta_slow` times in a text of the training.

        Those that turn more than `beta_fast` times stay, with a ramp between them.
        """
        first, last = self._pair(self.beta_fast), self._pair(self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, self.head_dim - 1)
        if first == last:
            last += 0.001
        pairs = np.arange(self.head_dim // 2, dtype=np.float32)  # [Hd/2]
        ramp = np.clip((pairs - np.float32(first)) / np.float32(last - first), 0, 1)  # [Hd/2]
        kept = np.float32(1) - ramp
        stretched = np.float32(1) / (np.float32(self.factor) * powers)
        return stretched * (np.float32(1) - kept) + np.float32(1) / powers * kept

    def _pair(self, turns: float) -> float:
        """Return which pair, counted with fractions, turns so often in a text of the training."""
        wave = self.original_max_positions / (turns * 2 * math.pi)
        return self.head_dim * math.log(wave) / (2 * math.log(self.theta))


def _constants(kind: str, fields: Fields, positions: int) -> dict[str, Any]:
    """Return the fields of RopeConfig that its type uses."""
    if kind == "default":
        return {}
    derived = kind == "yarn" and fields.has("factor") and fields.get("factor") is None
    needed = ["factor"] if not derived else []
    needed += ["low_freq_factor", "high_freq_factor"] if kind == "llama3" else []
    for key in needed:
        if fields.get(key) is None:
            raise UserError(
                f"{fields.name}: rope type {kind!r} needs {key}, which config.json does not give"
            )
    found: dict[str, Any] = {"factor": fields.number("factor", 1.0)}
    if kind == "dynamic":
        found["original_max_positions"] = positions
    if kind in ("llama3", "yarn"):
        original = fields.count("original_max_position_embeddings", positions)
        found["original_max_positions"] = original
        if derived:
            found["factor"] = positions / original
    if kind == "llama3":
        low, high = fields.number("low_freq_factor", 1.0), fields.number("high_freq_factor", 4.0)
        if high <= low:
            raise UserError(
                f"{fields.name}: high_freq_factor {high:g} must be more than low_freq_factor "
                f"{low:g}; config.json is wrong"
            )
        found |= {"low_freq_factor": low, "high_freq_factor": high}
    if kind == "yarn":
        found["beta_fast"] = fields.number("beta_fast", 32.0)
        found["beta_slow"] = fields.number("beta_slow", 1.0)
        found["truncate"] = fields.flag("truncate", True)
        found["attention_factor"] = _attention_factor(fields, found["factor"])
    return found


def _attention_factor(fields: Fields, factor: float) -> float:
    """Return what YaRN multiplies cos and sin by: given, or the paper's from the factor."""

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if fields.get("attention_factor") is not None:
        return fields.number("attention_factor", 1.0)
    if fields.get("mscale") and fields.get("mscale_all_dim"):
        return scale(fields.number("mscale", 1.0)) / scale(fields.number("mscale_all_dim", 1.0))
    return scale(1.0)


def _check(name: str, rope: RopeConfig) -> None:
    """Raise UserError where the constants give angles that float32 can't hold."""
    if rope.kind == "dynamic" and rope.head_dim <= 2:
        raise UserError(f"{name}: rope type 'dynamic' needs a head_dim of more than 2")
    if rope.kind == "yarn" and rope.theta <= 1:
        raise UserError(
            f"{name}: rope type 'yarn' needs a rope_theta of more than 1, not {rope.theta:g}"
        )
    if rope.attention_factor > LARGEST:
        raise UserError(
            f"{name}: factor and mscale of rope type 'yarn' give an attention factor of "
            f"{rope.attention_factor:g}, which float32 can't hold; config.json is wrong"
        )
    for length in (None, rope.reach):
        angles = rope.inverse_frequencies(length)  # [Hd/2]
        with np.errstate(over="ignore"):
            farthest = angles * np.float32(MOST)  # [Hd/2] at the last position there may be
        if not (np.isfinite(farthest).all() and (angles > 0).all()):
            raise UserError(
                f"{name}: rope_theta {rope.theta:g} and factor {rope.factor:g} of rope type "
                f"{rope.kind!r} give angles that float32 can't hold; config.json is wrong"
            )
