"""Text as a database can hold it, and names as they are compared."""

import unicodedata
from functools import lru_cache


def clean_text(value: str, length: int) -> str:
    """Strip DICOM's padding, drop what a database cannot hold, and cut to `length` characters.

    Source: PS3.5 section 6.2 (leading and trailing spaces are not significant; NUL pads UIDs).
    """
    if value.isascii():  # nearly always, and several times as fast
        return value.replace("\0", "").strip()[:length].rstrip()
    return value.replace("\0", "").encode("utf-8", "replace").decode("utf-8").strip()[:length].rstrip()


@lru_cache(maxsize=256)  # images of one study come one after the other
def fold_name(value: str) -> str:
    """Reduce a person name to the form that is compared: no case, no empty components at the end.

    Source: PS3.4 section C.2.2.2.1 (matching of person names may ignore case).
    """
    groups = (group.rstrip("^ ") for group in unicodedata.normalize("NFKC", value).casefold().split("="))
    return "=".join(groups).rstrip("=")[:256]
