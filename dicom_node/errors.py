"""NodeError tree; every leaf carries dimse_status, http_status, is_retryable.

```text
NodeError
+-- InstanceRefused                  one instance was not taken; nothing of it counts as stored
|   +-- Unparseable                  0xC000  400  the bytes are not a DICOM data set we can walk
|   +-- UidMismatch                  0xA900  409  a UID is missing, or differs from what was announced
|   +-- StudyMismatch                0xA900  409  the request named another study
|   +-- IllegalUid                   0x0117  400  a UID has the wrong form
|   +-- ConflictingInstance          0x0111  409  the SOP Instance UID is taken by other content
|   +-- SopClassNotSupported         0x0122  409  not the SOP class that was agreed on
|   +-- UnresolvedBulkData           0xC000  409  metadata name a value that is not in the request
|   +-- TransferSyntaxNotSupported   0x0122  409  the encoding is not one of the standard's
|   +-- InstanceTooLarge             0xA700  413  larger than this node is set up to take
+-- NodeUnable                       the instance may be fine, the node is not
|   +-- StorageExhausted             0xA700  507  the disk reserve is reached
|   +-- IndexUnavailable             0xA700  503  the database does not answer
|   +-- UnexpectedFailure            0x0110  500  a fault of ours
|   +-- ChildrenBusy                 0xA700  503  every limited child is at work
|   +-- InputUnreadable              0xA700  503  a stored file is missing, damaged, or not given by the disk
|   +-- StoredDamaged                0xC000  500  a stored file has other bytes than were stored
+-- ChildFailed                      content of an instance could not be worked on in its limited child
|   +-- PixelBudgetExceeded          0xC000  406  it needed more memory or time than allowed
|   +-- DecodeFailed                 0xC000  406  the decoder refused it
|   +-- ChildKilled                  0xC000  406  it ended the child
|       +-- ChildGone                0xC000  406  somebody else ended the child
+-- NotAuthorised                    0x0124  403  known, but not allowed
+-- QueryRefused                     a C-FIND, C-MOVE or C-GET that is not carried out
|   +-- BadIdentifier                0xA900  400  its keys do not fit the level or the SOP class
|   +-- UnreadableIdentifier         0xC000  400  it cannot be decoded
|   +-- DestinationUnknown           0xA801  400  the move destination is not in the configuration
|   +-- TooManyMatches               0xA700  413  more than this node gives at once
+-- RequestRefused                   an HTTP request that cannot be answered
|   +-- BadRequest                   0x0115  400
|   +-- NotFound                     0x0112  404
|   +-- NotAcceptable                0x0122  406
|   +-- ConflictingState             0x0110  409  a workitem cannot be changed so, or is here already
|   +-- NotAskable                   0x0110  409  there is nothing that a question could be about
|   +-- QuestionRefused              0x0115  422  a question, or a model, that cannot be asked
|   +-- CannotRepeat                 0x0110  409  a job or delivery is none that can be asked for once more
|   +-- BodyTooSlow                  0xA700  408
|   +-- BodyTooLarge                 0xA700  413
|   +-- UnsupportedMediaType         0x0122  415
+-- PeerError                        a peer we called did not do what we asked
    +-- PeerUnreachable              0xA700  502  no connection, or it broke
    +-- TlsUnusable                  0xA700  503  our certificate, key or authorities cannot be used
    +-- AssociationRejected          0x0122  502  it answered, and refused us
```

Source: PS3.4 B.2.3 and GG.4, PS3.7 Annex C, PS3.18 10.5.3 and Table I.2-2.
"""

from typing import ClassVar, Final

from dicom_node.answers import Answer

INPUT_UNREADABLE: Final = "INPUT_UNREADABLE"  # the word that such a job's reason begins with


class NodeError(Exception):
    """What went wrong in the node, as told to a peer by DIMSE or HTTP."""

    dimse_status: ClassVar[int]
    http_status: ClassVar[int]
    stow_failure_reason: ClassVar[int]  # Failure Reason (0008,1197)
    is_retryable: ClassVar[bool] = False
    advice: ClassVar[str]  # one sentence: what to do


class InstanceRefused(NodeError):
    """One instance was not taken."""


class Unparseable(InstanceRefused):
    """The bytes are not a DICOM data set that can be walked within the limits."""

    dimse_status = 0xC000
    http_status = 400
    stow_failure_reason = 0xC000
    advice = "Check the object at its source, with dcmdump or dciodvfy, and send it again whole."


class UidMismatch(InstanceRefused):
    """A UID is missing in the data set, or differs from the one announced beside it."""

    dimse_status = 0xA900
    http_status = 409
    stow_failure_reason = 0xA900
    advice = "Correct the UIDs at the source: data set, file meta information and command must agree."


class StudyMismatch(InstanceRefused):
    """The instance belongs to another study than the one that the request named."""

    dimse_status = 0xA900
    http_status = 409
    stow_failure_reason = 0xA901
    advice = "Send it to /dicom-web/studies, or to the address of the study it belongs to."


class IllegalUid(InstanceRefused):
    """A UID has the wrong form: other characters than digits and dots, or more than 64 of them."""

    dimse_status = 0x0117
    http_status = 400
    stow_failure_reason = 0x0117
    advice = "Correct the UID at the source: 1 to 64 characters, digits and dots only."


class ConflictingInstance(InstanceRefused):
    """The SOP Instance UID is taken by other content; the first stays, the second is set aside."""

    dimse_status = 0x0111
    http_status = 409
    stow_failure_reason = 0x0111
    advice = "Give changed content a new SOP Instance UID; the content received first is kept."


class SopClassNotSupported(InstanceRefused):
    """The SOP class is not the one that was agreed on."""

    dimse_status = 0x0122
    http_status = 409
    stow_failure_reason = 0x0122
    advice = "Propose a presentation context for each SOP class that is sent, and send each on its own."


class UnresolvedBulkData(InstanceRefused):
    """Metadata name bulk data that the request does not hold; addresses are never followed."""

    dimse_status = 0xC000
    http_status = 409
    stow_failure_reason = 0xC000
    advice = "Send the value as a part of the same request, with the BulkDataURI as its Content-Location."


class TransferSyntaxNotSupported(InstanceRefused):
    """The transfer syntax is not one that the standard defines."""

    dimse_status = 0x0122
    http_status = 409
    stow_failure_reason = 0xC122
    advice = "Send it in a transfer syntax of PS3.5, such as Explicit VR Little Endian."


class InstanceTooLarge(InstanceRefused):
    """The instance is larger than this node is set up to take."""

    dimse_status = 0xA700
    http_status = 413
    stow_failure_reason = 0xA700
    advice = "Raise limits.max_instance_mb in the node's configuration if such objects are expected."


class NodeUnable(NodeError):
    """The instance may be fine; the node cannot take it now."""


class StorageExhausted(NodeUnable):
    """The disk reserve is reached, or the disk or quota is full."""

    dimse_status = 0xA700
    http_status = 507
    stow_failure_reason = 0xA700
    is_retryable = True
    advice = "Free or add disk space below the node's home; then send again."


class IndexUnavailable(NodeUnable):
    """The database does not answer, so nothing can be promised."""

    dimse_status = 0xA700
    http_status = 503
    stow_failure_reason = 0xA700
    is_retryable = True
    advice = "Send again later; the operator finds the reason at /health/ready."


class UnexpectedFailure(NodeUnable):
    """A fault of ours; details are in the log only."""

    dimse_status = 0x0110
    http_status = 500
    stow_failure_reason = 0x0110
    is_retryable = True
    advice = "Try again; if it stays, the operator finds the details in the log."


class ChildrenBusy(NodeUnable):
    """Every limited child is at work, and none came free in time."""

    dimse_status = 0xA700
    http_status = 503
    stow_failure_reason = 0xA700
    is_retryable = True
    advice = "Ask again later, or for fewer frames at once."


class StoredDamaged(NodeUnable):
    """A stored file has other bytes than were stored."""

    dimse_status = 0xC000
    http_status = 500
    stow_failure_reason = 0x0110
    advice = "The operator finds it with `dicom-node fsck` and restores it from the backup."


class InputUnreadable(NodeUnable):
    """A stored file is missing or damaged, or the disk or the object store does not give its bytes."""

    dimse_status = 0xA700
    http_status = 503
    stow_failure_reason = 0xA700
    is_retryable = True
    advice = "Run `dicom-node fsck`, and restore the file or have the study sent again; then requeue the job."

    def __init__(self, message: str) -> None:
        is_said = message.startswith(INPUT_UNREADABLE)  # it came back from a child process
        super().__init__(message if is_said else f"{INPUT_UNREADABLE}: {message}")


class ChildFailed(NodeError):
    """Content of an instance could not be worked on within the limits of a child process."""

    code: ClassVar[str]  # one word, for reasons of jobs
    dimse_status = 0xC000
    http_status = 406
    stow_failure_reason = 0xC000
    advice = "Retrieve it as it is stored, with transfer-syntax=*, and check the object at its source."


class PixelBudgetExceeded(ChildFailed):
    """It needed more memory, processor time or time than one object may take."""

    code = "PIXEL_BUDGET"


class DecodeFailed(ChildFailed):
    """What worked on it refused it: the bytes are not what the header says."""

    code = "DECODE_FAILED"


class ChildKilled(ChildFailed):
    """It ended the child process that worked on it."""

    code = "CHILD_KILLED"


class ChildGone(ChildKilled):
    """Somebody else killed the child (SIGKILL), or the kernel for want of memory: another try may do."""

    is_retryable = True


class NotAuthorised(NodeError):
    """The caller is known, but may not do this."""

    dimse_status = 0x0124
    http_status = 403
    stow_failure_reason = 0x0124
    advice = "Ask the operator of this node for permission."


class QueryRefused(NodeError):
    """A query or retrieval was not carried out."""


class BadIdentifier(QueryRefused):
    """The keys of a query do not fit its level or its SOP class."""

    dimse_status = 0xA900
    http_status = 400
    stow_failure_reason = 0xA900
    advice = "Correct the Query/Retrieve Level and the keys; see the conformance statement."


class UnreadableIdentifier(QueryRefused):
    """The identifier of a query cannot be decoded."""

    dimse_status = 0xC000
    http_status = 400
    stow_failure_reason = 0xC000
    advice = "Send the identifier in the transfer syntax that was negotiated."


class DestinationUnknown(QueryRefused):
    """The destination of a C-MOVE is no AE of our configuration."""

    dimse_status = 0xA801
    http_status = 400
    stow_failure_reason = 0xA801
    advice = "Add the destination to [[peers]] in the node's configuration."


class TooManyMatches(QueryRefused):
    """There are more matches than this node gives at once."""

    dimse_status = 0xA700
    http_status = 413
    stow_failure_reason = 0xA700
    advice = "Ask for less, or raise dimse.max_matches in the node's configuration."


class RequestRefused(NodeError):
    """An HTTP request that cannot be answered."""


class BadRequest(RequestRefused):
    """The request does not have the form that its service asks for."""

    dimse_status = 0x0115
    http_status = 400
    stow_failure_reason = 0xC000
    advice = "Compare the request with PS3.18 and send it again."


class NotFound(RequestRefused):
    """There is nothing at this address."""

    dimse_status = 0x0112
    http_status = 404
    stow_failure_reason = 0x0112
    advice = "Search for it under /dicom-web/studies."


class NotAcceptable(RequestRefused):
    """None of the accepted media types can be given."""

    dimse_status = 0x0122
    http_status = 406
    stow_failure_reason = 0x0122
    advice = "Accept one of the media types named, or */*."


class ConflictingState(RequestRefused):
    """The workitem's state, its lock or what it is about does not allow this."""

    dimse_status = 0x0110
    http_status = 409
    stow_failure_reason = 0x0110
    advice = "Retrieve the workitem, and compare the request with PS3.4 Table CC.1.1-2."


class NotAskable(RequestRefused):
    """There are no images here that this could be asked of, or nobody that the answer could be sent to."""

    dimse_status = 0x0110
    http_status = 409
    stow_failure_reason = 0x0110
    advice = "See which series of images the study has under /dicom-web/studies, and which rules there are."


class QuestionRefused(RequestRefused):
    """A question that no model is asked, or a model that is not here."""

    dimse_status = 0x0115
    http_status = 422
    stow_failure_reason = 0x0110
    advice = "Ask one sentence of at most 400 characters, and leave the model to the rules of this node."


class CannotRepeat(RequestRefused):
    """A job or delivery is none that an operator can ask for once more."""

    dimse_status = 0x0110
    http_status = 409
    stow_failure_reason = 0x0110
    advice = "Look at /api/dead-letters: jobs that failed on the present images, deliveries not under way."


class BodyTooSlow(RequestRefused):
    """The body of the request comes slower than a request may."""

    dimse_status = 0xA700
    http_status = 408
    stow_failure_reason = 0xA700
    is_retryable = True
    advice = "Send the body again without pauses."


class BodyTooLarge(RequestRefused):
    """The body of the request is larger than this node is set up to take."""

    dimse_status = 0xA700
    http_status = 413
    stow_failure_reason = 0xA700
    advice = "Send fewer instances in one request, or raise http.max_body_mb."


class UnsupportedMediaType(RequestRefused):
    """The body has a media type that this service does not take."""

    dimse_status = 0x0122
    http_status = 415
    stow_failure_reason = 0x0122
    advice = 'Send multipart/related; type="application/dicom", or one application/dicom object.'


class PeerError(NodeError):
    """A peer that we called did not do what we asked; `answer` says how it ended, where that is known."""

    def __init__(self, message: str, answer: Answer | None = None) -> None:
        super().__init__(message)
        self.answer = answer


class PeerUnreachable(PeerError):
    """There is no connection to the peer, or it broke."""

    dimse_status = 0xA700
    http_status = 502
    stow_failure_reason = 0xA700
    is_retryable = True
    advice = "Check host and port of the peer, and that it runs."


class TlsUnusable(PeerError):
    """Our certificate, its key or the trusted authorities cannot be used; nothing goes out in plain."""

    dimse_status = 0xA700
    http_status = 503
    stow_failure_reason = 0xA700
    is_retryable = True
    advice = "Correct the section [tls] of the configuration, or the files that it names."


class AssociationRejected(PeerError):
    """The peer answered and refused the association."""

    dimse_status = 0x0122
    http_status = 502
    stow_failure_reason = 0x0122
    is_retryable = True
    advice = "Have this node's AE title, host and port registered at the peer."
