"""Which presentation contexts an association gets: all storage SOP classes, all of PS3.5's transfer syntaxes.

pynetdicom answers from a table made beforehand; a table cannot name private SOP classes or those of next
year's standard. So the table is made for each association, from what the peer proposes.

Source: PS3.8 9.3.3.2 (results 3 and 4), PS3.4 B.5, PS3.7 D.3.3.6 (common extended negotiation).
"""

from typing import Final

from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    UID_dictionary,
)
from pynetdicom import evt
from pynetdicom.pdu_primitives import SOPClassCommonExtendedNegotiation
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import uid_to_service_class

VERIFICATION: Final = "1.2.840.10008.1.1"
STORAGE_SERVICE: Final = "1.2.840.10008.4.2"
LAST_RESORTS: Final = (ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)
JPEG_XL: Final = ("1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.4.111", "1.2.840.10008.1.2.4.112")
KNOWN_SYNTAXES: Final = frozenset(
    {*JPEG_XL, *(uid for uid, entry in UID_dictionary.items() if entry[1] == "Transfer Syntax")}
)
"""Retired ones as well: what an archive holds in them can be kept, if not decoded."""


def offer_storage(event: evt.Event) -> None:
    """Accept, of what the peer proposes, C-ECHO and all storage; handler of EVT_REQUESTED."""
    offered: dict[str, list[str]] = {}
    for context in _proposal(event):
        syntaxes = offered.setdefault(str(context.abstract_syntax), [])
        syntaxes += [str(syntax) for syntax in context.transfer_syntax if syntax in KNOWN_SYNTAXES]
    contexts = [build_context(VERIFICATION)]
    contexts += [
        build_context(sop_class, _by_preference(syntaxes))
        for sop_class, syntaxes in offered.items()
        if syntaxes and is_storage(sop_class)
    ]
    event.assoc.acceptor.supported_contexts = contexts


def name_service(event: evt.Event) -> dict[UID, SOPClassCommonExtendedNegotiation]:
    """Say that SOP classes which pynetdicom does not know are storage; handler of EVT_SOP_COMMON."""
    items = {}
    for context in _proposal(event):
        sop_class = UID(str(context.abstract_syntax))
        if is_storage(sop_class) and uid_to_service_class(sop_class) is not StorageServiceClass:
            item = SOPClassCommonExtendedNegotiation()
            item.sop_class_uid = sop_class
            item.service_class_uid = UID(STORAGE_SERVICE)
            items[sop_class] = item
    return items


def is_storage(sop_class: str) -> bool:
    """Whether instances of `sop_class` are taken: storage of the standard, private, or not known yet."""
    if uid_to_service_class(sop_class) is StorageServiceClass:
        return True
    if sop_class not in UID_dictionary:
        return True
    name, kind = UID_dictionary[sop_class][:2]
    is_named_so = "Storage" in name and "Commitment" not in name and "Media" not in name
    return kind == "SOP Class" and is_named_so and "1.2.840.10008.5.1.4.1.1." in sop_class


def _proposal(event: evt.Event) -> list[PresentationContext]:
    request = event.assoc.requestor.primitive
    return list(request.presentation_context_definition_list) if request is not None else []


def _by_preference(syntaxes: list[str]) -> list[str]:
    """The peer's own order, each once; what costs most to read comes last."""
    once = list(dict.fromkeys(syntaxes))
    first = [syntax for syntax in once if syntax not in LAST_RESORTS]
    return first + [str(syntax) for syntax in LAST_RESORTS if syntax in once]
