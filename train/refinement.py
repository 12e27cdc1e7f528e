"""Rounds of pseudo-labels for whole unlabelled scans, between the steps of a training that has `Rules`.

refinement/bank-R/CASE.npy  (K + 1, X, Y, Z) uint8 on the network's grid: probabilities and trust, in 255ths
refinement/round-R.json     what was found of every case, and which are used; written last: with it the round is whole
refinement/rounds.png       the same over the rounds

A round follows from the weights at its step and the bank before, so a run that was killed makes it again, equal. The
two newest banks are kept: each round ends with a checkpoint, so neither checkpoint needs an older one.

True Dice of pseudo-labels appears in the reports where labels exist that the training does not use. It is computed
after everything about a case is decided, and nothing reads it but people.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from seg.infer.errors import Exit, SegError
from seg.infer.plan import TilingOptions, choose_tiling
from seg.infer.spec import ModelSpec
from seg.infer.stitch import stream

from . import pseudo
from .chart import Panel, Series, chart
from .evaluate import ModuleBackend
from .methods import Method
from .processes import Processes
from .report import write_picture
from .run import REFINEMENT, room_for, write_json
from .sampling import Sample
from .strong import gaussian_blur

PICTURE = "rounds.png"
ONE_PASS = 1 << 23  # voxels; larger scans are predicted in windows

Truth = Callable[[str], "NDArray[np.uint8] | None"]


class Bank(Mapping[str, NDArray[np.uint8]]):
    """Pseudo-labels by case, mapped from their files when asked for: there may be more cases than open files."""

    def __init__(self, cases: Sequence[str], load: Callable[[str], NDArray[np.uint8]]) -> None:
        self._cases, self._load = dict.fromkeys(cases), load

    def __getitem__(self, case: str) -> NDArray[np.uint8]:
        if case not in self._cases:
            raise KeyError(case)
        return self._load(case)

    def __iter__(self) -> Iterator[str]:
        return iter(self._cases)

    def __len__(self) -> int:
        return len(self._cases)


class Refinement:
    """The pseudo-labels of one run.

    Parameters
    ----------
    labeled : their volumes by class say what is plausible.
    truth : case -> labels on the network's grid, or None; for the report alone.
    """

    def __init__(
        self,
        method: Method,
        rules: pseudo.Rules,
        labeled: Sequence[Sample],
        unlabeled: Sequence[Sample],
        spec: ModelSpec,
        folder: Path,
        device: torch.device,
        precision: torch.dtype,
        processes: Processes,
        truth: Truth = lambda _: None,
    ) -> None:
        self.method, self.rules, self.unlabeled, self.spec = method, rules, unlabeled, spec
        self.folder, self.device, self.precision = folder / REFINEMENT, device, precision
        self.processes, self.truth = processes, truth
        self.classes = len(spec.labels)
        masks = [sample.label for sample in labeled if sample.label is not None]
        self.medians = [float(np.median([(mask == k).sum() for mask in masks])) for k in range(1, self.classes)]
        self.reports: list[dict[str, Any]] = []

    @property
    def bank(self) -> Bank:
        """The pseudo-labels in use: none before the first round."""
        if not self.reports:
            return Bank((), partial(self._stored, 0))
        newest = self.reports[-1]
        return Bank(newest["used"], partial(self._stored, newest["round"]))

    def restore(self, step: int) -> None:
        """Go back to what there was before `step`; rounds from then on are made again.

        Raises
        ------
        SegError : E-RUN-BANK when the pseudo-labels of an earlier round are missing.
        """
        due = [number for number, at in enumerate(self.rules.steps, start=1) if at < step]
        self.reports = []
        for number in due:
            path = self._report(number)
            if path.exists():
                self.reports.append(json.loads(path.read_text()))
        if self.reports and self.reports[-1]["stopped"]:
            due = due[: self.reports[-1]["round"]]
        used = self.reports[-1]["used"] if self.reports else []
        if len(self.reports) != len(due) or not all(self._case(len(due), case).exists() for case in used):
            found = f"the pseudo-labels of round {len(due)} are missing"
            fix = "put the folder back, or train anew in another folder"
            raise SegError("E-RUN-BANK", Exit.MODEL, str(self.folder), found, fix)

    def due(self, step: int) -> bool:
        """Whether a round comes before `step`."""
        stopped = bool(self.reports) and bool(self.reports[-1]["stopped"])
        return not stopped and step in self.rules.steps[len(self.reports) :]

    def refresh(self, step: int) -> None:
        """Make a round; the first process works, the others wait for its files.

        Raises
        ------
        SegError : E-OUT-FULL when its files cannot be written; the round is made again on resumption.
        """

        def make() -> dict[str, Any]:
            with room_for(self.folder):
                return self._round(step, len(self.reports) + 1)

        self.reports.append(self.processes.share(make))

    def prune(self) -> None:
        """Remove banks that neither checkpoint needs any more."""
        if self.processes.first:
            for number in range(1, len(self.reports) - 1):
                shutil.rmtree(self._folder(number), ignore_errors=True)

    def _round(self, step: int, number: int) -> dict[str, Any]:
        shutil.rmtree(self._folder(number), ignore_errors=True)  # of a run that was killed, or went further
        self._report(number).unlink(missing_ok=True)
        self._folder(number).mkdir(parents=True)
        before = self.reports[-1]["cases"] if self.reports else {}
        cases: dict[str, Any] = {}
        for sample in self.unlabeled:
            cases[sample.id] = self._case_round(sample, number, before.get(sample.id))
        scores = {case: facts["quality"] for case, facts in cases.items() if facts["kept"]}
        changes = [facts["churn"] for facts in cases.values() if facts["churn"] is not None]
        median = float(np.median(changes)) if changes else None
        report = {
            "round": number,
            "step": step,
            "used": pseudo.chosen(scores, self.rules.share(number)),
            "accepted": sum(facts["accepted"] for facts in cases.values()),
            "median_churn": median,
            "stopped": median is not None and median < self.rules.enough,
            "cases": cases,
        }
        write_json(self._report(number), report)
        self._draw([*self.reports, report])
        return report

    def _case_round(self, sample: Sample, number: int, before: Mapping[str, Any] | None) -> dict[str, Any]:
        """Predict, judge and store one scan; what was found."""
        image = np.multiply(sample.image, np.float32(sample.slope), dtype=np.float32) + np.float32(sample.offset)
        predicted = [self._predict(self.method.deployed(), image, scale) for scale in self.rules.scales]
        earlier = [self._predict(elder, image, 1.0).argmax(axis=0) for elder in self.method.elders()]
        views = [p.argmax(axis=0) for p in predicted]
        fresh: NDArray[np.float32] = np.stack(predicted).mean(axis=0)
        old = self._stored(number - 1, sample.id) if before is not None and before["kept"] else None
        if old is not None:
            fresh = self.rules.memory * (old[:-1] / np.float32(255)) + (1 - self.rules.memory) * fresh
        labels = fresh.argmax(axis=0)
        score = pseudo.quality(views[0], earlier, views[1:], self.classes)
        accepted = pseudo.plausible(labels, self.medians, self.rules.volume_bound)
        changed = None
        if old is not None and before is not None:
            accepted = accepted and score >= before["quality"] - self.rules.tolerance
            changed = pseudo.churn(old[:-1].argmax(axis=0), labels)
        if accepted:
            stored = pseudo.packed(fresh, pseudo.trusted(labels, self.classes, self.rules.cleaning))
        elif old is not None and before is not None:
            stored, score = np.asarray(old), before["quality"]
        else:
            stored = None
        if stored is not None:
            np.save(self._case(number, sample.id), stored)
            labels = stored[:-1].argmax(axis=0)
        foreground = labels > 0
        trust = stored[-1][foreground] if stored is not None else np.zeros(0, np.uint8)
        facts = {
            "quality": score,
            "accepted": bool(accepted),
            "kept": stored is not None,
            "churn": changed,
            "entropy": pseudo.entropy(fresh),
            "trusted_foreground": float((trust > 0).mean()) if trust.size else 0.0,
            "components": pseudo.components(labels),
            "voxels": [int((labels == k).sum()) for k in range(1, self.classes)],
        }
        truth = self.truth(sample.id)
        known = truth is not None and truth.shape == labels.shape
        return facts | ({"true_dice": pseudo.agreement(labels, truth, self.classes)} if known else {})  # type: ignore[arg-type]

    def _predict(self, network: nn.Module, image: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
        """(C, X, Y, Z) on the network's grid -> (K, X, Y, Z) probabilities, seen at a scale."""
        shape = image.shape[1:]
        if scale != 1:
            dims = self.spec.dims
            size = [max(1, round(n * scale)) if axis < dims else n for axis, n in enumerate(shape)]
            x = torch.from_numpy(image)[None]
            if scale < 1:
                sigma = torch.full((1, 3), (1 / scale - 1) / 2)
                sigma[:, dims:] = 1e-3
                x = gaussian_blur(x, sigma)
            image = F.interpolate(x, size, mode="trilinear")[0].numpy()
        grid = (image.shape[1], image.shape[2], image.shape[3])
        options = TilingOptions(window=self.spec.window) if np.prod(grid) > ONE_PASS else TilingOptions()
        tiling = choose_tiling(grid, self.spec, options)
        margins = [((t - n) // 2, t - n - (t - n) // 2) for t, n in zip(tiling.shape, grid, strict=True)]
        layers = np.moveaxis(np.pad(image, [(0, 0), *margins]), 1 + tiling.axis, 0)
        backend = ModuleBackend(network, self.device, self.precision)
        scores = [np.array(layer) for layer in stream(iter(layers), tiling, backend.run, two_class=False)]
        logits = np.moveaxis(np.stack(scores), 0, 1 + tiling.axis)
        inside = tuple(slice(low, low + n) for (low, _), n in zip(margins, grid, strict=True))
        p = torch.from_numpy(np.ascontiguousarray(logits[(slice(None), *inside)])).softmax(dim=0)
        if scale != 1:
            p = F.interpolate(p[None], shape, mode="trilinear")[0]
        found: NDArray[np.float32] = p.numpy()
        return found

    def _draw(self, reports: Sequence[Mapping[str, Any]]) -> None:
        def line(name: str, key: str) -> Series:
            points = [(r["round"], [f[key] for f in r["cases"].values() if f.get(key) is not None]) for r in reports]
            xs, values = zip(*points, strict=True)
            means = [float(np.mean(v)) if v else float("nan") for v in values]
            return Series(name, xs, means, [float(np.std(v)) if v else float("nan") for v in values])

        panels = [
            Panel("Quality without ground truth, trusted foreground", "round",
                  [line("quality", "quality"), line("trusted foreground", "trusted_foreground")]),
            Panel("Changed foreground, entropy", "round", [line("churn", "churn"), line("entropy", "entropy")]),
        ]  # fmt: skip
        if any("true_dice" in f for f in reports[-1]["cases"].values()):
            panels.append(Panel("True Dice of the pseudo-labels", "round", [line("all cases", "true_dice")]))
        write_picture(self.folder / PICTURE, chart(panels))

    def _stored(self, number: int, case: str) -> NDArray[np.uint8]:
        array: NDArray[np.uint8] = np.load(self._case(number, case), mmap_mode="r")
        return array

    def _folder(self, number: int) -> Path:
        return self.folder / f"bank-{number}"

    def _case(self, number: int, case: str) -> Path:
        return self._folder(number) / f"{case}.npy"

    def _report(self, number: int) -> Path:
        return self.folder / f"round-{number}.json"
