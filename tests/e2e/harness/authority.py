"""A certificate authority of the test's own, by `openssl`: certificates for servers and clients, good and bad ones."""

import subprocess
from pathlib import Path


def _openssl(*words):
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


class Authority:
    """Keys and certificates in PEM in `directory`."""

    def __init__(self, directory, name="authority"):
        self.directory = Path(directory)
        self.name = name
        self.certificate, self.key = self._paths(name)
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", self.key, "-out", self.certificate, "-days", 2, "-subj", f"/CN={name}"),
            *("-addext", "basicConstraints=critical,CA:TRUE"),
        )

    def _paths(self, name):
        return self.directory / f"{name}.crt", self.directory / f"{name}.key"

    def issue(self, name, names="IP:127.0.0.1,DNS:localhost", expired=False):
        """A certificate for `names`, and its key."""
        certificate, key = self._paths(name)
        request, settings = self.directory / f"{name}.csr", self.directory / f"{name}.cnf"
        _openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", key, "-out", request, "-subj", f"/CN={name}"),
        )
        settings.write_text(
            "[ca]\ndefault_ca = here\n[here]\n"
            f"database = {self.directory}/issued.txt\nnew_certs_dir = {self.directory}\n"
            "rand_serial = yes\ndefault_md = sha256\npolicy = any\nx509_extensions = given\nunique_subject = no\n"
            f"[any]\ncommonName = supplied\n[given]\nsubjectAltName = {names}\n"
        )
        (self.directory / "issued.txt").touch()
        begin, end = ("20200101000000Z", "20200201000000Z") if expired else ("20200101000000Z", "20491231000000Z")
        _openssl(
            *("ca", "-batch", "-notext", "-config", settings, "-cert", self.certificate, "-keyfile", self.key),
            *("-in", request, "-out", certificate, "-startdate", begin, "-enddate", end),
        )
        return certificate, key
