"""Writes deploy/node.example.toml from the settings classes: every setting, its unit and its default."""

import json
import textwrap
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from dicom_node.routing import Route
from dicom_node.settings import NodeSettings
from dicom_node.settings_network import Destination, PeerSettings

HEAD = """\
# Settings of sim4seg-node: every one with its unit and its default. Research use only; not a medical device.
# Made by `python -m dicom_node.settings_example`; a test compares. Take the '#' away from what you change.
# Each can be set in the environment too: DICOM_NODE_<SECTION>__<KEY>, e.g. DICOM_NODE_DIMSE__PORT=11113;
# lists and tables as JSON: DICOM_NODE_DIMSE__ALLOWED_CALLING_AES='["MODALITY1"]'. Unknown keys are refused.
"""
EXAMPLES: dict[str, Any] = {
    "name": "pacs",
    "ae_title": "ORTHANC",
    "host": "127.0.0.1",
    "port": 4242,
    "database_url": "sqlite:///HOME/node.sqlite",
    "files_root": "HOME/files",
    "prepared_root": "HOME/engines",
    "ohif_root": "/opt/ohif",
    "max_new_tokens": 128,
    "max_associations_per_address": 16,
    "certificate": "/etc/dicom-node/node.crt",
    "key": "/etc/dicom-node/node.key",
    "trusted": "/etc/dicom-node/authorities.crt",
    "folder": "/srv/audit",
    "source_id": "SIM4SEG",
    "enterprise_site": "hospital.example.org",
    "syslog_host": "audit.example.org",
    "syslog_port": 6514,
    "issuer": "https://login.hospital.example/realms/staff",
    "audience": "sim4seg",
    "s3_bucket": "dicom-node",
    "s3_endpoint_url": "https://s3.example.org",
    "s3_region": "eu-central-1",
}
COMMAND_FIELDS = ("home",)


def example_toml() -> str:
    """The text of deploy/node.example.toml."""
    sections, lists = [], []
    for name, field in NodeSettings.model_fields.items():
        if name in COMMAND_FIELDS:
            continue
        if (section := _section_of(field)) is not None:
            sections.append(_table(f"[{name}]", field.description, section))
        elif name == "routes":
            lists.append(_routes(field))
        elif name in {"destinations", "peers"}:
            entry = Destination if name == "destinations" else PeerSettings
            lists.append(_table(f"#[[{name}]]", field.description, entry))
    return "\n".join([HEAD, *sections, *lists])


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    annotation: Any = field.annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


def _table(head: str, description: str | None, section: type[BaseModel]) -> str:
    settings = "".join(_setting(name, field) for name, field in section.model_fields.items())
    return f"{_comment(description)}{head}\n{settings}"


def _setting(name: str, field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True, validated_data={})
    comment = _comment(field.description)
    if default is None or default is PydanticUndefined:
        comment += "# Not set by default; for example:\n" if default is None else ""
        default = EXAMPLES[name]
    return f"{comment}#{name} = {_value(default)}\n"


def _routes(field: FieldInfo) -> str:
    keys = "".join(
        _comment(f"{name}: {route_field.description}") for name, route_field in Route.model_fields.items()
    )
    routes = "\n".join(_route(route) for route in field.default)
    note = "# These are the defaults; one of your own replaces them all.\n"
    return f"{_comment(field.description)}{note}{keys}\n{routes}"


def _route(route: Route) -> str:
    given = route.model_dump(exclude_defaults=True)
    return "#[[routes]]\n" + "".join(f"#{key} = {_value(value)}\n" for key, value in given.items())


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(_value(entry) for entry in value) + "]"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Path):
        return json.dumps(_relative(value))
    return json.dumps(str(value))


def _relative(path: Path) -> str:
    """Where the default lies in this repository, the same text on every machine."""
    repository = Path(__file__).resolve().parent.parent
    return str(path.relative_to(repository)) if path.is_relative_to(repository) else str(path)


def _comment(text: str | None) -> str:
    return "".join(f"# {line}\n" for line in textwrap.wrap(text or "", 106))


if __name__ == "__main__":
    target = Path(__file__).resolve().parent.parent / "deploy" / "node.example.toml"
    target.write_text(example_toml(), encoding="utf-8")
