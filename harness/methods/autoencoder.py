"""Sparse autoencoders of what a block writes: reading released ones, and what of them a state activates.

Sources: Cunningham et al. 2023, arXiv 2309.08600 (``z = max((h - b_dec) W_enc + b_enc, 0)``); Rajamanoharan et al.
2024, arXiv 2407.14435 (JumpReLU: ``z`` is what exceeds a threshold).  The files are those of SAELens (``cfg.json``
beside ``sae_weights.safetensors``) and of Gemma Scope (``params.npz``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from numpy.lib.format import read_array
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from harness.errors import DataError
from harness.io.schema import parsed

__all__ = ["Autoencoder", "Feature", "read_autoencoder"]

_NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")
_WRITES = re.compile(r"blocks\.(\d+)\.hook_resid_(post|pre)")
_KINDS = ("standard", "jumprelu")


@dataclass(frozen=True, eq=False)
class Feature:
    """One feature of an autoencoder.

    Attributes:
        encoder: its column of ``W_enc``, ``[d]``.
        bias: what is added to a state's product with it, a scalar.
        threshold: an activation that is no larger is none, a scalar.
        decoder: its row of ``W_dec``, ``[d]``.
    """

    encoder: Tensor
    bias: Tensor
    threshold: Tensor
    decoder: Tensor

    def activation(self, hidden: Tensor) -> Tensor:
        """How active it is in states ``[..., d]``, ``[...]``."""
        return _above(hidden @ self.encoder + self.bias, self.threshold)

    def like(self, hidden: Tensor) -> Feature:
        """The feature on the device and in the type of some states."""
        return Feature(*(part.to(hidden) for part in (self.encoder, self.bias, self.threshold, self.decoder)))


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """All features of an autoencoder.

    Attributes:
        encoder: ``W_enc``, ``[d, features]``.
        bias: ``b_enc``, with what is taken off a state before, ``[features]``.
        threshold: of each feature, ``[features]``.
        decoder: ``W_dec``, ``[features, d]``.
        layer: the block whose output it reads; None where its files do not say.
    """

    encoder: Tensor
    bias: Tensor
    threshold: Tensor
    decoder: Tensor
    layer: int | None

    def activations(self, hidden: Tensor) -> Tensor:
        """How active each feature is in states ``[..., d]``, ``[..., features]``."""
        return _above(hidden @ self.encoder + self.bias, self.threshold)

    def to(self, device: torch.device) -> Autoencoder:
        """It on a device."""
        held = {name: getattr(self, name).to(device) for name in ("encoder", "bias", "threshold", "decoder")}
        return replace(self, **held)

    def feature(self, number: int) -> Feature:
        """One of its features."""
        column = self.encoder[:, number].contiguous()
        return Feature(column, self.bias[number], self.threshold[number], self.decoder[number].contiguous())


def _above(value: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(value > threshold, value, torch.zeros_like(value))


def read_autoencoder(path: Path) -> Autoencoder:
    """The autoencoder in a folder of SAELens or of Gemma Scope.

    Args:
        path: the folder; or its file of weights.

    Raises:
        DataError: nothing is there, it is cut, or it is of a kind that cannot be clamped one feature at a time.
    """
    folder = path.parent if path.is_file() else path
    if (folder / "params.npz").is_file():
        held = _arrays(folder / "params.npz")
        tensors = {_with_capital(name): torch.from_numpy(value) for name, value in held.items()}
        return _built(folder, tensors, {"architecture": "jumprelu", "apply_b_dec_to_input": False})
    weights, config = folder / "sae_weights.safetensors", folder / "cfg.json"
    missing = [file.name for file in (weights, config) if not file.is_file()]
    if missing:
        raise DataError(
            f"{path}: no autoencoder (there is no {' and no '.join(missing)}); give a folder of SAELens with cfg.json "
            "and sae_weights.safetensors, or one of Gemma Scope with params.npz"
        )
    try:
        said, tensors = parsed(config.read_bytes()), load_file(weights)
    except (SafetensorError, ValueError, OSError) as error:
        raise DataError(f"{path}: the autoencoder cannot be read ({error}); fetch it again") from error
    return _built(folder, tensors, said if isinstance(said, dict) else {})


def _arrays(path: Path) -> dict[str, Any]:
    try:
        with ZipFile(path) as held:  # numpy's own reader of such files can be told to run what they hold
            return {name.removesuffix(".npy"): read_array(BytesIO(held.read(name))) for name in held.namelist()}
    except (BadZipFile, ValueError, OSError, EOFError, KeyError) as error:
        raise DataError(f"{path}: the autoencoder cannot be read ({error}); fetch it again") from error


def _with_capital(name: str) -> str:
    """Gemma Scope writes ``w_enc`` or ``W_enc``."""
    return "W" + name[1:] if name.startswith("w_") else name


def _built(folder: Path, tensors: Mapping[str, Tensor], said: Mapping[str, Any]) -> Autoencoder:
    kind = said.get("architecture", "standard")
    if kind not in _KINDS:
        raise DataError(
            f"{folder}: a '{kind}' autoencoder, of which no feature can be clamped alone; give one that is "
            f"{' or '.join(_KINDS)}"
        )
    if said.get("normalize_activations", "none") not in ("none", None):
        raise DataError(f"{folder}: scales what it reads ({said['normalize_activations']}); give one that does not")
    encoder, bias, decoder, before = _shaped(folder, tensors)
    threshold = tensors.get("threshold") if kind == "jumprelu" else torch.zeros_like(bias)
    if threshold is None or threshold.shape != bias.shape:
        raise DataError(f"{folder}: the autoencoder has no threshold for each of its {len(bias)} features")
    if said.get("apply_b_dec_to_input", True):
        bias = bias - before @ encoder
    # What does not exceed zero is not active, whatever the threshold.
    return Autoencoder(encoder, bias, threshold.float().clamp(min=0), decoder, _layer(said))


def _shaped(folder: Path, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``W_enc``, ``b_enc``, ``W_dec`` and ``b_dec`` in float32."""
    missing = [name for name in _NAMES if name not in tensors]
    if missing:
        raise DataError(f"{folder}: the autoencoder lacks {', '.join(missing)}; it has {', '.join(sorted(tensors))}")
    encoder, bias, decoder, before = (tensors[name].float() for name in _NAMES)
    shapes = [tuple(each.shape) for each in (encoder, bias, decoder, before)]
    width, count = (*encoder.shape, 0, 0)[:2]
    if shapes != [(width, count), (count,), (count, width), (width,)]:
        raise DataError(f"{folder}: the shapes of {', '.join(_NAMES)} do not fit: {', '.join(map(str, shapes))}")
    return encoder, bias, decoder, before


def _layer(said: Mapping[str, Any]) -> int | None:
    """The block whose output is read: what stands before block n, block n - 1 has written."""
    inner = said.get("metadata")
    name = said.get("hook_name") or (inner.get("hook_name") if isinstance(inner, dict) else None)
    found = _WRITES.fullmatch(str(name))
    return None if found is None else int(found[1]) - (found[2] == "pre")
