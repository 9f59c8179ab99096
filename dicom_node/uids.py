"""UIDs as they come from outside: their form is checked before anything is done with them.

Source: PS3.5 9.1.
"""

import re
from typing import Final

from dicom_node.errors import IllegalUid

UID_FORM: Final = re.compile(r"[0-9]+(\.[0-9]+)*")
MAX_UID_CHARACTERS: Final = 64


def checked_uid(value: object, name: str) -> str:
    """Return `value`, which is a UID.

    Raises
    ------
    IllegalUid
        If it is no UID; leading zeros are let through, devices write them.
    """
    text = str(value)
    if len(text) > MAX_UID_CHARACTERS or UID_FORM.fullmatch(text) is None:
        raise IllegalUid(f"the {name} is not a valid UID")
    return text
