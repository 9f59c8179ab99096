"""Which test files begin first, and which share a worker: the longest must not be left for the end."""

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

# The longest first, by their seconds on two quiet cores; all others took less than 17.
LONGEST = (
    "tests/faults/test_kills.py",
    "tests/dicom_node/test_ledger_machine.py",
    "tests/flow/test_ohif_modalities.py",
    "tests/flow/test_brokers.py",
    "tests/flow/test_stores.py",
    "tests/faults/test_readiness.py",
    "tests/dicom_node/test_deliver.py",
    "tests/faults/test_power_cut.py",
    "tests/faults/test_databases.py",
    "tests/flow/test_ohif.py",
    "tests/flow/test_orthanc.py",
    "tests/flow/test_demo.py",
    "tests/flow/test_crash_and_resume.py",
    "tests/faults/test_disks.py",
    "tests/flow/test_bad_input.py",
    "tests/dicom_node/dimse/test_fuzz.py",
    "tests/flow/test_forms.py",
    "tests/flow/test_ohif_forms.py",
    "tests/flow/test_upgrade.py",
    "tests/flow/test_object_store.py",
    "tests/dicom_node/dimse/test_commitment.py",
    "tests/flow/test_no_patient_data.py",
    "tests/dicom_node/test_misdeeds.py",
    "tests/inference/models/test_full_size.py",
    "tests/dicom_node/web/test_processes.py",
    "tests/dicom_node/bench/test_ingest.py",
    "tests/tolerance/test_retrieved_files.py",
    "tests/tolerance/test_real_files.py",
    "tests/tolerance/test_damaged_files.py",
)
# Files whose tests share what takes long to start.
TOGETHER = {"tests/flow/test_ohif.py": "tests/flow/test_orthanc.py"}


def file_of(node_id: str) -> str:
    """The file of a test."""
    return node_id.split("::", 1)[0]


def rank(node_id: str) -> int:
    """Where the test's file stands in LONGEST; all others come after."""
    file = file_of(node_id)
    return LONGEST.index(file) if file in LONGEST else len(LONGEST)


class LongestFirst(LoadFileScheduling):
    """Gives each worker a whole file at a time, in the order of collection."""

    def __init__(self, config: pytest.Config, log: Producer) -> None:
        config.option.loadscopereorder = False  # xdist would begin with the files of most tests
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        file = file_of(nodeid)
        return TOGETHER.get(file, file)
