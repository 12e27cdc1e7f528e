"""One row of iteration.py in a process of its own: for every line "run" on standard input an iteration, timed, for the
line "facts" its FLOP, parameters and peak memory. Its argument is the setting as JSON, see iteration.take_turns.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import environment as env
from trainings import config_of, parse_method

OFFICIAL_ROW = "official"
LOADING, MAPPED, COMPILED, GRAPHS = " + loading", " + loading, mapped", " + compiled", " + CUDA graphs"


def serve(setting: dict[str, Any]) -> None:
    """Worker: an iteration for every line "run", the row's facts for "facts"."""
    from torch import set_flush_denormal

    set_flush_denormal(True)
    row = Row(setting)
    for line in sys.stdin:
        print(json.dumps(row.facts() if line.strip() == "facts" else {"seconds": row.run()}), flush=True)


class Row:
    """One row's network, batch and iteration."""

    def __init__(self, setting: dict[str, Any]) -> None:
        import torch

        from seg.train.device import device_of, keep_freed_memory, precision_of

        self.device = device_of(setting["device"])
        self.precision = precision_of(setting["precision"], self.device)
        self._clock = time.process_time if setting["clock"] == "cpu" else time.perf_counter
        self._before: Callable[[], Any]
        self._run: Callable[[Any], Any]
        self._count: Callable[[], Any]
        if setting["row"] == OFFICIAL_ROW:
            self.precision = torch.float32
            self._official(setting)
        else:
            if self.device.type == "cpu":
                keep_freed_memory()
            self._ours(setting)
        self._resident = env.resident_bytes()
        self.flop = count(self._count)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)  # counting has run a plain step
        if setting["row"].endswith((COMPILED, GRAPHS)):
            self._step.compile(graphs=setting["row"].endswith(GRAPHS))

    def _official(self, setting: dict[str, Any]) -> None:
        from official import official_step

        from seg.train.strong import cutmix_boxes, strong_view

        loader = make_loader(setting, self.device, 2, 2)
        batch = loader.load(0).batch
        strong = strong_view(batch.u, batch.generator), strong_view(batch.u, batch.generator)
        boxes = [cutmix_boxes(2, batch.u.shape[2:], batch.generator) for _ in range(2)]
        arguments = (setting["width"], batch.x, batch.y, batch.u, strong, boxes)
        network, self._before, self._run = official_step("crossmatch", Path(setting["official"]), *arguments)
        self._count = lambda: self._run(self._before())
        self._trained = [p for p in network.parameters() if p.requires_grad]

    def _ours(self, setting: dict[str, Any]) -> None:
        from seg.train.step import Step

        method = make_method(setting["row"].split(" + ")[0], setting["width"])
        self._trained = [p for phase in method.phases for p in method.trainable(phase)]
        self._step = step = Step(method.train(), 1000, self.device, self.precision)
        config = method.config
        loader = make_loader(setting, self.device, config.labeled_batch, config.unlabeled_batch)
        fixed, done = loader.load(0).batch, 500  # from the middle of a run: all losses weigh in
        self._count = lambda: step(with_generator(fixed), done)
        if setting["row"].endswith((LOADING, MAPPED)):
            numbers = iter(range(1, 1 << 30))
            self._before = lambda: step(loader.load(next(numbers)).batch, done)  # the next is being drawn, as in a run
            self._run = lambda _: step(loader.load(next(numbers)).batch, done)
        else:
            self._before, self._run = (lambda: with_generator(fixed)), (lambda batch: step(batch, done))

    def run(self) -> float:
        """Seconds of one iteration."""
        prepared = self._before()
        self._synchronise()
        began = self._clock()
        self._run(prepared)
        self._synchronise()
        return self._clock() - began

    def facts(self) -> dict[str, Any]:
        """What is known when all is run."""
        import torch

        cuda = self.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self.device) if cuda else env.peak_bytes() - self._resident
        parameters = sum(p.numel() for p in self._trained)
        name = torch.cuda.get_device_name(self.device) if cuda else "cpu"
        precision = str(self.precision).removeprefix("torch.")
        return dict(flop=self.flop, parameters=parameters, peak_bytes=peak, device=name, precision=precision)

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)


def make_method(row: str, width: int) -> Any:
    """METHOD[:PRESET][,FIELD=VALUE...] with a fresh V-Net."""
    import torch

    from seg.train.methods import METHODS
    from seg.train.networks import build_network

    config = config_of(row)
    torch.manual_seed(0)
    return METHODS[parse_method(row).method](build_network("vnet", 1, 2, width, config.dropout), config, 1000)


def make_loader(setting: dict[str, Any], device: Any, labeled: int, unlabeled: int) -> Any:
    """Batches as a training of the left atrium draws them, half of the scans labelled."""
    from seg.train.augment import WeakAugmentation
    from seg.train.loader import Data, Loader
    from seg.train.loop import LoopConfig
    from seg.train.processes import Processes

    samples = scans(setting) if setting["data"] else phantoms(setting["volumes"])
    window = tuple(int(n) for n in setting["window"].split(","))
    data = Data(samples[: len(samples) // 2], samples[len(samples) // 2 :])
    foreground, overhang = LoopConfig.foreground, LoopConfig.overhang
    return Loader(data, labeled, unlabeled, window, foreground, overhang, WeakAugmentation(), 0, device, Processes())


def phantoms(count: int) -> list[Any]:
    """Prepared phantoms in memory, 16 bit."""
    import numpy as np

    from seg.infer.phantom import atrium_phantom
    from seg.train.cache import packed
    from seg.train.sampling import Sample

    samples = []
    for seed in range(count):
        volume, label = atrium_phantom(seed)
        image = volume.intensities()
        samples.append(packed(Sample(str(seed), ((image - image.mean()) / image.std()).astype(np.float32), label)))
    return samples


def scans(setting: dict[str, Any]) -> list[Any]:
    """All training scans of a folder, prepared as seg-train does: in memory, or mapped where the row says so."""
    from seg.train.cache import Store, packed
    from seg.train.config import Engine
    from seg.train.device import device_of, precision_of
    from seg.train.job import prepare_job
    from seg.train.prepare import prepare_all
    from seg.train.processes import Processes
    from seg.train.settings import Settings

    cpu = device_of("cpu")
    job = prepare_job(
        Settings((setting["data"],), ""), lambda _: None, Engine(cpu, precision_of("fp32", cpu), False, Processes())
    )
    store = Store(Path(setting["folder"]) / str(os.getpid()))
    cases = job.split.labeled
    if not setting["row"].endswith(MAPPED):
        return prepare_all(cases, job.spec, packed)
    prepare_all(cases, job.spec, store.put)
    return [store.get(case.id) for case in cases]


def with_generator(batch: Any) -> Any:
    """The same images with the step's random numbers from their start."""
    import torch

    return replace(batch, generator=torch.Generator(batch.x.device).manual_seed(0))


def count(iteration: Callable[[], Any]) -> int:
    """FLOP of one iteration, two per multiply-add."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        iteration()
    return int(counter.get_total_flops())


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
