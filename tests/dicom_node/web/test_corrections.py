"""What people made of our results, as an operator and Prometheus see it; who they are stays inside."""

import pytest

from storage.tables import Correction

PERSON = "Reader^Rosa"


@pytest.fixture
def judged(database):
    """Two verdicts on one version of a model, one on the next, and one that is still to come."""
    verdicts = [
        ("1.0", "MODIFIED", 0.5),
        ("1.0", "ACCEPTED", 1.0),
        ("2.0", "REJECTED", 0.0),
        (None, "PENDING", None),
    ]
    with database.transaction() as tx:
        for number, (version, verdict, dice) in enumerate(verdicts):
            tx.add(
                Correction(
                    sop_instance_uid=f"1.2.{number}",
                    study_instance_uid="1.2",
                    verdict=verdict,
                    sender="VIEWER<1>",
                    made_by=PERSON,
                    received_at=float(number),
                    model=None if version is None else "sim4seg-s",
                    model_version=version,
                    result_uid=None if version is None else "1.3",
                    dice=None if dice is None else f'{{"lesion": {dice}}}',
                )
            )


def test_they_are_counted_by_model_and_listed_newest_first(client, judged):
    answer = client.get("/api/corrections").json()
    first = {"model": "sim4seg-s", "model_version": "1.0", "accepted": 1, "modified": 1, "rejected": 0}
    assert answer["models"] == [
        first,
        first | {"model_version": "2.0", "accepted": 0, "modified": 0, "rejected": 1},
    ]
    assert [each["verdict"] for each in answer["corrections"]] == [
        "PENDING",
        "REJECTED",
        "ACCEPTED",
        "MODIFIED",
    ]
    assert answer["corrections"][-1]["dice"] == {"lesion": 0.5}
    page = client.get("/api/corrections?limit=1&offset=1").json()
    assert [each["verdict"] for each in page["corrections"]] == ["REJECTED"]


def test_the_operator_and_prometheus_see_the_counts(client, judged):
    page = client.get("/operator").text
    assert "What people made of our results" in page
    assert "<td>sim4seg-s</td><td>1.0</td><td>1</td><td>1</td><td>0</td>" in page
    metrics = client.get("/metrics").text
    assert 'dicom_node_corrections{model="sim4seg-s",verdict="rejected",version="2.0"} 1.0' in metrics
    assert 'verdict="pending"' not in metrics


def test_no_name_of_a_person_leaves(client, judged):
    for address in ("/api/corrections", "/operator", "/metrics"):
        assert "Rosa" not in client.get(address).text


def test_without_any_there_is_no_table(client):
    assert client.get("/api/corrections").json() == {"models": [], "corrections": []}
    assert "What people made" not in client.get("/operator").text
