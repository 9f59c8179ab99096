"""Map of the room; exports nothing.

settings    where the database and the files are
errors      StorageError and its tree
tables      what is kept in the database
database    transactions, the database clock, migrations
postgresql  connections that do not wait for ever
durable     fsync, and directories that survive a power cut
part10      DICOM Part 10 files, durable before anybody says yes
journal     short files durable by one flush, before they and their rows are; its form, and recovery from it
files       FileStore: where they are kept; the form on a disk
s3          the form in a bucket
text        what a database can hold of it, and names as they are compared
records     data set -> the attributes that the index keeps
index       instance -> Study/Series/Instance rows, idempotent
studies     when a study is complete, and what became of it
search      the matching behind QIDO-RS and C-FIND
patients    patients, who are no rows, by their studies
upsert      INSERT ... ON CONFLICT for both databases
leases      claim, fence and lease, shared by jobs and deliveries
jobs        one model on one series, in UPS words
deliveries  outbox of results
commitment_ledger  Storage Commitment asked for, and reports owed
worklist    both as an operator lists them
fsck        rows against files
"""
