"""A larger edge network that begins as a trained smaller one (Net2Net: Chen et al., ICLR 2016).

Wider layers repeat channels, and what reads a repeated channel has its weights divided among the copies: the network
computes the same. Further blocks of a stage begin almost without effect, blocks too many are left out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from img2pose_edge.training.networks.edge import EdgeNet, HeadConv, Residual

NOISE = 0.1
"""Of the weights of repeated channels, in their standard deviations: equal copies would learn the same for ever."""
QUIET = 0.1
"""Scale of what a new block adds at first."""


class Channels:
    """Which old channel each new one repeats: the first ones themselves, the rest some at random."""

    def __init__(self, old: int, new: int, generator: torch.Generator) -> None:
        if new < old:
            raise ValueError(f"a network cannot begin as a wider one: {old} channels do not fit into {new}")
        self.old = old
        self.source = torch.cat([torch.arange(old), torch.randperm(old, generator=generator).repeat(-(-new // old))])[
            :new
        ]
        self.copies = torch.bincount(self.source, minlength=old)[self.source]


@torch.no_grad()
def grow(small: EdgeNet, large: EdgeNet, seed: int = 0) -> None:
    """Give ``large`` weights with which it computes nearly what ``small`` does.

    Raises:
        ValueError: if a layer of ``large`` is narrower.
    """
    generator = torch.Generator().manual_seed(seed)

    def widths(old: int, new: int) -> Channels:
        return Channels(old, new, generator)

    def copy(old: nn.Module, new: nn.Module, read: Channels | None, written: Channels | None) -> None:
        """A convolution that reads and writes such channels (``None``: those of all networks)."""
        assert isinstance(old, nn.Conv2d)
        assert isinstance(new, nn.Conv2d)
        weight = old.weight
        if written:
            weight = weight[written.source]
            noise = torch.randn(weight.shape, generator=generator) * weight.std()
            noise[: written.old] = 0
            weight = weight + NOISE * noise
        if read and old.groups == 1:
            weight = weight[:, read.source] / read.copies[:, None, None]
        new.weight.copy_(weight)
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)

    def copy_norm(old: nn.Module, new: nn.Module, channels: Channels) -> None:
        values: dict[str, Tensor] = old.state_dict()
        new.load_state_dict({k: v[channels.source] if v.ndim else v for k, v in values.items()})

    def copy_conv(old: nn.Module, new: nn.Module, read: Channels | None, written: Channels) -> None:
        copy(old[0], new[0], read, written)  # type: ignore[index]
        copy_norm(old[1], new[1], written)  # type: ignore[index]

    def copy_separable(old: nn.Module, new: nn.Module, read: Channels, written: Channels) -> None:
        copy_conv(old[0], new[0], read, read)  # type: ignore[index]
        copy_conv(old[1], new[1], read, written)  # type: ignore[index]

    def copy_dense(old: nn.Module, new: nn.Module, read: Channels, written: Channels) -> None:
        copy_conv(old[0], new[0], read, written)  # type: ignore[index]

    def copy_head(old: HeadConv, new: HeadConv, read: Channels, written: Channels) -> None:
        copy(old.depthwise, new.depthwise, read, read)
        copy(old.pointwise, new.pointwise, read, written)
        for a, b in zip(old.depthwise_norms, new.depthwise_norms, strict=True):
            copy_norm(a, b, read)
        for a, b in zip(old.pointwise_norms, new.pointwise_norms, strict=True):
            copy_norm(a, b, written)

    had, gets = small.config, large.config
    at = widths(had.stem, gets.stem)
    copy_conv(small.stem, large.stem, None, at)
    head = widths(had.head, gets.head)
    for level, (old_stage, new_stage) in enumerate(zip(small.stages, large.stages, strict=True)):
        stage = widths(had.stages[level], gets.stages[level])
        copy_separable(old_stage[0], new_stage[0], at, stage)  # type: ignore[index]
        for convolutions, copy_body in ((2, copy_separable), (1, copy_dense)):
            before, after = (
                [m.body for m in s.modules() if isinstance(m, Residual) and len(m.body) == convolutions]
                for s in (old_stage, new_stage)
            )
            for number, body in enumerate(after):
                if number < len(before):
                    copy_body(before[number], body, stage, stage)
                else:
                    nn.init.constant_(body[-1].get_submodule("1").weight, QUIET)  # type: ignore[arg-type]
        if level:
            copy_conv(small.laterals[level - 1], large.laterals[level - 1], stage, head)
        at = stage
    shared = widths(had.head, gets.head)
    copy_head(small.shared, large.shared, head, shared)
    for name in ("score", "pose"):
        old_tower, new_tower = getattr(small, f"{name}_tower"), getattr(large, f"{name}_tower")
        tower = widths(old_tower.pointwise.out_channels, new_tower.pointwise.out_channels)
        copy_head(old_tower, new_tower, shared, tower)
        copy(getattr(small, name), getattr(large, name), tower, None)
