"""The panel of questions about one study, and its files; it opens beside OHIF or in a window of its own."""

from collections.abc import Sequence
from html import escape
from typing import Final

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from dicom_node.errors import BadRequest, NotFound
from dicom_node.questions import MAX_QUERY, series_with_images, suggestions
from dicom_node.uids import checked_uid
from dicom_node.web.ask_script import PANEL_SCRIPT, VIEWER_SCRIPT
from dicom_node.web.operations import viewer_link
from dicom_node.web.services import FRESH, RESEARCH_USE, services_of
from storage.index import find_study
from storage.tables import Series

PANEL_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; form-action 'none'; "
    "frame-ancestors 'self'; base-uri 'none'"
)
STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 40rem; padding: 1rem;
  color: #1b1f24; background: #fff }
h1 { font-size: 1.2rem; margin: 0 0 .5rem } h2 { font-size: 1rem; margin: 1rem 0 .3rem }
label { display: block; margin: .8rem 0 .2rem; font-weight: 600 }
textarea, select { font: inherit; width: 100%; box-sizing: border-box; padding: .4rem }
.choice { font-weight: 400 } .notice { color: #57606a; font-size: .85rem } .bad { color: #a40e26 }
button { font: inherit; padding: .4rem .9rem; cursor: pointer } .suggestion { margin: .2rem .3rem .2rem 0;
  padding: .1rem .6rem; font-size: .85rem; text-align: left }
:focus-visible { outline: 3px solid #0969da; outline-offset: 2px } [hidden] { display: none }
dl { margin: 0 } dt { font-weight: 600 } dd { margin: 0 0 .4rem; overflow-wrap: anywhere }
@media (prefers-color-scheme: dark) {
  body { background: #0d1117; color: #e6edf3 } .notice { color: #9198a1 } .bad { color: #ff7b72 }
  a { color: #58a6ff }
}
"""


def show_panel(request: Request) -> Response:
    """Answer GET /ask?StudyInstanceUIDs={study}."""
    named = request.query_params.get("StudyInstanceUIDs", "").split(",")[0]
    if not named:
        raise BadRequest("the address names no study: open /ask?StudyInstanceUIDs=UID")
    study = str(checked_uid(named, "StudyInstanceUIDs"))
    services = services_of(request)
    with services.database.reading() as tx:
        if find_study(tx, study) is None:
            raise NotFound("no study of this UID is stored here: send its images first")
        series = series_with_images(tx, study)
        offered = suggestions(tx, series, services.settings)
        page = _page(study, series, offered, can_send=bool(services.settings.destinations))
    return HTMLResponse(page, 200, FRESH | {"Content-Security-Policy": PANEL_POLICY})


def show_panel_script(request: Request) -> Response:
    """Answer GET /ask/panel.js."""
    del request
    return Response(PANEL_SCRIPT, 200, FRESH, "text/javascript; charset=utf-8")


def show_viewer_script(request: Request) -> Response:
    """Answer GET /ask/viewer.js, which adds the button to OHIF."""
    del request
    return Response(VIEWER_SCRIPT, 200, FRESH, "text/javascript; charset=utf-8")


def show_panel_style(request: Request) -> Response:
    """Answer GET /ask/style.css."""
    del request
    return Response(STYLE, 200, FRESH, "text/css; charset=utf-8")


def _page(study: str, series: Sequence[Series], offered: Sequence[str], *, can_send: bool) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<title>Ask about this study</title>"
        '<link rel="stylesheet" href="/ask/style.css"><script src="/ask/panel.js" defer></script></head>'
        f'<body data-study="{escape(study)}"><main><h1>Ask about this study</h1>'
        f"{_form(series, offered, can_send=can_send)}{_ANSWER}"
        f'<p class="notice">{RESEARCH_USE} '
        f'<a href="{escape(viewer_link(study, None))}" target="_top">Viewer</a></p></main></body></html>'
    )


def _form(series: Sequence[Series], offered: Sequence[str], *, can_send: bool) -> str:
    if not series:
        return '<p class="bad">The study has no images here: send them first.</p>'
    buttons = "".join(
        f'<button type="button" class="suggestion">{escape(question)}</button>' for question in offered
    )
    options = "".join(
        f'<option value="{escape(each.series_instance_uid)}">{escape(_name(each))}</option>'
        for each in series
    )
    send = '<label class="choice"><input type="checkbox" id="send"> Send the result to the PACS</label>'
    return (
        '<form id="ask"><label for="question">Question</label>'
        f'<textarea id="question" rows="2" maxlength="{MAX_QUERY}" required autofocus></textarea>'
        f'<div role="group" aria-label="Suggested questions">{buttons}</div>'
        '<label for="series">Series</label><select id="series">'
        f'<option value="">The one that fits the question</option>{options}</select>'
        f'{send if can_send else ""}<p><button type="submit" id="submit">Ask</button></p></form>'
    )


_ANSWER: Final = (
    '<section aria-labelledby="state"><h2 id="state" role="status" aria-live="polite"></h2>'
    '<dl id="said"></dl><p id="links" hidden><a id="overlay" target="_top">Show it in the viewer</a></p>'
    '<p><button type="button" id="deliver" hidden>Send to the PACS</button></p></section>'
)


def _name(series: Series) -> str:
    number = "" if series.series_number is None else f" {series.series_number}"
    return f"Series{number}, {series.modality or 'images'}, …{series.series_instance_uid[-8:]}"
