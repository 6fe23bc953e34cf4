"""`dragoman nats-config`: files that nats-server takes, secrets that nobody else reads, mistakes by name."""

import json
import subprocess
from pathlib import Path

import pytest

from broker.adapters.embedded_nats import find_binary
from broker.cli.main import main

CLUSTERS = ("--cluster", "east", "--cluster", "west")


def write(directory: Path, *arguments: str) -> int:
    return main(["nats-config", "--dir", str(directory), "--dev-ca", *arguments])


@pytest.mark.parametrize(
    ("arguments", "configs"),
    [
        pytest.param([], ["n1"], id="one server"),
        pytest.param([f"--host=n{n}.example.com" for n in (1, 2, 3)], ["n1", "n2", "n3"], id="three servers"),
        pytest.param(["--leaf=west", "--subscriber=audit", "--max-bytes=5G"], ["n1", "leaf-west"], id="a leaf node"),
    ],
)
def test_nats_server_takes_what_is_written(tmp_path: Path, arguments: list[str], configs: list[str]) -> None:
    assert write(tmp_path, *CLUSTERS, f"--store-dir={tmp_path}/store", *arguments) == 0
    for name in configs:
        command = [str(find_binary()), "-t", "-c", f"{name}.conf"]
        checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
    assert "sync_interval: always" in (tmp_path / "n1.conf").read_text()
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("leaf-*.conf")} <= {0o600}  # its key is in it


def test_secrets_are_for_their_owner_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, *CLUSTERS, "-o", "json")
    secrets = [path for path in tmp_path.rglob("*") if path.suffix in (".nk", ".key")]
    assert len(secrets) == 8
    assert {path.stat().st_mode & 0o777 for path in secrets} == {0o600}
    said = json.loads(capsys.readouterr().out)
    assert said["urls"] == ["tls://127.0.0.1:4222"]
    texts = [str(said), *(path.read_text() for path in tmp_path.glob("*.conf"))]
    for seed in (path.read_text().strip() for path in (tmp_path / "keys").iterdir()):
        assert not any(seed in text for text in texts)


def test_replaces_files_only_with_force_and_keys_never(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, *CLUSTERS)
    before = {path.name: path.read_text() for path in (tmp_path / "keys").iterdir()}
    accounts = (tmp_path / "accounts.conf").read_text()
    assert write(tmp_path, *CLUSTERS, "--cluster", "north") == 2
    assert "--force replaces its files, but no key" in capsys.readouterr().err
    assert (tmp_path / "accounts.conf").read_text() == accounts
    (tmp_path / "keys/agent-west.nk").unlink()  # revokes it
    assert write(tmp_path, *CLUSTERS, "--cluster", "north", "--force") == 0
    after = {path.name: path.read_text() for path in (tmp_path / "keys").iterdir()}
    assert {name for name in before if after[name] != before[name]} == {"agent-west.nk"}
    assert set(after) - set(before) == {"agent-north.nk"}


def test_certificates_may_be_yours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nats-config", "--dir", str(tmp_path / "another"), *CLUSTERS, "--dev-ca"]) == 0
    ca = tmp_path / "another/tls/ca.crt"
    assert main(["nats-config", "--dir", str(tmp_path / "nats"), *CLUSTERS, "--tls-ca", str(ca)]) == 0
    assert (tmp_path / "nats/tls/ca.crt").read_text() == ca.read_text()
    assert "YOURS to put here, with n1.key" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param([], "--cluster: give at least one", id="no cluster"),
        pytest.param(["--cluster=East"], "--cluster: clusters[0]: 'East' is not a DNS label", id="a wrong name"),
        pytest.param(["--cluster=a", "--leaf=b"], "--leaf: cluster 'b' is not among the clusters (a)", id="a leaf"),
        pytest.param(["--cluster=a", "--subscriber=x.y"], "--subscriber: 'x.y' is not a DNS label", id="a subscriber"),
        pytest.param(["--cluster=a", "--host=x", "--host=y"], "two lose both when one is lost", id="two servers"),
        pytest.param(["--cluster=a", "--host=a b"], "--host[0]: 'a b' is neither", id="a wrong host"),
        pytest.param(["--cluster=a", *["--host=x"] * 3], "--host: a host is there twice", id="a host twice"),
        pytest.param(["--cluster=a", "--port=80"], "--port: 1024 to 60000", id="a wrong port"),
        pytest.param(["--cluster=a", "--max-bytes=many"], "--max-bytes: 'many' is no size such as", id="no size"),
        pytest.param(["--cluster=a", "--host=2001:db8::1"], "is neither a host name nor an IPv4", id="IPv6"),
        pytest.param(["--cluster=a", "--store-dir=a\\b"], "--store-dir: a directory, without", id="a backslash"),
        pytest.param(["--cluster=a", "--store-dir="], "--store-dir: a directory, without", id="no directory"),
        pytest.param(["--config=nowhere.yaml"], "nowhere.yaml cannot be read", id="no config"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write(tmp_path / "nats", *arguments) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "nats").exists()


@pytest.mark.parametrize(
    ("file", "why"), [("/dev/null", "it is no certificate in PEM"), ("nowhere", "No such file or directory")]
)
def test_a_ca_that_is_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, why: str) -> None:
    assert main(["nats-config", "--dir", str(tmp_path / "nats"), *CLUSTERS, "--tls-ca", file]) == 2
    assert f"--tls-ca {file}: {why}" in capsys.readouterr().err
    assert not (tmp_path / "nats").exists()


def test_a_key_that_is_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, *CLUSTERS)
    (tmp_path / "keys/broker.nk").write_text("nonsense")
    assert write(tmp_path, *CLUSTERS, "--force") == 2
    assert "broker.nk: it is not the seed of an NKey" in capsys.readouterr().err


def test_a_key_that_is_no_text_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, *CLUSTERS)
    (tmp_path / "keys/broker.nk").write_bytes(b"\xff\x00")
    assert write(tmp_path, *CLUSTERS, "--force") == 2
    assert "broker.nk: it is not the seed of an NKey" in capsys.readouterr().err


def test_a_directory_that_is_a_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert write(tmp_path / "file", *CLUSTERS) == 2
    assert f"--dir {tmp_path}/file: {tmp_path}/file cannot be written: Not a directory" in capsys.readouterr().err
