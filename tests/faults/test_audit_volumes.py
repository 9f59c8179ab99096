"""The audit trail on a volume that loses its power, and on one that is full (RES-04)."""

import pytest

from dicom_node import readiness
from dicom_node.audit.keeper import Keeper
from dicom_node.audit.spool import Spool
from dicom_node.audit.trail import AUDIT, spool_of, trail_of
from dicom_node.audit.verify import verify
from tests.dicom_node.dimse.instances import make_settings
from tests.faults.volume import NoVolume, memory_volume

MESSAGE = "<AuditMessage>" + "x" * 1000 + "</AuditMessage>"


def texts(spool):
    return [record.message for _, record in spool.records()]


def test_what_was_flushed_survives_a_power_cut_and_the_chain_goes_on(volume):
    flushed = 0
    for cut in range(5):
        volume.mount()
        spool = Spool(volume.root / "audit", 20_000)
        kept = texts(spool)
        assert len(kept) >= flushed
        for number in range(47):
            spool.append([f"{cut} {number} {MESSAGE}"])
        spool.flush()
        flushed = len(texts(spool))
        spool.append(["perhaps lost"] * 5)
        volume.cut()
        volume.unmount()
    volume.mount()
    spool = Spool(volume.root / "audit", 20_000)
    spool.append(["after"])
    found = texts(spool)
    lasting = [text for text in found if text[:1].isdigit()]
    assert lasting == [f"{cut} {number} {MESSAGE}" for cut in range(5) for number in range(47)]
    assert found[-1] == "after"
    assert all(finding.endswith("not there: removed") for finding in verify(spool).findings)
    volume.unmount()


def test_a_full_volume_is_said_and_the_node_goes_on(tmp_path, database_url):
    try:
        with memory_volume(tmp_path / "full", "size=256k") as point:
            audit = {"folder": point / "audit", "segment_mb": 0.05}
            fill(make_settings(tmp_path, database_url, tmp_path / "files", audit=audit))
    except NoVolume as reason:
        pytest.skip(f"no volume can be made here: {reason}")


def fill(settings):
    trail, spool = trail_of(settings), spool_of(settings)
    ballast = settings.audit.folder.parent / "ballast"
    ballast.write_bytes(bytes(128 * 1024))
    told = []
    while not readiness.is_reported(settings.home, AUDIT):
        tell(trail, told)
        assert len(told) < 1000
    for _ in range(10):  # kept in memory
        tell(trail, told)
    with pytest.raises(OSError, match="No space left"):
        Keeper(settings).tend()
    assert verify(spool).findings == ()
    assert 0 < len(texts(spool)) < len(told)
    ballast.unlink()
    tell(trail, told)
    assert [text for text in told if not any(text in found for found in texts(spool))] == []
    assert len(texts(spool)) == len(told)
    assert verify(spool).findings == ()
    assert readiness.problems(settings.home) == []


def tell(trail, told):
    told.append(f"step {len(told)}, {'x' * 1000}")
    trail.operated("root", "node", told[-1])
