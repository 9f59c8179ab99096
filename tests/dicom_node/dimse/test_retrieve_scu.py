"""Pulling studies and priors from a peer: a pynetdicom archive here, Orthanc in tests/flow."""

import pytest
from pydicom import Dataset
from pynetdicom import AE, evt

from dicom_node.__main__ import main
from dicom_node.dimse.calling import Caller
from dicom_node.dimse.query_model import STUDY_ROOT
from dicom_node.dimse.retrieve_scu import find_studies, get_study, move_study, priors_of
from dicom_node.errors import AssociationRejected, PeerUnreachable
from storage.index import instances_of_study
from tests.dicom_node.dimse.instances import CT, make_image

US = Caller("SIM4SEG")


class Archive:
    """A pynetdicom AE that holds data sets, by its own Query/Retrieve SCP."""

    ae_title, host, tls = "ARCHIVE", "127.0.0.1", False

    def __init__(self, port, datasets=(), move_to=None, status=None, services=STUDY_ROOT.sop_classes):
        self.port, self.datasets, self.move_to, self.status = port, list(datasets), move_to, status
        ae = AE("ARCHIVE")
        for uid in services:
            ae.add_supported_context(uid)
        ae.add_supported_context(CT, scu_role=True, scp_role=True)
        ae.add_requested_context(CT)
        handlers = [(evt.EVT_C_FIND, self.find), (evt.EVT_C_MOVE, self.move), (evt.EVT_C_GET, self.get)]
        self.server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)

    def find(self, event):
        if self.status is not None:
            yield self.status, None
            return
        asked, seen = event.identifier, set()
        for dataset in self.datasets:
            wanted = [
                asked.get(key) in (None, "", dataset.get(key)) for key in ("StudyInstanceUID", "PatientID")
            ]
            if all(wanted) and dataset.StudyInstanceUID not in seen:
                seen.add(dataset.StudyInstanceUID)
                match = Dataset()
                for key in ("StudyInstanceUID", "PatientID", "StudyDate", "StudyTime"):
                    setattr(match, key, dataset[key].value)
                yield 0xFF00, match

    def _of_study(self, event):
        return [d for d in self.datasets if d.StudyInstanceUID == event.identifier.StudyInstanceUID]

    def move(self, event):
        yield (None, None) if self.move_to is None else ("127.0.0.1", self.move_to)
        found = self._of_study(event)
        yield len(found)
        for dataset in found:
            yield 0xFF00, dataset

    def get(self, event):
        found = self._of_study(event)
        yield len(found)
        for dataset in found:
            yield 0xFF00, dataset


@pytest.fixture
def archive(free_port):
    archives = []

    def start(*datasets, **options):
        archives.append(Archive(free_port(), datasets, **options))
        return archives[-1]

    yield start
    for started in archives:
        started.server.shutdown()


def here(database, study_uid):
    with database.reading() as tx:
        return {row.sop_instance_uid for row in instances_of_study(tx, study_uid)}


def two_of(study):
    return make_image(StudyInstanceUID=study.StudyInstanceUID, SeriesInstanceUID=study.SeriesInstanceUID)


def test_move_brings_the_study_to_our_listener(node, archive, database):
    first = make_image()
    second = two_of(first)
    running = node()
    peer = archive(first, second, make_image(), move_to=running.port)
    steps = []
    progress = move_study(peer, first.StudyInstanceUID, running.settings, steps.append)
    assert (progress.completed, progress.failed, progress.is_whole) == (2, 0, True)
    assert [step.remaining for step in steps][:1] == [1]
    assert here(database, first.StudyInstanceUID) == {first.SOPInstanceUID, second.SOPInstanceUID}


def test_get_brings_it_without_a_listener(node, archive, database, receiver):
    first = make_image()
    peer = archive(first, two_of(first))
    progress = get_study(peer, first.StudyInstanceUID, node().settings, receiver, lambda _progress: None)
    assert (progress.completed, progress.is_whole) == (2, True)
    assert len(here(database, first.StudyInstanceUID)) == 2


def test_priors_are_the_patients_other_studies_newest_first(archive):
    now = make_image(PatientID="P-1", StudyDate="20260301")
    older = make_image(PatientID="P-1", StudyDate="20240301")
    newer = make_image(PatientID="P-1", StudyDate="20250301")
    peer = archive(now, older, newer, make_image(PatientID="P-2"))
    assert priors_of(peer, US, now.StudyInstanceUID) == [newer.StudyInstanceUID, older.StudyInstanceUID]


def test_a_study_that_the_peer_does_not_have_has_no_priors(archive):
    with pytest.raises(AssociationRejected, match="no such study"):
        priors_of(archive(), US, "1.2.3")


def test_a_peer_that_does_not_know_us_is_told_with_what_to_do(node, archive):
    image = make_image()
    with pytest.raises(AssociationRejected, match="0xA801.*register our AE title"):
        move_study(archive(image), image.StudyInstanceUID, node().settings, lambda _progress: None)


def test_a_failure_of_the_query_is_told(archive):
    with pytest.raises(AssociationRejected, match="C-FIND with 0xA700"):
        find_studies(archive(status=0xA700), US, {"StudyInstanceUID": "1.2.3"})


def test_a_peer_without_the_service_and_no_peer_at_all(archive, free_port, node):
    peer = archive(services=[STUDY_ROOT.find])
    with pytest.raises(AssociationRejected, match="does not offer C-MOVE"):
        move_study(peer, "1.2.3", node().settings, lambda _progress: None)
    peer.port = free_port()
    with pytest.raises(PeerUnreachable):
        find_studies(peer, US, {"StudyInstanceUID": "1.2.3"})


def test_an_instance_that_we_refuse_counts_as_failed(archive, node, database, receiver):
    image = make_image()
    peer = archive(image, two_of(image))
    peer.datasets[1].StudyInstanceUID = image.StudyInstanceUID
    peer.datasets[1].SeriesInstanceUID = "9.9.no-uid"
    progress = get_study(peer, image.StudyInstanceUID, node().settings, receiver, lambda _progress: None)
    assert (progress.completed, progress.failed, progress.is_whole) == (1, 1, False)
    assert here(database, image.StudyInstanceUID) == {image.SOPInstanceUID}


def test_the_command_pulls_a_study_and_its_priors(archive, database, tmp_path, files_root, capsys):
    now = make_image(PatientID="P-1", StudyDate="20260301")
    before = make_image(PatientID="P-1", StudyDate="20250301")
    peer = archive(now, before, make_image(PatientID="P-1", StudyDate="20240301"))
    address = f"ARCHIVE@127.0.0.1:{peer.port}"
    (tmp_path / "node.toml").write_text("[limits]\nmin_free_mb = 0\n")
    command = ["pull", address, now.StudyInstanceUID, "--get", "--priors", "1", "--home", str(tmp_path)]
    assert main(command) == 0
    assert here(database, now.StudyInstanceUID) == {now.SOPInstanceUID}
    assert here(database, before.StudyInstanceUID) == {before.SOPInstanceUID}
    assert capsys.readouterr().out.count("1 came, 0 failed, 0 to come") == 2
    assert main(["pull", address, "1.2.3", "--priors", "1", "--home", str(tmp_path)]) == 1
    assert "no such study" in capsys.readouterr().err
