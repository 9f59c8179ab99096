"""A lost index made anew: what was rejected, replaced or withdrawn before does not come back."""

import os
import random
from pathlib import Path

import pytest
from pydicom import Dataset
from sqlalchemy import select

from dicom_node.errors import ConflictingInstance
from dicom_node.notes import IdentityRules
from dicom_node.rebuild import Rebuild
from dicom_node.recovery import mark_all_complete
from storage.database import Database, upgrade
from storage.index import find_instance
from storage.tables import Conflict, Instance
from tests.ward import PACS, TITLES, Ward, corrected, rejection_note, stack, uids


@pytest.fixture
def ward(database: Database, tmp_path: Path) -> Ward:
    return Ward(database, tmp_path)


def marks(database: Database) -> dict[str, str | None]:
    with database.reading() as tx:
        return {row.sop_instance_uid: row.retired_as for row in tx.scalars(select(Instance))}


def rebuilt(ward: Ward, tmp_path: Path, rules: IdentityRules = IdentityRules()) -> Ward:  # noqa: B008 - frozen
    """The same files under an index that was made from them."""
    url = f"sqlite:///{tmp_path / 'rebuilt.sqlite'}"
    upgrade(url)
    again = Ward(Database(url), tmp_path)
    Rebuild(again.database, ward.services.files, rules).run(lambda *_: None)
    mark_all_complete(again.database)
    return again


def shown(ward: Ward, dataset: Dataset) -> set[str]:
    return ward.found(dataset)


@pytest.mark.parametrize("code", TITLES)
def test_rejected_images_stay_hidden_and_their_results_withdrawn(
    ward: Ward, tmp_path: Path, code: str
) -> None:
    images = stack()
    ward.receive(*images)
    ward.work()
    ward.receive(rejection_note(code, images[0]))
    ward.work()
    before = marks(ward.database)
    assert sorted(map(str, before.values())) == ["None"] * 6 + ["REJECTED"] + ["WITHDRAWN"] * 2
    again = rebuilt(ward, tmp_path)
    assert marks(again.database) == before
    assert shown(again, images[1]) == shown(ward, images[1])
    with again.database.reading() as tx:
        assert find_instance(tx, str(images[0].SOPInstanceUID)) is None
    again.database.close()


def test_a_result_that_was_replaced_stays_replaced(ward: Ward, tmp_path: Path) -> None:
    images = stack()
    for image in (images[:2], images[2:3], images[3:]):
        ward.receive(*image)
        ward.work()
    before = marks(ward.database)
    assert list(before.values()).count("SUPERSEDED") == 4
    again = rebuilt(ward, tmp_path)
    assert marks(again.database) == before
    again.database.close()


def test_notes_are_not_followed_where_the_configuration_says_so(ward: Ward, tmp_path: Path) -> None:
    images = stack()
    ward.receive(*images, rejection_note(TITLES[0], images[0]))
    assert marks(ward.database)[str(images[0].SOPInstanceUID)] == "REJECTED"
    again = rebuilt(ward, tmp_path, IdentityRules(follows_rejection_notes=False))
    assert uids(*images) <= shown(again, images[0])
    again.database.close()


# ---- corrected demographics


@pytest.fixture
def corrigible(database: Database, tmp_path: Path) -> Ward:
    """A node that lets the PACS correct whose image it is."""
    return Ward(database, tmp_path, corrections_from=["PACS"])


def everything(ward: Ward, image: Dataset) -> list[object]:
    """Whose the study is, which contents count, which are kept apart, and how results are marked."""
    study = ward.study(image)
    with ward.database.reading() as tx:
        rows = tx.scalars(select(Instance)).all()
        apart = sorted(tx.scalars(select(Conflict.path)))
    held = {row.sop_instance_uid: (row.path, row.patient_id, row.retired_as) for row in rows}
    return [study.patient_id, study.patient_name, held, apart]


def send_all_again(ward: Ward) -> None:
    """What repeated sending does to the files of images: their times say nothing any more.

    Here what is kept apart even seems to have come first.
    """
    chance = random.Random(1)
    with ward.database.reading() as tx:
        images = tx.scalars(select(Instance.path).where(Instance.origin_kind != "OWN RESULT")).all()
        apart = tx.scalars(select(Conflict.path)).all()
    for earliest, paths in ((1.0e9, apart), (1.5e9, images)):
        for path in paths:
            at = chance.uniform(earliest, earliest + 0.4e9)
            os.utime(ward.services.files.spool / path, (at, at))


def refuse(ward: Ward, *datasets: Dataset) -> None:
    for dataset in datasets:
        with pytest.raises(ConflictingInstance):
            ward.receive(dataset)


def test_a_corrected_patient_stays_corrected(corrigible: Ward, tmp_path: Path) -> None:
    images = stack()
    corrigible.receive(*images[:3])
    corrigible.work()
    right = corrected(images)
    corrigible.receive(*right[:3], origin=PACS)
    corrigible.work()
    refuse(corrigible, images[0], images[3])  # the scanner has not heard of it
    corrigible.receive(right[3])
    corrigible.work()
    before = everything(corrigible, images[0])
    assert before[:2] == ["RIGHT-1", "Right^Patient"]
    send_all_again(corrigible)
    again = rebuilt(corrigible, tmp_path)
    assert everything(again, images[0]) == before
    assert shown(again, images[0]) == shown(corrigible, images[0])
    again.database.close()


def test_a_correction_that_reached_only_some_images_is_one_again(corrigible: Ward, tmp_path: Path) -> None:
    images = stack()
    corrigible.receive(*images[:3])
    corrigible.receive(corrected(images)[0], corrected(images)[3], origin=PACS)
    before = everything(corrigible, images[0])
    send_all_again(corrigible)
    again = rebuilt(corrigible, tmp_path)
    assert everything(again, images[0]) == before
    again.database.close()


def test_a_correction_that_was_taken_back_is_taken_back(corrigible: Ward, tmp_path: Path) -> None:
    images = stack(2)
    corrigible.receive(*images)
    for patient in ("WRONG-1", "RIGHT-1", "WRONG-1", "SYNTH-1"):
        corrigible.receive(*corrected(images, patient), origin=PACS)
    before = everything(corrigible, images[0])
    assert before[0] == "SYNTH-1"
    send_all_again(corrigible)
    again = rebuilt(corrigible, tmp_path)
    assert everything(again, images[0])[:3] == before[:3]
    again.database.close()


def test_who_was_refused_does_not_take_the_study(ward: Ward, tmp_path: Path) -> None:
    images = stack()
    strangers = [*corrected(images[2:3]), *corrected(images[:1], "OTHER")]
    ward.receive(*images[:2])
    refuse(ward, *strangers)
    before = everything(ward, images[0])
    send_all_again(ward)
    again = rebuilt(ward, tmp_path)
    assert everything(again, images[0]) == before
    again.database.close()
