"""A process of its own that claims every job it is told, from several threads; prints what it got.

Usage: claimers.py URL THREADS, then one line "go" and one line with the job ids on standard input.
"""

import sys
import threading

from storage.database import Database
from storage.jobs import claim_job


def main(url: str, thread_count: int) -> None:
    db = Database(url)
    print("ready", flush=True)
    job_ids = sys.stdin.readline().split()
    won: list[str] = []

    def claim_all() -> None:
        for job_id in job_ids:
            with db.transaction() as tx:
                claimed = claim_job(tx, job_id, "claimer", 60, 3)
            if claimed is not None:
                won.append(f"{job_id}:{claimed.fence}:{claimed.attempt}")

    threads = [threading.Thread(target=claim_all) for _ in range(thread_count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    db.close()
    print(" ".join(won))


main(sys.argv[1], int(sys.argv[2]))
