import pytest

from seg.train.patients import patient_of


@pytest.mark.parametrize(
    ("case", "patient"),
    [
        ("patient002_frame01", "patient002"),
        ("sub-01_ses-02_T1w", "sub-01"),
        ("sub-01", "sub-01"),
        ("BraTS-GLI-00005-100", "BraTS-GLI-00005"),
        ("p01_visit2_left", "p01"),
        ("p01-ED", "p01"),
        ("patient001_4d", "patient001"),
        ("patient001_frame01_slice_3", "patient001"),
        ("OAS1_0001_MR2", "OAS1_0001"),
        ("ISPY2-100899_V10", "ISPY2-100899"),
        ("P001_pre", "P001"),
        ("002_S_0295_m06", "002_S_0295"),
        ("sub1_fu", "sub1"),
        ("hippocampus_141", "hippocampus_141"),
        ("heart_scan_12", "heart_scan_12"),
        ("06SR5RBREL16DQ6M8LWS", "06SR5RBREL16DQ6M8LWS"),
        ("frame01", "frame01"),
    ],
)
def test_patient_of(case: str, patient: str) -> None:
    assert patient_of(case) == patient
