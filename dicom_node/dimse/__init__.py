"""Map of the room: one file per side of the wire.

`listener` accepts associations, `store_scp` receives C-STORE, `scu` calls peers.
"""
