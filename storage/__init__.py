"""Map of the room; exports nothing.

settings    where the database and the files are
errors      StorageError and its tree
tables      what is kept in the database
database    transactions, the database clock, migrations
durable     fsync, and directories that survive a power cut
part10      DICOM Part 10 files, durable before anybody says yes
text        what a database can hold of it, and names as they are compared
records     data set -> the attributes that the index keeps
index       instance -> Study/Series/Instance rows, idempotent
studies     when a study is complete, and what became of it
search      the matching behind QIDO-RS
upsert      INSERT ... ON CONFLICT for both databases
leases      claim, fence and lease, shared by jobs and deliveries
jobs        one model on one series, in UPS words
deliveries  outbox of results
worklist    both as an operator lists them
fsck        rows against files
"""
