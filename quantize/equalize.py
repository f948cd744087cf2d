"""Channels of a tensor brought to one range, so that the one step they share is fine enough for each.

A ReLU lets positive factors pass: what a convolution's output channel is multiplied by, the convolutions that read it
are divided by, and the network computes the same (cross-layer equalization: Nagel et al., "Data-free quantization
through weight equalization and bias correction", ICCV 2019). Ranges are measured on pictures, as batch norms of
ReLU networks tell little of their tails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from img2pose_edge.quantize.fold import OUTPUT_LAYERS, FoldedNet
from torch import Tensor, nn

from img2pose_edge.training.networks.edge import STRIDES

QUANTILE = 0.9999
RANGE = 3.0
"""What most values of a channel stay below, in the end. 256 steps of a power of two end at 4: a quarter is left to the
few values beyond, those of the surest faces."""


@dataclass(frozen=True)
class Shared:
    """Convolutions that write channels, together, and all that read them."""

    writers: list[nn.Conv2d]
    readers: list[nn.Conv2d]
    output: bool = False

    @property
    def free(self) -> bool:
        """Whether some reader has a step for each channel (depthwise), or rounds its weights by what they
        do together (an output: :mod:`rounding`)."""
        return self.output or any(reader.groups > 1 for reader in self.readers)


def shared_channels(folded: FoldedNet) -> list[Shared]:
    """Every tensor between two convolutions of an edge network, from its input to its outputs."""

    def at(name: str) -> nn.Conv2d:
        found = folded.network.get_submodule(name)
        assert isinstance(found, nn.Conv2d)
        return found

    stages = folded.network.stages
    tensors = [Shared([at("stem.0")], [at("stages.0.0.0.0")])]
    for i, stage in enumerate(stages):
        bodies = [f"stages.{i}.{k}.body" for k in range(1, len(stage))]
        separable = [b for b in [f"stages.{i}.0", *bodies] if len(folded.network.get_submodule(b)) == 2]
        for block in separable:
            tensors.append(Shared([at(f"{block}.0.0")], [at(f"{block}.1.0")]))
        after = [f"stages.{i + 1}.0.0.0"] if i + 1 < len(stages) else []
        lateral = [f"laterals.{i - 1}.0"] if i else []
        writers = [f"{block}.{int(block in separable)}.0" for block in [f"stages.{i}.0", *bodies]]
        readers = [*(f"{body}.0.0" for body in bodies), *after, *lateral]
        tensors.append(Shared([at(n) for n in writers], [at(n) for n in readers]))
    levels = range(len(STRIDES))
    tensors.append(Shared([at(f"laterals.{i}.0") for i in levels], [at(f"shared.depthwise.{i}") for i in levels]))
    for i in levels:
        towers = [at(f"{tower}.depthwise.{i}") for tower in ("score_tower", "pose_tower")]
        tensors.append(Shared([at(f"shared.pointwise.{i}")], towers))
        for block in ("shared", "score_tower", "pose_tower"):
            tensors.append(Shared([at(f"{block}.depthwise.{i}")], [at(f"{block}.pointwise.{i}")]))
    for output in OUTPUT_LAYERS:
        tensors.append(Shared([at(f"{output}_tower.pointwise.{i}") for i in levels], [at(output)], output=True))
    return tensors


@torch.no_grad()
def equalize(folded: FoldedNet, pictures: Sequence[np.ndarray]) -> FoldedNet:
    """Bring the channels of a network to one range, in place.

    Args:
        folded: edge network without batch norms.
        pictures: (H, W, 3) uint8 BGR, H and W multiples of 32.
    """
    tensors = shared_channels(folded)
    seen = watch(folded, [reader for tensor in tensors for reader in tensor.readers], pictures)
    for tensor in tensors:
        largest = torch.stack([seen[reader] for reader in tensor.readers]).amax(0)
        if not largest.max():
            continue  # nothing was seen in it
        largest = largest.clamp(min=1e-3 * float(largest.max()))
        factor = RANGE / largest
        if not tensor.free:  # the readers' weights have one step for all channels: half of it is left to them
            factor = factor.sqrt()
        for writer in tensor.writers:
            writer.weight *= factor[:, None, None, None]
            assert writer.bias is not None
            writer.bias *= factor
        for reader in tensor.readers:
            reader.weight /= factor[:, None, None, None] if reader.groups > 1 else factor[:, None, None]
    return folded


def watch(folded: FoldedNet, readers: Sequence[nn.Conv2d], pictures: Sequence[np.ndarray]) -> dict[nn.Conv2d, Tensor]:
    """What nearly all values of each channel stay below, for every tensor that is read: (C,) of each."""
    # No tensor has more values in a channel than a quarter of the pixels: of these the largest, best first.
    kept = int((1 - QUANTILE) * sum(picture[..., 0].size for picture in pictures) / 4) + 1
    largest: dict[nn.Module, Tensor] = {}
    count = dict.fromkeys(readers, 0)

    def note(reader: nn.Module, given: tuple[Tensor, ...]) -> None:
        values = given[0].transpose(0, 1).flatten(1)
        count[reader] += values.shape[1]  # type: ignore[index]
        together = torch.cat([largest[reader], values], 1) if reader in largest else values
        largest[reader] = together.topk(min(kept, together.shape[1]), 1).values

    hooks = [reader.register_forward_pre_hook(note) for reader in readers]
    for picture in pictures:
        folded(torch.from_numpy(picture[None]))
    for hook in hooks:
        hook.remove()
    return {reader: largest[reader][:, int((1 - QUANTILE) * count[reader])] for reader in readers}
