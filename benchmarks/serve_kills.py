"""Does a killed node lose a study, or store one twice?

Synthetic MR studies lie in a real Orthanc, which sends them to `seg-serve` one after the other, as a PACS does: a send
that fails is sent again. Meanwhile `seg-serve` is killed with SIGKILL at random moments and started again. Each study
must end with exactly one DICOM SEG in Orthanc, that refers to all of its slices. The queue is looked at just before
each kill, so the result says what the kills interrupted.

Needs the Debian packages orthanc and orthanc-dicomweb, and the extra `serve`. --smoke: 6 studies and 2 kills, with no
result file.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
from collections import Counter
from pathlib import Path
from typing import Any

import environment as env

sys.path.insert(0, str(env.ROOT / "tests" / "infer"))
from nodes import LOOPBACK, Orthanc, free_port, get, mr_series, orthanc_missing, wait_for, write

SLICES, SIZE, STEP_MM = 16, 40, 3
COMMAND = "from seg.infer.serve.cli import main; main()"
CONFIG = """
state = "{state}"
port = {port}
http_port = {http}
keep_hours = 0
[[peer]]
aet = "ORTHANC"
host = "127.0.0.1"
port = {orthanc}
[[rule]]
model = "{model}"
[waits]
released = 1.0
cut = {cut}
retry = 0.5
"""


class KilledNode:
    """A `seg-serve` process that is killed and started again."""

    def __init__(self, folder: Path, orthanc: Orthanc, port: int, model: str, cut: float) -> None:
        self.http, self.kills, self.starts = free_port(), 0, 0
        self.interrupted: Counter[str] = Counter()
        self._folder = folder
        values = {"state": folder / "state", "port": port, "http": self.http, "orthanc": orthanc.dicom}
        (folder / "node.toml").write_text(CONFIG.format(**values, model=model, cut=cut))
        self.start()

    def start(self) -> None:
        """Start it."""
        self.starts += 1
        with open(self._folder / "node.log", "ab") as log:
            command = [sys.executable, "-c", COMMAND, "--config", str(self._folder / "node.toml")]
            self._process = subprocess.Popen(command, stderr=log)

    def kill(self) -> None:
        """Kill it with SIGKILL, and start it again."""
        try:
            counts = get(f"http://{LOOPBACK}:{self.http}/queue")["counts"]
            self.interrupted.update(state for state in ("arriving", "ready", "running", "sending") if counts.get(state))
        except OSError:
            self.interrupted["starting"] += 1
        assert self._process.poll() is None, "the node ended by itself"
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self.kills += 1
        self.start()

    def counts(self) -> dict[str, int]:
        """Jobs by state; {} while it starts."""
        try:
            return dict(get(f"http://{LOOPBACK}:{self.http}/queue")["counts"])
        except OSError:
            return {}

    def end(self) -> None:
        """Stop it for good."""
        self._process.kill()
        self._process.wait()


def send(orthanc: Orthanc, study: str) -> int:
    """Have Orthanc send a study until it succeeds; the number of tries."""
    for attempt in range(1, 1000):
        try:
            done = orthanc.rest("modalities/SEG/store", {"Resources": [study], "Synchronous": True, "Timeout": 10})
            if done["FailedInstancesCount"] == 0:
                return attempt
        except (urllib.error.HTTPError, TimeoutError):
            pass
        time.sleep(0.3)
    raise AssertionError("the node takes nothing")


def run(folder: Path, studies: int, kills: int, seed: int, model: str, cut: float) -> dict[str, Any]:
    """The whole experiment in an empty folder; what became of the studies. `cut`: seconds, see `Waits.cut`."""
    port, rng = free_port(), random.Random(seed)
    with Orthanc(folder / "orthanc", {"SEG": port}, StableAge=60) as orthanc:
        names = [f"study{number:03}" for number in range(studies)]
        uploaded = [orthanc.upload(write(images(name), folder / "scan")) for name in names]
        node = KilledNode(folder, orthanc, port, model, cut)
        began, tries = time.perf_counter(), []
        moments = sorted(rng.uniform(0, studies - 1) for _ in range(kills))
        sent = threading.Event()
        killer = threading.Thread(target=kill_at, args=(node, moments, tries, rng, sent), daemon=True)
        killer.start()
        try:
            for study in uploaded:
                tries.append(send(orthanc, study))
            sent.set()
            killer.join()
            wait_for(lambda: finished(node, studies), 60 + 20 * studies)
            time.sleep(cut + 3)  # what would come twice comes now
            seconds = time.perf_counter() - began
            found = orthanc.segmentations()
            whole = complete(orthanc)
            counts = node.counts()
        finally:
            node.end()
    return {
        "studies": studies,
        "slices": SLICES,
        "kills": node.kills,
        "starts": node.starts,
        "interrupted": dict(sorted(node.interrupted.items())),
        "sends": sum(tries),
        "sends_repeated": sum(tries) - studies,
        "lost": sum(name not in found for name in names),
        "doubled": sum(len(uids) > 1 for uids in found.values()),
        "results": sum(map(len, found.values())),
        "partial": sum(map(len, found.values())) - whole,
        "jobs": counts,
        "seconds": round(seconds, 1),
        "seed": seed,
        "model": Path(model).name,
    }


def images(name: str) -> list[Any]:
    """One study: an MR series that suits the shipped hippocampus model in modality, voxel size and extent."""
    made = mr_series(name, SLICES, size=SIZE, SliceThickness=STEP_MM)
    for number, one in enumerate(made):
        one.ImagePositionPatient = [0, 0, STEP_MM * number]
    return made


def kill_at(
    node: KilledNode, moments: list[float], tries: list[int], rng: random.Random, sent: threading.Event
) -> None:
    """Kill when so many studies (with a fraction, of a second or two) have been sent."""
    for moment in moments:
        while len(tries) < int(moment) and not sent.is_set():
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 2))
        node.kill()


def finished(node: KilledNode, studies: int) -> bool:
    """Whether all jobs have ended and nothing arrives."""
    counts = node.counts()
    under_way = sum(counts.get(state, 0) for state in ("arriving", "ready", "running", "sending"))
    return bool(counts) and not under_way and sum(counts.get(s, 0) for s in ("done", "failed")) >= studies


def complete(orthanc: Orthanc) -> int:
    """How many segmentations refer to all slices of their study."""
    whole = 0
    for series in orthanc.rest("tools/find", {"Level": "Series", "Query": {"Modality": "SEG"}, "Expand": True}):
        for instance in series["Instances"]:
            tags = orthanc.rest(f"instances/{instance}/simplified-tags")
            referred = tags["ReferencedSeriesSequence"][0]["ReferencedInstanceSequence"]
            whole += len({one["ReferencedSOPInstanceUID"] for one in referred}) == SLICES
    return whole


def main() -> None:
    """Run, print a table, write the result; exit status 1 if a study was lost or doubled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cut", type=float, default=20.0, help="seconds that a broken send has to be tried again")
    parser.add_argument("--model", default="hippocampus")
    parser.add_argument("--results", type=Path, default=env.RESULTS)
    parser.add_argument("--smoke", action="store_true", help="6 studies, 2 kills; writes no result")
    options = parser.parse_args()
    if reason := orthanc_missing():
        sys.exit(f"skipped: {reason}")
    if options.smoke:
        options.studies, options.kills, options.cut = 6, 2, 3.0
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder), options.studies, options.kills, options.seed, options.model, options.cut)
    columns = ("studies", "SIGKILLs", "sends repeated", "lost", "doubled", "partial", "seconds")
    names = ("studies", "kills", "sends_repeated", "lost", "doubled", "partial", "seconds")
    text = env.table(columns, [[str(found[name]) for name in names]])
    env.report("serve-kills", {"serve_kills": found}, text, None if options.smoke else options.results)
    sys.exit(int(bool(found["lost"] or found["doubled"] or found["partial"])))


if __name__ == "__main__":
    main()
