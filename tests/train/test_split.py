"""Splits look at names only, so the folders here hold empty files."""

from pathlib import Path

import pytest
from builders import DATA, pairs, write_json

from seg.infer.errors import Exit, SegError
from seg.train.cases import discover
from seg.train.split import Split, choose_split

SPLIT = {"labeled1": ["p1"], "labeled2": ["p1", "p2"], "unlabeled": ["p3"], "val": ["p4"]}


def roles(split: Split) -> tuple[list[str], list[str], list[str]]:
    labeled, unlabeled, val = ([c.id for c in part] for part in (split.labeled, split.unlabeled, split.val))
    return labeled, unlabeled, val


def by_patient(root: Path) -> str:
    pairs(root, *(f"p{n}_frame0{f}" for n in (1, 2, 3, 4) for f in (1, 2)))
    write_json(root, "splits.json", SPLIT)
    return str(root)


def test_split_names_patients_and_the_unlabelled_lose_their_labels(tmp_path: Path) -> None:
    split = choose_split(discover([by_patient(tmp_path)]), 1, None, 0)
    assert roles(split) == (
        ["p1_frame01", "p1_frame02"],
        ["p2_frame01", "p2_frame02", "p3_frame01", "p3_frame02"],
        ["p4_frame01", "p4_frame02"],
    )
    assert all(case.label for case in (*split.labeled, *split.val))
    assert all(case.label is None for case in split.unlabeled)


def test_without_a_number_all_training_labels_count_but_not_those_declared_unlabelled(tmp_path: Path) -> None:
    labeled, unlabeled, _ = roles(choose_split(discover([by_patient(tmp_path)]), None, None, 0))
    assert labeled == ["p1_frame01", "p1_frame02", "p2_frame01", "p2_frame02"]
    assert unlabeled == ["p3_frame01", "p3_frame02"]


def test_split_file_wins_over_the_folder_and_takes_case_ids(tmp_path: Path) -> None:
    dataset = discover([pairs(tmp_path, "a1", "a2", "a3", unlabeled=("a4",))])
    path = write_json(tmp_path, "mine.json", {"train": ["a1", "a3"], "val": ["a2"]})
    assert roles(choose_split(dataset, None, path, 0)) == (["a1", "a3"], ["a4"], ["a2"])


def test_cases_the_split_does_not_name_are_left_out_and_told(tmp_path: Path) -> None:
    dataset = discover([pairs(tmp_path, "a1", "a2", "a3", "a5", "a6")])
    path = write_json(tmp_path, "mine.json", {"train": ["a1"], "val": ["a2"], "test": ["a6"]})
    split = choose_split(dataset, None, path, 0)
    assert roles(split) == (["a1"], [], ["a2"])
    assert "a3, a5" in split.notes[0]


def test_a_split_that_lists_the_unlabelled_means_just_those(tmp_path: Path) -> None:
    dataset = discover([pairs(tmp_path, "a1", "a2", unlabeled=("u1", "u2"))])
    path = write_json(tmp_path, "mine.json", {"train": ["a1"], "unlabeled": ["u1"], "val": ["a2"]})
    split = choose_split(dataset, None, path, 0)
    assert roles(split)[1] == ["u1"]
    assert "u2" in split.notes[0]


def test_number_on_a_split_without_sizes_picks_seeded_patients(tmp_path: Path) -> None:
    dataset = discover([pairs(tmp_path, *(f"a{n}" for n in range(9)))])
    path = write_json(tmp_path, "mine.json", {"train": [f"a{n}" for n in range(8)], "val": ["a8"]})
    labeled, unlabeled, val = roles(choose_split(dataset, 3, path, 0))
    assert (len(labeled), len(unlabeled), val) == (3, 5, ["a8"])
    assert sorted(labeled + unlabeled) == [f"a{n}" for n in range(8)]


def test_an_extra_folder_adds_labelled_cases_but_no_patient_of_val(tmp_path: Path) -> None:
    extra = pairs(tmp_path / "extra", "q1", "p4_frame03", unlabeled=("q2",))
    split = choose_split(discover([by_patient(tmp_path / "main"), extra]), 1, None, 0)
    labeled, unlabeled, val = roles(split)
    assert labeled == ["p1_frame01", "p1_frame02", "q1"]
    assert "q2" in unlabeled
    assert ("p4_frame03" in labeled, "p4_frame03" in unlabeled) == (False, False)
    assert val == ["p4_frame01", "p4_frame02", "p4_frame03"]  # the split names the patient


def test_an_extra_case_of_a_held_out_patient_is_left_out(tmp_path: Path) -> None:
    main = pairs(tmp_path / "main", "p1_frame01", "p2_frame01")
    extra = pairs(tmp_path / "extra", "p2_frame02", "q1")
    path = write_json(tmp_path, "s.json", {"train": ["p1_frame01"], "val": ["p2_frame01"]})
    split = choose_split(discover([main, extra]), None, path, 0)
    assert roles(split) == (["p1_frame01", "q1"], [], ["p2_frame01"])
    assert "p2_frame02" in split.notes[0]


def test_two_splits_need_a_choice(tmp_path: Path) -> None:
    dataset = discover([by_patient(tmp_path / "one"), pairs(tmp_path / "two", "q1", "q2")])
    path = write_json(tmp_path / "two", "splits.json", {"train": ["q1"], "val": ["q2"]})
    dataset = discover([str(tmp_path / "one"), str(tmp_path / "two")])
    with pytest.raises(SegError, match="--split"):
        choose_split(dataset, None, None, 0)
    assert roles(choose_split(dataset, None, path, 0))[2] == ["q2"]


def test_a_malformed_split_of_the_folder_is_refused_even_where_another_replaces_it(tmp_path: Path) -> None:
    path = write_json(tmp_path, "mine.json", {"train": ["a1"], "val": ["a2"]})
    own = write_json(tmp_path, "data/splits.json", {"training": ["a1"]})
    with pytest.raises(SegError, match="unknown or malformed training") as caught:
        choose_split(discover([pairs(tmp_path / "data", "a1", "a2")]), None, path, 0)
    assert (caught.value.code, caught.value.path) == ("E-DATA-SPLIT", own)


@pytest.mark.parametrize(
    ("content", "labeled", "code", "words"),
    [
        ({"train": ["a1", "zz"], "val": ["a2", "yy"]}, None, "E-DATA-SPLIT", ["yy", "zz"]),
        ({"train": ["a1", "a2"], "val": ["a2"]}, None, "E-DATA-OVERLAP", ["a2"]),
        ({"train": ["p1_frame01"], "val": ["p1_frame02"]}, None, "E-DATA-OVERLAP", ["p1_frame01", "p1_frame02"]),
        ({"train": ["a1"], "val": ["a2"], "test": ["a2"]}, None, "E-DATA-OVERLAP", ["a2"]),
        ({"train": ["a1"], "val": ["a2"], "test": ["a1"]}, None, "E-DATA-OVERLAP", ["a1"]),
        ({"labeled1": ["a1"], "unlabeled": ["a1"], "val": ["a2"]}, 1, "E-DATA-SPLIT", ["a1"]),
        ({"labeled1": ["a1"], "val": ["a2"]}, 4, "E-DATA-SPLIT", ["labeled4"]),
        ({"labelled1": ["a1"], "val": ["a2"]}, 1, "E-DATA-SPLIT", ["labelled1"]),
        ({"train": "a1", "val": ["a2"]}, None, "E-DATA-SPLIT", ["train"]),
        ({"train": ["a1"], "val": ["bare"]}, None, "E-DATA-SPLIT", ["bare"]),
        ({"labeled1": ["bare"], "val": ["a2"]}, 1, "E-DATA-SPLIT", ["bare"]),
        ({"train": ["a1"]}, None, "E-DATA-NOLABEL", ["validation"]),
        ({"train": ["bare"], "val": ["a2"]}, None, "E-DATA-NOLABEL", ["labelled"]),
        ({"train": ["a1"], "val": ["a2"]}, 2, "E-DATA-FEW", ["--labeled 2"]),
        ([{"train": ["a1"], "val": ["a2"]}], None, "E-DATA-JSON", ["list"]),
    ],
)
def test_bad_splits(tmp_path: Path, content: object, labeled: int | None, code: str, words: list[str]) -> None:
    dataset = discover([pairs(tmp_path, "a1", "a2", "p1_frame01", "p1_frame02", unlabeled=("bare",))])
    path = write_json(tmp_path, "mine.json", content)
    with pytest.raises(SegError) as caught:
        choose_split(dataset, labeled, path, 0)
    assert caught.value.code == code
    assert all(word in caught.value.found for word in words)


def test_hold_out_by_patient_over_many_seeds(tmp_path: Path) -> None:
    ids = [f"p{n}_frame0{f}" for n in range(10) for f in (1, 2)]
    dataset = discover([pairs(tmp_path, *ids, unlabeled=("p3_frame03", "u1"))])
    seen = set()
    for seed in range(20):
        split = choose_split(dataset, 3, None, seed)
        val, train = {c.patient for c in split.val}, {c.patient for c in (*split.labeled, *split.unlabeled)}
        assert (len(val), val & train) == (2, set())
        assert len({c.patient for c in split.labeled}) == 3
        assert "u1" in roles(split)[1]
        assert ("p3_frame03" in roles(split)[1]) == ("p3" not in val)
        fewer = choose_split(dataset, 2, None, seed)
        assert set(fewer.labeled) < set(split.labeled)
        assert fewer.val == split.val
        seen.add(split.val)
    assert len(seen) > 5


def test_hold_out_is_fixed_by_names_and_seed(tmp_path: Path) -> None:
    """Frozen: another choice here would silently change every training that has no split."""
    dataset = discover([pairs(tmp_path, *(f"p{n}" for n in range(10)))])
    assert roles(choose_split(dataset, 2, None, 7))[::2] == (["p4", "p5"], ["p6", "p9"])


def test_scans_without_any_label(tmp_path: Path) -> None:
    with pytest.raises(SegError, match="none of the 4 scans has a label") as caught:
        choose_split(discover([pairs(tmp_path, unlabeled=("u1", "u2", "u3", "u4"))]), None, None, 0)
    assert "labels/" in caught.value.fix


def test_names_that_would_make_one_patient_of_all_scans(tmp_path: Path) -> None:
    """Nothing is held out by a guess, but a split that somebody wrote is believed; not against BIDS names."""
    ids = [f"study2_scan_0{n}" for n in range(6)]
    dataset = discover([pairs(tmp_path / "guessed", *ids)])
    with pytest.raises(SegError, match=r"1 labelled patients \(6 scans, by their names of study2\)"):
        choose_split(dataset, None, None, 0)
    split = choose_split(dataset, None, write_json(tmp_path, "s.json", {"train": ids[:4], "val": ids[4:]}), 0)
    assert roles(split)[::2] == (ids[:4], ids[4:])
    said = [f"sub-01_ses-{n}" for n in range(4)]
    path = write_json(tmp_path, "bids.json", {"train": said[:3], "val": said[3:]})
    with pytest.raises(SegError) as caught:
        choose_split(discover([pairs(tmp_path / "bids", *said)]), None, path, 0)
    assert caught.value.code == "E-DATA-OVERLAP"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_too_few_patients_to_hold_one_out(tmp_path: Path, count: int) -> None:
    ids = [f"p{n}_frame0{f}" for n in range(count) for f in (1, 2)]
    dataset = discover([pairs(tmp_path, *ids, unlabeled=("u1", "u2", "u3", "u4"))])
    with pytest.raises(SegError, match="--split FILE") as caught:
        choose_split(dataset, None, None, 0)
    assert (caught.value.code, caught.value.exit) == ("E-DATA-FEW", Exit.INPUT_REFUSED)


def test_four_patients_are_enough(tmp_path: Path) -> None:
    split = choose_split(discover([pairs(tmp_path, "p1", "p2", "p3", "p4")]), None, None, 0)
    assert (len(split.labeled), len(split.val)) == (3, 1)


@pytest.mark.parametrize(("labeled", "code"), [(0, "E-DATA-SPLIT"), (-1, "E-DATA-SPLIT"), (5, "E-DATA-FEW")])
def test_impossible_number_of_labels(tmp_path: Path, labeled: int, code: str) -> None:
    with pytest.raises(SegError, match=code):
        choose_split(discover([pairs(tmp_path, "p1", "p2", "p3", "p4")]), labeled, None, 0)


@pytest.mark.parametrize(
    ("folder", "labeled", "sizes"),
    [
        ("LA", 8, (8, 72, 10)),
        ("LA", None, (80, 0, 10)),
        ("hippocampus", 10, (10, 190, 30)),
        ("ACDC", 3, (6, 22, 12)),
        ("ACDC", None, (14, 14, 12)),
    ],
)
def test_public_data(folder: str, labeled: int | None, sizes: tuple[int, int, int]) -> None:
    if not (DATA / folder).is_dir():
        pytest.skip(f"no {folder} under {DATA}: set SEG_DATA")
    split = choose_split(discover([str(DATA / folder)]), labeled, None, 0)
    assert tuple(map(len, roles(split))) == sizes
    assert not split.notes
