"""Orthanc as a PACS of the tests: started with its own configuration, on loopback, on free ports."""

import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.flow.nodes import find_free_port, is_listening, until

AE_TITLE = "ORTHANC"
PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
# Orthanc 1.10 listens on every address and has no setting for it: bind() is made to choose loopback.
LOOPBACK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
int bind(int fd, const struct sockaddr *address, socklen_t length) {
    static int (*real)(int, const struct sockaddr *, socklen_t);
    struct sockaddr_storage copy;
    if (!real) real = dlsym(RTLD_NEXT, "bind");
    memcpy(&copy, address, length < sizeof copy ? length : sizeof copy);
    if (copy.ss_family == AF_INET) ((struct sockaddr_in *)&copy)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return real(fd, (struct sockaddr *)&copy, length);
}
"""


@dataclass(frozen=True)
class Orthanc:
    """Where it listens, and what it holds."""

    http_port: int
    dicom_port: int

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=30) as answer:
            return bytes(answer.read())

    def get_json(self, path: str) -> Any:
        return json.loads(self.get(path))

    def instances(self, study_instance_uid: str, modality: str) -> list[bytes]:
        """The Part 10 files of one modality of a study."""
        files = []
        for series in self._series(study_instance_uid, modality):
            files += [self.get(f"/instances/{instance}/file") for instance in series["Instances"]]
        return files

    def _series(self, study_instance_uid: str, modality: str) -> list[Any]:
        query = {
            "Level": "Series",
            "Expand": True,
            "Query": {"StudyInstanceUID": study_instance_uid, "Modality": modality},
        }
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.http_port}/tools/find", json.dumps(query).encode()
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return list(json.loads(answer.read()))


@contextmanager
def running_orthanc(folder: Path) -> Iterator[Orthanc]:
    """Orthanc with an empty database below `folder`; ended with the block."""
    program = shutil.which("Orthanc", path=os.environ["PATH"] + ":/usr/sbin")
    assert program, "Orthanc is not installed: scripts/system_packages.sh"
    folder.mkdir(parents=True, exist_ok=True)
    orthanc = Orthanc(find_free_port(), find_free_port())
    config = folder / "orthanc.json"
    config.write_text(json.dumps(_configuration(orthanc, folder)), encoding="utf-8")
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen([program, str(config)], stdout=log, stderr=log, env=_environment(folder))
        try:
            until(
                lambda: (
                    process.poll() is None
                    and is_listening(orthanc.http_port)
                    and is_listening(orthanc.dicom_port)
                ),
                "Orthanc",
            )
            yield orthanc
        finally:
            process.terminate()
            process.wait(timeout=30)


def _configuration(orthanc: Orthanc, folder: Path) -> dict[str, Any]:
    return {
        "Name": "Test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "HttpPort": orthanc.http_port,
        "DicomPort": orthanc.dicom_port,
        "DicomAet": AE_TITLE,
        "DicomCheckCalledAet": True,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [PLUGIN] if Path(PLUGIN).exists() else [],
    }


def _environment(folder: Path) -> dict[str, str]:
    """TCP_NODELAY: DCMTK leaves Nagle's algorithm on, 44 ms an instance on loopback."""
    environment = {**os.environ, "TCP_NODELAY": "1"}
    compiler = shutil.which("cc")
    if compiler is None:
        return environment
    source, library = folder / "loopback.c", folder / "loopback.so"
    source.write_text(LOOPBACK, encoding="ascii")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return {**environment, "LD_PRELOAD": str(library)}
