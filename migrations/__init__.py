"""Alembic migrations, one file per step in `versions`; run by `dicom-node migrate`.

A new step: change `storage/tables.py`, copy `script.py.mako` to the next number in `versions`, write both
directions by hand, and run the tests: they go up, down and up again and compare the result with the tables.
"""
