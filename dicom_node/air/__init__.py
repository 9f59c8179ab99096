"""Map of the room: the rules of IHE AIR that a result keeps, or is not sent.

`gate` is the table and what applies it, `segmentation`, `report` and `other_forms` hold the rules of each,
`rules` their words, `check_files` is `dicom-node check`.
"""
