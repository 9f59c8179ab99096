"""9 DELIVER, its second half. Asks destinations to commit to what they have, and acts on what they say."""

import logging

from dicom_node.answers import Answer, Kind, meaning_of
from dicom_node.backoff import backoff_s
from dicom_node.dimse.commitment_scu import (
    CommitmentState,
    Reference,
    commitment_outcome,
    request_commitment,
)
from dicom_node.errors import PeerError
from dicom_node.settings import NodeSettings
from dicom_node.settings_network import Destination
from storage.confirmations import (
    claim_commitments,
    note_commitment,
    open_commitments,
    postpone_commitment,
    settle_commitment,
)
from storage.database import Database

logger = logging.getLogger(__name__)

MOST_REFERENCES = 500  # in one request
CANNOT_ASK = "The destination cannot be asked for Storage Commitment: {}; check that it offers it."


def confirm(destination: Destination, settings: NodeSettings, database: Database) -> bool:
    """Make one pass over what `destination` has not confirmed; True when there may be more to ask."""
    if not destination.commitment:
        return False
    _settle(destination, settings, database)
    return _ask(destination, settings, database)


def _settle(destination: Destination, settings: NodeSettings, database: Database) -> None:
    with database.reading() as tx:
        answered = [
            (uid, outcome)
            for uid in open_commitments(tx, destination.name)
            if (outcome := commitment_outcome(tx, uid)) is not None
            and outcome.state is not CommitmentState.PENDING
        ]
    for uid, outcome in answered:
        failed = {
            sop_instance_uid: str(Answer(Kind.NOT_COMMITTED, (reason,)))
            for sop_instance_uid, reason in outcome.failed.items()
        }
        sentence = meaning_of(Answer(Kind.NOT_COMMITTED)).sentence
        delay_s = backoff_s(1, settings.delivery.first_retry_s, settings.delivery.max_retry_s)
        with database.transaction() as tx:
            settle_commitment(tx, uid, failed, sentence, delay_s)
        level = logging.ERROR if failed else logging.INFO
        extra = {"destination": destination.name, "outcome": outcome.state, "count": len(failed)}
        logger.log(level, "storage commitment settled", extra=extra)


def _ask(destination: Destination, settings: NodeSettings, database: Database) -> bool:
    delivery = settings.delivery
    with database.transaction() as tx:
        asked = claim_commitments(tx, destination.name, delivery.commitment_again_s, MOST_REFERENCES)
    if not asked:
        return False
    ids = [each.delivery_id for each in asked]
    references = [Reference(each.sop_class_uid, each.sop_instance_uid) for each in asked]
    try:
        uid = request_commitment(destination, references, settings=settings, database=database)
    except PeerError as error:
        with database.transaction() as tx:
            postpone_commitment(
                tx, ids, backoff_s(1, delivery.max_retry_s, delivery.max_retry_s), CANNOT_ASK.format(error)
            )
        logger.warning("storage commitment not asked for", extra={"destination": destination.name})
        return False
    with database.transaction() as tx:
        note_commitment(tx, ids, uid)
    return len(asked) == MOST_REFERENCES
