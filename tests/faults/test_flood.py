"""NET-14: a flood of C-ECHO, C-FIND and new associations while others store; nobody gets a wrong answer."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pynetdicom import AE, build_context
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind

from tests.faults.load import Broken, EchoConnection, Instances, StoreConnection
from tests.faults.nodes import AE_TITLE, Doors, running_doors, until
from tests.faults.zygote import Zygote

SENDERS, ECHOES, FINDS, NEWCOMERS = 2, 3, 2, 2  # associations, together fewer than one address may have
STORES = 200  # of each sender
FLOOD = "FLOOD"


class Flood(threading.Thread):
    """Asks the same again and again until it is told to stop; one wrong answer ends it."""

    def __init__(self, ask: Callable[[], bool]) -> None:
        super().__init__(daemon=True)
        self._ask = ask
        self.is_over = threading.Event()
        self.answers = 0
        self.wrong: list[str] = []

    def run(self) -> None:
        while not self.is_over.is_set() and not self.wrong:
            try:
                is_right = self._ask()
            except (Broken, OSError, RuntimeError) as error:
                self.wrong.append(repr(error))
                return
            self.answers += is_right
            self.wrong += [] if is_right else ["another answer than the right one"]


def test_a_flood_of_questions_costs_no_store_and_gets_right_answers(tmp_path: Path, zygote: Zygote) -> None:
    peer = {"name": "flood", "ae_title": FLOOD, "host": "127.0.0.1", "port": 104, "may": ["query"]}
    with running_doors(tmp_path, zygote, peers=[peer]) as doors:
        assert doors.store() == 0x0000
        study = next(iter(known_studies(doors)))
        with flooding(doors, study) as floods:
            started = time.monotonic()
            statuses = store_side_by_side(doors)
            seconds = time.monotonic() - started
        told = {name: sum(flood.answers for flood in those) for name, those in floods.items()}
        rates = {name: round(count / seconds) for name, count in told.items()}
        print(f"{len(statuses)} stored in {seconds:.1f} s, asked meanwhile, a second: {rates}")
        assert [flood.wrong for those in floods.values() for flood in those if flood.wrong] == []
        assert statuses == [0x0000] * (SENDERS * STORES)
        assert zygote.run(doors.log, *doors.words("fsck")) == 0


def known_studies(doors: Doors) -> set[str]:
    """The one study that `doors.store` sends to."""
    return {uid.rsplit(".", 1)[0] for uid in doors.ledger.acknowledged}


def store_side_by_side(doors: Doors) -> list[int]:
    """Every sender on an association of its own; gives all statuses."""
    statuses: list[int] = []

    def send(seed: int) -> None:
        connection, instances = StoreConnection(doors.dimse_port, AE_TITLE, "SCANNER"), Instances(seed)
        statuses.extend(connection.store(*instances.make()) for _ in range(STORES))
        connection.close()

    senders = [threading.Thread(target=send, args=(seed,)) for seed in range(2, 2 + SENDERS)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    return statuses


@contextmanager
def flooding(doors: Doors, study: str) -> Iterator[dict[str, list[Flood]]]:
    """All floods run while the block does."""
    echoes = [EchoConnection(doors.dimse_port, AE_TITLE, FLOOD) for _ in range(ECHOES)]
    finds = [find_association(doors) for _ in range(FINDS)]
    floods = {
        "C-ECHO": [Flood(lambda each=each: each.echo() == 0x0000) for each in echoes],
        "C-FIND": [Flood(lambda each=each: finds_only(each, study)) for each in finds],
        "associations": [Flood(lambda: is_answered(doors)) for _ in range(NEWCOMERS)],
    }
    every = [flood for those in floods.values() for flood in those]
    for flood in every:
        flood.start()
    until(lambda: all(flood.answers or flood.wrong for flood in every), "the first answers")
    try:
        yield floods
    finally:
        for flood in every:
            flood.is_over.set()
        for flood in every:
            flood.join()
        for echo in echoes:
            echo.close()
        for find in finds:
            find.release()


def is_answered(doors: Doors) -> bool:
    """Whether a new association is taken, and its C-ECHO answered; it is dropped without a word."""
    connection = EchoConnection(doors.dimse_port, AE_TITLE, FLOOD)
    try:
        return connection.echo() == 0x0000
    finally:
        connection.close()


def find_association(doors: Doors) -> Any:
    entity = AE(FLOOD)
    context = build_context(StudyRootQueryRetrieveInformationModelFind)
    association = entity.associate("127.0.0.1", doors.dimse_port, [context], ae_title=AE_TITLE)
    assert association.is_established
    return association


def finds_only(association: Any, study: str) -> bool:
    """Whether the study is found by its UID, once, and the end is success."""
    wanted = Dataset()
    wanted.QueryRetrieveLevel, wanted.StudyInstanceUID, wanted.PatientID = "STUDY", study, ""
    answers = list(association.send_c_find(wanted, StudyRootQueryRetrieveInformationModelFind))
    found = [(str(match.StudyInstanceUID), str(match.PatientID)) for _, match in answers if match is not None]
    return found == [(study, "PC-1")] and [status.Status for status, _ in answers] == [0xFF00, 0x0000]
