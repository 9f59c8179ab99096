"""Finds a remote AE by its name in the configuration, or from AE_TITLE@HOST:PORT."""

import re

from pydantic import ValidationError

from dicom_node.settings import BadConfiguration, NodeSettings
from dicom_node.settings_network import Destination, PeerSettings

_ADDRESS = re.compile(r"(?P<ae_title>[^@]{1,16})@(?P<host>.{1,255}):(?P<port>[0-9]{1,5})")


def find_peer(name: str, settings: NodeSettings) -> Destination | PeerSettings:
    """The destination or peer called `name`, or the one whose address it is.

    Raises
    ------
    BadConfiguration
        If there is none; the sentence lists those there are.
    """
    known: dict[str, Destination | PeerSettings] = {entry.name: entry for entry in settings.peers}
    known |= {entry.name: entry for entry in settings.destinations}
    if name in known:
        return known[name]
    if (address := _ADDRESS.fullmatch(name)) is not None:
        try:
            return PeerSettings.model_validate({"name": "given", **address.groupdict()})
        except ValidationError as error:
            raise BadConfiguration(f"{name}: is not AE_TITLE@HOST:PORT.") from error
    names = ", ".join(sorted(known)) or "none is configured"
    raise BadConfiguration(
        f"{name}: no destination or peer has this name ({names}); or give AE_TITLE@HOST:PORT."
    )
