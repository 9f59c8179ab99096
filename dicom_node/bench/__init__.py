"""Map of the room: what `dicom-node bench WHAT` measures, one file each, ours beside others in one run.

`pipeline` is a job from start to stored result, `ingest`, `dicomweb` and `seg` compare with others,
`servers` and `orthanc` start those.
"""
