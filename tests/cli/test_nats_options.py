"""What is given to connect to NATS with, and cannot be used: one sentence that names it and says what to do."""

import os
from pathlib import Path

import anyio
import nkeys
import pytest
import yaml
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from broker.cli.main import main
from schemas.client.connection import BusOptions, connect
from schemas.client.errors import BusOptionsError, BusUnavailableError
from tests.manifests import claim_manifest, write_manifests

NOBODY = "nats://127.0.0.1:1"
NO_FILES = {"missing": "No such file", "directory": "Is a directory"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Files of which none is what is asked for, but for a seed, a certificate with its key, and another's."""
    for name in ("nats", "other"):
        made = ["nats-config", f"--dir={tmp_path}/{name}", "--cluster=east", "--dev-ca", "--store-dir=/s"]
        assert main(made) == 0
    (tmp_path / "directory").mkdir()
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("hello\nthere\n")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "seed").write_text((tmp_path / "nats/keys/operator.nk").read_text())
    for name in ("n1.crt", "n1.key"):
        (tmp_path / name).write_text((tmp_path / "nats/tls" / name).read_text())
    (tmp_path / "other.key").write_text((tmp_path / "other/tls/n1.key").read_text())
    (tmp_path / "half.creds").write_text("-----BEGIN NATS USER JWT-----\neyJ0\n------END NATS USER JWT------\n")
    return tmp_path


def said_of(root: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `claims` says on stderr, where it must end with 2; `=/name` is a file of `root`."""
    capsys.readouterr()
    code = main(["claims", *(each.replace("=/", f"{root}/") for each in arguments)])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert code == 2, printed.err
    assert printed.out == ""
    assert printed.err.count("\n") == 1, "one sentence"
    assert "start nats-server" not in printed.err
    return printed.err.replace(f"{root}/", "=/")


@pytest.mark.parametrize("name", ["missing", "directory", "empty", "text", "binary", "half.creds"])
@pytest.mark.parametrize(
    ("argument", "advice"),
    [
        ("--nkey", "such as `dragoman nats-config` writes"),
        ("--creds", "such as `nsc generate creds` writes"),
        ("--tls-ca", "of the CA that vouches for the servers"),
        ("--tls-cert", "give both as PEM"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    root: Path, capsys: pytest.CaptureFixture[str], argument: str, advice: str, name: str
) -> None:
    said = said_of(root, capsys, "--nats", NOBODY, argument, f"=/{name}")
    assert f"dragoman claims: {argument} =/{name}: " in said
    assert NO_FILES.get(name, advice) in said


@pytest.mark.parametrize("name", ["missing", "directory", "empty", "text", "binary", "other.key", "n1.crt"])
def test_a_key_that_does_not_belong_to_its_certificate_is_named(
    root: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    said = said_of(root, capsys, "--nats", NOBODY, "--tls-cert", "=/n1.crt", "--tls-key", f"=/{name}")
    assert f"--tls-key =/{name}" in said
    assert NO_FILES.get(name, "give both as PEM") in said


def test_a_key_with_a_password_asks_nobody_for_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = load_pem_private_key((root / "n1.key").read_bytes(), None)
    protected = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    (root / "protected.key").write_bytes(protected)
    said = said_of(root, capsys, "--nats", NOBODY, "--tls-cert", "=/n1.crt", "--tls-key", "=/protected.key")
    assert "the key without a password" in said


def test_a_certificate_with_its_key_is_taken(root: Path) -> None:
    certificate, key = (str(root / name) for name in ("n1.crt", "n1.key"))
    BusOptions((NOBODY,), certificate_file=certificate, key_file=key).check()


def test_a_key_without_its_certificate_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "without --tls-cert" in said_of(root, capsys, "--nats", NOBODY, "--tls-key", "=/n1.key")


@pytest.mark.parametrize(
    "address",
    [
        pytest.param("", id="nothing"),
        pytest.param("nats://127.0.0.1:abc", id="a port that is no number"),
        pytest.param("nats://127.0.0.1:99999", id="a port that there is not"),
        pytest.param("nats://127.0.0.1:0", id="port 0"),
        pytest.param("tls://2001:db8::1:4222", id="IPv6 without brackets"),
        pytest.param("nats://[::1", id="half a bracket"),
        pytest.param("nats://:4222", id="no host"),
        pytest.param("http://127.0.0.1:4222", id="another protocol"),
        pytest.param("TLS://127.0.0.1:4222", id="a scheme that nats-py would take for a host"),
        pytest.param("nats://a:4222,nats://b:4222", id="two in one"),
    ],
)
def test_an_address_that_is_none_is_named(root: Path, capsys: pytest.CaptureFixture[str], address: str) -> None:
    said = said_of(root, capsys, "--nats", NOBODY, "--nats", address)
    assert f"dragoman claims: --nats {address!r}: that is no address of a server; give it as nats://HOST:PORT" in said


@pytest.mark.parametrize("address", ["nats://me:secret@127.0.0.1:abc", "nats://me:secret@[::1", "me:secret@a:b"])
def test_an_address_that_is_none_tells_no_password(
    root: Path, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    assert "secret" not in said_of(root, capsys, "--nats", address)


def test_addresses_of_two_kinds_are_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "WebSocket addresses" in said_of(root, capsys, "--nats", NOBODY, "--nats", "ws://127.0.0.1:1")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:1", "nats://[::1]:1", "nats://me:secret@127.0.0.1:1"])
def test_other_addresses_are_called(address: str) -> None:
    async def called() -> None:
        async with connect(BusOptions((address,)), deadline_s=0.2):
            pass

    with pytest.raises(BusUnavailableError, match=r"within 0\.2 s"):
        anyio.run(called)


@pytest.mark.parametrize(
    "command",
    [
        ["agent", "--cluster=east", "--manifests={root}/east", "--data={root}/data"],
        ["broker", "--config={root}/config.yaml"],
        ["tracer", "--data={root}/tracer"],
        ["events"],
        ["events", "--follow"],
        ["nats-setup"],
        ["ledger", "verify"],
        ["explain", "a"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_each_command_says_so(root: Path, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    (root / "config.yaml").write_text(yaml.safe_dump({"clusters": ["east"]}))
    write_manifests(root / "east/claim.yaml", claim_manifest("a"))
    capsys.readouterr()
    arguments = [each.format(root=root) for each in command]
    assert main([*arguments, f"--nats={NOBODY}", f"--nkey={root}/text"]) == 2
    assert f": --nkey {root}/text: there is no seed of an NKey in it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(BusOptions((NOBODY,), nkey_file="/none"), id="a file"),
        pytest.param(BusOptions(("nats://[::1",)), id="an address"),
        pytest.param(BusOptions(()), id="no address"),
    ],
)
def test_a_program_hears_it_at_once(options: BusOptions) -> None:
    async def called() -> None:
        with anyio.fail_after(2):
            async with connect(options):
                pass

    with pytest.raises(BusOptionsError):
        anyio.run(called)


def test_credentials_as_nsc_writes_them_are_taken(tmp_path: Path) -> None:
    seed = bytes(nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)).decode()
    path = tmp_path / "a.creds"
    path.write_text(
        "-----BEGIN NATS USER JWT-----\neyJ0.eyJ1.sig\n------END NATS USER JWT------\n\n"
        "************************* IMPORTANT *************************\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
    BusOptions((NOBODY,), credentials_file=str(path)).check()
