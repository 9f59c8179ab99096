"""Damaged copies of every real file: never a crash, never a hang, never a 500 (PAR-11, FUZ-03).

TOLERANCE_ROUNDS=12 makes more than 20,000 copies; `make test` makes one of every kind for every file.
"""

import time

import pytest

from tests.dicom_node.web.ohif import FRAMES, JSON, upload
from tests.tolerance.conftest import ROUNDS
from tests.tolerance.mutations import mutations
from tests.tolerance.test_real_files import DOCUMENTED

pytestmark = [
    pytest.mark.shared,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore"),  # pydicom warns of damaged values; a node logs that one came
]

HANG_S = 60  # for one request with all damaged copies of a file; generous, the machine may be busy


def test_damaged_copies_are_stored_or_refused(node, real_file):
    content = real_file.read_bytes()
    damaged = [copy for _kind, copy in mutations(content, real_file.name, ROUNDS)]
    if not damaged:
        return
    started = time.monotonic()
    answer = node.send("POST", "/dicom-web/studies", **upload(*damaged))
    assert time.monotonic() - started < HANG_S * ROUNDS
    assert answer.status_code in (200, 202, 400, 409), answer.text
    failed = answer.json().get("00081198", {}).get("Value", [])
    assert {item["00081197"]["Value"][0] for item in failed} <= DOCUMENTED
    stored = answer.json().get("00081199", {}).get("Value", [])
    assert len(stored) + len(failed) == len(damaged)
    for item in stored:
        look_at(node, item["00081190"]["Value"][0])


def look_at(node, address):
    """What came in damaged is shown, or refused, in every form."""
    statuses = {
        form: node.get(f"{address}{form}", accept).status_code
        for form, accept in (
            ("/metadata", JSON), ("/frames/1", FRAMES), ("", "application/dicom; transfer-syntax=*"),
        )
    }  # fmt: skip
    assert all(status in (200, 400, 404, 406) for status in statuses.values()), statuses
