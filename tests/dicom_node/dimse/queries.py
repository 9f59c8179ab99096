"""Identifiers of queries and retrievals, right ones and wrong ones."""

from pydicom import DataElement, Dataset, config
from pydicom.datadict import dictionary_VR, tag_for_keyword


def identifier(level="STUDY", **keys):
    """An identifier; values are not checked, so that bad ones can be asked."""
    asked = Dataset()
    asked.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        tag = tag_for_keyword(keyword)
        asked.add(DataElement(tag, dictionary_VR(tag), value, validation_mode=config.IGNORE))
    return asked
