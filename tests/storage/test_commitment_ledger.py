"""Storage Commitment in the database: what we asked, and reports that one worker at a time holds."""

from storage.commitment_ledger import (
    CommitmentState,
    Reference,
    ReportState,
    claim_report,
    commitment_outcome,
    due_reports,
    extend_report,
    finish_report,
    forget_request,
    queue_report,
    record_answer,
    record_request,
    retry_report_later,
)

BOTH = [Reference("1.2", "1.2.1"), Reference("1.2", "1.2.2")]


def test_an_answer_is_taken_once_and_from_who_was_asked(db):
    with db.transaction() as tx:
        record_request(tx, "9.1", "PACS", BOTH)
        assert commitment_outcome(tx, "9.1").state is CommitmentState.PENDING
        assert not record_answer(tx, "9.1", "OTHER", ["1.2.1", "1.2.2"], {})
        assert not record_answer(tx, "9.2", "PACS", ["1.2.1", "1.2.2"], {})
        assert record_answer(tx, "9.1", "PACS", ["1.2.1"], {"1.2.2": 0x0112})
        assert record_answer(tx, "9.1", "PACS", ["1.2.1", "1.2.2"], {})
    with db.reading() as tx:
        outcome = commitment_outcome(tx, "9.1")
    assert (outcome.state, outcome.failed) == (CommitmentState.FAILED, {"1.2.2": 0x0112})


def test_what_an_answer_leaves_out_is_not_committed(db):
    with db.transaction() as tx:
        record_request(tx, "9.1", "PACS", BOTH)
        record_answer(tx, "9.1", "PACS", ["1.2.1"], {})
        assert commitment_outcome(tx, "9.1").failed == {"1.2.2": 0x0110}
        forget_request(tx, "9.1")
    with db.reading() as tx:
        assert commitment_outcome(tx, "9.1") is None


def test_a_report_is_held_by_one_and_comes_back_until_it_is_done(db):
    with db.transaction() as tx:
        queue_report(tx, "9.1", "MODALITY", BOTH)
        queue_report(tx, "9.1", "MODALITY", BOTH)
        (report_id,) = due_reports(tx)
    with db.transaction() as tx:
        first = claim_report(tx, report_id, "a", 60)
        assert claim_report(tx, report_id, "b", 60) is None
        assert (first.references, first.attempt, first.is_duplicate) == (tuple(BOTH), 1, False)
        assert extend_report(tx, first, 60)
        assert retry_report_later(tx, first, "no answer", 0)
    with db.transaction() as tx:
        second = claim_report(tx, report_id, "b", 60)
        assert not finish_report(tx, first, ReportState.REPORTED, "0x0000")
        assert finish_report(tx, second, ReportState.REPORTED, "0x0000")
    with db.transaction() as tx:
        assert due_reports(tx) == []
        queue_report(tx, "9.1", "MODALITY", BOTH)
        assert len(due_reports(tx)) == 1


def test_a_transaction_uid_in_use_for_others_is_a_duplicate(db):
    with db.transaction() as tx:
        queue_report(tx, "9.1", "MODALITY", BOTH[:1])
        queue_report(tx, "9.1", "MODALITY", BOTH[1:])
        queue_report(tx, "9.1", "OTHER", BOTH[1:])
        claimed = [claim_report(tx, report_id, "a", 60) for report_id in due_reports(tx)]
    assert sorted((report.ae_title, report.is_duplicate) for report in claimed) == [
        ("MODALITY", False), ("MODALITY", True), ("OTHER", False),
    ]  # fmt: skip
