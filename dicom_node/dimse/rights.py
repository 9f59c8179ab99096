"""What a calling AE may ask of us, by its AE title: those of its entry in `peers`, or what others may.

An AE title is a name, no credential: rights keep honest machines apart. What keeps others out is TLS with
client certificates, bound to AE titles (`tls.binds_ae_title`).

Source: PS3.7 Annex C, status 0x0124 (refused: not authorized).
"""

from dicom_node.audit.codes import RESTRICTED_FUNCTION
from dicom_node.audit.events import Node
from dicom_node.audit.trail import trail_of
from dicom_node.errors import NotAuthorised
from dicom_node.settings import NodeSettings
from dicom_node.settings_network import Destination, PeerSettings, Right


def rights_of(settings: NodeSettings, calling_ae: str) -> frozenset[Right]:
    """What the AE may ask."""
    for peer in settings.peers:
        if peer.ae_title == calling_ae.strip():
            return frozenset(peer.may)
    return frozenset(settings.dimse.others_may)


def require_right(settings: NodeSettings, caller: Node, right: Right) -> None:
    """Raise NotAuthorised unless the AE that called has the right."""
    if right not in rights_of(settings, caller.ae_title):
        why = f"{caller.ae_title} may not {right} here; see peers.may"
        trail_of(settings).refused(caller, why, RESTRICTED_FUNCTION)
        raise NotAuthorised(why)


def peer_of(settings: NodeSettings, ae_title: str) -> Destination | PeerSettings | None:
    """The peer or destination with this AE title, None when the configuration has none."""
    known: tuple[Destination | PeerSettings, ...] = (*settings.peers, *settings.destinations)
    return next((peer for peer in known if peer.ae_title == ae_title.strip()), None)
