"""What an agent must be allowed to do at its API server, asked for at the start: a right that is missing would else
show only as claims that stay pending.
"""

from collections.abc import Iterable

import msgspec

from cluster_agent.adapters.kube_connection import KubeConnection, Where
from cluster_agent.adapters.kube_objects import API_KINDS
from cluster_agent.errors import ClusterAccessError
from cluster_agent.ports import ApiError, Kind
from schemas.errors import UNREADABLE
from schemas.resource.versions import GROUP

_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_WHO = "/apis/authentication.k8s.io/v1/selfsubjectreviews"


class Right(msgspec.Struct, frozen=True, order=True):
    """One rule of RBAC, for the whole cluster. resource: with its subresource, such as resourceclaims/status."""

    group: str
    resource: str
    verb: str

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}{'.' + self.group if self.group else ''}"


# `binding` is no resource but a right of its own, from Kubernetes 1.36 on: whoever sets or clears an allocation needs
# it for the whole cluster, a RoleBinding is not enough.
_CLAIM_WRITES = (
    Right(GROUP, "resourceclaims", "get"),
    Right(GROUP, "resourceclaims", "update"),
    Right(GROUP, "resourceclaims/status", "update"),
    Right(GROUP, "resourceclaims/binding", "update"),
)

_CLASS_WRITES = tuple(Right(GROUP, "deviceclasses", verb) for verb in ("create", "update", "delete"))
_RULE_WRITES = tuple(Right(GROUP, "devicetaintrules", verb) for verb in ("create", "update", "delete"))

_EVENT_WRITES = tuple(Right("events.k8s.io", "events", verb) for verb in ("create", "patch"))


def needed_rights(
    kinds: Iterable[Kind], *, writes_taint_rules: bool = False, writes_events: bool = True
) -> list[Right]:
    """The rights of an agent that reads these kinds; where claims are among them, it writes them, and the hub's classes
    and Events on claims beside them; DeviceTaintRules where that is wanted."""
    kinds = list(kinds)
    rights = []
    for kind in kinds:
        api_kind = API_KINDS[kind]
        group = GROUP if "/" in api_kind.versions[0] else ""
        rights += [Right(group, api_kind.resource, verb) for verb in ("list", "watch")]
    if "claim" in kinds:
        rights += [*_CLAIM_WRITES, *_CLASS_WRITES, *(_EVENT_WRITES if writes_events else ())]
    return sorted([*rights, *(_RULE_WRITES if writes_taint_rules else ())])


class _UserInfo(msgspec.Struct):
    username: str = ""


class _Who(msgspec.Struct, rename="camel"):
    user_info: _UserInfo = msgspec.field(default_factory=_UserInfo)


class _Review(msgspec.Struct):
    status: _Who = msgspec.field(default_factory=_Who)


class _Verdict(msgspec.Struct):
    allowed: bool = False


class _AccessReview(msgspec.Struct):
    status: _Verdict = msgspec.field(default_factory=_Verdict)


async def check_rights(connection: KubeConnection, rights: Iterable[Right]) -> str:
    """Ask the API server for each; returns who we are there.

    Raises: ClusterAccessError that names every right that is missing, or says why nothing could be asked.
    """
    where = Where("SelfSubjectAccessReview")
    try:
        who = await _who(connection)
        missing = [right for right in rights if not await _is_allowed(connection, right, where)]
    except (ApiError, *UNREADABLE) as error:
        raise ClusterAccessError(f"{connection.server}: {error}") from error
    if missing:
        named = ", ".join(map(str, missing))
        raise ClusterAccessError(
            f"{who} may not {named} at {connection.server}, for the whole cluster: bind it to a ClusterRole with these "
            "rules, see docs/kubernetes.md"
        )
    return who


async def _who(connection: KubeConnection) -> str:
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    answer = await connection.call("POST", _WHO, body=body, where=Where("SelfSubjectReview"))
    return msgspec.json.decode(answer, type=_Review).status.user_info.username


async def _is_allowed(connection: KubeConnection, right: Right, where: Where) -> bool:
    resource, _, subresource = right.resource.partition("/")
    asked = {"group": right.group, "resource": resource, "subresource": subresource, "verb": right.verb}
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": asked},
    }
    answer = await connection.call("POST", _REVIEWS, body=body, where=where)
    return msgspec.json.decode(answer, type=_AccessReview).status.allowed
