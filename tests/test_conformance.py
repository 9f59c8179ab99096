"""The conformance statement: up to date, and true where it can be asked."""

import re

from dicom_node.dimse.negotiation import is_storage
from scripts import conformance


def test_the_statement_is_what_the_code_says():
    assert conformance.TARGET.read_text(encoding="utf-8") == conformance.render(), (
        "run: python -m scripts.conformance --write"
    )


def test_a_changed_table_would_be_noticed(monkeypatch):
    before = conformance.render()
    monkeypatch.setitem(conformance.TRANSACTIONS, "store_instances", "Store (changed)")
    assert conformance.render() != before


def test_every_storage_class_of_it_is_offered():
    section = conformance.render().split("### 3.8")[1].split("## 4")[0]
    uids = re.findall(r"\| ([0-9.]{10,}) \|", section)
    assert len(uids) > 150
    assert all(is_storage(uid) for uid in uids)


def test_it_fits_what_people_ask_of_it():
    text = conformance.render()
    for word in ("Preamble", "A801", "A702", "BCP 195", "1.2.840.10008.1.20.1", "/workitems", "ISO_IR 192"):
        assert word in text
