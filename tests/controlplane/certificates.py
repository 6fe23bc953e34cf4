"""What a cluster proves itself with: a CA of its own, the API server's certificate, the key of its tokens."""

from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from broker.adapters.development_ca import DevelopmentCA


class Certificates(NamedTuple):
    """PEM files. token_key: signs the tokens of ServiceAccounts."""

    ca: Path
    serving: Path
    serving_key: Path
    token_key: Path


def make_certificates(directory: Path) -> Certificates:
    """New ones, in `directory`; the apiserver's is good for 127.0.0.1 and localhost."""
    ca = DevelopmentCA()
    certificate, key = ca.issue("kube-apiserver", ["localhost", "kubernetes.default.svc", "127.0.0.1"])
    made = Certificates(*(directory / name for name in ("ca.crt", "serving.crt", "serving.key", "token.key")))
    for path, text in zip(made, (ca.certificate, certificate, key, _new_key()), strict=True):
        path.write_text(text)
    return made


def _new_key() -> str:
    return (
        ec.generate_private_key(ec.SECP256R1())
        .private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        .decode()
    )
