"""OHIF's static site at the web root, and its generated app-config.js.

OHIF's npm build works at the web root only. Any address that is no file is a page of its router, hence
index.html. Its bundles are large and not minified, so they are compressed once and kept.

Source: interop notes on @ohif/app 3.13.2.
"""

import gzip
import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response

from dicom_node.errors import NotFound
from dicom_node.product import MANUFACTURER
from dicom_node.web.services import DICOM_WEB, RESEARCH_USE, services_of

CONTENT_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".map": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".onnx": "application/octet-stream",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".ttf": "font/ttf",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
}
COMPRESSED: Final = frozenset(
    {".css", ".html", ".js", ".json", ".map", ".mjs", ".svg", ".ttf", ".txt", ".wasm"}
)
MIN_COMPRESSED_BYTES: Final = 1024
COMPRESSION_LEVEL: Final = 6
VIEWER_POLICY: Final = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' 'wasm-unsafe-eval' blob:; "
    "worker-src 'self' blob:; img-src 'self' data: blob:; connect-src 'self' data: blob:; "
    "style-src 'self' 'unsafe-inline'; font-src 'self' data:; object-src 'none'; base-uri 'self'; "
    "frame-ancestors 'self'"
)
"""OHIF has inline scripts, compiles functions at run time (cwise) and starts workers from blobs."""
OUTLINES: Final = f"""\
// OHIF 3.13 takes the distance of rows for that of columns as it draws outlines of a report, and so draws
// them beside their region where pixels are not square. Ours are given so that they come out right; its own
// are written with the same mistake, and left alone.
window.config.customizationService.onBeforeSRAddMeasurement = {{
  $set: ({{ measurement, SeriesInstanceUID }}) => {{
    const sets = window.services.displaySetService.getActiveDisplaySets();
    const report = sets.find((each) => each.SeriesInstanceUID === SeriesInstanceUID);
    if (report?.instance?.Manufacturer !== {json.dumps(MANUFACTURER)}) return measurement;
    for (const coords of measurement.coords) {{
      const uid = coords.ReferencedSOPSequence?.ReferencedSOPInstanceUID;
      const image = sets.flatMap((each) => each.instances ?? []).find((each) => each.SOPInstanceUID === uid);
      const plane = image && window.cornerstone.metaData.get("imagePlaneModule", image.imageId);
      if (!plane?.rowPixelSpacing || !plane.columnPixelSpacing || coords.isPlaced) continue;
      const factor = plane.columnPixelSpacing / plane.rowPixelSpacing;
      const factors = [factor, 1 / factor];
      coords.GraphicData = Array.from(coords.GraphicData, (at, i) => 0.5 + (at - 0.5) * factors[i % 2]);
      coords.isPlaced = true;
    }}
    return measurement;
  }},
}};
"""
ASK_BUTTON: Final = '<script src="/ask/viewer.js" defer></script>'
NO_VIEWER_PAGE: Final = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>SIM4SEG node</title></head>
<body><h1>SIM4SEG node</h1>
<p>The node runs. The viewer OHIF is not installed: run <code>scripts/get_ohif.sh</code> (it gets
<code>@ohif/app@3.13.2</code> by npm), set <code>viewer.ohif_root</code> to the folder that holds its
<code>index.html</code>, then start the node again.</p>
<p><a href="/operator">Studies, jobs and deliveries</a></p>
<p>{RESEARCH_USE}</p></body></html>
"""


def app_config(request: Request) -> Response:
    """Answer GET /app-config.js."""
    del request
    script = f"window.config = {json.dumps(_configuration(), indent=2)};\n{OUTLINES}"
    return Response(script, 200, {"Cache-Control": "no-cache"}, "text/javascript; charset=utf-8")


def show_viewer(request: Request) -> Response:
    """Answer GET of any other address: a file of OHIF, or index.html for its router."""
    root = services_of(request).settings.viewer.ohif_root
    if root is None or not (root / "index.html").is_file():
        return _without_viewer(request)
    index = root.resolve() / "index.html"
    path = _file_at(root.resolve(), request.url.path)
    return _index_page(index) if path in (None, index) else _respond(request, path)


def _configuration() -> dict[str, Any]:
    return {
        "name": "config/sim4seg.js",
        "routerBasename": None,
        "showStudyList": True,
        "extensions": [],
        "modes": [],
        "customizationService": {"ohif.tours": {"$set": []}},  # a tour would lie over the finding
        "maxNumberOfWebWorkers": 3,
        "maxNumRequests": {"interaction": 100, "thumbnail": 5, "prefetch": 25},
        "disableConfirmationPrompts": True,
        "investigationalUseDialog": {"option": "never"},  # a dialog would block an automated open
        "showWarningMessageForCrossOrigin": False,
        "showCPUFallbackMessage": False,
        "strictZSpacingForVolumeViewport": True,
        "defaultDataSourceName": "sim4seg",
        "dataSources": [_data_source()],
    }


def _data_source() -> dict[str, Any]:
    return {
        "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
        "sourceName": "sim4seg",
        "configuration": {
            "friendlyName": f"SIM4SEG node. {RESEARCH_USE}",
            "name": "sim4seg",
            "qidoRoot": DICOM_WEB,
            "wadoRoot": DICOM_WEB,
            "wadoUriRoot": f"{DICOM_WEB}/wado",
            "qidoSupportsIncludeField": True,
            "supportsFuzzyMatching": True,
            "supportsWildcard": True,
            "queryLimit": 101,
            "imageRendering": "wadors",
            "thumbnailRendering": "thumbnail",
            "thumbnailRequestStrategy": "fetch",
            "enableStudyLazyLoad": True,
            "singlepart": "bulkdata,video",
            "acceptHeader": ["multipart/related; type=application/octet-stream; transfer-syntax=*"],
            "bulkDataURI": {"enabled": True, "relativeResolution": "studies"},
            "omitQuotationForMultipartRequest": True,
            "dicomUploadEnabled": False,
            "segmentation": {"store": {"defaultMode": "bitmap", "transferSyntaxUID": "1.2.840.10008.1.2.1"}},
        },
    }


def _without_viewer(request: Request) -> Response:
    if request.url.path not in ("/", "/viewer", "/segmentation"):
        raise NotFound("there is nothing at this address")
    return HTMLResponse(NO_VIEWER_PAGE)


def _file_at(root: Path, address: str) -> Path | None:
    """File below `root` that `address` names; None when there is none, or it points elsewhere."""
    if "\0" in address:
        return None
    try:
        path = (root / address.lstrip("/")).resolve()
        return path if path.is_relative_to(root) and path.is_file() else None
    except OSError:  # a name too long for the file system
        return None


def _index_page(path: Path) -> Response:
    """OHIF's only page, with the script that adds the button for questions to it."""
    before, end, after = path.read_text(encoding="utf-8").rpartition("</body>")
    page = f"{before}{ASK_BUTTON}{end}{after}" if end else f"{after}{ASK_BUTTON}"
    headers = {"Content-Security-Policy": VIEWER_POLICY, "Cache-Control": _cache_control(path)}
    return HTMLResponse(page, headers=headers)


def _respond(request: Request, path: Path) -> Response:
    headers = {
        "Content-Type": CONTENT_TYPES.get(path.suffix.lower(), "application/octet-stream"),
        "Content-Security-Policy": VIEWER_POLICY,
        "Cache-Control": _cache_control(path),
    }
    if path.suffix.lower() not in COMPRESSED or path.stat().st_size < MIN_COMPRESSED_BYTES:
        return FileResponse(path, headers=headers)
    headers["Vary"] = "Accept-Encoding"
    if "gzip" not in request.headers.get("accept-encoding", "").lower():
        return FileResponse(path, headers=headers)
    compressed = _compressed(path, services_of(request).settings.home / "cache" / "viewer")
    return FileResponse(compressed, headers=headers | {"Content-Encoding": "gzip"})


def _cache_control(path: Path) -> str:
    """Bundles carry a hash in their names and never change; everything else is asked for again."""
    parts = path.name.split(".")
    is_hashed = any(len(part) >= 16 and part.isalnum() and not part.isalpha() for part in parts)
    return "public, max-age=31536000, immutable" if is_hashed else "no-cache"


def _compressed(path: Path, cache: Path) -> Path:
    """Gzip of `path`, made once for this content."""
    state = path.stat()
    target = cache / f"{state.st_ino}-{state.st_mtime_ns}-{state.st_size}.gz"
    if target.is_file():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    draft = cache / f"{secrets.token_hex(8)}.part"
    with path.open("rb") as source, gzip.open(draft, "wb", COMPRESSION_LEVEL) as sink:
        shutil.copyfileobj(source, sink)
    with draft.open("rb") as written:
        os.fsync(written.fileno())  # or a power cut leaves an empty file, which would be served for ever
    draft.replace(target)
    return target
