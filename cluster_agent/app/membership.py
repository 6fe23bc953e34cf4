"""What an operator does to a member: take classes that are in use under brokering, and take the member out again.

No pod ends by either: allocations are not touched.
"""

from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Protocol

import msgspec

from cluster_agent.mirror.classes import give_back, take_over
from cluster_agent.mirror.projected import is_projected
from cluster_agent.mirror.tracked import HELD, VOIDED_ANNOTATION, class_names_of, holds_of, is_held, metadata_of
from cluster_agent.ports import ApiConflictError, ApiNotFoundError, ApiObject, Cluster, Kind, Objects

TRIES = 5


class Member(Cluster, Objects, Protocol):
    """A cluster whose classes and rules may be written."""


class Joined(msgspec.Struct, frozen=True):
    """closed, were_closed: names of classes, now and before. in_use: how many claims on them hold devices."""

    closed: list[str]
    were_closed: list[str]
    in_use: int


class Left(msgspec.Struct, frozen=True):
    """given_back, deleted: names of classes. rules: of DeviceTaintRules that are gone. released: how many claims do not
    carry our finalizer any more.
    """

    given_back: list[str]
    deleted: list[str]
    rules: list[str]
    released: int


async def join(member: Member, names: Collection[str]) -> Joined:
    """Close these classes to the member's own scheduler; what is allocated stays.

    Raises: ApiNotFoundError if there is no class of a name, before anything is written; ApiError.
    """
    found = {_name(each): each for each in (await member.list_objects("class")).objects}
    for name in names:
        if name not in found:
            raise ApiNotFoundError("there is no such class", kind="class", name=name)
    were_closed = [name for name in names if is_projected(found[name])]
    closed = [name for name in names if name not in were_closed]
    for name in closed:
        await _change(member, "class", found[name], _taken_over, partial(member.update_object, "class"))
    return Joined(closed, were_closed, len(await holders(member, names)))


async def holders(member: Cluster, names: Collection[str]) -> dict[str, str]:
    """NAMESPACE/NAME of the claims on these classes that hold devices, by UID."""
    return {
        claim["metadata"]["uid"]: f"{claim['metadata']['namespace']}/{claim['metadata']['name']}"
        for claim in (await member.list_objects("claim")).objects
        if holds_of(claim) is not None and not set(names).isdisjoint(class_names_of(claim))
    }


async def leave(member: Member) -> Left:
    """Undo what agents have written: classes are what they were before or gone, rules are gone, claims need no agent.

    Raises: ApiError.
    """
    given_back, deleted, released = [], [], 0
    for found in (await member.list_objects("class")).objects:
        if not is_projected(found):
            continue
        if give_back(found) is None:
            await _change(member, "class", found, _projected, partial(member.delete_object, "class"))
            deleted.append(_name(found))
        else:
            await _change(member, "class", found, give_back, partial(member.update_object, "class"))
            given_back.append(_name(found))
    rules = [found for found in (await member.list_objects("taintrule")).objects if is_projected(found)]
    for found in rules:
        await _change(member, "taintrule", found, _projected, partial(member.delete_object, "taintrule"))
    for claim in (await member.list_objects("claim")).objects:
        if is_held(claim):
            await _change(member, "claim", claim, _released, member.update_claim)
            released += 1
    return Left(sorted(given_back), sorted(deleted), sorted(map(_name, rules)), released)


async def _change(
    member: Member,
    kind: Kind,
    found: ApiObject,
    change: Callable[[ApiObject], ApiObject | None],
    write: Callable[[ApiObject], Awaitable[object]],
) -> None:
    """Write what `change` makes of the object, as it is now; None: nothing. One that is gone needs nothing."""
    uid = found["metadata"]["uid"]
    for attempt in range(TRIES):
        changed = change(found)
        if changed is None:
            return
        try:
            await write(changed)
        except ApiNotFoundError:
            return
        except ApiConflictError:
            if attempt == TRIES - 1:
                raise
        else:
            return
        same = [each for each in (await member.list_objects(kind)).objects if each["metadata"]["uid"] == uid]
        if not same:
            return
        [found] = same


def _taken_over(found: ApiObject) -> ApiObject | None:
    return None if is_projected(found) else take_over(found)


def _projected(found: ApiObject) -> ApiObject | None:
    return found if is_projected(found) else None


def _released(claim: ApiObject) -> ApiObject | None:
    """Without our finalizer and mark. The other finalizer stays: by it kube-controller-manager frees the claim."""
    if not is_held(claim):
        return None
    metadata = metadata_of(claim)
    finalizers = [each for each in metadata["finalizers"] if each != HELD]
    annotations = {key: value for key, value in metadata.get("annotations", {}).items() if key != VOIDED_ANNOTATION}
    return {**claim, "metadata": {**metadata, "finalizers": finalizers, "annotations": annotations}}


def _name(obj: ApiObject) -> str:
    return str(obj["metadata"]["name"])
