"""OHIF in a browser on a study with a result in every form: the overlay is on, and nothing is refused."""

from pathlib import Path

import pytest
from playwright.sync_api import Page

from dicom_node.forms.form import Form
from tests import builders, formed
from tests.flow.test_ohif import open_study, page, viewport_when
from tests.flow.test_ohif_modalities import Site, site

__all__ = ["page", "site"]
pytestmark = [pytest.mark.shared, pytest.mark.timeout(400)]


def test_other_forms_in_a_study_leave_its_overlay_alone(site: Site, page: Page, tmp_path: Path) -> None:
    mask = builders.make_ellipse((120, 160), (60, 80), (25, 31))
    source = builders.make_ultrasound(mask)
    result = formed.formed(tmp_path / "in", [source])
    refused: list[str] = []
    page.on("response", lambda answer: refused.append(answer.url) if answer.status >= 400 else None)
    address = site.show(builders.write_datasets(tmp_path / "out", [source, *result.datasets]))
    series = formed.one(result, Form.SEG).SeriesInstanceUID
    open_study(page, f"{address}&initialSeriesInstanceUID={series}")
    _, coloured = viewport_when(page, lambda count: count > mask.sum())
    assert coloured > mask.sum()  # the image is grey, and enlarged
    for label in ("SEG", "SR", "DOC", "KO", "PR"):
        assert page.get_by_text(label, exact=True).count() >= 1, label
    assert refused == []
