"""OHIF at the web root: its files, its pages, its generated configuration; and the page without it."""

import gzip
import json

import pytest

BUNDLE = "window.ohif = 1;\n" * 200


@pytest.fixture
def site(tmp_path):
    """A folder as OHIF's dist."""
    root = tmp_path / "dist"
    (root / "assets").mkdir(parents=True)
    (root / "index.html").write_text("<!doctype html><title>OHIF Viewer</title>" + " " * 2000)
    (root / "app.bundle.0123456789abcdef0123.js").write_text(BUNDLE)
    (root / "app-config.js").write_text("window.config = 'the wrong one'")
    (root / "decoder.wasm").write_bytes(b"\0asm" + bytes(2000))
    (root / "assets" / "font.woff2").write_bytes(b"wOF2")
    (root / "manifest.json").write_text("{}")
    (tmp_path / "secret.txt").write_text("outside")
    (root / "link.txt").symlink_to(tmp_path / "secret.txt")
    return root


@pytest.fixture
def sections(site):
    return {"viewer": {"ohif_root": site}, "limits": {"min_free_mb": 0}}


@pytest.mark.parametrize(
    "address",
    ["/", "/viewer?StudyInstanceUIDs=1.2.3", "/segmentation?x=1", "/any/page", "/index.html", "/link.txt"],
)
def test_pages_of_the_router_are_the_index(client, address):
    answer = client.get(address)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "OHIF Viewer" in answer.text
    assert "wasm-unsafe-eval" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("end", ["", "<body><div></div></body></html>"])
def test_the_page_has_the_button_for_questions_once_at_its_end(client, site, end):
    (site / "index.html").write_text("<!doctype html><title>OHIF Viewer</title>" + end)
    page = client.get("/viewer?StudyInstanceUIDs=1.2.3").text
    button = '<script src="/ask/viewer.js" defer></script>'
    assert page.count(button) == 1
    assert page.removesuffix("</body></html>").endswith(button)
    assert page.replace(button, "").endswith(f"OHIF Viewer</title>{end}")


@pytest.mark.parametrize(
    ("address", "content_type", "caching"),
    [
        ("/app.bundle.0123456789abcdef0123.js", "text/javascript", "immutable"),
        ("/decoder.wasm", "application/wasm", "no-cache"),
        ("/assets/font.woff2", "font/woff2", "no-cache"),
        ("/manifest.json", "application/json", "no-cache"),
    ],
)
def test_files_have_their_types(client, address, content_type, caching):
    answer = client.get(address)
    assert answer.headers["content-type"].split(";")[0] == content_type
    assert caching in answer.headers["cache-control"]


def test_large_files_are_compressed_once(client, tmp_path):
    address = "/app.bundle.0123456789abcdef0123.js"
    for _time in range(2):
        answer = client.get(address, headers={"accept-encoding": "gzip"})
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.text == BUNDLE
    (kept,) = (tmp_path / "cache" / "viewer").iterdir()
    assert gzip.decompress(kept.read_bytes()).decode() == BUNDLE
    plain = client.get(address, headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.text == BUNDLE


@pytest.mark.parametrize(
    "address", ["/..%2Fsecret.txt", "/%2e%2e/secret.txt", "//etc/passwd", "/%00", "/" + "x" * 5000]
)
def test_nothing_outside_the_folder_is_shown(client, address):
    answer = client.get(address)
    assert "outside" not in answer.text
    assert "root:" not in answer.text
    assert answer.status_code in (200, 400, 404)


def test_the_configuration_is_ours(client):
    answer = client.get("/app-config.js")
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    settings, _, script = answer.text.partition(";\n")
    configuration = json.loads(settings.removeprefix("window.config = "))
    assert "onBeforeSRAddMeasurement" in script  # tests/flow/test_overlay_in_ohif.py has what it does
    (source,) = configuration["dataSources"]
    assert configuration["defaultDataSourceName"] == source["sourceName"]
    assert source["configuration"]["qidoRoot"] == source["configuration"]["wadoRoot"] == "/dicom-web"
    assert "staticWado" not in source["configuration"]
    assert configuration["investigationalUseDialog"] == {"option": "never"}
    assert "Research use only" in source["configuration"]["friendlyName"]


@pytest.mark.parametrize("address", ["/dicom-web/nothing", "/api/nothing", "/dicom-web", "/api"])
def test_services_do_not_fall_back_to_the_page(client, address):
    answer = client.get(address)
    assert "OHIF Viewer" not in answer.text or address in ("/dicom-web", "/api")
    if address.count("/") > 1:
        assert answer.status_code == 404
        assert answer.json()["advice"]


class TestWithoutOhif:
    @pytest.fixture
    def sections(self):
        return {"limits": {"min_free_mb": 0}}

    def test_the_root_says_how_to_get_it(self, client):
        answer = client.get("/")
        assert answer.status_code == 200
        assert "@ohif/app@3.13.2" in answer.text
        assert "Not a medical device" in answer.text

    def test_other_addresses_are_404(self, client):
        assert client.get("/favicon.ico").status_code == 404
