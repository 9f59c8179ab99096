"""A certificate authority of the tests, made by openssl: for node, peers, and whom nobody should believe."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

ELLIPTIC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
RSA = ("-newkey", "rsa:2048")


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, PEM files."""

    certificate: Path
    key: Path


def openssl(*arguments, **options):
    command = ["openssl", *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, timeout=60, check=True, **options)


class Authority:
    """A root certificate that signs others."""

    def __init__(self, folder: Path, name: str):
        self.folder, self.name = folder, name
        folder.mkdir(parents=True, exist_ok=True)
        self.pair = Pair(folder / f"{name}.crt", folder / f"{name}.key")
        openssl(
            "req", "-x509", *ELLIPTIC, "-nodes",
            "-subj", f"/CN={name}", "-days", "30", "-keyout", self.pair.key, "-out", self.pair.certificate,
        )  # fmt: skip
        self.pair.key.chmod(0o600)

    @property
    def certificate(self) -> Path:
        return self.pair.certificate

    def sign(self, name, *, common_name="", days=30, san="IP:127.0.0.1", key_kind=ELLIPTIC) -> Pair:
        """A pair for `common_name`; `days` below zero has expired."""
        pair = Pair(self.folder / f"{name}.crt", self.folder / f"{name}.key")
        request, extensions = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        openssl(
            "req", "-new", *key_kind, "-nodes", "-subj", f"/CN={common_name or name}",
            "-keyout", pair.key, "-out", request,
        )  # fmt: skip
        extensions.write_text(f"subjectAltName={san}\n" if san else "basicConstraints=CA:FALSE\n")
        validity = ["-days", str(days)]
        openssl(
            "x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.pair.key,
            "-CAcreateserial", "-extfile", extensions, *validity, "-out", pair.certificate,
        )  # fmt: skip
        pair.key.chmod(0o600)
        return pair
