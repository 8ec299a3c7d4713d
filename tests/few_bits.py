"""Linear modules whose matrix is quantised, written from the formula: what libraries do, without any of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EightBit(nn.Linear):
    """A matrix in int8 with a scale for each output."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=plain.bias is not None, device="meta")
        scale = plain.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((plain.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.bias = plain.bias
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


class FourBit(EightBit):
    """The same in 4 bits, two numbers to a byte in one column, as bitsandbytes packs them."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain)
        digits = (self.weight.detach().flatten().div(16).round() + 8).clamp(0, 15).to(torch.uint8)
        self.weight = nn.Parameter((digits[::2] * 16 + digits[1::2])[:, None], requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        digits = torch.stack([self.weight // 16, self.weight % 16], 1).flatten().to(x.dtype)
        matrix = (digits - 8).reshape(self.out_features, self.in_features) * 16 * self.scale
        return nn.functional.linear(x, matrix, self.bias)
