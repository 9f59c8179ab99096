"""What commands print, and the status they end with."""

import json
import sys
from typing import Final

EXIT_FAILED: Final = 1
EXIT_UNUSABLE: Final = 2  # bad configuration, occupied port: nothing was started


def as_json(document: object) -> str:
    """A document for machines; also what JSON does not know, in its own words."""
    return json.dumps(document, indent=2, ensure_ascii=False, default=str)


def say(sentence: str, exit_status: int) -> int:
    """Print one sentence to stderr; gives `exit_status`."""
    print(f"dicom-node: {' '.join(sentence.split())}", file=sys.stderr)
    return exit_status
