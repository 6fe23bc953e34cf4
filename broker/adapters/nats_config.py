"""The files of a federation's NATS: configuration of its servers and leaf nodes, NKeys, certificates.

`plan_files` gives every file as text; who writes them, and what is kept, is the command's business.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import msgspec
import nkeys

from broker.adapters.nats_roles import API_MAPPING, Role, accounts_config, cluster_account, roles

CLIENT_PORT = 4222
LEAF_PORT = 7422
ROUTE_PORT = 6222
MONITOR_PORT = 8222
NODES_OF_A_CLUSTER = 3


class NatsPlan(msgspec.Struct, frozen=True):
    """What an operator chose.

    hosts: where the servers run, one or three. leaf_clusters: those with a leaf node of their own, behind a WAN.
    bytes_max: what all streams together may take on a server's disk, 0: what the server finds.
    port_step: between the ports of one server and those of the next, for several on one machine.
    """

    clusters: Sequence[str]
    hosts: Sequence[str] = ("127.0.0.1",)
    leaf_clusters: Sequence[str] = ()
    subscribers: Sequence[str] = ()
    store_dir: str = "/var/lib/nats"
    bytes_max: int = 0
    port: int = CLIENT_PORT
    port_step: int = 0

    @property
    def roles(self) -> list[Role]:
        """Everybody who gets a key."""
        return roles(self.clusters, self.leaf_clusters, self.subscribers)

    def port_of(self, base: int, index: int) -> int:
        """A port of the server `index`; all ports move with `port`."""
        return base + self.port - CLIENT_PORT + index * self.port_step

    @property
    def urls(self) -> list[str]:
        """Where clients connect."""
        return [f"tls://{host}:{self.port_of(CLIENT_PORT, index)}" for index, host in enumerate(self.hosts)]


def new_seed() -> str:
    """An NKey of a user: the secret part."""
    return bytes(nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)).decode()


def public_key(seed: str) -> str:
    """The part of an NKey that the server knows. Raises: ValueError if `seed` is none."""
    try:
        return bytes(nkeys.from_seed(bytearray(seed.strip().encode())).public_key).decode()
    except (nkeys.NkeysError, ValueError) as error:
        raise ValueError(f"it is not the seed of an NKey: {type(error).__name__}") from error


def plan_files(plan: NatsPlan, seeds: Mapping[str, str]) -> dict[PurePosixPath, str]:
    """Every file but keys and certificates, by its path in the directory. seeds: by role."""
    public = {name: public_key(seed) for name, seed in seeds.items()}
    accounts = accounts_config(plan.roles, public, plan.bytes_max)
    found = {PurePosixPath("accounts.conf"): _block("accounts", accounts) + "system_account: SYS\n"}
    for index in range(len(plan.hosts)):
        found[PurePosixPath(f"n{index + 1}.conf")] = _server(plan, index)
    for cluster in plan.leaf_clusters:
        found[PurePosixPath(f"leaf-{cluster}.conf")] = _leaf(plan, cluster, accounts, public, seeds[f"leaf-{cluster}"])
    return found


def _server(plan: NatsPlan, index: int) -> str:
    name = f"n{index + 1}"
    text = (
        f"server_name: {name}\n"
        f"listen: 0.0.0.0:{plan.port_of(CLIENT_PORT, index)}\n"
        "# For --nats-monitor; it tells no secrets, but keep it inside.\n"
        f"http: 127.0.0.1:{plan.port_of(MONITOR_PORT, index)}\n"
        "\n"
        "# An acknowledged decision must not vanish with the power.\n"
        f'jetstream {{ store_dir: "{plan.store_dir}/{name}", sync_interval: always }}\n'
        "# Entries of the ledger may need as much; it is nats-server's default.\n"
        "max_payload: 1MB\n"
        "\n"
        f"{_tls(name)}"
        f"include ./accounts.conf\n"
    )
    if len(plan.hosts) > 1:
        routes = [
            f'    "nats-route://{host}:{plan.port_of(ROUTE_PORT, other)}"\n' for other, host in enumerate(plan.hosts)
        ]
        text += (
            "\ncluster {\n"
            "  name: dragoman\n"
            f"  listen: 0.0.0.0:{plan.port_of(ROUTE_PORT, index)}\n"
            # Servers prove to each other who they are: a route is not asked for a key.
            f"{_tls(name, verify=True, indent='  ')}"
            f"  routes: [\n{''.join(routes)}  ]\n"
            "}\n"
        )
    if plan.leaf_clusters:
        text += f"\nleafnodes {{\n  listen: 0.0.0.0:{plan.port_of(LEAF_PORT, index)}\n{_tls(name, indent='  ')}}}\n"
    return text


def _leaf(plan: NatsPlan, cluster: str, accounts: Mapping[str, Any], public: Mapping[str, str], seed: str) -> str:
    """The leaf node beside a cluster's agent: it keeps nothing, and knows one user. A secret: nats-server wants its
    seed in the file itself."""
    name = f"leaf-{cluster}"
    account = cluster_account(cluster)
    of = {user["nkey"]: user["permissions"] for user in accounts[account]["users"]}
    agent, leaf = public[f"agent-{cluster}"], public[name]
    # The server asks for permission before and after it has mapped a subject.
    said = list(dict.fromkeys(of[agent]["publish"]["allow"] + of[leaf]["publish"]["allow"]))
    permissions = {"publish": {"allow": said}, "subscribe": of[agent]["subscribe"]}
    users = [{"nkey": agent, "permissions": permissions}]
    urls = [f'"tls://{host}:{plan.port_of(LEAF_PORT, index)}"' for index, host in enumerate(plan.hosts)]
    return (
        f"server_name: {name}\n"
        f"listen: 0.0.0.0:{plan.port}\n"
        "\n"
        f"{_tls(name)}"
        f"{_block('accounts', {account: {'users': users, 'mappings': API_MAPPING}})}"
        "\n"
        "leafnodes {\n"
        "  remotes: [ {\n"
        f"    urls: [{', '.join(urls)}]\n"
        f'    account: "{account}"\n'
        f'    nkey: "{seed.strip()}"\n'
        '    tls { ca_file: "tls/ca.crt" }\n'
        "  } ]\n"
        "}\n"
    )


def _tls(name: str, *, verify: bool = False, indent: str = "") -> str:
    check = ", verify: true" if verify else ""
    files = f'cert_file: "tls/{name}.crt", key_file: "tls/{name}.key", ca_file: "tls/ca.crt"'
    return f"{indent}tls {{ {files}{check} }}\n"


def _block(name: str, value: Any) -> str:
    """JSON is configuration to nats-server; in quotes, so that `$JS` is no variable."""
    return f"{name}: {msgspec.json.format(msgspec.json.encode(value), indent=2).decode()}\n"
