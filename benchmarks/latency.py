"""Time contenders against each other: every one in a process of its own, taking turns on the same cores."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from img2pose_edge.benchmarks.contenders import Contender

import img2pose_edge
from img2pose_edge.progress import track


class ContenderError(Exception):
    """A contender that could not be loaded or run, named, with the reason."""


COLD_STARTS = 3
"""Processes of each contender that are begun anew, in random order."""
LIMIT = 3600.0
"""Seconds that an answer may take; a process that hangs is ended then."""
EVALUATION_LIMIT = 24 * 3600.0
"""The same of a data set, which may hold thousands of pictures."""
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**28)}
"""glibc keeps what is freed, as it does in a process that has run for long. Otherwise it depends on earlier calls
whether a few megabytes are given back and faulted in again at each call, which takes up to 4 ms."""
WORKER = """
import os, runpy, sys
sys.path[:] = {path} + [part for part in sys.path if part]
if {cores} and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {cores})
runpy.run_module("img2pose_edge.benchmarks.worker", run_name="__main__")
"""
"""Bound to its cores before any library starts threads; without the current folder, where a checkout may
hide what is installed, and with the parent's own package first."""


class Process:
    """A contender's worker (:mod:`worker`). A context: leaving it ends the process.

    Raises:
        ContenderError: if the interpreter cannot be started.
    """

    def __init__(self, contender: Contender, python: str, threads: int, cores: Sequence[int]) -> None:
        """
        Args:
            contender: what it will run.
            python: interpreter.
            threads: of the engine, and of the libraries around it.
            cores: that it is bound to, where the system can do that.
        """
        self.contender, self.threads = contender, threads
        own = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        path = [str(Path(img2pose_edge.__file__).parents[1])] if python == sys.executable else []
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  # closed with the process
        self.began = time.perf_counter()
        try:
            self._process = subprocess.Popen(
                [python, "-c", WORKER.format(cores=list(cores), path=path)],
                env={**os.environ, **own, **KEEP_MEMORY},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
            )
        except OSError as error:
            self._log.close()
            raise ContenderError(f"{contender.name}: {error}") from error

    def __enter__(self) -> Process:
        return self

    def kill(self) -> None:
        """End the process at once, from whichever thread: what it is asked for then fails."""
        self._process.kill()

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            assert stream is not None
            with suppress(OSError):  # what was written to a process that had died is lost
                stream.close()

    def load(self) -> dict[str, Any]:
        """Load the contender: ``load_ms`` that it took, and ``versions`` of an interpreter of its own. Errors as
        :meth:`ask`."""
        fields = {name: getattr(self.contender, name) for name in self.contender.__dataclass_fields__}
        return self.ask("open", contender=fields, threads=self.threads)

    def ask(self, what: str, *, limit: float = LIMIT, **arguments: Any) -> dict[str, Any]:
        """One request and its answer.

        Raises:
            ContenderError: if the contender failed, its process died, or took longer than ``limit`` seconds.
        """
        late = threading.Event()

        def end() -> None:
            late.set()
            self._process.kill()

        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps({"do": what, **arguments}) + "\n")
            stdin.flush()
            timer = threading.Timer(limit, end)
            timer.start()
            try:
                line = stdout.readline()
            finally:
                timer.cancel()
            answer = json.loads(line)
        except (OSError, ValueError):  # it died before or while it answered
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
            killed = self._process.returncode == -9
            why = "it was killed, for lack of memory perhaps" if killed else _last_line(self._log)
            answer = {"error": f"no answer in {limit:.0f} s" if late.is_set() else f"its process died: {why}"}
        if "error" in answer:
            raise ContenderError(f"{self.contender.name}: {answer['error']}")
        return dict(answer)


def _last_line(log: IO[str]) -> str:
    log.seek(0)
    lines = log.read().strip().splitlines()
    return lines[-1] if lines else "it left no message"


def choose_cores(threads: int | None = None) -> list[int]:
    """The first cores that this process may run on, default all; where the system cannot bind to cores, just numbers.

    Raises:
        ValueError: if there are not so many.
    """
    bound = hasattr(os, "sched_getaffinity")
    available = sorted(os.sched_getaffinity(0)) if bound else list(range(os.cpu_count() or 1))
    if threads is not None and threads > len(available):
        raise ValueError(f"{threads} threads need as many cores, there are {len(available)}")
    return available[:threads]


def time_contenders(
    contenders: Sequence[Contender],
    threads: int,
    face_counts: Sequence[int],
    rounds: int,
    pythons: dict[str, str],
    missing: list[str],
) -> dict[str, dict[str, Any]]:
    """Latency, CPU time and memory of contenders that take turns in random order.

    Args:
        threads: of each, on as many cores.
        face_counts: scenes (:mod:`scenes`).
        rounds: in each of which every contender has a turn on every scene.
        pythons: interpreters of engines that need one of their own.
        missing: contenders that fail are named in it and left out.

    Returns:
        by name: ``load_ms``, ``first_ms``, ``cold_start_ms`` (from the process's start to its first faces), medians of
        :data:`COLD_STARTS`; ``peak_mb``, ``versions``, and for each scene under ``faces`` medians ``whole_ms``,
        ``network_ms``, ``cpu_ms``, the 95th percentile ``p95_ms`` and how many faces were ``found``.
    """
    cores, order = choose_cores(threads), random.Random(0)
    results: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        alive: list[Process] = []
        starts: dict[str, list[dict[str, float]]] = {}
        able = list(contenders)
        turns = [(number, c) for number in range(COLD_STARTS) for c in order.sample(contenders, len(contenders))]
        for number, contender in track(turns, f"starting, {threads} thread{'s' * (threads > 1)}"):
            if contender not in able:
                continue
            try:
                process = Process(contender, pythons.get(contender.engine, sys.executable), threads, cores)
                with ExitStack() as own:
                    own.enter_context(process)
                    opened = process.load()
                    first = process.ask("first", faces=1)
                    cold = (time.perf_counter() - process.began) * 1e3 - first["scene_ms"]
                    if number == COLD_STARTS - 1:  # the last one stays
                        stack.push(own.pop_all())
            except ContenderError as error:
                missing.append(str(error))
                able.remove(contender)
                continue
            start = {"load_ms": opened["load_ms"], "first_ms": first["first_ms"], "cold_start_ms": cold}
            starts.setdefault(contender.name, []).append(start)
            if number == COLD_STARTS - 1:
                medians = {k: float(np.median([s[k] for s in starts[contender.name]])) for k in start}
                results[contender.name] = {**medians, "versions": opened["versions"]}
                alive.append(process)
        samples: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for _ in track(range(rounds), f"timing {len(alive)} contenders, {threads} thread{'s' * (threads > 1)}"):
            for faces in face_counts:
                for process in order.sample(alive, len(alive)):
                    name = process.contender.name
                    try:
                        samples.setdefault((name, faces), []).append(process.ask("turn", faces=faces))
                    except ContenderError as error:
                        missing.append(str(error))
                        alive.remove(process)
                        del results[name]
        for process in alive:
            name = process.contender.name
            try:
                memory = process.ask("memory")
            except ContenderError as error:
                missing.append(str(error))
                del results[name]
                continue
            scenes = {str(n): summarize(samples[name, n]) for n in face_counts}
            results[name] |= {"faces": scenes, **memory}
    return results


def summarize(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians and 95th percentile over all calls of all turns."""
    together = {k: [v for t in turns for v in t[k]] for k in ("whole_ms", "network_ms", "cpu_ms")}
    medians = {k: float(np.median(v)) if v else None for k, v in together.items()}
    return {**medians, "p95_ms": float(np.percentile(together["whole_ms"], 95)), "found": turns[-1]["found"]}
