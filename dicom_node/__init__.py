"""The node: DICOM in, a mask and a diagnosis out. Research use only; not a medical device."""

__version__ = "0.1.0"
