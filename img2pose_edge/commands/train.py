"""Commands around training: ``prepare``, ``annotate``, ``train``, ``average`` and ``curves``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from img2pose_edge.commands.images import find_images
from img2pose_edge.files import check_writable, real


def report_skipped(skipped: list[str]) -> None:
    if skipped:
        print(f"skipped {len(skipped)}:", *skipped, sep="\n  ", file=sys.stderr)


def prepare(options: argparse.Namespace) -> int:
    from img2pose_edge.training.prepare import prepare as run

    done = run(
        options.source,
        options.out,
        images=options.images,
        longest=options.longest,
        skip_bad=options.skip_bad,
        workers=options.workers,
    )
    report_skipped(done.skipped)
    print(f"{done.path}: {len(done.records)} images, {sum(len(r.faces) for r in done.records)} faces")
    for path in done.statistics:
        print(path)
    return 0


def annotate(options: argparse.Namespace) -> int:
    from img2pose_edge.training.annotate import annotate as run
    from img2pose_edge.training.annotate import label_by_detector, label_by_model

    if not 0 <= options.score_threshold <= 1:
        raise ValueError(f"score_threshold must be between 0 and 1, got {options.score_threshold}")
    if options.detector and options.model:
        raise ValueError("--detector and --model both label: name one")
    if options.detector:
        label = label_by_detector(options.detector, options.score_threshold)
    else:
        label = label_by_model(options.model, options.score_threshold)
    out = options.out or Path(options.paths[0]) / "labels.jsonl"
    if not options.out and not out.parent.is_dir():
        raise ValueError("name --out FOLDER/labels.jsonl, as the first path is no folder")
    done = run(find_images(options.paths), out, label, skip_bad=options.skip_bad)
    report_skipped(done.skipped)
    print(f"{out}: {done.images} images labelled, {done.faces} faces")
    return 0


def train(options: argparse.Namespace) -> int:
    from img2pose_edge.training.loop import TrainOptions
    from img2pose_edge.training.loop import train as run

    fields = TrainOptions.__dataclass_fields__
    if options.proposals is None:
        options.proposals = fields["proposals"].default
    elif options.network.startswith("edge-"):
        raise ValueError(f"--proposals is for full networks, not for {options.network}")
    options.float_layers = tuple(options.float_layers)
    chosen = TrainOptions(**{name: getattr(options, name) for name in fields})
    print(
        run(
            options.data,
            options.out,
            chosen,
            initial=options.initial,
            cache=options.cache,
            device=options.device,
            workers=options.workers,
            validate_every=options.validate_every,
        )
    )
    return 0


def average(options: argparse.Namespace) -> int:
    from img2pose_edge.training.average import average_checkpoints
    from img2pose_edge.training.checkpoint import save_checkpoint

    check_writable(options.out)
    if real(options.out) in [real(path) for path in options.checkpoints]:
        raise ValueError(f"--out {options.out} is one of the checkpoints, whose weights would be lost")
    save_checkpoint(average_checkpoints(options.checkpoints), options.out)
    print(options.out)
    return 0


def curves(options: argparse.Namespace) -> int:
    from img2pose_edge.training.curves import draw_curves

    check_writable(options.out)
    print(draw_curves(options.runs, options.out))
    return 0


def add_commands(commands: Any) -> None:
    p = commands.add_parser("prepare", help="turn a labelled data set into one LMDB to train on")
    p.add_argument(
        "source",
        type=Path,
        metavar="DATA",
        help="RetinaFace's label.txt, img2pose's list of JSON files, a folder of 300W-LP or 300W, labels.jsonl or LMDB",
    )
    p.add_argument("--out", type=Path, required=True, metavar="DATA.lmdb")
    p.add_argument("--images", type=Path, help="folder that a list's image paths are relative to")
    p.add_argument("--longest", type=int, default=0, metavar="PX", help="shrink images to this longest side")
    p.add_argument("--skip-bad", action="store_true", help="leave out, count and list what cannot be used")
    p.add_argument("--workers", type=int, default=2, help="threads that read and decode")
    p.set_defaults(do=prepare)

    p = commands.add_parser("annotate", help="label photographs of one's own, to train on")
    p.add_argument("paths", nargs="+", metavar="PATH", help="files, folders (searched below) or globs")
    p.add_argument("--out", type=Path, metavar="labels.jsonl", help="default: in the first folder")
    p.add_argument("--detector", type=Path, metavar="ONNX", help="YuNet or SCRFD with five points; poses by PnP")
    p.add_argument("--model", help="without --detector: the model of ours that labels (default: the bundled one)")
    p.add_argument("--score-threshold", type=float, default=0.6, metavar="P", help="least score of a face")
    p.add_argument("--skip-bad", action="store_true", help="leave out, count and list what cannot be read")
    p.set_defaults(do=annotate)

    p = commands.add_parser("train", help="train a network, or go on with an interrupted run")
    p.add_argument(
        "--data", type=Path, required=True, help="folder with labels.jsonl and the images it names, or .lmdb"
    )
    p.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder for checkpoints and metrics.csv")
    p.add_argument(
        "--network",
        default="edge-n",
        help="edge-n, edge-s, full-18, full-50 or full-101; img2pose-18 to fine-tune an official checkpoint",
    )
    p.add_argument("--steps", type=int, default=14000)
    p.add_argument("--batch-size", type=int, default=48)
    p.add_argument("--crop-size", type=int, default=320, help="pixels, a multiple of 32")
    p.add_argument("--learning-rate", type=float, default=2e-3)
    p.add_argument("--weight-decay", type=float, default=0.02)
    p.add_argument("--warmup-steps", type=int, default=500)
    p.add_argument("--ema-decay", type=float, default=0.999)
    p.add_argument("--clip-norm", type=float, default=10.0)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--optimizer", default="muon", help="muon, adamw or sgd")
    p.add_argument("--schedule", default="cosine", help="cosine, or plateau: a tenth of the rate without progress")
    p.add_argument("--augmentation", default="full", help="full, or mild: for a last phase")
    p.add_argument("--patience", type=int, default=0, help="stop after this many validations without progress")
    p.add_argument(
        "--proposals",
        type=int,
        help="of each picture that a full model's heads learn from (default: 512): fewer are faster",
    )
    p.add_argument(
        "--teacher",
        action="append",
        default=[],
        metavar="CHECKPOINT",
        help="edge or full network whose outputs an edge network learns too; of several, each step from one by lot",
    )
    p.add_argument(
        "--int8", action="store_true", help="fine-tune an edge network, from --initial, as it will be quantized"
    )
    p.add_argument(
        "--float-layers", nargs="+", default=(), metavar="LAYER", help="convolutions that --int8 keeps in float"
    )
    p.add_argument("--validate-every", type=int, default=1000, metavar="STEPS")
    p.add_argument("--initial", type=Path, metavar="CHECKPOINT", help="weights a new run starts from")
    p.add_argument("--cache", type=Path, help="folder for decoded pixels (default: the run's)")
    p.add_argument("--device", default="", help="cpu or cuda (default: CUDA where there is one)")
    p.add_argument("--workers", type=int, default=1, help="loader processes")
    p.set_defaults(do=train)

    p = commands.add_parser("average", help="one network of several that have trained on from the same one")
    p.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT")
    p.add_argument("--out", type=Path, required=True, metavar="AVERAGE.pt")
    p.set_defaults(do=average)

    p = commands.add_parser("curves", help="draw losses and figures of training runs over their steps")
    p.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders that train --out wrote to")
    p.add_argument("--out", type=Path, required=True, metavar="CURVES.png")
    p.set_defaults(do=curves)
