"""Weights of the output layers rounded together, so that what is lost by one is made up for by the next.

Their maps stay float, and what rounds a weight goes straight into scores and poses. Each weight goes up or down such
that the errors of an output cancel on what the layer sees of faces: second-order, column by column (GPTQ: Frantar et
al., "GPTQ: accurate post-training quantization for generative pre-trained transformers", ICLR 2023, section 3).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from img2pose_edge.quantize.fold import OUTPUT_LAYERS, FoldedNet
from img2pose_edge.quantize.steps import HIGHEST, ChannelStep
from torch import Tensor, nn

LEAST_LOGIT = -3.0
"""Score logit from which a cell counts: what is surely no face may be off."""
DAMPING, TINY = 0.01, 1e-12
"""Share of the mean variance that is added to each channel's, and what is added where nothing varies."""


@torch.no_grad()
def round_outputs(folded: FoldedNet, pictures: Sequence[np.ndarray], but: Collection[str] = ()) -> FoldedNet:
    """Round the weights of the output layers to whole steps, in place.

    Args:
        folded: edge network without batch norms, channels equalized.
        pictures: (H, W, 3) uint8 BGR, H and W multiples of 32.
        but: output layers to leave as they are.
    """
    for name in OUTPUT_LAYERS:
        if name not in but:
            layer = folded.network.get_submodule(name)
            assert isinstance(layer, nn.Conv2d)
            seen = see(folded, layer, pictures)
            if len(seen):
                round_together(layer, seen)
    return folded


def see(folded: FoldedNet, layer: nn.Conv2d, pictures: Sequence[np.ndarray]) -> Tensor:
    """(N, C) what a layer is given in the cells that may hold a face."""
    given: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    kept = []
    for picture in pictures:
        scores, _ = folded(torch.from_numpy(picture[None]))
        kept += [x.movedim(1, -1)[score[:, 0] >= LEAST_LOGIT] for x, score in zip(given, scores, strict=True)]
        given.clear()
    hook.remove()
    return torch.cat(kept).double()


def round_together(layer: nn.Conv2d, seen: Tensor) -> None:
    """Weights of a pointwise convolution in whole steps, and its bias, such that its outputs of (N, C) ``seen`` change
    least."""
    assert layer.bias is not None
    before = layer.weight.flatten(1).double()
    observer = ChannelStep()
    observer(layer.weight)
    step = observer.step.double()[:, None]
    mean = seen.mean(0)
    gram = (seen - mean).T @ (seen - mean) / len(seen)
    gram += (DAMPING * gram.diagonal().mean() + TINY) * torch.eye(len(gram), dtype=torch.float64)
    order = gram.diagonal().argsort(descending=True)
    inverse = torch.linalg.cholesky(torch.linalg.inv(gram[order][:, order]), upper=True)
    left = (before / step)[:, order]
    largest = left.abs().argmax(1)  # rounded away from zero: the step, which follows from it, stays
    top = left.abs().amax(1).ceil().clamp(max=HIGHEST) * left.gather(1, largest[:, None])[:, 0].sign()
    whole = torch.zeros_like(left)
    for i in range(left.shape[1]):
        whole[:, i] = torch.where(largest == i, top, left[:, i].round().clamp(-HIGHEST, HIGHEST))
        error = (left[:, i] - whole[:, i]) / inverse[i, i]
        left[:, i:] -= error[:, None] * inverse[i, i:]
    after = torch.zeros_like(before)
    after[:, order] = whole * step
    layer.bias += (before - after).float() @ mean.float()
    layer.weight.copy_(after[:, :, None, None])
