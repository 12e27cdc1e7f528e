"""Discovery looks at names only, so the folders here hold empty files."""

import os
from pathlib import Path

import pytest
from builders import pairs, touch, write_json

from seg.infer.errors import Exit, SegError
from seg.train.cases import Dataset, discover


def labelled_ids(dataset: Dataset) -> dict[str, bool]:
    return {case.id: case.label is not None for case in dataset.cases}


def test_images_and_labels(tmp_path: Path) -> None:
    folder = pairs(tmp_path, "a1", "a2", unlabeled=("a3",))
    dataset = discover([folder])
    assert labelled_ids(dataset) == {"a1": True, "a2": True, "a3": False}
    first = dataset.cases[0]
    assert first.images == (os.path.join(folder, "images", "a1.nii.gz"),)
    assert first.label == os.path.join(folder, "labels", "a1.nii.gz")
    assert (first.source, dataset.split_files, dataset.label_names, dataset.notes) == (folder, (), None, ())


def test_plain_nii_pairs_with_compressed(tmp_path: Path) -> None:
    assert labelled_ids(discover([touch(tmp_path, "images/x.nii", "labels/x.NII.GZ")])) == {"x": True}


def test_hidden_and_foreign_files_are_noted_not_cases(tmp_path: Path) -> None:
    pairs(tmp_path, "a1")
    touch(tmp_path, "images/._a1.nii.gz", "labels/._a1.nii.gz", "images/.DS_Store", "images/readme.txt")
    dataset = discover([str(tmp_path)])
    assert labelled_ids(dataset) == {"a1": True}
    assert any("2 hidden files" in note for note in dataset.notes)
    assert any("readme.txt" in note for note in dataset.notes)


def test_every_orphan_and_double_is_listed_at_once(tmp_path: Path) -> None:
    one, two = pairs(tmp_path / "one", "a1", "a2"), pairs(tmp_path / "two", "a2", "b1")
    touch(tmp_path, "one/labels/lost1.nii.gz", "two/labels/lost2.nii.gz", "two/images/b1.nii")
    with pytest.raises(SegError) as caught:
        discover([one, two])
    assert (caught.value.code, caught.value.exit) == ("E-DATA-CASES", Exit.INPUT_REFUSED)
    for name in ("lost1", "lost2", "id a2 met twice", "id b1 met twice"):
        assert name in caught.value.found
    assert "a1" not in caught.value.found.replace("a1.nii", "")


def test_two_labels_for_one_image(tmp_path: Path) -> None:
    pairs(tmp_path, "a1")
    touch(tmp_path, "labels/a1.nii")
    with pytest.raises(SegError, match="two labels"):
        discover([str(tmp_path)])


@pytest.mark.parametrize(
    "names",
    [
        ["labeled/images/x1.nii.gz", "labeled/labels/x1.nii.gz", "unlabeled/x2.nii.gz"],
        ["labeled/x1.nii.gz", "labeled/x1_label.nii.gz", "unlabeled/images/x2.nii.gz"],
        ["labelled/x1.nii.gz", "labelled/x1_seg.nii.gz", "unlabelled/x2.nii.gz"],
    ],
)
def test_labeled_and_unlabeled_folders(tmp_path: Path, names: list[str]) -> None:
    assert labelled_ids(discover([touch(tmp_path, *names)])) == {"x1": True, "x2": False}


def test_missing_label_under_labeled_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SegError, match=r"image without label.*x2"):
        discover([touch(tmp_path, "labeled/x1.nii.gz", "labeled/x1_label.nii.gz", "labeled/x2.nii.gz")])


NNUNET_2 = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "core": 1, "rim": 2}}
NNUNET_1 = {"modality": {"0": "T1", "1": "T2"}, "labels": {"0": "background", "1": "core", "2": "rim"}}


@pytest.mark.parametrize("header", [NNUNET_1, NNUNET_2])
def test_nnunet_folder(tmp_path: Path, header: dict[str, object]) -> None:
    for case in ("imagesTr/p1", "imagesTr/p2", "imagesTs/p3"):
        touch(tmp_path, f"{case}_0000.nii.gz", f"{case}_0001.nii.gz")
    folder = touch(tmp_path, "labelsTr/p1.nii.gz", "labelsTr/p2.nii.gz")
    write_json(tmp_path, "dataset.json", header)
    dataset = discover([folder])
    assert labelled_ids(dataset) == {"p1": True, "p2": True, "p3": False}
    assert [[os.path.basename(p) for p in c.images] for c in dataset.cases][2] == ["p3_0000.nii.gz", "p3_0001.nii.gz"]
    assert dataset.label_names == {0: "background", 1: "core", 2: "rim"}
    assert dataset.channel_names == ("T1", "T2")


def test_decathlon_folder_has_no_channel_suffix(tmp_path: Path) -> None:
    names = ["imagesTr/la_0003.nii.gz", "labelsTr/la_0003.nii.gz", "imagesTs/la_0004.nii.gz"]
    assert labelled_ids(discover([touch(tmp_path, *names)])) == {"la_0003": True, "la_0004": False}


def test_unlabelled_scans_have_the_channels_of_labelled_ones(tmp_path: Path) -> None:
    for case in ("labeled/images/a1", "unlabeled/b1"):
        touch(tmp_path, f"{case}_0000.nii.gz", f"{case}_0001.nii.gz")
    dataset = discover([touch(tmp_path, "labeled/labels/a1.nii.gz")])
    assert labelled_ids(dataset) == {"a1": True, "b1": False}
    assert [len(case.images) for case in dataset.cases] == [2, 2]


def test_four_digit_ids_are_not_channels_in_a_plain_folder(tmp_path: Path) -> None:
    assert set(labelled_ids(discover([touch(tmp_path, "images/x_0000.nii.gz", "images/x_0001.nii.gz")]))) == {
        "x_0000",
        "x_0001",
    }


def test_missing_channels_are_listed(tmp_path: Path) -> None:
    touch(tmp_path, *(f"imagesTr/{n}.nii.gz" for n in ("p1_0000", "p1_0001", "p2_0000", "p3_0000", "p3_0002")))
    touch(tmp_path, "imagesTr/p4_0000.nii.gz", "imagesTr/p4_0001.nii.gz")
    with pytest.raises(SegError) as caught:
        discover([touch(tmp_path, *(f"labelsTr/p{n}.nii.gz" for n in (1, 2, 3, 4)))])
    assert "p2 has 1 channel files, most have 2" in caught.value.found
    assert "p3 has channels [0, 2]" in caught.value.found


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ({"labels": {"background": 0, "ignore": 5}}, "E-DATA-LABELS"),
        ({"labels": {"background": "zero"}}, "E-DATA-JSON"),
        ({"labels": ["background"]}, "E-DATA-JSON"),
        (["not an object"], "E-DATA-JSON"),
    ],
)
def test_bad_dataset_json(tmp_path: Path, header: object, code: str) -> None:
    pairs(tmp_path, "a1")
    path = write_json(tmp_path, "dataset.json", header)
    with pytest.raises(SegError) as caught:
        discover([str(tmp_path)])
    assert (caught.value.code, caught.value.path) == (code, path)


def test_folders_must_agree_on_classes(tmp_path: Path) -> None:
    one, two = pairs(tmp_path / "one", "a1"), pairs(tmp_path / "two", "b1")
    write_json(tmp_path, "one/dataset.json", NNUNET_2)
    write_json(tmp_path, "two/dataset.json", {"labels": {"background": 0, "rim": 1}})
    with pytest.raises(SegError, match="E-DATA-LABELS"):
        discover([one, two])


def test_regions_are_noted(tmp_path: Path) -> None:
    pairs(tmp_path, "a1")
    write_json(tmp_path, "dataset.json", {"labels": {"background": 0, "whole": [1, 2]}, "channel_names": {"0": "T1"}})
    dataset = discover([str(tmp_path)])
    assert (dataset.label_names, dataset.channel_names) == (None, ("T1",))
    assert "regions" in dataset.notes[0]


@pytest.mark.parametrize(
    ("names", "argument", "code"),
    [
        ([], "absent", "E-DATA-MISSING"),
        (["f.nii.gz"], "f.nii.gz", "E-DATA-MISSING"),
        (["f.nii.gz"], "", "E-DATA-LAYOUT"),
    ],
)
def test_not_a_data_folder(tmp_path: Path, names: list[str], argument: str, code: str) -> None:
    touch(tmp_path, *names)
    with pytest.raises(SegError) as caught:
        discover([str(tmp_path / argument)])
    assert (caught.value.code, caught.value.exit) == (code, Exit.INPUT_MISSING)
    assert "imagesTr" in caught.value.expected
