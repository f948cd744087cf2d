"""Steps of quantization that every engine computes with exactly: few bits, so that no float product is rounded.

Activations take a power of two as step, weights a step of five significant bits. Products, sums below 2^24 and the
change of step behind a convolution are then exact in float32, so that integer kernels, float emulation and torch agree
on every value. (With steps of 24 bits, a value that lies between two goes either way by an engine's last bit, which
the layers behind carry on to the poses.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchao.quantization.pt2e.observer import ObserverBase

EXPONENTS = range(-10, 4)
"""Of the steps that an activation may take."""
MANTISSA = 32
SAMPLES = 1 << 16
"""Values of a tensor in a picture that its step is judged by, about. Every so many values, an odd number: widths are
multiples of a power of two, and an even one would look at few columns, the border's among them."""
LOWEST, HIGHEST = -128, 127


class ActivationStep(ObserverBase):
    """The power of two that rounds (and clips) a non-negative activation with the least squared error."""

    error: Tensor

    def __init__(self, dtype: torch.dtype = torch.int8, **options: Any) -> None:
        super().__init__(dtype=dtype, is_dynamic=False)
        self.qscheme = torch.per_tensor_affine
        self.quant_min, self.quant_max = LOWEST, HIGHEST
        self.register_buffer("error", torch.zeros(len(EXPONENTS), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        values = x.detach().flatten()
        values = values[:: len(values) // SAMPLES | 1].double()
        if values.numel() and values.min() < 0:
            raise ValueError("an activation to be quantized is negative somewhere: it must come from a ReLU")
        for i, exponent in enumerate(EXPONENTS):
            step = 2.0**exponent
            self.error[i] += ((values / step).round().clamp(max=HIGHEST - LOWEST) * step - values).square().sum()
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """(1,) step and zero point: the lowest value, as nothing is negative."""
        exponent = EXPONENTS[int(self.error.argmin())] if self.error.any() else EXPONENTS[-1]  # nothing but zeros seen
        return torch.tensor([2.0**exponent]), torch.tensor([LOWEST], dtype=torch.int32)


class ChannelStep(ObserverBase):
    """For every output channel of a weight, a step of five significant bits that holds its largest value; one just
    below a power of two is cut off, by a thirtieth at most.

    Args:
        half: leave a bit of the range unused.
    """

    step: Tensor

    def __init__(self, dtype: torch.dtype = torch.int8, half: bool = False, **options: Any) -> None:
        super().__init__(dtype=dtype, is_dynamic=False)
        self.qscheme = torch.per_channel_symmetric
        self.ch_axis = 0
        self.quant_max = HIGHEST // 2 if half else HIGHEST
        self.quant_min = -self.quant_max
        self.register_buffer("step", torch.ones(1), persistent=False)  # follows from the weight

    def forward(self, x: Tensor) -> Tensor:
        largest = x.detach().flatten(1).abs().amax(1).clamp(min=2.0**-20)
        mantissa, exponent = torch.frexp(largest / self.quant_max)
        # Odd, so that few sums lie in the middle of two output steps.
        odd = (mantissa * MANTISSA).ceil().int().clamp(max=MANTISSA - 1) | 1
        self.step = torch.ldexp(odd / MANTISSA, exponent)
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """(C,) steps and zero points of 0."""
        return self.step, torch.zeros_like(self.step, dtype=torch.int32)
