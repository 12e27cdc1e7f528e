"""Words of the command line as jobs: folders, patterns, lists, mixtures, and what is refused."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import run

from seg.infer.errors import SegError
from seg.infer.inputs import Source, expand, stem
from seg.infer.jobs import Job, plan_jobs
from seg.infer.outputs import plan_previews, plan_sides


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make empty files in the current folder, which is the test's own."""
    monkeypatch.chdir(tmp_path)

    def make(*names: str) -> None:
        for name in names:
            path = Path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")

    return make


Place = Callable[..., None]


def scans(*words: str, lists: tuple[str, ...] = ()) -> list[str]:
    return [source.scan for source in expand(words, lists)]


def refused(code: str, call: Callable[..., object], *arguments: object) -> SegError:
    with pytest.raises(SegError) as caught:
        call(*arguments)
    assert caught.value.code == code, str(caught.value)
    return caught.value


def test_a_folder_is_its_scans(place: Place) -> None:
    place("d/b.nii", "d/a.NII.GZ", "d/.hidden.nii", "d/notes.txt", "d/deep/c.nii", "d/p.hdr", "d/p.img")
    assert scans("d") == ["d/a.NII.GZ", "d/b.nii", "d/p.hdr"]


def test_patterns(place: Place) -> None:
    place("d/b.nii", "d/a.nii.gz", "d/notes.txt", "d/deep/c.nii", "d/p.hdr", "d/p.img")
    assert scans("d/*") == ["d/a.nii.gz", "d/b.nii", "d/p.hdr"]
    assert scans("d/[a]*") == ["d/a.nii.gz"]
    assert scans("**/c.*") == ["d/deep/c.nii"]


def test_what_is_there_is_no_pattern_and_no_list(place: Place) -> None:
    place("a[1].nii", "a1.nii", "@b.nii", "*.nii")
    assert scans("a[1].nii", "@b.nii", "*.nii") == ["a[1].nii", "@b.nii", "*.nii"]


def test_lists(place: Place) -> None:
    place("d/x.nii", "d/y.nii")
    lines = "\ufeffone [1].nii\r\n\n  \nd\ntwo.nii\tTwo\nthree.nii\tthree.nii\nü \udcff.nii"
    Path("list.txt").write_bytes(lines.encode("utf-8", "surrogateescape"))
    expected = [
        Source("one [1].nii"),
        Source("d/x.nii"),
        Source("d/y.nii"),
        Source("two.nii", "Two.nii.gz"),
        Source("three.nii", "three.nii"),
        Source("ü \udcff.nii"),
    ]
    assert expand(["@list.txt"]) == expected
    assert expand([], ["list.txt"]) == expected


def test_mixture_keeps_its_order_and_counts_a_scan_once(place: Place) -> None:
    place("d/a.nii", "d/b.nii", "e/c.nii")
    Path("l.txt").write_text("e/c.nii\n./d/a.nii\nmissing.nii\n")
    assert scans("d/*b*", "d", "@l.txt") == ["d/b.nii", "d/a.nii", "e/c.nii", "missing.nii"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no scan"),
        (b"\n \n", "no scan"),
        (b"a.nii\tb\tc\n", "line 1 has 2 tabs"),
        (b"\n\tb\n", "line 2"),
        (b"a.nii\t\n", "''"),
        (b"a.nii\t../b.nii\n", "'../b.nii'"),
        (b"a.nii\t/etc/b.nii\n", "mask name"),
        (b"a.nii\t..\n", "'..'"),
        (b"d\tname\n", "'name'"),
        (b"\x1f\x8b\0\0", "no list of paths"),
        (None, "cannot be read"),
    ],
)
def test_bad_lists(place: Place, content: bytes | None, says: str) -> None:
    place("d/x.nii")
    if content is not None:
        Path("l.txt").write_bytes(content)
    error = refused("E-IN-LIST", expand, ["@l.txt"])
    assert error.exit == 10
    assert error.path == "l.txt"
    assert says in error.found


def test_nothing_found(place: Place) -> None:
    place("d/notes.txt")
    for word, says in (("d", "folder"), ("d/*", "none of the 1 matches"), ("e/*", "matches nothing")):
        assert says in refused("E-IN-EMPTY", expand, [word]).found


def test_masks_of_a_folder(place: Place) -> None:
    place("d/a.nii", "d/b.nii.gz")
    Path("l.txt").write_text("other/a.nii\tnamed\n")
    batch = plan_jobs(["d", "@l.txt"], "out", False)
    assert batch.folder == "out"
    assert [(j.scan, j.mask, j.name) for j in batch.jobs] == [
        ("d/a.nii", "out/a.nii.gz", "a"),
        ("d/b.nii.gz", "out/b.nii.gz", "b"),
        ("other/a.nii", "out/named.nii.gz", "named"),
    ]
    assert plan_previews("pictures", batch.jobs)["out/named.nii.gz"] == "pictures/named.png"
    same = [Job("a.nii", "out/m.nii"), Job("b.nii", "out/m.nii.gz")]
    with pytest.raises(SegError, match="the picture of two scans"):
        plan_previews("pictures", same)


def test_one_mask_has_its_own_path_only_for_one_named_file(place: Place) -> None:
    place("d/a.nii")
    Path("l.txt").write_text("d/a.nii\n")
    assert plan_jobs(["d/a.nii"], "m.nii.gz", False).folder is None
    for word in ("d", "d/*", "@l.txt"):
        assert refused("E-OUT-SUFFIX", plan_jobs, [word], "m.nii.gz", False).exit == 2
        assert [job.mask for job in plan_jobs([word], "new/", False).jobs] == ["new/a.nii.gz"]
    assert plan_jobs(["d/a.nii"], "other/", False).folder == "other/"


def test_masks_that_would_collide(place: Place) -> None:
    place("d/a.nii", "e/a.nii.gz", "d/b.nii")
    os.makedirs("out")
    assert refused("E-OUT-SAME", plan_jobs, ["d", "e"], "out", False).path == "out/a.nii.gz"
    assert refused("E-OUT-SAME", plan_jobs, ["d"], "./d/", False).found.startswith("is the folder of the scans")
    os.link("d/b.nii", "out/a.nii.gz")  # the mask of one scan would replace another scan
    refused("E-OUT-SAME", plan_jobs, ["d"], "out", True)
    os.unlink("out/a.nii.gz")
    place("out/b.nii.gz")
    refused("E-OUT-EXISTS", plan_jobs, ["d"], "out", False)
    assert len(plan_jobs(["d"], "out", True).jobs) == 2


def test_ten_thousand_scans_are_planned_in_seconds(place: Place) -> None:
    Path("l.txt").write_text("".join(f"scan{n}.nii\n" for n in range(10_000)))
    assert len(plan_jobs(["@l.txt"], "out", False).jobs) == 10_000  # quadratic, this would take the test's time limit


def test_side_outputs(place: Place) -> None:
    place("scan.nii")
    os.makedirs("folder.json")
    plan_sides("a.json", None, "b.json")
    assert refused("E-OUT-SUFFIX", plan_sides, "scan.nii").exit == 2
    refused("E-OUT-DIR", plan_sides, "folder.json")
    refused("E-OUT-DIR", plan_sides, "absent/a.json")
    refused("E-OUT-SAME", plan_sides, "a.json", "./a.json")


def test_stem() -> None:
    assert [stem(p) for p in ("a/b.nii.gz", "b.NII", "b.hdr", "b.c.nii", "b")] == ["b", "b", "b", "b.c", "b"]
    assert [stem(p) for p in ("a/b.img", "b.img.gz", "b.IMG")] == ["b"] * 3


def test_both_files_of_a_pair_are_one_scan(place: Place) -> None:
    place("p.hdr", "p.img", "q.hdr.gz", "q.img.gz", "r.hdr", "r.img.gz")
    assert scans("p.img", "p.hdr", "q.img.gz", "q.hdr.gz", "r.img.gz", "r.hdr") == ["p.img", "q.img.gz", "r.img.gz"]
    assert [job.mask for job in plan_jobs(["p.img"], "out/", False).jobs] == ["out/p.nii.gz"]
    assert plan_jobs(["p.img", "p.hdr"], "m.nii.gz", False).folder is None


def test_a_scan_given_twice_is_one_named_file(place: Place) -> None:
    place("a.nii", "d/b.nii")
    batch = plan_jobs(["a.nii", "./a.nii"], "m.nii.gz", False)
    assert (batch.folder, [job.mask for job in batch.jobs]) == (None, ["m.nii.gz"])
    refused("E-OUT-SUFFIX", plan_jobs, ["d/b.nii", "d"], "m.nii.gz", False)


def test_several_pictures_need_a_folder(place: Place) -> None:
    place("d/a.nii", "d/b.nii")
    jobs = plan_jobs(["d"], "out", False).jobs
    assert refused("E-OUT-SUFFIX", plan_previews, "all.png", jobs).exit == 2
    assert not os.path.exists("all.png")
    os.makedirs("odd.png")
    assert plan_previews("odd.png", jobs)["out/a.nii.gz"] == "odd.png/a.png"


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["--series", "2"], "--series"),
        (["--time-point", "1"], "--time-point"),
        (["--resample-tilt"], "--resample-tilt"),
    ],
)
def test_options_about_dicom_need_dicom(
    place: Place, capsys: pytest.CaptureFixture[str], words: list[str], flag: str
) -> None:
    """A scan that is not there may have been one: it has its own error."""
    place("a.nii")
    assert run("a.nii", "-o", "m.nii.gz", *words) == 2
    assert f"E-FORMAT: a.nii: is no DICOM series, which {flag} is about" in capsys.readouterr().err
    assert run("absent", "-o", "m.nii.gz", *words) == 10


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--protocol crossmatch --window 8,8,8", "--protocol and --window exclude"),
        ("--protocol crossmatch --step-size 0.5", "--protocol and --step-size exclude"),
        ("--window 8,8,8 --overlap 0.5 --step-size 0.5", " --overlap and --step-size exclude"),
    ],
)
def test_options_that_exclude_each_other_are_named(capsys: pytest.CaptureFixture[str], words: str, says: str) -> None:
    assert run("a.nii", "-o", "m.nii.gz", *words.split()) == 2
    assert says in " ".join(capsys.readouterr().err.replace("\u2502", " ").split())
