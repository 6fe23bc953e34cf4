"""`dragoman nats-config`: configuration, keys and certificates of a NATS for a federation."""

import argparse
import os
import re
import ssl
from importlib.util import find_spec
from pathlib import Path

import shtab
from rich.table import Table

from broker.adapters.nats_config import NODES_OF_A_CLUSTER, NatsPlan, new_seed, plan_files, public_key
from broker.app.settings import check_federation
from broker.cli.errors import CommandError
from broker.cli.federation import read_federation
from broker.cli.output import console, print_json
from broker.world.federation import Federation
from broker.world.keys import ClusterId

_HOST = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9.]{0,251}[A-Za-z0-9])?")
_SIZE = re.compile(r"([1-9][0-9]{0,14})([KMGT]?)")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

EPILOG = """\
One --host is one server, three are a cluster that survives the loss of one. Each cluster's agent has an account of its
own, and so have subscribers: what each may say and hear is in accounts.conf. Keys that are there are kept: remove a
key's file and run the command again with --force to replace (and so revoke) it.

examples:
  dragoman nats-config --dir nats --cluster east --cluster west --dev-ca
  dragoman nats-config --dir nats --config federation.yaml --host n1.example.com --host n2.example.com \\
      --host n3.example.com --tls-ca ca.crt
  dragoman nats-config --dir nats --cluster east --cluster west --leaf west --dev-ca --force

Then start nats-server in that directory, on each host with the file of its own, and run `dragoman nats-setup`.
"""


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `nats-config`."""
    parser = commands.add_parser(
        "nats-config",
        help="write the configuration of a NATS for a federation",
        description="Write configuration for nats-server: accounts, permissions, NKeys, and TLS on all links.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    directory = parser.add_argument("--dir", type=Path, required=True, metavar="DIR", help="where to write")
    config = parser.add_argument("--config", type=Path, metavar="FILE", help="its clusters; see docs/config.md")
    parser.add_argument("--cluster", action="append", default=[], metavar="NAME", help="instead of --config")
    parser.add_argument("--leaf", action="append", default=[], metavar="NAME", help="this cluster has a leaf node")
    parser.add_argument("--subscriber", action="append", default=[], metavar="NAME", help="who may read events")
    parser.add_argument("--host", action="append", metavar="HOST", help="of a server; 1 or 3 (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=4222, help="for clients; the other ports move with it")
    parser.add_argument(
        "--port-step", type=int, default=0, metavar="N", help="add N to the ports from server to server"
    )
    parser.add_argument("--store-dir", default="/var/lib/nats", metavar="DIR", help="on the servers, for the streams")
    parser.add_argument("--max-bytes", default="", metavar="SIZE", help="of all streams together, such as 20G")
    tls = parser.add_mutually_exclusive_group(required=True)
    tls.add_argument("--dev-ca", action="store_true", help="make certificates by a CA of our own, to try things out")
    ca = tls.add_argument(
        "--tls-ca", type=Path, metavar="FILE", help="your CA; put each server's tls/NAME.crt and .key there yourself"
    )
    parser.add_argument("--force", action="store_true", help="replace the files that are there, but no key")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    for argument, kind in ((directory, shtab.DIRECTORY), (config, shtab.FILE), (ca, shtab.FILE)):
        argument.complete = kind  # type: ignore[attr-defined]  # how shtab is told
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the files and say which."""
    plan = _plan(options)
    directory: Path = options.dir
    if options.dev_ca and find_spec("cryptography") is None:
        raise CommandError("--dev-ca needs the package cryptography: pip install 'dragoman[local]'")
    try:
        if directory.exists() and any(directory.iterdir()) and not options.force:
            raise CommandError(f"--dir {directory}: the directory is not empty; --force replaces its files, but no key")
        written = _write(directory, plan, options.tls_ca)
    except OSError as error:
        raise CommandError(f"--dir {directory}: {error.filename} cannot be written: {error.strerror}") from error
    if options.output == "json":
        print_json({"urls": plan.urls, "files": [{"path": path, "what": what} for path, what in written]})
        return 0
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("FILE", no_wrap=True)
    table.add_column("WHAT")
    for row in written:
        table.add_row(*row)
    console().print(table)
    return 0


def _plan(options: argparse.Namespace) -> NatsPlan:
    """Raises: CommandError with every mistake."""
    federation = read_federation(options.config)
    clusters = [*federation.clusters, *map(ClusterId, options.cluster)]
    hosts = options.host or ["127.0.0.1"]
    problems = [f"--cluster: {problem}" for problem in check_federation(Federation(clusters=clusters))]
    if not clusters:
        problems.append("--cluster: give at least one, or a --config that lists clusters")
    problems += [
        f"--leaf: cluster {name!r} is not among the clusters ({', '.join(clusters)})"
        for name in options.leaf
        if name not in clusters
    ]
    problems += [
        f"--subscriber: {problem.partition(': ')[2]}"
        for problem in check_federation(Federation(clusters=list(map(ClusterId, options.subscriber))))
    ]
    if len(hosts) not in (1, NODES_OF_A_CLUSTER):
        problems.append(f"--host: {len(hosts)} servers; one, or {NODES_OF_A_CLUSTER}: two lose both when one is lost")
    for index, host in enumerate(hosts):
        if not _HOST.fullmatch(host):
            problems.append(f"--host[{index}]: {host!r} is neither a host name nor an IPv4 address")
    if not options.port_step and len(set(hosts)) != len(hosts):
        problems.append("--host: a host is there twice; that needs --port-step")
    if not 1024 <= options.port <= 60000 or not 0 <= options.port_step <= 100:
        problems.append("--port: 1024 to 60000, and --port-step 0 to 100")
    size = _SIZE.fullmatch(options.max_bytes)
    if options.max_bytes and size is None:
        problems.append(f"--max-bytes: {options.max_bytes!r} is no size such as 500M or 20G")
    if not options.store_dir or set(options.store_dir) & set('"\\\n\r'):
        problems.append("--store-dir: a directory, without quotes, backslashes and line breaks")
    if options.tls_ca:
        try:
            ssl.create_default_context(cafile=options.tls_ca)
        except OSError as error:
            why = "it is no certificate in PEM" if isinstance(error, ssl.SSLError) else error.strerror
            problems.append(f"--tls-ca {options.tls_ca}: {why}")
    if problems:
        raise CommandError("\n".join(problems))
    return NatsPlan(
        clusters=clusters,
        hosts=hosts,
        leaf_clusters=options.leaf,
        subscribers=options.subscriber,
        store_dir=options.store_dir,
        bytes_max=int(size[1]) * _UNITS[size[2]] if size else 0,
        port=options.port,
        port_step=options.port_step,
    )


def _write(directory: Path, plan: NatsPlan, tls_ca: Path | None) -> list[tuple[str, str]]:
    """Returns each file with what it is. Raises: OSError, CommandError."""
    written = []
    for name in ("", "keys", "tls"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    seeds = {}
    for role in plan.roles:
        path = directory / "keys" / f"{role.name}.nk"
        is_new = not path.exists()
        if is_new:
            _write_secret(path, new_seed() + "\n")
        try:
            seeds[role.name] = path.read_text(encoding="ascii", errors="replace")  # what is no text is no seed
            public = public_key(seeds[role.name])
        except ValueError as error:
            raise CommandError(f"{path}: {error}; remove the file to have a new key") from error
        written.append((str(path), f"{'new' if is_new else 'kept'}: key of {role.name}, {public}"))
    for file, text in plan_files(plan, seeds).items():
        if file.name.startswith("leaf-"):
            _write_secret(directory / file, text)
        else:
            (directory / file).write_text(text)
        written.append((str(directory / file), "configuration"))
    if tls_ca is not None:
        (directory / "tls/ca.crt").write_bytes(tls_ca.read_bytes())
        needed = [
            *(f"n{index + 1}" for index in range(len(plan.hosts))),
            *(f"leaf-{name}" for name in plan.leaf_clusters),
        ]
        written.append((str(directory / "tls/ca.crt"), "your CA"))
        written += [(str(directory / f"tls/{name}.crt"), f"YOURS to put here, with {name}.key") for name in needed]
    else:
        written += _write_certificates(directory / "tls", plan)
    return written


def _write_certificates(directory: Path, plan: NatsPlan) -> list[tuple[str, str]]:
    from broker.adapters.development_ca import DevelopmentCA  # an extra

    names = [f"n{index + 1}" for index in range(len(plan.hosts))] + [f"leaf-{name}" for name in plan.leaf_clusters]
    files = [directory / "ca.crt", *(directory / f"{name}.{end}" for name in names for end in ("crt", "key"))]
    if all(file.exists() for file in files):
        return [(str(file), "kept; remove it to have new certificates") for file in files[:1]]
    authority = DevelopmentCA()
    (directory / "ca.crt").write_text(authority.certificate)
    written = [(str(directory / "ca.crt"), "development CA, for clients; its key was not kept")]
    servers = {f"n{index + 1}": [host] for index, host in enumerate(plan.hosts)}
    servers |= {f"leaf-{cluster}": [f"leaf-{cluster}", "localhost", "127.0.0.1"] for cluster in plan.leaf_clusters}
    for name, hosts in servers.items():
        certificate, key = authority.issue(name, hosts)
        (directory / f"{name}.crt").write_text(certificate)
        _write_secret(directory / f"{name}.key", key)
        written.append((str(directory / f"{name}.crt"), f"certificate of {', '.join(hosts)}"))
    return written


def _write_secret(path: Path, text: str) -> None:
    """Never readable by others, not for a moment."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
