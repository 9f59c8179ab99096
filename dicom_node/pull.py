"""`dicom-node pull`: fetches a study from a peer, and the patient's studies before it."""

from collections.abc import Callable
from dataclasses import dataclass

from dicom_node.dimse.calling import Peer, caller_of
from dicom_node.dimse.retrieve_scu import Progress, get_study, move_study, priors_of
from dicom_node.services import open_receiver
from dicom_node.settings import NodeSettings
from storage.database import Database

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """What to fetch, and how."""

    study_instance_uid: str
    priors: int = 0
    by_get: bool = False  # C-GET, here and now; otherwise C-MOVE to our running listener


def pull(peer: Peer, wanted: Wanted, settings: NodeSettings, database: Database, say: Say) -> bool:
    """Fetch it, saying how far it is; False when something of it did not come.

    Raises
    ------
    PeerUnreachable, AssociationRejected, TlsUnusable
        With a sentence saying what to check.
    """
    studies = [wanted.study_instance_uid]
    if wanted.priors:
        studies += priors_of(peer, caller_of(settings), wanted.study_instance_uid)[: wanted.priors]
    is_whole = True
    for study in studies:
        say(f"{study} from {peer.ae_title}")
        progress = _fetch(peer, study, wanted, (settings, database), say)
        say(_words(progress))
        is_whole = is_whole and progress.is_whole
    return is_whole


def _fetch(peer: Peer, study: str, wanted: Wanted, node: tuple[NodeSettings, Database], say: Say) -> Progress:
    settings, database = node

    def tell(progress: Progress) -> None:
        say(_words(progress))

    if wanted.by_get:
        return get_study(peer, study, settings, open_receiver(settings, database), tell)
    return move_study(peer, study, settings, tell)


def _words(progress: Progress) -> str:
    came = progress.completed + progress.warning
    return f"  {came} came, {progress.failed} failed, {progress.remaining} to come"
