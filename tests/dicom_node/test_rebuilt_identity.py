"""A lost index made anew: what was rejected, replaced or withdrawn before does not come back."""

from pathlib import Path

import pytest
from pydicom import Dataset
from sqlalchemy import select

from dicom_node.notes import IdentityRules
from dicom_node.recovery import Recovery, mark_all_complete
from storage.database import Database, upgrade
from storage.index import find_instance
from storage.tables import Instance
from tests.ward import TITLES, Ward, rejection_note, stack, uids


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
    Recovery(again.database, ward.services.files, rules).rebuild(lambda *_: None)
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
