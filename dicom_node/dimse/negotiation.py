"""Which presentation contexts an association gets: all storage SOP classes, all of PS3.5's transfer syntaxes.

pynetdicom answers from a table made beforehand; a table cannot name private SOP classes or those of next
year's standard. So the table is made for each association, from what the peer proposes.

Source: PS3.8 9.3.3.2 (results 3 and 4), PS3.4 B.5, PS3.7 D.3.3.6 (common extended negotiation).
"""

from functools import lru_cache
from typing import Final, Literal

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

from dicom_node.dimse.pdu import AssociateRequest, ContextAnswer, ProposedContext

ACCEPTED: Final = 0
ABSTRACT_SYNTAX_REFUSED: Final = 3
TRANSFER_SYNTAXES_REFUSED: Final = 4
VERIFICATION: Final = "1.2.840.10008.1.1"
STORAGE_SERVICE: Final = "1.2.840.10008.4.2"
LAST_RESORTS: Final = (ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)
JPEG_XL: Final = ("1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.4.111", "1.2.840.10008.1.2.4.112")
KNOWN_SYNTAXES: Final = frozenset(
    {*JPEG_XL, *(uid for uid, entry in UID_dictionary.items() if entry[1] == "Transfer Syntax")}
)
"""Retired ones as well: what an archive holds in them can be kept, if not decoded."""


def is_ours(request: AssociateRequest) -> bool:
    """Whether the association is for our own loop: nothing but C-ECHO and storage is proposed."""
    return all(
        context.abstract_syntax == VERIFICATION or is_storage(context.abstract_syntax)
        for context in request.contexts
    )


def answer_contexts(
    request: AssociateRequest, storage_classes: Literal["all", "standard"]
) -> list[ContextAnswer]:
    """Accept C-ECHO and storage of what is proposed, in the best transfer syntax of each.

    A SOP class that the standard does not know is storage when the configuration says so, or when the peer
    names its service class. Source: PS3.7 D.3.3.6 (common extended negotiation).
    """
    return [_answer_context(context, request, storage_classes) for context in request.contexts]


def _answer_context(
    context: ProposedContext, request: AssociateRequest, storage_classes: Literal["all", "standard"]
) -> ContextAnswer:
    sop_class = context.abstract_syntax
    is_named = request.user.service_classes.get(sop_class) == STORAGE_SERVICE
    is_taken = sop_class in UID_dictionary or storage_classes == "all" or is_named
    syntaxes = _by_preference([syntax for syntax in context.transfer_syntaxes if syntax in KNOWN_SYNTAXES])
    if not is_taken:
        return ContextAnswer(context.context_id, ABSTRACT_SYNTAX_REFUSED, context.transfer_syntaxes[0])
    if not syntaxes:
        return ContextAnswer(context.context_id, TRANSFER_SYNTAXES_REFUSED, context.transfer_syntaxes[0])
    return ContextAnswer(context.context_id, ACCEPTED, syntaxes[0])


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


@lru_cache(maxsize=4096)
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
