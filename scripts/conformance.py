"""Write or check deploy/CONFORMANCE.md: the DICOM conformance statement, from the code's own tables."""

import inspect
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel
from pydicom.uid import UID, UID_dictionary
from pynetdicom.sop_class import _STORAGE_CLASSES
from starlette.routing import BaseRoute, Route, WebSocketRoute

from dicom_node import errors, tls
from dicom_node.announced import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node.audit import syslog
from dicom_node.audit.events import SENT
from dicom_node.audit.settings import AuditSettings
from dicom_node.dimse import acceptor, association, commitment, matches, query_model, retrieve_scp
from dicom_node.dimse.negotiation import KNOWN_SYNTAXES, VERIFICATION, is_storage
from dicom_node.dimse.transcode import PLAIN
from dicom_node.forms.form import DEFAULT_FORMS, SOP_CLASSES
from dicom_node.settings_network import DimseSettings, PeerSettings, TlsSettings
from dicom_node.settings_web import HttpSettings, OidcSettings
from dicom_node.web.app import dicom_web_routes
from dicom_node.web.login import failures
from dicom_node.web.login.jwt_login import ALGORITHMS
from dicom_node.web.login.rights import RIGHTS, WEBSOCKET, Right
from storage.search import INSTANCE_MATCHERS, SERIES_MATCHERS, STUDY_MATCHERS

REPOSITORY = Path(__file__).resolve().parent.parent
TARGET = REPOSITORY / "deploy" / "CONFORMANCE.md"
MATCHED = {*STUDY_MATCHERS, *SERIES_MATCHERS, *INSTANCE_MATCHERS}

HEAD = """\
# DICOM Conformance Statement

sim4seg-node. Research use only. Not a medical device. The form is that of PS3.2; the tables are made from the
code by `python -m scripts.conformance --write`, and a test compares them. Hexadecimal statuses are DIMSE's.

## 1 Overview

sim4seg-node receives studies by DIMSE and DICOMweb, runs segmentation models on them, and sends Segmentation
and Structured Report instances, or the other forms of 1.1 that a destination asks for, to configured
destinations. It answers queries and retrievals for everything that it holds, its own results included.
"""

STORAGE_RULES = """\
Every storage SOP class is accepted: those in the table, those of PS3.6 that are newer than it, private
ones, and UIDs that no table knows. Of the transfer syntaxes that the peer proposes for a SOP class, the
first that stands in 3.2 is accepted, in the peer's order; Implicit VR Little Endian, Deflated and Big
Endian come last. Instances are kept as they were received, at Level 2 (full): every attribute of the data
set, private ones included, bit by bit. No attribute is coerced. A success (0000) is answered once the
file, its directory entry and its index entry are durable. The same instance again with the same content
is a success and changes nothing; with other content it is refused (0111), and both are kept, the first as
the valid one.
"""

PREAMBLE = """\
The 128 bytes of the File Preamble of Part 10 files are not kept: a preamble can hold a program (PS3.10
7.5). On every way in (STOW-RS, import) they are discarded, and every Part 10 stream on the way out
(WADO-RS, export, files on disk) carries 128 zero bytes. File Meta Information is written anew.
"""

CHARACTER_SETS = """\
Every Specific Character Set of PS3.3 C.12.1.1.2 is read. Data sets are stored and sent on in the
character set they came in. C-FIND responses have no Specific Character Set when all values are ASCII;
they use that of the request when it is a single-byte set (ISO_IR ...) that holds every character, and
ISO_IR 192 otherwise. DICOMweb answers are UTF-8. What this node makes is ISO_IR 192.
"""

FIND_RULES = """\
Matching is that of QIDO-RS, on the same index: single value, list of UIDs, several values of a key (any
of them), wildcards `*` and `?`, ranges of dates and times, universal matching. Person names match without
regard to case. Keys of levels above the query's may be left out (relational queries are always on). By
extended negotiation: combined date and time matching, and fuzzy matching of names (each word asked for
begins a word of the name). A key that is in neither table is not returned. Query/Retrieve Level, Retrieve
AE Title and Instance Availability (ONLINE) are in every response. A query with more matches than
`dimse.max_matches` ends with A700 after that many. A C-CANCEL ends it with FE00.
"""

RETRIEVE_RULES = """\
The unique key of the level is required, without wildcards; at STUDY, SERIES and IMAGE level it may be a
list. C-MOVE sends to AEs of the configuration only. Each instance goes out as it is stored when the
receiver accepts its transfer syntax; otherwise it is decoded, without loss, to the first of {plain} that
the receiver accepts; nothing is ever compressed. Every sub-operation is followed by a Pending response
with its counts; a C-CANCEL ends the retrieval after the sub-operation at hand. Failed instances are in
the Failed SOP Instance UID List.
"""

COMMITMENT_RULES = """\
As SCP: a request is answered once it is durable, and reported on a new association with the peer of that
AE title (role SCP proposed), or, for an AE that is no peer, on the association of the request while it
stays open. A report that is not answered with 0000 is sent again with growing pauses
(`delivery.first_retry_s` to `delivery.max_retry_s`), up to `delivery.max_age_s`, across restarts. An
instance is committed when it is in the index under its SOP class and its file has the digest that it was
stored with.

As SCU: a request is recorded before it goes out; the report is taken on the same association or on one
that the peer opens, from the AE title that was asked, by Transaction UID. An instance that the report
does not name is not committed.
"""

SECURITY = """\
AE titles are names, no authentication. With `[tls]`, associations use the BCP 195 RFC 8996, 9325 TLS
Secure Transport Connection Profile (PS3.15 B.12): {oldest} or 1.3, no older version, no compression, no
renegotiation. Suites of TLS 1.2: {ciphers}; those of TLS 1.3 are the library's. By default a calling peer
must show a certificate of the trusted authorities; `tls.binds_ae_title` binds its AE title to the common
name or a DNS name of it. As requestor, the node checks the peer's certificate and host name, and never
falls back to a connection without TLS. A missing or unreadable file, or a key that everybody can read,
keeps the port closed and is reported by `/health/ready`. With `http.tls` the web server answers with HTTPS
only, on the same terms, and asks browsers for no certificate. No de-identification profile and no digital
signature is claimed.
"""

WEB_USERS = """\
By default the web server listens on this machine only and asks nobody who they are; at another address it
does not start unless `http.login` is `required` (or `http.open_to_everyone` says that this is meant). With
`http.login = "required"` every request carries one of: `Authorization: Bearer` with a token of this node
(256 random bits) or of an OpenID provider (JWT: {algorithms}; issuer, audience, begin and end are checked,
keys come by OpenID Connect Discovery); `Authorization: Basic` (RFC 7617) with a user's name and password;
or the cookie of a session (HttpOnly, SameSite=Strict, by HTTPS Secure), which the page `/login` gives for
name and password. Passwords and cookies are taken by HTTPS or on this machine only. Without, the answer is
401 with WWW-Authenticate; without the role, 403; after {account} failures for an account or {address} from an
address within {minutes} minutes, 429 with Retry-After. One of the named roles is enough; an operator has
those of viewer and monitor too.
"""

AUDIT = """\
Audit Trail Message Format Profile (PS3.15 A.5), while `audit.patient_ids` is true; by default Patient
objects are left out and values of queries are withheld but for UIDs, level and modality. One message is
about one study. What failed is a message of its own, without a study where nobody could tell it. Audit
Trail Message Transmission Profiles SYSLOG-TLS (A.6, RFC 5425) and SYSLOG-UDP (A.7, RFC 5426): RFC 5424 with
PRI {pri}, APP-NAME `{app}`, MSGID `{msgid}`, no STRUCTURED-DATA, the message as UTF-8 with its
byte order mark. Over TLS messages go whole whatever their length, on the terms of section 7; over UDP what
is longer than {datagram} octets is cut. Messages are kept until they have been sent, across restarts, in
order; after a connection that broke they are sent again.
"""


TRANSACTIONS = {
    "search_for_studies": "Search for studies (QIDO-RS)",
    "search_for_series": "Search for series (QIDO-RS)",
    "search_for_instances": "Search for instances (QIDO-RS)",
    "store_instances": "Store instances (STOW-RS)",
    "retrieve_instances": "Retrieve instances (WADO-RS)",
    "retrieve_metadata": "Retrieve metadata (WADO-RS)",
    "retrieve_frames": "Retrieve frames (WADO-RS)",
    "retrieve_bulk_data": "Retrieve bulk data (WADO-RS)",
    "retrieve_rendered": "Retrieve rendered (WADO-RS)",
    "retrieve_thumbnail": "Retrieve thumbnail (WADO-RS)",
    "retrieve_object": "Retrieve an object (WADO-URI)",
    "search": "Search for workitems (UPS-RS)",
    "create": "Create workitem (UPS-RS)",
    "retrieve": "Retrieve workitem (UPS-RS)",
    "update": "Update workitem (UPS-RS)",
    "put_state": "Change workitem state (UPS-RS)",
    "request_cancellation": "Request cancellation (UPS-RS)",
    "put_subscription": "Subscribe (UPS-RS)",
    "delete_subscription": "Unsubscribe (UPS-RS)",
    "suspend_subscription": "Suspend global subscription (UPS-RS)",
    "answer": "Event channel (UPS-RS)",
    "show_capabilities": "Retrieve capabilities",
}
"""Names of PS3.18 by the function that answers."""


def render() -> str:
    """The whole statement."""
    return "\n".join(part.rstrip() + "\n" for part in _parts())


def _parts() -> Iterator[str]:
    yield HEAD
    yield _services()
    yield "### 1.1 Instances that are made\n\n" + _forms()
    yield "## 2 Implementation\n\n" + _pairs(
        ("Implementation Class UID", f"`{IMPLEMENTATION_CLASS_UID}`"),
        ("Implementation Version Name", f"`{IMPLEMENTATION_VERSION_NAME}`"),
        ("Application context", "1.2.840.10008.3.1.1.1"),
        ("Asynchronous operations", "none: one at a time on an association"),
        (
            "Longest PDU accepted",
            f"{association.MAX_PDU_BYTES} bytes; {_default(DimseSettings, 'max_pdu')} announced",
        ),
        (
            "Associations at the same time",
            f"{_default(DimseSettings, 'max_associations')} (`dimse.max_associations`)",
        ),
        ("User identity negotiation", "not answered"),
    )
    yield "## 3 Network\n\n### 3.1 Presentation contexts\n\n" + _contexts()
    yield "### 3.2 Transfer syntaxes\n\n" + _transfer_syntaxes()
    yield "### 3.3 Verification\n\nC-ECHO is answered with 0000 to every AE that may associate."
    yield "### 3.4 Storage\n\n" + STORAGE_RULES + "\n" + _storage_statuses()
    yield "### 3.5 Query\n\n" + FIND_RULES + "\n" + _keys() + "\n\n" + _statuses(_find_statuses())
    plain = " and ".join(UID(uid).name for uid in PLAIN)
    yield (
        "### 3.6 Retrieval\n\n" + RETRIEVE_RULES.format(plain=plain) + "\n" + _statuses(_retrieve_statuses())
    )
    yield "### 3.7 Storage Commitment\n\n" + COMMITMENT_RULES + "\n" + _failure_reasons()
    yield "### 3.8 Storage SOP classes\n\n" + _storage_classes()
    yield "## 4 DICOMweb\n\nBelow `/dicom-web` (PS3.18).\n\n" + _transactions()
    yield "## 5 Media and preamble\n\nNo media storage application profile is claimed.\n\n" + PREAMBLE
    yield "## 6 Character sets\n\n" + CHARACTER_SETS
    yield "## 7 Security\n\n" + _security()
    yield "### 7.1 Audit trail\n\n" + _audit()
    yield "### 7.2 Who may use the web server\n\n" + _web_users()
    yield "## 8 Configuration\n\n" + _configuration()


def _services() -> str:
    storage = "yes: results, and sub-operations of C-MOVE and C-GET"
    rows = [
        ("Verification", "yes", "yes"),
        ("Storage", storage, "yes"),
        ("Query/Retrieve, C-FIND", f"{query_model.STUDY_ROOT.name}", _models()),
        ("Query/Retrieve, C-MOVE", f"{query_model.STUDY_ROOT.name}", _models()),
        ("Query/Retrieve, C-GET", f"{query_model.STUDY_ROOT.name}", _models()),
        ("Storage Commitment Push Model", "yes", "yes"),
    ]
    return "| Service | as SCU | as SCP |\n|---|---|---|\n" + _rows(rows)


def _forms() -> str:
    rows = [
        (f"`{form}`", _name(uid), uid, "yes" if form in DEFAULT_FORMS else "where it is asked for")
        for form, uids in SOP_CLASSES.items()
        for uid in uids
    ]
    head = "| Form (`destinations.forms`) | SOP class | UID | Sent by default |\n|---|---|---|---|\n"
    return head + _rows(rows)


def _models() -> str:
    return ", ".join(model.name for model in query_model.MODELS)


def _contexts() -> str:
    rows = [(_name(VERIFICATION), VERIFICATION, "SCU, SCP", "none")]
    rows.append(
        ("every storage SOP class (3.8)", "", "SCU, SCP (role selection)", "common: names the service")
    )
    for model in query_model.MODELS:
        scu = "SCU, SCP" if model is query_model.STUDY_ROOT else "SCP"
        rows.append((_name(model.find), model.find, scu, "relational, combined date and time, fuzzy"))
        rows += [(_name(uid), uid, scu, "relational") for uid in (model.move, model.get)]
    rows.append(
        (_name(acceptor.STORAGE_COMMITMENT), acceptor.STORAGE_COMMITMENT, "SCU, SCP (role selection)", "none")
    )
    plain = ", ".join(UID(uid).name for uid in acceptor.SYNTAXES)
    head = "| Abstract syntax | UID | Role | Extended negotiation |\n|---|---|---|---|\n"
    return f"{head}{_rows(rows)}\n\nAll but storage and verification take {plain}."


def _transfer_syntaxes() -> str:
    rows = [
        (_name(uid), uid, "retired" if _is_retired(uid) else "")
        for uid in sorted(KNOWN_SYNTAXES, key=_by_number)
    ]
    return (
        "Accepted for storage, and kept as received.\n\n| Transfer syntax | UID | |\n|---|---|---|\n"
        + _rows(rows)
    )


def _storage_classes() -> str:
    classes = sorted(
        {*map(str, _STORAGE_CLASSES.values()), *(uid for uid in UID_dictionary if is_storage(uid))}
    )
    rows = [(_name(uid), uid) for uid in sorted(classes, key=_by_number)]
    others = "SCP and SCU. Any other UID that is no known SOP class of another service is taken as well."
    return f"{others}\n\n| SOP class | UID |\n|---|---|\n{_rows(rows)}"


def _storage_statuses() -> str:
    rows = [("0000", "stored, durable and indexed", "")]
    kinds = [*_leaves(errors.InstanceRefused), *_leaves(errors.NodeUnable), errors.NotAuthorised]
    rows += [_status_row(kind) for kind in kinds]
    return "| Status | Meaning | What to do |\n|---|---|---|\n" + _rows(sorted(set(rows)))


def _find_statuses() -> Iterator[tuple[str, str]]:
    yield "0000", "all matches were sent"
    yield "FF00", "a match"
    yield "FE00", "called off by C-CANCEL"
    for kind in (*_query_errors(errors.DestinationUnknown), errors.NotAuthorised, errors.IndexUnavailable):
        yield _hex(kind.dimse_status), _sentence(kind)
    yield "C311", "a fault of ours"


def _retrieve_statuses() -> Iterator[tuple[str, str]]:
    yield _hex(retrieve_scp.SUCCESS), "every sub-operation succeeded"
    yield _hex(retrieve_scp.PENDING), "sub-operations go on"
    yield _hex(retrieve_scp.SOME_FAILED), "some sub-operations failed, or ended with a warning"
    yield _hex(retrieve_scp.ALL_FAILED), "every sub-operation failed"
    yield _hex(retrieve_scp.CANCELED), "called off by C-CANCEL"
    for kind in (*_query_errors(errors.TooManyMatches), errors.NotAuthorised, errors.IndexUnavailable):
        yield _hex(kind.dimse_status), _sentence(kind)


def _query_errors(but: type[errors.NodeError]) -> list[type[errors.NodeError]]:
    return [kind for kind in _leaves(errors.QueryRefused) if kind is not but]


def _statuses(pairs: Iterable[tuple[str, str]]) -> str:
    return "| Status | Meaning |\n|---|---|\n" + _rows(sorted(set(pairs)))


def _failure_reasons() -> str:
    rows = [(_hex(code), meaning) for code, meaning in sorted(commitment.FAILURE_REASONS.items())]
    requested = "N-ACTION: 0000, 0110, 0112 (not the well-known instance), 0115, 0123 (action), 0124 (right)."
    return f"| Failure Reason | Meaning |\n|---|---|\n{_rows(rows)}\n\n{requested}"


def _keys() -> str:
    rows = []
    for level, keywords in matches.ANSWERED.items():
        for keyword in keywords:
            kind = "unique" if query_model.UNIQUE_KEYS[level] == keyword else "optional"
            rows.append((level, keyword, kind, "yes" if keyword in MATCHED else "returned only"))
    return "| Level | Key | Kind | Matched |\n|---|---|---|---|\n" + _rows(rows)


def _transactions() -> str:
    rows = [row for route in dicom_web_routes() for row in _route_rows(route)]
    return "| Method | Path | Transaction |\n|---|---|---|\n" + _rows(rows)


def _route_rows(route: BaseRoute) -> Iterator[tuple[str, str, str]]:
    if isinstance(route, WebSocketRoute):
        yield "WebSocket", f"`{route.path}`", TRANSACTIONS[route.endpoint.__name__]
    if isinstance(route, Route) and route.path != "/{path:path}":
        methods = ", ".join(sorted((route.methods or set()) - {"HEAD"}))
        yield methods, f"`{route.path}`", TRANSACTIONS[route.endpoint.__name__]


def _security() -> str:
    oldest = tls.OLDEST.name.replace("TLSv", "TLS ").replace("_", ".")
    return SECURITY.format(oldest=oldest, ciphers=", ".join(f"`{cipher}`" for cipher in tls.CIPHERS))


def _web_users() -> str:
    text = WEB_USERS.format(
        algorithms=", ".join(ALGORITHMS),
        account=failures.MOST_OF_ACCOUNT,
        address=failures.MOST_OF_ADDRESS,
        minutes=round(failures.WINDOW_S / 60),
    )
    rows = [(method, f"`{path}`", str(right)) for (method, path), right in _rights()]
    return f"{text}\n| Method | Address | Role |\n|---|---|---|\n{_rows(rows)}"


def _rights() -> Iterator[tuple[tuple[str, str], Right]]:
    for key, right in RIGHTS.items():
        method, path = key.split(" ", 1)
        yield (method.replace(WEBSOCKET, "WebSocket"), path), right


def _audit() -> str:
    text = AUDIT.format(pri=syslog.PRI, app=syslog.APP_NAME, msgid=syslog.MSGID, datagram=syslog.MAX_DATAGRAM)
    rows = [(code.meaning, f"{code.value}, {code.scheme}", when) for code, when in SENT.items()]
    return f"{text}\n| Audit message | Code | Sent for |\n|---|---|---|\n{_rows(rows)}"


def _configuration() -> str:
    sections = (
        ("dimse", DimseSettings),
        ("tls", TlsSettings),
        ("http", HttpSettings),
        ("oidc", OidcSettings),
        ("audit", AuditSettings),
        ("peers", PeerSettings),
    )
    rows = [
        (f"`{name}.{key}`", _default(section, key), field.description or "")
        for name, section in sections
        for key, field in section.model_fields.items()
    ]
    return "| Setting | Default | Meaning |\n|---|---|---|\n" + _rows(rows)


def _default(section: type[BaseModel], key: str) -> str:
    field = section.model_fields[key]
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, tuple):
        return ", ".join(str(entry) for entry in value) or "none"
    return {None: "none", True: "true", False: "false"}.get(value, str(value))


def _leaves(kind: type[errors.NodeError]) -> list[type[errors.NodeError]]:
    children = kind.__subclasses__()
    return [leaf for child in children for leaf in _leaves(child)] if children else [kind]


def _status_row(kind: type[errors.NodeError]) -> tuple[str, str, str]:
    return _hex(kind.dimse_status), _sentence(kind), kind.advice


def _sentence(kind: type[errors.NodeError]) -> str:
    return _first_sentence(kind).rstrip(".")


def _first_sentence(thing: object) -> str:
    return (inspect.getdoc(thing) or "").split("\n")[0].replace("|", "\\|")


def _hex(code: int) -> str:
    return f"{code:04X}"


def _name(uid: str) -> str:
    name = UID(uid).name
    return name if name != uid else "(newer than the library's table)"


def _is_retired(uid: str) -> bool:
    return uid in UID_dictionary and UID_dictionary[uid][3] == "Retired"


def _by_number(uid: str) -> tuple[int, ...]:
    return tuple(int(part) for part in uid.split("."))


def _pairs(*pairs: tuple[str, str]) -> str:
    return "| | |\n|---|---|\n" + _rows(pairs)


def _rows(rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(arguments: list[str]) -> int:
    """With --write, write the file; without, say whether it is up to date."""
    text = render()
    if arguments == ["--write"]:
        TARGET.write_text(text, encoding="utf-8")
        return 0
    if TARGET.read_text(encoding="utf-8") == text:
        return 0
    print("deploy/CONFORMANCE.md is out of date: python -m scripts.conformance --write")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
