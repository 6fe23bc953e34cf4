"""`dragoman cluster join` and `leave`: what is done to a Kubernetes member itself, with the operator's own rights."""

import argparse
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import shtab

from broker.cli.errors import CommandError
from broker.errors import flat
from cluster_agent.app.membership import Joined, Left, Member, join, leave
from cluster_agent.errors import ClusterAccessError
from cluster_agent.ports import ApiError

T = TypeVar("T")


def add_verbs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `join` and `leave`."""
    joining = verbs.add_parser(
        "join",
        help="take classes that are in use under brokering",
        description=(
            "Close DeviceClasses of a Kubernetes member to its own scheduler. Pods keep what they have, and the "
            "classes what they were. docs/kubernetes.md has the steps before and after it."
        ),
        epilog="example: dragoman cluster join gpu.example.com --context east",
    )
    joining.add_argument("classes", nargs="+", metavar="CLASS", help="name of a DeviceClass")
    leaving = verbs.add_parser(
        "leave",
        help="undo what agents have written into a member",
        description=(
            "Once its agent is gone: classes of a Kubernetes member are what they were before, or deleted if an agent "
            "made them, and claims lose our finalizer. Pods keep what they have."
        ),
        epilog="example: dragoman cluster leave --context east",
    )
    for parser, run in ((joining, run_join), (leaving, run_leave)):
        kubeconfig = parser.add_argument(
            "--kubeconfig", default="", metavar="FILE", help="(default: $KUBECONFIG, else ~/.kube/config)"
        )
        kubeconfig.complete = shtab.FILE  # type: ignore[attr-defined]  # how shtab is told
        parser.add_argument("--context", required=True, metavar="NAME", help="in the kubeconfig")
        parser.set_defaults(run=run)


def run_join(options: argparse.Namespace) -> int:
    """Close them, and say what holds devices."""
    names = list(dict.fromkeys(options.classes))
    done: Joined = _at(options, lambda member: join(member, names))
    for name in names:
        before = " (it was before)" if name in done.were_closed else ""
        print(f"DeviceClass {name} selects nothing in {options.context} any more{before}")
    print(f"{done.in_use} claims on them hold devices, and keep them")
    return 0


def run_leave(options: argparse.Namespace) -> int:
    """Undo, and say what."""
    done: Left = _at(options, leave)
    for name in done.given_back:
        print(f"DeviceClass {name} of {options.context} is what it was before")
    for name in done.deleted:
        print(f"DeviceClass {name} of {options.context} is gone: an agent made it")
    print(f"{done.released} claims do not carry dragoman.dev/held any more")
    return 0


def _at(options: argparse.Namespace, do: Callable[[Member], Awaitable[T]]) -> T:
    # Half a second and 50 MB, which no other command has to pay.
    from cluster_agent.adapters.kube_cluster import KubernetesCluster
    from cluster_agent.adapters.kube_connection import Credentials, connect_to_cluster

    async def done() -> T:
        async with connect_to_cluster(Credentials(options.kubeconfig, options.context, False)) as connection:
            return await do(KubernetesCluster(connection))

    try:
        return anyio.run(done)
    except* (ApiError, ClusterAccessError) as group:
        raise CommandError("; ".join(map(str, flat(group))), exit_code=1) from None
