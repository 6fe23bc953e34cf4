"""The command line itself: help with examples, completion, wrong arguments, and `dragoman demo`."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from broker.cli.main import main
from cluster_agent.adapters.manifest_cluster import ManifestCluster
from tests.manifests import claim_manifest, write_manifests

COMMANDS = (
    "demo",
    "up",
    "allocate",
    "explain",
    "trace",
    "tracer",
    "broker",
    "agent",
    "cluster",
    "nats-config",
    "nats-setup",
)


def run(*arguments: str) -> int:
    """The exit code, also where argparse ends it."""
    try:
        return main(arguments)
    except SystemExit as end:
        return int(end.code or 0)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    out = capsys.readouterr().out
    _, _, examples = out.partition("examples:\n")
    assert examples.startswith(f"  dragoman {command}")


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    out = capsys.readouterr().out
    assert [command for command in COMMANDS if f"\n    {command} " not in out] == []
    assert "dragoman demo" in out


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_prints_a_completion_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--print-completion", shell) == 0
    out = capsys.readouterr().out
    assert "dragoman" in out
    assert "--cluster" in out


def test_prints_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("dragoman 0.")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param([], "the following arguments are required: COMMAND", id="nothing"),
        pytest.param(["fly"], "invalid choice: 'fly'", id="an unknown command"),
        pytest.param(["up"], "the following arguments are required: --cluster", id="up without clusters"),
        pytest.param(
            ["up", "--cluster", "east"], "'east' is not NAME=DIR, such as east=", id="a cluster without files"
        ),
        pytest.param(["up", "--cluster", "=d"], "'=d' is not NAME=DIR", id="a cluster without name"),
        pytest.param(["up", "--cluster", "a=nowhere"], "a=nowhere: there is no such directory", id="no directory"),
        pytest.param(
            ["up", "--cluster", "a={root}", "--cluster", "a={root}"], "each cluster once", id="one name for two"
        ),
        pytest.param(["up", "--cluster", "A_b={root}"], "clusters[0]: 'A_b' is not a DNS label", id="no DNS label"),
        pytest.param(
            ["up", "--cluster", "a={root}", "--config", "{root}/none.yaml"],
            "none.yaml cannot be read: No such file",
            id="no config file",
        ),
        pytest.param(
            ["up", "--cluster", "west={root}", "--config", "{root}/config.yaml"],
            "clusters: 'east' is not among the --cluster arguments",
            id="a config for others",
        ),
        pytest.param(["up", "--cluster", "a={root}", "-o", "xml"], "invalid choice: 'xml'", id="an unknown format"),
        pytest.param(
            ["tracer", "--ratio", "2"], "--ratio: '2.0' is not a number from 0 to 1", id="more than all traces"
        ),
        pytest.param(["tracer", "--slow", "0"], "--slow: 0 is not above 0", id="everything is slow"),
        pytest.param(["trace"], "which claim? Give NAMESPACE/NAME, or --uid", id="trace what"),
        pytest.param(["trace", "a", "--uid", "b"], "which claim? Give NAMESPACE/NAME, or --uid", id="trace two"),
        pytest.param(["trace", "--uid", "b"], "--uid needs --cluster", id="trace of which cluster"),
        pytest.param(["trace", "/a"], "'/a' is not NAMESPACE/NAME", id="trace without a namespace"),
        pytest.param(["explain"], "the following arguments are required: NAMESPACE/NAME", id="explain what"),
        pytest.param(["explain", "ml/"], "'ml/' is not NAMESPACE/NAME", id="explain half a name"),
        pytest.param(["cluster"], "the following arguments are required: VERB", id="a cluster without verb"),
        pytest.param(["cluster", "cordon"], "the following arguments are required: CLUSTER", id="cordon which"),
        pytest.param(
            ["cluster", "evict", "east"], "the following arguments are required: --reason", id="evict without reason"
        ),
        pytest.param(
            ["cluster", "evict", "east", "--reason", "fire"], "nobody can be asked here: give --yes", id="evict unasked"
        ),
        pytest.param(["broker"], "the following arguments are required: --config", id="a broker without config"),
        pytest.param(
            ["broker", "--config", "{root}/none.yaml"], "cannot be read: No such file", id="a broker without file"
        ),
        pytest.param(
            ["agent", "--cluster", "east", "--manifests", "{root}/none", "--data", "{root}/data"],
            "none: there is no such directory",
            id="an agent without files",
        ),
        pytest.param(
            ["agent", "--cluster", "east", "--manifests", "{root}"],
            "--manifests needs --data",
            id="an agent without data",
        ),
        pytest.param(["agent", "--cluster", "east"], "which cluster?", id="an agent without a cluster"),
        pytest.param(
            ["agent", "--cluster", "east", "--in-cluster", "--unschedulable-after", "nan"],
            "--unschedulable-after: nan is not between 1 and 86400 s",
            id="an agent without patience",
        ),
        pytest.param(
            ["agent", "--cluster", "east", "--in-cluster", "--context", "a"],
            "the pod's service account is used, or a kubeconfig is",
            id="an agent of two clusters",
        ),
        pytest.param(
            ["agent", "--cluster", "east", "--in-cluster", "--manifests", "{root}", "--data", "{root}"],
            "a directory is the cluster, or Kubernetes is",
            id="an agent of a directory and of a cluster",
        ),
        pytest.param(
            ["agent", "--cluster", "A_b", "--manifests", "{root}", "--data", "{root}/data"],
            "'A_b' is not a DNS label",
            id="an agent of no DNS label",
        ),
        pytest.param(
            ["explain", "a", "--archive", "{root}/a.zst"], "--archive: as of when?", id="a past without a time"
        ),
        pytest.param(
            ["nats-setup", "--subscriber", "a", "--forget-subscriber", "a"],
            "'a': a place is made by --subscriber or forgotten by --forget-subscriber, not both",
            id="a subscriber that comes and goes",
        ),
        pytest.param(
            ["nats-setup", "--forget-subscriber", "a.b"], "'a.b' is no name of a subscriber", id="no subscriber"
        ),
        pytest.param(["demo", "--keep", "{root}"], "the directory is not empty", id="a demo into a full directory"),
        pytest.param(["demo", "--keep", "{root}/config.yaml"], "config.yaml: Not a directory", id="a demo into a file"),
        pytest.param(["demo", "--keep", "/proc/nope"], "/proc/nope: No such file or directory", id="a demo nowhere"),
        pytest.param(
            ["up", "--cluster", "east={root}", "--data", "{root}/config.yaml"],
            "the data directory {root}/config.yaml/nats cannot be used: Not a directory",
            id="state in a file",
        ),
        pytest.param(
            ["up", "--cluster", "east={root}", "--data", "/proc/x"],
            "the data directory /proc/x/nats cannot be used: No such file or directory",
            id="state nowhere",
        ),
        pytest.param(
            ["schema", "--check", "--dir", "{root}/directory"],
            "{root}/directory/asyncapi.yaml cannot be read: Is a directory",
            id="a schema that is a directory",
        ),
        pytest.param(
            ["schema", "--check", "--dir", "{root}/binary"],
            "{root}/binary/asyncapi.yaml cannot be read: it is not text in UTF-8",
            id="a schema that is no text",
        ),
        pytest.param(["tracer", "--slow", "inf"], "--slow: inf is not above 0 and at most", id="nothing is slow"),
        pytest.param(["tracer", "--slow", "nan"], "--slow: nan is not above 0 and at most", id="slow is no number"),
        pytest.param(["events", "--since", "0001-01-01T00:00+14:00"], "is no time span", id="before the first year"),
        pytest.param(["events", "--since", "9999-12-31T23:59-14:00"], "is no time span", id="after the last year"),
        pytest.param(["events", "--since", "2262-01-01T00:00Z"], "is after the year 2261", id="after NATS' last year"),
        pytest.param(
            ["explain", "a", "--at", "0001-01-01T00:00+14:00"], "is no time span", id="a past before the first year"
        ),
        pytest.param(
            ["events", "--since", "99999999999999999999999999"],
            "99999999999999999999999999 is no stream sequence: they are below 18446744073709551615",
            id="a sequence that no stream can have",
        ),
        pytest.param(
            ["nats-setup", "--state-age", "999999d"], "is no age such as 72h or 30d, at most 106751d", id="too old"
        ),
        pytest.param(["events", "--cluster", "a b"], "--cluster: 'a b' is no name of a cluster", id="no cluster"),
        pytest.param(["events", "--cluster", "a.>"], "--cluster: 'a.>' is no name of a cluster", id="all clusters"),
        pytest.param(
            ["events", "--subscriber", "x y"], "--subscriber: 'x y' is no name of a subscriber", id="nobody subscribes"
        ),
    ],
)
def test_wrong_arguments_end_with_2_and_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"clusters": ["east"]}))
    (tmp_path / "directory/asyncapi.yaml").mkdir(parents=True)
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary/asyncapi.yaml").write_bytes(b"\xff\x00")
    assert run(*(each.replace("{root}", str(tmp_path)) for each in arguments)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert sentence.replace("{root}", str(tmp_path)) in printed.err
    assert "Traceback" not in printed.err


class Terminal(io.StringIO):
    """Somebody who types this."""

    def isatty(self) -> bool:
        return True


def test_evict_does_nothing_unless_the_clusters_name_is_typed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("yes\n"))
    assert run("cluster", "evict", "west", "--reason", "fire", "--fenced", "--nats", "nats://127.0.0.1:1") == 1
    printed = capsys.readouterr()
    assert "Evict cluster west, and give its devices to others: you vouch that it is cut off" in printed.err
    assert printed.err.endswith("dragoman cluster: nothing was done\n")


@pytest.mark.parametrize("command", ["agent", "broker"])
def test_a_process_without_nats_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRAGOMAN_NATS", "nats://user:secret@127.0.0.1:1")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"clusters": ["east"]}))
    write_manifests(tmp_path / "east" / "claim.yaml", claim_manifest("a"))
    options = {
        "agent": ["--cluster", "east", "--manifests", str(tmp_path / "east"), "--data", str(tmp_path / "data")],
        "broker": ["--config", str(tmp_path / "config.yaml")],
    }
    assert run(command, *options[command]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "cannot connect to NATS at nats://127.0.0.1:1" in printed.err
    assert "give the right address with --nats" in printed.err
    assert "secret" not in printed.err


KUBECONFIG = """\
apiVersion: v1
kind: Config
current-context: here
contexts: [{name: here, context: {cluster: here, user: me}}, {name: gone, context: {cluster: gone, user: me}}]
clusters: [{name: here, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: me, user: {token: secret}}]
"""


NO_KUBECONFIGS = {
    "empty": b"",
    "list": b"[1]",
    "text": b"hello",
    "something else": b"{apiVersion: v1, kind: Pod}",
    "a date that there is not": b"clusters: 2020-02-30",
    "binary": b"\xff\xfe\x00\xd8",
    "clusters that are text": b"clusters: here",
    "users that are numbers": b"users: [1]",
    "a context without a name": b"contexts: [{context: {cluster: here}}]",
    "a cluster that is a list": b"clusters: [{name: here, cluster: []}]",
}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param(["--kubeconfig", "{root}/none"], "there is no kubeconfig {root}/none", id="no kubeconfig"),
        pytest.param(["--kubeconfig", "{root}/yaml"], "not YAML", id="no YAML"),
        *(
            pytest.param(
                ["--kubeconfig", f"{{root}}/{name}"],
                f"{{root}}/{name} is no kubeconfig: expected an object with clusters, contexts and users",
                id=f"no kubeconfig but {name}",
            )
            for name in NO_KUBECONFIGS
        ),
        pytest.param(
            ["--kubeconfig", "{root}/good:{root}/list"], "{root}/list is no kubeconfig", id="one of two is none"
        ),
        pytest.param(["--kubeconfig", "{root}/good", "--context", "other"], "name other", id="no such context"),
        pytest.param(["--kubeconfig", "{root}/good", "--context", "gone"], "name gone", id="no such cluster"),
        pytest.param(["--kubeconfig", "{root}/good"], "https://127.0.0.1:1 gave no answer", id="nobody there"),
        pytest.param(["--in-cluster"], "the service account of this pod: ", id="no pod"),
    ],
)
def test_an_agent_that_cannot_use_its_cluster_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    for name, content in {"yaml": b"[1,", "good": KUBECONFIG.encode(), **NO_KUBECONFIGS}.items():
        (tmp_path / name).write_bytes(content)
    assert run("agent", "--cluster", "east", *(each.replace("{root}", str(tmp_path)) for each in arguments)) == 1
    printed = capsys.readouterr()
    assert sentence.replace("{root}", str(tmp_path)) in printed.err
    assert "secret" not in printed.err
    assert "Traceback" not in printed.err


@pytest.mark.parametrize("data", ["{root}/file", "/proc/x"])
def test_a_tracer_that_cannot_keep_its_progress_says_so_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: str
) -> None:
    pytest.importorskip("opentelemetry.sdk")
    (tmp_path / "file").write_text("")
    directory = data.replace("{root}", str(tmp_path))
    assert run("tracer", "--data", directory, "--nats", "nats://127.0.0.1:1") == 1
    assert f"--data {directory} cannot be used: " in capsys.readouterr().err


def test_one_agent_at_a_time_has_a_data_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "east").mkdir()
    other = ManifestCluster([tmp_path / "east"], data_dir=tmp_path / "data")
    try:
        arguments = ["--manifests", str(tmp_path / "east"), "--data", str(tmp_path / "data")]
        assert run("agent", "--cluster", "east", *arguments) == 1
    finally:
        other.close()
    assert f"{tmp_path / 'data'}" in capsys.readouterr().err


def test_the_demo_shows_who_got_what_and_who_waits(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("demo") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    before, after = (
        [line.split() for line in part.splitlines() if line.startswith(("east  ", "west  "))]
        for part in printed.out.split("Who got what, who waits, and why")[1].split("is deleted")
    )
    pod = before[0][1]
    assert pod.startswith("default/stock-prediction-pod-gpu-req-")
    assert before == [
        ["east", pod, "Allocated", "gpu-req:", "rack7/gpu-0"],
        ["east", "ml/train-east", "Allocated", "gpu:", "rack7/gpu-3"],
        ["east", "ml/typo", "Invalid", "-", "InvalidSelector"],
        ["west", "ml/never", "Pending", "-", "NoMatchingDevice"],
        ["west", "ml/pair", "Pending", "-", "DevicesInUse"],
        ["west", "ml/train-west", "Pending", "-", "DevicesInUse"],
    ]
    assert after == [
        *before[:1],
        *before[2:5],
        ["west", "ml/train-west", "Allocated", "gpu:", "rack7/gpu-3"],
    ]
    assert "compares text" in printed.out
    assert "held by east/ml/train-east" in printed.out
    assert "does not compile: line 1, column 51" in printed.out


def test_the_demo_leaves_its_manifests_where_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("demo", "--keep", str(tmp_path / "demo")) == 0
    names = sorted(path.relative_to(tmp_path / "demo").as_posix() for path in (tmp_path / "demo").rglob("*.yaml"))
    assert "west/train-west.yaml" in names
    assert "east/2-walk-through.yaml" in names


def test_works_as_a_program(tmp_path: Path) -> None:
    """As the console script runs it: JSON alone on stdout, logs on stderr."""
    write_manifests(tmp_path / "east" / "claims.yaml", claim_manifest("a", allocationMode="Most"))
    command = [sys.executable, "-m", "broker.cli.main", "--log-format", "json", "-v", "up", "--once", "-o", "json"]
    ended = subprocess.run([*command, "--cluster", f"east={tmp_path / 'east'}"], capture_output=True, check=False)
    assert ended.returncode == 1
    assert yaml.safe_load(ended.stdout)["claims"][0]["state"] == "Invalid"
    logs = [yaml.safe_load(line) for line in ended.stderr.splitlines()]
    assert {"time", "level", "logger", "message"} <= logs[0].keys()
    assert any("must be one of ExactCount, All" in log["message"] for log in logs)
