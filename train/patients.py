"""Whose scan is this? Names tell, and no patient may stand on both sides of a split."""

import re

_SUBJECT = re.compile(r"(sub-[A-Za-z0-9]+)_.*|(BraTS.*-\d{5})-\d{3}")
_VISIT = re.compile(
    r"(.*\d.*)[_-](?:(?:frame|ses|session|visit|time|timepoint|tp|t|phase|scan|run|day|week|month|year|slice|sl|z|mr|m|v|fu)"
    r"[_-]?\d+|ed|es|4d|baseline|bl|followup|fu|pre|post|preop|postop|l|r|lh|rh|left|right)",
    re.IGNORECASE,
)


def names_subject(case_id: str) -> bool:
    """Whether an id says whose scan it is (BIDS, BraTS), so that nothing has to be guessed."""
    return _SUBJECT.fullmatch(case_id) is not None


def patient_of(case_id: str) -> str:
    """The patient a case id belongs to.

    ``sub-01_ses-2_T1w`` -> ``sub-01`` (BIDS), ``BraTS-GLI-00005-100`` -> ``BraTS-GLI-00005``. Otherwise a last word
    that names a visit, a slice or a side (``_frame01``, ``_ses-2``, ``-v3``, ``_slice_4``, ``_pre``, ...) is taken off,
    repeatedly, as long as a digit remains: ``patient002_frame01`` -> ``patient002``, while ``heart_scan_12`` stays.
    """
    if match := _SUBJECT.fullmatch(case_id):
        return match[1] or match[2]
    while match := _VISIT.fullmatch(case_id):
        case_id = match[1]
    return case_id
