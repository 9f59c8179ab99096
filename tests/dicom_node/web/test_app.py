"""What holds for every answer: headers, methods, long addresses, and failures that show nothing."""

import pytest

from dicom_node.web import qido


@pytest.mark.parametrize(
    "address",
    ["/", "/health/live", "/dicom-web/studies", "/dicom-web/nothing", "/api/jobs", "/operator", "/metrics"],
)
def test_security_headers_are_everywhere(client, address):
    headers = client.get(address).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["content-security-policy"]
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "OPTIONS"])
@pytest.mark.parametrize("address", ["/dicom-web/studies", "/api/jobs", "/health/live", "/"])
def test_other_methods_are_405(client, address, method):
    answer = client.request(method, address, headers={"origin": "https://evil.example"})
    is_kept_out = address.startswith(("/api", "/dicom-web")) and method in ("PUT", "DELETE", "PATCH")
    assert answer.status_code == (403 if is_kept_out else 405)
    assert "access-control-allow-origin" not in answer.headers


def test_a_long_address_is_400(client):
    assert client.get(f"/dicom-web/studies?PatientName={'x' * 20_000}").status_code == 400


@pytest.mark.parametrize(
    "address",
    ["/dicom-web/studies/%00", "/dicom-web/studies//series", "/dicom-web/studies/..%2f..%2fetc/metadata"],
)
def test_tricks_with_addresses_are_400_or_404(client, address):
    assert client.get(address).status_code in (400, 404)


def test_many_ranges_cost_nothing(client):
    answer = client.get(
        "/operator/style.css", headers={"range": "bytes=" + ",".join(f"{n}-" for n in range(2000))}
    )
    assert answer.status_code == 200


def test_a_fault_of_ours_is_500_without_details(app, client, monkeypatch, caplog):
    def fail(_request, _matchers):
        raise ZeroDivisionError("Müller")

    monkeypatch.setattr(qido, "read_query", fail)
    answer = client.get("/dicom-web/studies")
    assert answer.status_code == 500
    assert set(answer.json()) == {"error", "advice"}
    assert "Müller" not in answer.text
    assert "Traceback" not in answer.text
    assert "failed unexpectedly" in caplog.text
    assert client.get("/health/live").status_code == 200
