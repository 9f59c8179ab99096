"""Says what is wrong with this installation, and what to do."""

import importlib
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from dicom_node.audit.health import findings as audit_findings
from dicom_node.dimse.calling import caller_of
from dicom_node.dimse.scu import echo
from dicom_node.errors import PeerError
from dicom_node.settings import NodeSettings
from dicom_node.web.login.way_in import findings as login_findings
from inference.errors import InferenceError
from inference.runtime import list_models
from inference.runtime.installation import look
from inference.runtime.model_repository import open_package
from storage.database import Database, require_current_schema
from storage.errors import StorageError

MIB = 1024 * 1024
MIN_PYTHON = (3, 11)

Finding = tuple[bool, str]  # whether it is well, and a sentence
Check = Callable[[NodeSettings], Iterator[Finding]]


def examine(settings: NodeSettings) -> bool:
    """Print one line a check; true when everything is well."""
    findings = [finding for check in CHECKS for finding in check(settings)]
    for is_well, sentence in findings:
        print(f"{'ok     ' if is_well else 'PROBLEM'}  {sentence}")
    return all(is_well for is_well, _ in findings)


def _python(settings: NodeSettings) -> Iterator[Finding]:
    del settings
    version = ".".join(map(str, sys.version_info[:3]))
    yield sys.version_info >= MIN_PYTHON, f"Python {version}, SQLite {sqlite3.sqlite_version}"


def _disk(settings: NodeSettings) -> Iterator[Finding]:
    folder = _existing(settings.storage.files_root)
    free_mb = shutil.disk_usage(folder).free // MIB
    wanted = settings.limits.min_free_mb
    yield free_mb >= wanted, f"{free_mb} MiB free at {folder}; below {wanted} nothing is received"


def _database(settings: NodeSettings) -> Iterator[Finding]:
    if not settings.home.exists():  # asking SQLite would create the file
        yield False, f"home: {settings.home} is not there yet: run `dicom-node migrate --home ...`"
        return
    database = Database(settings.storage.database_url)
    try:
        require_current_schema(database)
        yield True, "the database answers and its tables are current"
    except StorageError as error:
        yield False, f"database: {error}"
    finally:
        database.close()


def _models(settings: NodeSettings) -> Iterator[Finding]:
    found = {model.name: model for model in list_models(settings.inference)}
    for name in sorted({route.model for route in settings.routes}):
        if name not in found:
            yield (
                False,
                f"model {name}: the rules ask for it, {settings.inference.model_repository} has it not",
            )
        elif (problem := found[name].problem) is not None:
            yield False, f"model {name}: {problem}"
        else:
            yield True, f"model {name} {found[name].version}: every file is the one it was made with"


def _execution_providers(settings: NodeSettings) -> Iterator[Finding]:
    """What runs the models: wanted, had, and why not."""
    found = look()
    builds = ", ".join(f"{name} {version}" for name, version in found.builds.items())
    if len(found.builds) != 1:
        yield False, f"ONNX Runtime: {builds or 'none is installed'}; install one of the extras cpu and gpu"
        return
    yield True, f"{builds} offers {', '.join(found.offered)}"
    devices = ", ".join(found.devices) or "no device"
    driver, cuda = found.driver or "not loaded", found.cuda or "not installed"
    tensorrt = found.tensorrt or "not installed"
    yield True, f"NVIDIA driver {driver}, {devices}; CUDA {cuda}, TensorRT {tensorrt}"
    for provider in settings.inference.execution_providers:
        why_not = found.why_not(provider)
        sentence = f"execution provider {provider} is wanted"
        yield why_not is None, f"{sentence} and can be had" if why_not is None else f"{sentence}: {why_not}"


def _prepared(settings: NodeSettings) -> Iterator[Finding]:
    inference = settings.inference
    if inference.engines == "plain":
        yield True, "engines: plain, as configured; nothing has to be prepared"
        return
    # Loaded here: where no jobs are run, there may be no ONNX Runtime.
    prepared = importlib.import_module("inference.runtime.prepared")
    for name in sorted({route.model for route in settings.routes}):
        try:
            chosen = prepared.find_prepared(open_package(inference.model_repository, name), inference)
            yield True, f"engines of {name}: {chosen.evidence.winner.name}, of {chosen.evidence.made_at}"
        except InferenceError as error:
            yield False, f"engines: {error}"


def _viewer(settings: NodeSettings) -> Iterator[Finding]:
    root = settings.viewer.ohif_root
    if root is None:
        yield True, "no viewer is set up (viewer.ohif_root)"
    else:
        has_page = (root / "index.html").is_file()
        yield (
            has_page,
            f"viewer: {root}" if has_page else f"viewer: {root} has no index.html; scripts/get_ohif.sh",
        )


def _destinations(settings: NodeSettings) -> Iterator[Finding]:
    if not settings.destinations:
        yield True, "no destination is set up: results stay here"
    for destination in settings.destinations:
        try:
            echo(destination, caller_of(settings))
            yield True, f"destination {destination.name} answers the C-ECHO"
        except PeerError as error:
            yield False, f"destination {destination.name}: {error}"


CHECKS: tuple[Check, ...] = (
    _python,
    _disk,
    _database,
    _models,
    _execution_providers,
    _prepared,
    _viewer,
    _destinations,
    login_findings,
    audit_findings,
)


def _existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    return path if path.exists() else _existing(path.parent)
