"""What decides how a machine rounds: two results are bitwise the same only where this is."""

from __future__ import annotations

from importlib.metadata import version

import torch

__all__ = ["rounding_of"]


def rounding_of(device: torch.device) -> list[object]:
    """The device, its name or what its processor can do, threads, precision and torch's version, for a hash."""
    module = torch.get_device_module(device)
    named = device.type != "cpu" and hasattr(module, "get_device_name")
    name = module.get_device_name(device) if named else torch.backends.cpu.get_cpu_capability()
    precision = torch.get_float32_matmul_precision()
    return [device.type, name, torch.get_num_threads(), precision, version("torch")]
