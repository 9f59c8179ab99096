"""Map of the room: the commands of `dicom-node`, one file for those that belong together.

Each file adds its commands to the parser in `register`. What a command needs is imported when it runs: asking
one thing does not load what another needs.
"""
