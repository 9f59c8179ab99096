"""Orthanc as the peer of a benchmark: on loopback, on free ports, with DICOMweb, durable by default."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PLUGIN: Final = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
START_S: Final = 60.0
# Orthanc 1.10 listens on every address and has no setting for it: bind() is made to choose loopback.
LOOPBACK: Final = """
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


class PeerMissing(Exception):
    """The program to compare with is not installed; the sentence says what to do."""


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc."""

    http_port: int
    dicom_port: int
    pid: int


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_orthanc(folder: Path) -> Iterator[Orthanc]:
    """Orthanc with an empty database below `folder`; ended with the block."""
    program = shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None or not Path(PLUGIN).exists():
        raise PeerMissing("Orthanc with its DICOMweb plugin is not installed: run scripts/system_packages.sh")
    folder.mkdir(parents=True, exist_ok=True)
    http_port, dicom_port = free_port(), free_port()
    config = folder / "orthanc.json"
    config.write_text(json.dumps(_configuration(folder, http_port, dicom_port)), encoding="utf-8")
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen(
            [program, str(config)], stdout=log, stderr=log, env=loopback_environment(folder)
        )
        try:
            _wait(process, http_port)
            yield Orthanc(http_port, dicom_port, process.pid)
        finally:
            process.terminate()
            process.wait(timeout=60)


def _configuration(folder: Path, http_port: int, dicom_port: int) -> dict[str, object]:
    return {
        "Name": "Bench",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "HttpPort": http_port,
        "DicomPort": dicom_port,
        "DicomAet": "ORTHANC",
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "HttpThreadsCount": 50,
        "KeepAlive": True,
        "TcpNoDelay": True,
        "Plugins": [PLUGIN],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": False},
    }


def loopback_environment(folder: Path) -> dict[str, str]:
    """TCP_NODELAY: DCMTK leaves Nagle's algorithm on, 44 ms an instance on loopback."""
    environment = {**os.environ, "TCP_NODELAY": "1"}
    compiler = shutil.which("cc")
    if compiler is None:
        return environment
    source, library = folder / "loopback.c", folder / "loopback.so"
    source.write_text(LOOPBACK, encoding="ascii")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return {**environment, "LD_PRELOAD": str(library)}


def _wait(process: "subprocess.Popen[bytes]", port: int) -> None:
    end = time.monotonic() + START_S
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/system", timeout=5).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                raise PeerMissing(
                    "Orthanc did not start; see orthanc.log in the folder of the bench"
                ) from None
            time.sleep(0.1)
        else:
            return
