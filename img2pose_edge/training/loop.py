"""The training loop, top to bottom: data, network, optimizer, steps, validation, checkpoint."""

from __future__ import annotations

import copy
import csv
import gc
import io
import logging
import math
import os
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from img2pose_edge.files import write_file
from img2pose_edge.progress import track
from img2pose_edge.training.augment import STRENGTHS, Composer, Sample
from img2pose_edge.training.checkpoint import join_origins, load_checkpoint, save_checkpoint
from img2pose_edge.training.data import as_bytes, open_data, split
from img2pose_edge.training.distill import load_teacher
from img2pose_edge.training.grow import grow
from img2pose_edge.training.interrupt import kept_signals
from img2pose_edge.training.memory import keep_freed_memory
from img2pose_edge.training.networks import FULL, build_network, load_network
from img2pose_edge.training.networks.edge import CONFIGS, EdgeNet
from img2pose_edge.training.objective import EdgeObjective, Objective
from img2pose_edge.training.optimizer import build_optimizer
from img2pose_edge.training.targets import Batch
from img2pose_edge.training.validation import validate

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainOptions:
    """What a run is; a resumed run must not change any of it but ``steps``.

    ``schedule``: ``cosine``, or ``plateau`` as img2pose trains: a tenth of the rate after four validations
    without progress. ``patience``: stop after this many validations without progress; 0 never stops.
    ``optimizer``: see :func:`build_optimizer`. ``augmentation``: see :data:`STRENGTHS`. ``proposals``: of each
    picture, that the full model's heads learn from; fewer are much faster without a GPU. ``teacher``: paths of
    models from whose outputs an edge network learns besides the labels, each step from one by lot. ``int8``:
    fine-tune an edge network, given as initial weights, as it will be quantized, but for ``float_layers``.
    """

    network: str = "edge-n"
    steps: int = 14000
    batch_size: int = 48
    crop_size: int = 320
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    warmup_steps: int = 500
    ema_decay: float = 0.999
    clip_norm: float = 10.0
    seed: int = 0
    optimizer: str = "muon"
    schedule: str = "cosine"
    augmentation: str = "full"
    patience: int = 0
    proposals: int = 512
    teacher: Sequence[str] = ()
    int8: bool = False
    float_layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "float_layers", tuple(sorted(self.float_layers)))
        one = isinstance(self.teacher, str)  # as in runs of the time when there was one at most
        object.__setattr__(self, "teacher", tuple(filter(None, [self.teacher] if one else self.teacher)))
        if self.float_layers and not self.int8:
            raise ValueError("float_layers are those that int8 leaves out: it needs int8")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name, (low, high) in RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be from {low:g} to {high:g}, got {getattr(self, name)!r}")
        if self.crop_size % 32 or self.crop_size < 96:  # a mosaic's quarter must hold a portrait
            raise ValueError(f"crop_size must be a multiple of 32 and at least 96, got {self.crop_size}")


CHOICES = {
    "network": (*CONFIGS, *FULL),
    "optimizer": ("muon", "adamw", "sgd"),
    "schedule": ("cosine", "plateau"),
    "augmentation": tuple(STRENGTHS),
}


RANGES = {
    "steps": (1, math.inf),
    "batch_size": (1, math.inf),
    "learning_rate": (0, math.inf),
    "weight_decay": (0, math.inf),
    "warmup_steps": (0, math.inf),
    "ema_decay": (0, 1),
    "clip_norm": (1e-12, math.inf),
    "seed": (0, 2**63 - 1),
    "patience": (0, math.inf),
    "proposals": (1, math.inf),
}


def learning_rate(step: int, options: TrainOptions) -> float:
    """Linear warm-up, then cosine down to 1 % (Loshchilov & Hutter, ICLR 2017), or none, for ``plateau``."""
    if step < options.warmup_steps:
        return options.learning_rate * (step + 1) / options.warmup_steps
    if options.schedule == "plateau":
        return options.learning_rate
    progress = (step - options.warmup_steps) / max(options.steps - options.warmup_steps, 1)
    return options.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * min(progress, 1))) / 2)


def collate(samples: list[Sample]) -> Batch:
    """Stack pictures; concatenate their faces."""

    def faces(name: str) -> Tensor:
        return torch.from_numpy(np.concatenate([getattr(s.faces, name) for s in samples]))

    counts = torch.tensor([len(s.faces) for s in samples])
    return Batch(
        images=torch.from_numpy(np.stack([s.image for s in samples])),
        picture=torch.arange(len(samples)).repeat_interleave(counts),
        boxes=faces("boxes").float(),
        local=faces("local").float(),
        trust=faces("trust").float(),
        landmarks=faces("landmarks").float(),
        intrinsics=torch.from_numpy(np.concatenate([s.intrinsics for s in samples])).float(),
        ignore=faces("ignore"),
    )


def build_objective(network: nn.Module, options: TrainOptions, device: torch.device) -> Objective:
    """The network together with its loss."""
    if options.network in CONFIGS:
        return EdgeObjective(network, [load_teacher(Path(name), device) for name in options.teacher])
    if options.teacher:
        raise ValueError(f"only edge networks learn from a teacher, not a {options.network}")
    from img2pose_edge.training.full_objective import FullNet, FullObjective

    if not isinstance(network, FullNet):
        raise TypeError(f"no objective for a {type(network).__name__}")
    return FullObjective(network, options.proposals)


def begin(options: TrainOptions, initial: Path | None, last: Path) -> nn.Module:
    """The network that a run trains: new, with weights of ``initial``, or of the shape that ``last`` was saved in.

    An edge network takes the weights of one of another shape that is not wider, too (:func:`grow`); to be fine-tuned
    for int8 it keeps the shape that it has.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_network`; if the weights are of another kind of network.
    """
    if last.exists():
        return build_network(options.network, load_checkpoint(last).get("config"))
    network = build_network(options.network)
    if not initial:
        if getattr(network, "official", False):
            raise ValueError(f"{options.network} is only fine-tuned: name a converted official checkpoint as initial")
        return network
    source, trained = load_network(initial)
    if isinstance(network, EdgeNet) and isinstance(trained, EdgeNet) and not options.int8:
        if network.config != trained.config:
            grow(trained, network, options.seed)
            return network
    elif source["network"] != options.network:
        raise ValueError(f"{initial} holds {source['network']}, not {options.network}")
    return trained.train()


MOST_LEFT_OUT = 20
"""Steps one after the other that may have no finite gradient."""
SAVE_SECONDS = 300.0
"""A run's state is also saved when its last one is this old: steps of large networks without a GPU take a minute."""
SHOWN_PICTURES = 64
"""Pictures that a network to be quantized is shown before it trains, to choose the steps of its activations by."""


def quantizable(network: nn.Module, options: TrainOptions) -> EdgeNet:
    """The network itself.

    Raises:
        ValueError: if it is no edge network, or a float layer is unknown.
    """
    from img2pose_edge.quantize.graph import check_layers

    if not isinstance(network, EdgeNet):
        raise ValueError(f"only edge networks are quantized, not a {options.network}")
    check_layers(network, options.float_layers)
    return network


def check_run(state: dict[str, Any], options: TrainOptions, last: Path) -> None:
    """Raise ``ValueError`` if ``state``, which ``last`` holds, is none of a run to go on with by these options."""
    needed = "options", "raw_weights", "optimizer", "step", "best", "stale", "plateau"
    lacking = [key for key in needed if key not in state]
    if lacking:
        raise ValueError(f"{last} is no state of a run to go on with: it lacks {', '.join(lacking)}")
    before = asdict(TrainOptions(**state["options"]))  # options newer than the run had their defaults
    other = {k: (v, before[k]) for k, v in asdict(options).items() if before[k] != v and k != "steps"}
    if other:
        changes = ", ".join(f"{k}={now} (it has {then})" for k, (now, then) in other.items())
        raise ValueError(f"{last.parent} holds a run of other options: {changes}. Use another folder or its options.")


def begin_worker(_: int) -> None:
    """A loader's worker is one process on one core; OpenCV would start a pool of its own in each. It ends with the run,
    so signals to the run's process group, as Ctrl-C in a terminal is, are not for it."""
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    if hasattr(os, "setpgrp"):
        os.setpgrp()


@torch.no_grad()
def update_average(average: dict[str, Tensor], network: nn.Module, step: int, decay: float) -> None:
    """Exponential moving average of all weights and buffers, faster while training is young."""
    decay = min(decay, (1 + step) / (10 + step))
    state = network.state_dict()
    real = [name for name, value in state.items() if value.is_floating_point()]
    get_ema_multi_avg_fn(decay)([average[name] for name in real], [state[name] for name in real], None)
    for name in state.keys() - real:
        average[name].copy_(state[name])


def any_process(told: bool, device: torch.device) -> bool:
    """Whether any of the processes that train together says so; each gets the same answer."""
    if not torch.distributed.is_initialized():
        return told
    count = torch.tensor(int(told), device=device)
    torch.distributed.all_reduce(count)
    return bool(count.item())


class CsvLog:
    """``metrics.csv``: a row per logged step; a resumed run drops the rows after its checkpoint."""

    def __init__(self, path: Path, parts: Sequence[str], start: int) -> None:
        columns = ["step", "learning_rate", "loss", *parts, "ap", "recall", "mae"]
        rows = []
        if path.exists():
            with path.open(newline="") as file:
                before = csv.DictReader(file)
                whole = [row for row in before if None not in row.values()]  # the last one may be cut off
                if before.fieldnames and list(before.fieldnames) != columns:
                    raise ValueError(f"{path} is not the log of such a run: move it away")
                rows = [row for row in whole if int(row["step"]) <= start]
        text = io.StringIO(newline="")
        again = csv.DictWriter(text, columns)
        again.writeheader()
        again.writerows(rows)
        write_file(path, text.getvalue().encode())
        self._file = path.open("a", newline="")
        self._writer = csv.DictWriter(self._file, columns)

    def write(self, **values: float) -> None:
        self._writer.writerow({k: v if k == "step" else f"{v:.6g}" for k, v in values.items()})
        self._file.flush()


def train(
    data: Path,
    run: Path,
    options: TrainOptions,
    *,
    initial: Path | None = None,
    cache: Path | None = None,
    device: str = "",
    workers: int = 1,
    log_every: int = 50,
    save_every: int = 500,
    validate_every: int = 1000,
) -> Path:
    """Train a network, or go on with the run that ``run`` holds.

    Under ``torchrun`` every process takes its share of each step's samples and gradients are averaged.

    Args:
        data: folder with ``labels.jsonl`` and ``images/``, or an ``.lmdb`` of :mod:`prepare`.
        run: folder for ``last.pt`` (full state), ``best.pt`` and ``metrics.csv``.
        options: what to train.
        initial: checkpoint whose weights a new run starts from (:func:`begin`).
        cache: folder for decoded pixels, default ``run``.
        device: ``cpu`` or ``cuda``; default CUDA where there is one.
        workers: loader processes.

    Ctrl-C and SIGTERM end the run after the step it is at (and its validation, if that is due), saved; a second one at
    once. ``torchrun`` hands them on, and kills what still runs half a minute later.

    Returns:
        path of the last checkpoint.

    Raises:
        FileNotFoundError: if there are no labels.
        ValueError: if they are damaged, the run in ``run`` is of other options, or there is no such device.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if options.batch_size % world:
        raise ValueError(f"batch_size must be a multiple of the {world} processes, got {options.batch_size}")
    for name, value in (("validate_every", validate_every), ("save_every", save_every), ("log_every", log_every)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    try:
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:  # torch was built without CUDA
        raise ValueError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    if world > 1:
        torch.distributed.init_process_group("nccl" if where.type == "cuda" else "gloo")
        if where.type == "cuda":
            where = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(where)
    last = run / "last.pt"
    initial = None if last.exists() else initial  # the same command goes on with what it began
    for path in (*map(Path, options.teacher), *([initial] if initial else [])):
        if not path.is_file():  # told before all pictures are decoded
            raise FileNotFoundError(f"no checkpoint {path}")
    if options.int8 and not initial and not last.exists():
        raise ValueError("fine-tuning for int8 needs a trained network to begin with: name it as initial")
    if cache and data.suffix == ".lmdb":
        raise ValueError(f"a cache is for the pictures of a folder: those of {data} are decoded each time")
    keep_freed_memory()
    torch.manual_seed(options.seed)
    state = load_checkpoint(last) if last.exists() else None
    if state:  # this, too, is told before all pictures are decoded
        check_run(state, options, last)
    network = begin(options, initial, last)
    to_quantize = quantizable(network, options) if options.int8 else None
    opened = open_data(data, cache or run) if rank == 0 else None  # decodes before the other processes look
    if world > 1:
        torch.distributed.barrier()
    records, pixels = opened or open_data(data, cache or run)
    training, held_out = split(records)
    composer = Composer(records, pixels, training, options.crop_size, options.seed, STRENGTHS[options.augmentation])

    shape = network.config if isinstance(network, EdgeNet) else None
    if to_quantize:
        from img2pose_edge.quantize.graph import calibrated

        pictures = [composer[i].image for i in range(SHOWN_PICTURES)]
        network = calibrated(to_quantize, pictures, options.float_layers)
    objective = build_objective(network, options, where)
    if not initial and not last.exists():
        objective.prepare([records[i] for i in training])
    network = network.to(where).to(memory_format=torch.channels_last)
    average = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = build_optimizer(options.optimizer, network, options.learning_rate, options.weight_decay)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, "max", 0.1, patience=3, threshold=1e-3, threshold_mode="abs"
    )
    faces = sum(len(records[i].faces) for i in training)
    origin = {"data": f"{data.name}: {len(training)} images, {faces} faces"}
    start, best, stale = 0, -math.inf, 0
    arrays = "boxes", "local", "trust", "landmarks", "ignore"
    marks = ([as_bytes(r.image), *(getattr(r.faces, name).tobytes() for name in arrays)] for r in records)
    labels = zlib.crc32(b"".join(part for of in marks for part in of))
    if state:
        origin = join_origins([state] if state.get("labels", labels) == labels else [state, origin])
        if state.get("labels", labels) != labels:
            logger.warning("%s began with other pictures or labels than those of %s", last, data)
        try:
            network.load_state_dict(state["raw_weights"])
        except RuntimeError as error:
            raise ValueError(f"{last} does not fit this version's network: {error}") from error
        optimizer.load_state_dict(state["optimizer"])
        for name, value in state["weights"].items():
            average[name].copy_(value)
        start, best, stale = state["step"], state["best"], state["stale"]
        plateau.load_state_dict(state["plateau"])
        if rank == 0:
            logger.info("going on from step %d of %s", start, last)
            if start >= options.steps:
                logger.warning("%s has %d steps already: nothing is left of %d", last, start, options.steps)
            elif 0 < options.patience <= stale:
                logger.warning("%s was stopped at step %d, as validations made no progress", last, start)
    else:  # terms of a teacher hold for what it has taught
        own = [path for path in (initial, *options.teacher) if path and Path(path).suffix != ".onnx"]
        others = [{"data": f"what {Path(path).name} finds"} for path in options.teacher if Path(path).suffix == ".onnx"]
        origin = join_origins([*map(load_checkpoint, map(Path, own)), *others, origin])
    trained = nn.parallel.DistributedDataParallel(objective) if world > 1 else objective

    def weights(step: int) -> dict[str, Any]:
        kept: dict[str, Any] = {"network": options.network, "weights": average, "step": step, **origin}
        kept["options"] = asdict(options)
        if shape:
            kept["config"] = asdict(shape)
        return {**kept, "int8": True, "float_layers": list(options.float_layers)} if options.int8 else kept

    def snapshot(step: int) -> dict[str, Any]:
        return {
            **weights(step),
            "raw_weights": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "labels": labels,
            "best": best,
            "stale": stale,
            "plateau": plateau.state_dict(),
        }

    end = start if 0 < options.patience <= stale else options.steps
    # Sample i of the run is the same whoever draws it: a rank takes every world-th of them.
    order = range(start * options.batch_size + rank, end * options.batch_size, world)
    loader: DataLoader[Batch] = DataLoader(
        composer,  # type: ignore[arg-type]
        batch_size=options.batch_size // world,
        sampler=order,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=begin_worker,
        pin_memory=where.type == "cuda",
        prefetch_factor=4 if workers else None,
        # The quantizer's library starts threads, and a process with threads must not be forked.
        multiprocessing_context="spawn" if options.int8 and workers else None,
        drop_last=True,
    )
    log = CsvLog(run / "metrics.csv", objective.parts, start) if rank == 0 else None
    recent: dict[str, list[float]] = {}
    steps = range(start, end)
    batches = iter(loader)
    saved = time.monotonic()
    interrupted = False
    left_out = 0
    with kept_signals() as signals:
        for step in track(steps, options.network, start) if rank == 0 else steps:
            batch = next(batches).to(where)
            if options.schedule == "cosine" or step < options.warmup_steps:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, options)
            rate = optimizer.param_groups[0]["lr"]
            torch.manual_seed(options.seed + step)  # the full model samples proposals: a resumed run the same ones
            loss, parts = trained(batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(network.parameters(), options.clip_norm)
            if norm.isfinite():
                optimizer.step()
                left_out = 0
            else:
                left_out += 1
                logger.warning("step %d is left out: its gradient is not finite", step)
                if left_out == MOST_LEFT_OUT:
                    why = "the learning rate is too high, or labels are wrong"
                    raise ValueError(f"{left_out} steps one after the other have no finite gradient: {why}")
            update_average(average, network, step, options.ema_decay)

            done = step + 1
            for name, value in {"loss": loss, **parts}.items():
                recent.setdefault(name, []).append(value.item())
            if done % log_every == 0 or done == options.steps:
                if log:
                    log.write(step=done, learning_rate=rate, **{k: float(np.mean(v)) for k, v in recent.items()})
                recent = {}
            stop = done == options.steps
            if done % validate_every == 0 or stop:
                merit = torch.zeros(1, device=where)
                if rank == 0 and log:
                    judge = copy.deepcopy(network)
                    judge.load_state_dict(average)
                    found = validate(judge.eval(), records, held_out, pixels, where)
                    log.write(step=done, **found)
                    merit += found["ap"] - found["mae"] / 100
                if world > 1:  # every process must take the same turn
                    torch.distributed.broadcast(merit, 0)
                stale = 0 if merit.item() > best else stale + 1
                if rank == 0 and stale == 0:
                    save_checkpoint(weights(done), run / "best.pt")
                best = max(best, merit.item())
                if options.schedule == "plateau":
                    plateau.step(merit.item())
                stop = stop or 0 < options.patience <= stale
            late = time.monotonic() - saved >= SAVE_SECONDS
            interrupted = any_process(bool(signals), where)  # signals reach processes at different steps
            if rank == 0 and (done % save_every == 0 or stop or late or interrupted):
                save_checkpoint(snapshot(done), last)
                saved = time.monotonic()
                if interrupted and not stop:
                    logger.warning("stopped at step %d, from which the same command goes on", done)
            if interrupted or (stop and done < options.steps):  # after the last step the loop ends, and with it the bar
                break
    if world > 1:
        # No process returns before the checkpoint is written. The group's threads end with its last owner, DDP;
        # alive, they may still hold a tensor while the interpreter goes, which aborts the process.
        torch.distributed.barrier()
        del trained
        gc.collect()
        torch.distributed.destroy_process_group()
    if interrupted:
        raise KeyboardInterrupt
    return last
