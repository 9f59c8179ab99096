"""Map of the room: one file per PS3.18 service.

`app` wires them, `stow` stores, `qido` searches, `wado` retrieves, `viewer` shows OHIF,
`operations` is the operator's view, `health` says how the node is.
"""
