"""The PyTorch backend: exported programs, and that nobody else's program is ever loaded."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from known import plain_spec

from seg.infer.artifact import GOLDEN_KEY, SPEC_KEY, Golden
from seg.infer.backends import open_backend
from seg.infer.backends.torch_ import load_pt2, seal_pt2
from seg.infer.errors import Exit, SegError

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module", params=[2, 3])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, torch.nn.Module]:
    """A .pt2 file of two convolutions (2D or 3D), unsealed, and the module."""
    torch.manual_seed(0)
    conv = torch.nn.Conv3d if request.param == 3 else torch.nn.Conv2d
    module = torch.nn.Sequential(conv(1, 4, 3, padding=1), torch.nn.ReLU(), conv(4, 2, 1)).eval()
    sample = torch.zeros((2, 1, *(4,) * request.param))
    axes = dict.fromkeys((0, *range(2, sample.ndim)), torch.export.Dim.DYNAMIC)
    path = str(tmp_path_factory.mktemp("pt2") / "model.pt2")
    golden = Golden(np.ones((1, 1, 2, 2, 2), np.float16), np.ones((1, 2, 2, 2, 2), np.float32))
    extra = {SPEC_KEY: plain_spec(name="exported").to_json(), GOLDEN_KEY: golden.to_text()}
    exported = torch.export.export(module, (sample,), dynamic_shapes={"input": axes})
    torch.export.save(exported, path, extra_files=extra)
    return path, module


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEG_CACHE", str(tmp_path / "cache"))


def test_equals_the_module(program: tuple[str, torch.nn.Module]) -> None:
    path, module = program
    seal_pt2(path)
    backend = open_backend("torch", path, "cpu", threads=1)
    with torch.inference_mode():
        for n, shape in ((1, (4, 5, 3)), (3, (5, 4, 2))):
            x = np.random.default_rng(n).standard_normal((n, 1, *shape), dtype=np.float32)
            if module[0].weight.ndim == 5:
                expected = module(torch.from_numpy(x)).numpy()
            else:
                expected = np.stack([module(torch.from_numpy(x[..., z])).numpy() for z in range(shape[2])], axis=-1)
            np.testing.assert_allclose(backend.run(x), expected, atol=1e-6)
    backend.close()
    with pytest.raises(RuntimeError, match="closed"):
        backend.run(x)


def test_the_artifact(program: tuple[str, torch.nn.Module]) -> None:
    seal_pt2(program[0])
    artifact = load_pt2(program[0])
    assert artifact.spec == plain_spec(name="exported")
    assert artifact.golden is not None
    assert artifact.golden.logits.shape == (1, 2, 2, 2, 2)


@pytest.mark.parametrize("damage", ["no seal", "other key", "flipped byte"])
def test_a_foreign_program_is_refused(program: tuple[str, torch.nn.Module], damage: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(Path(program[0]).read_bytes())
    seal_pt2(str(path))
    if damage == "no seal":
        (tmp_path / "model.pt2.seal").unlink()
    elif damage == "other key":
        (tmp_path / "cache" / "seal.key").write_bytes(bytes(32))
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    for use in (load_pt2, lambda p: open_backend("torch", p)):
        with pytest.raises(SegError, match="E-UNSEALED") as caught:
            use(str(path))
        assert caught.value.exit == Exit.MODEL


class Canary:
    """Unpickling it writes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


def test_a_pickle_is_not_touched(program: tuple[str, torch.nn.Module], tmp_path: Path) -> None:
    """PyTorch itself unpickles what a .pt2 file carries; an unsealed one does not get that far."""
    canary, path = tmp_path / "canary", str(tmp_path / "evil.pt2")
    with zipfile.ZipFile(program[0]) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        for info in source.infolist():
            evil = info.filename.endswith("sample_inputs/model.pt")
            target.writestr(info, pickle.dumps(Canary(str(canary))) if evil else source.read(info))
    with pytest.raises(SegError, match="E-UNSEALED"):
        open_backend("torch", path)
    assert not canary.exists()


def test_no_spec_inside(tmp_path: Path) -> None:
    path = str(tmp_path / "model.pt2")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/other", "x")
    seal_pt2(path)
    with pytest.raises(SegError, match="E-MODEL-FORMAT"):
        load_pt2(path)
    with pytest.raises(SegError, match="E-MODEL-LOAD"):
        open_backend("torch", path)
    with pytest.raises(SegError, match="E-MODEL-MISSING"):
        load_pt2(str(tmp_path / "absent.pt2"))
