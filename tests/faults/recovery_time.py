"""How long a node takes to be ready after a power cut: `python -m tests.faults.recovery_time [INSTANCES]`.

Fills a node on a volume of its own through its door, cuts the power while more comes in, mounts again, and
starts `dicom-node serve` as an operator does; measures until /health/ready says 200. As root.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

from tests.faults.load import Instances, store_sender
from tests.faults.nodes import until
from tests.faults.power_cut import AE_TITLE, Campaign, Load, make_home
from tests.faults.stages import Stage
from tests.faults.volume import new_volume
from tests.faults.zygote import REPOSITORY, Zygote

SENDERS = 12
FILLED_WITHIN_S = 1800.0
READY_WITHIN_S = 10.0  # what is asked for, of 10,000 instances on a machine with nothing else to do


def main() -> int:
    """Print one JSON line; 1 when an instance was lost or the node was ready too late."""
    instances = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    folder = Path(tempfile.mkdtemp(prefix="node-recovery-"))
    try:
        with new_volume(folder / "volume", size_mb=4096) as volume, Zygote() as zygote:
            stage = Stage([volume])
            home = make_home(stage, folder)
            campaign = Campaign(stage, home, zygote, seed=1, load=Load(acks=100))
            campaign.start()
            ledger = campaign.ledger
            senders = [
                store_sender(home.dimse_port, AE_TITLE, Instances(number), ledger)
                for number in range(SENDERS)
            ]
            until(lambda: ledger.count >= instances, "the node to be filled", FILLED_WITHIN_S)
            for sender in senders:
                sender.join()
            campaign.cut_once()
            zygote.kill_all()
            seconds = _start_to_ready(home.words("serve"), home.http_port, folder / "serve.out")
            stage.stop()
        figures = campaign.figures
        report = {
            "instances": ledger.count,
            "seconds_to_ready": round(seconds, 2),
            "is_in_time": seconds <= READY_WITHIN_S,
            "lost": len(figures.lost),
            "partial": len(figures.partial),
            "wrong_digests": len(figures.wrong_digest),
        }
        print(json.dumps(report))
        return 0 if figures.is_sound and report["is_in_time"] else 1
    finally:
        shutil.rmtree(folder)


def _start_to_ready(words: tuple[str, ...], http_port: int, log: Path) -> float:
    started = time.monotonic()
    with log.open("wb") as output:
        node = subprocess.Popen(
            [sys.executable, "-m", "dicom_node", *words, "--parent", str(os.getpid())],
            cwd=REPOSITORY,
            stdout=output,
            stderr=output,
        )
    try:
        until(lambda: _is_ready(http_port), "the node to be ready")
        return time.monotonic() - started
    finally:
        node.terminate()
        node.wait(timeout=60)


def _is_ready(http_port: int) -> bool:
    with (
        suppress(OSError),
        urllib.request.urlopen(f"http://127.0.0.1:{http_port}/health/ready", timeout=5) as answer,
    ):
        return int(answer.status) == 200
    return False


if __name__ == "__main__":
    sys.exit(main())
