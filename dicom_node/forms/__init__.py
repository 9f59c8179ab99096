"""Map of the room: the forms that a result takes, and which destination gets which.

`form` holds their names and who gets what, `content` what all are made from, `making` makes them;
`segmentation` is how the three SEG forms differ, `secondary_capture`, `presentation_state`, `key_objects`
and `pdf_report` are one form each, `envelope` is what these have in common.
"""
