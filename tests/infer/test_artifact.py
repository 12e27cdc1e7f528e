"""The artifact: read without an ONNX library, checked, and refused with the reason."""

import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from commands import run

from seg.infer import artifact
from seg.infer.artifact import (
    DIGEST_KEY,
    HEAD_KEY,
    SPEC_KEY,
    Golden,
    digest_of,
    load,
    metadata_of,
    resolve,
    shipped_forms,
    shipped_models,
)
from seg.infer.backends import open_backend, triton_
from seg.infer.classes import Head
from seg.infer.errors import Exit, SegError
from seg.infer.spec import ModelSpec


def test_spec_and_golden_travel_in_the_file(threshold_model: Callable[..., str]) -> None:
    mine = load(threshold_model(thresholds=(0.5, 1.5), name="mine"))
    assert mine.spec.name == "mine"
    assert mine.spec.labels == ("background", "class 1", "class 2")
    assert mine.golden is not None
    backend = open_backend("openvino", mine.path, "cpu")
    found = backend.run(mine.golden.x.astype(np.float32))
    np.testing.assert_allclose(found, mine.golden.logits, atol=1e-6)


def test_golden_text_round_trip() -> None:
    rng = np.random.default_rng(0)
    golden = Golden(rng.standard_normal((1, 2, 3, 4, 5)).astype(np.float16), rng.random((1, 3, 3, 4, 5), np.float32))
    again = Golden.from_text(golden.to_text())
    np.testing.assert_array_equal(again.x, golden.x)
    np.testing.assert_array_equal(again.logits, golden.logits)


@pytest.mark.parametrize("text", ["", "1,1,1,1,1;", "1,1,1,1,99999999,1,1,1,1,1;aa", "0,1,1,1,1,1,1,1,1,1;aa"])
def test_a_broken_golden_pair_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Golden.from_text(text)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>log in</html>", "HTML page"),
        (b"PK\x03\x04" + bytes(60), "zip or PyTorch"),
        (b"\x1f\x8b" + bytes(60), "gzip"),
        (b"hello, this is text and no model at all", "not an ONNX file"),
        (bytes(500), "not an ONNX file"),
    ],
)
def test_wrong_files_are_named_for_what_they_are(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(SegError, match=words) as caught:
        load(str(path))
    assert caught.value.exit is Exit.MODEL


def test_every_cut_is_refused(threshold_model: Callable[..., str], tmp_path: Path) -> None:
    whole = Path(threshold_model()).read_bytes()
    for length in (1, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.onnx").write_bytes(whole[:length])
        with pytest.raises(SegError) as caught:
            load(str(tmp_path / "cut.onnx"))
        assert caught.value.exit is Exit.MODEL, length


def test_a_changed_weight_is_refused(threshold_model: Callable[..., str]) -> None:
    path = Path(threshold_model())
    content = bytearray(path.read_bytes())
    at = content.index(np.array([-0.5], np.float32).tobytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(SegError, match="E-MODEL-TAMPERED"):
        load(str(path))


def test_a_byte_of_the_golden_pair(threshold_model: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    """One line and exit 20: what the traceback holds of the file must not stand in the way of closing it."""
    path = Path(threshold_model())
    content = bytearray(path.read_bytes())
    content[content.index(b"seg.golden") + 40] ^= 0x80
    path.write_bytes(content)
    assert run("--selftest", str(path)) == 20
    told = capsys.readouterr().err
    assert told.startswith(f"seg-infer: error E-MODEL-FORMAT: {path}: ")
    assert told.count("\n") == 1


@pytest.mark.parametrize("digest", [True, False])
def test_damaged_metadata_are_refused(threshold_model: Callable[..., str], digest: bool) -> None:
    """Whatever 1 to 3 bytes of the metadata become, the model is refused, or is the same one where it has a digest."""
    path = Path(with_head(threshold_model(), digest=digest))
    spec = load(str(path)).spec
    whole = path.read_bytes()
    first, rng = whole.index(b"seg.") - 8, np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        content = bytearray(whole)
        for at in rng.integers(first, len(whole), rng.integers(1, 4)):
            content[at] = rng.integers(256) if rng.random() < 0.5 else rng.choice(list(b'0123456789-,;[]{}"\\e'))
        path.write_bytes(content)
        try:
            found = load(str(path)).spec
            assert ModelSpec.from_json(found.to_json()) == found
            assert found == spec or not digest
        except SegError as error:
            assert error.exit is Exit.MODEL  # noqa: PT017
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    ("old", "new"), [(b'"mean":0.0', b'"mean":9.0'), (b"2,1;0000000", b"2,1;0000001"), (b"seg.head", b"seg.haed")]
)
def test_a_byte_that_is_still_metadata(threshold_model: Callable[..., str], old: bytes, new: bytes) -> None:
    """Another mean or head gives another mask and no error: the digest knows."""
    path = Path(with_head(threshold_model()))
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    with pytest.raises(SegError, match="E-MODEL-TAMPERED") as caught:
        load(str(path))
    assert caught.value.exit is Exit.MODEL


def test_an_older_file_has_no_digest(threshold_model: Callable[..., str]) -> None:
    found = load(with_head(threshold_model(), digest=False))
    assert found.head is not None


def test_a_served_model_has_the_digest_too(
    threshold_model: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entries are parameters of config.pbtxt there, where people write."""
    mine = load(with_head(threshold_model()))
    texts = metadata_of(mine.spec, mine.golden, mine.head) | {"EXECUTION_ENV_PATH": "somebody's"}
    config = SimpleNamespace(parameters={key: SimpleNamespace(string_value=text) for key, text in texts.items()})
    monkeypatch.setattr(triton_, "_Server", lambda _: SimpleNamespace(config=lambda _: config, close=lambda: None))
    assert load("triton://localhost:8001/threshold").spec == mine.spec
    config.parameters[SPEC_KEY].string_value = texts[SPEC_KEY].replace('"mean":0.0', '"mean":9.0')
    with pytest.raises(SegError, match="E-MODEL-TAMPERED"):
        load("triton://localhost:8001/threshold")


@pytest.mark.parametrize("name", shipped_models())
def test_shipped_models_have_the_digest(name: str) -> None:
    for path in shipped_forms(name):
        entries = {p.key: p.value for p in onnx.load(path).metadata_props}
        assert entries[DIGEST_KEY] == digest_of(entries)


@pytest.mark.parametrize("name", shipped_models())
def test_shipped_models_say_what_their_training_mirrored(name: str) -> None:
    recipe = Path(__file__).parents[2] / "benchmarks" / "recipes" / f"{name}.toml"
    mirror = tomllib.loads(recipe.read_text())["augmentation"]["mirror"]
    assert [load(path).spec.mirror for path in shipped_forms(name)] == [tuple(mirror)] * 2


def with_head(path: str, text: str | None = None, *, digest: bool = True) -> str:
    """The same file with a linear head in its metadata, and no digest of them if so asked, as older files."""
    model, found = onnx.load(path), load(path)
    head = Head(np.array([[0.0], [1.0]], np.float32), np.array([0.0, -0.5], np.float32))
    entries = metadata_of(found.spec, found.golden, head)
    if text is not None:
        entries[HEAD_KEY] = text
        entries[DIGEST_KEY] = digest_of(entries)
    if not digest:
        del entries[DIGEST_KEY]
    onnx.helper.set_model_props(model, entries)
    Path(path).write_bytes(model.SerializeToString(deterministic=True))
    return path


@pytest.mark.parametrize("text", ["0,5;", "1,1;0000000000", "-1,-3;0000000000", "2,0;0000000000", "2;", "2,1;\u00e9"])
def test_a_head_that_cannot_be_is_refused(threshold_model: Callable[..., str], text: str) -> None:
    with pytest.raises(SegError, match="E-MODEL-FORMAT"):
        load(with_head(threshold_model(), text))


def test_names_and_paths(tmp_path: Path, threshold_model: Callable[..., str]) -> None:
    path = threshold_model()
    assert resolve(path) == path
    for name in shipped_models():
        assert os.path.isfile(resolve(name))
    for wrong in ("no-such-model", str(tmp_path), str(tmp_path / "absent.onnx")):
        with pytest.raises(SegError, match="E-MODEL-MISSING") as caught:
            resolve(wrong)
        assert caught.value.exit is Exit.MODEL


def test_forms_of_a_shipped_model(
    tmp_path: Path, threshold_model: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """auto takes int8 on the CPU alone; what is not there is an error, not another form."""
    content = Path(threshold_model()).read_bytes()
    for name in ("both.onnx", "both.int8.onnx", "one.onnx"):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "threshold.onnx").unlink()
    monkeypatch.setattr(artifact, "MODELS", tmp_path)
    assert shipped_models() == ["both", "one"]
    assert len(artifact.shipped_forms("both")) == 2
    expected = {
        ("auto", "cpu"): "both.int8.onnx",
        ("auto", "auto"): "both.int8.onnx",
        ("auto", "cuda:0"): "both.onnx",
        ("fp32", "cpu"): "both.onnx",
        ("bf16", "cpu"): "both.onnx",
        ("int8", "cuda:0"): "both.int8.onnx",
    }
    for (precision, device), name in expected.items():
        assert resolve("both", precision, device) == str(tmp_path / name)
    assert resolve("one", "auto", "cpu") == str(tmp_path / "one.onnx")
    with pytest.raises(SegError, match="no int8 form"):
        resolve("one", "int8", "cpu")


def test_a_device_that_is_not_there_is_an_error(threshold_model: Callable[..., str]) -> None:
    with pytest.raises(SegError, match="E-DEVICE") as caught:
        open_backend("openvino", threshold_model(), "cuda:0")
    assert caught.value.exit is Exit.RUNTIME
