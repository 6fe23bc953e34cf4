"""What the API server does with writes of `status.allocation` from outside, on which the agent rests.

A test that fails here after an update of Kubernetes names the rule of the agent that has to change.
"""

from contextlib import suppress
from typing import Any

import pytest

from cluster_agent.mirror.tracked import DELETE_PROTECTION, HELD
from tests.cluster_agent.objects import a_raw_claim, an_allocation, with_metadata, with_status
from tests.controlplane.api import Api, Object, StatusError, wait_for
from tests.controlplane.plane import ControlPlane, Rule

pytestmark = pytest.mark.anyio

GROUP = "resource.k8s.io"
# Not a pod: kube-controller-manager would find that there is no such pod.
USER = {"apiGroup": "example.com", "resource": "jobs", "name": "j", "uid": "7d9f3c52-0a4e-4f6b-9d0e-0c1c2f3a4b5c"}


async def a_stored_claim(plane: ControlPlane, namespace: str, **status: Any) -> Object:
    """A claim; with a status if one is given."""
    claim = await plane.api.create(a_raw_claim(namespace=namespace))
    return await plane.api.put_status(with_status(claim, **status)) if status else claim


async def refused(api: Api, claim: Object, subresource: str = "status") -> StatusError:
    with pytest.raises(StatusError) as caught:
        await api.put(claim, subresource)
    return caught.value


async def test_an_allocation_needs_no_slice_class_or_finalizer(plane: ControlPlane, namespace: str) -> None:
    claim = await a_stored_claim(plane, namespace, allocation=an_allocation())
    assert claim["status"]["allocation"] == an_allocation()
    assert await plane.api.find("DeviceClass", "gpu.example.com") is None
    assert "finalizers" not in claim["metadata"]


async def test_finalizers_and_allocation_are_two_writes_each_guarded_by_the_one_before(
    plane: ControlPlane, namespace: str
) -> None:
    claim = await a_stored_claim(plane, namespace)
    wanted = with_metadata(claim, finalizers=[DELETE_PROTECTION, HELD])
    with_both = with_status(wanted, allocation=an_allocation())
    by_status = await plane.api.put_status(with_both)
    assert "finalizers" not in by_status["metadata"]  # PUT of the status ignores them
    cleared = await plane.api.put_status(with_status(by_status))
    by_main = await plane.api.put(with_metadata(with_both, resourceVersion=cleared["metadata"]["resourceVersion"]))
    assert by_main["metadata"]["finalizers"] == [DELETE_PROTECTION, HELD]
    assert "allocation" not in by_main.get("status", {})  # and PUT of the claim ignores its status
    written = await plane.api.put_status(with_status(by_main, allocation=an_allocation()))
    assert written["metadata"]["finalizers"] == [DELETE_PROTECTION, HELD]
    assert written["status"]["allocation"] == an_allocation()


async def test_a_stale_version_or_another_uid_is_a_conflict(plane: ControlPlane, namespace: str) -> None:
    claim = await a_stored_claim(plane, namespace)
    await plane.api.put(with_metadata(claim, labels={"edited": "meanwhile"}))
    error = await refused(plane.api, with_status(claim, allocation=an_allocation()))
    assert (error.code, error.reason) == (409, "Conflict")
    current = await plane.api.get("ResourceClaim", "c", namespace)
    other = with_metadata(current, uid="00000000-0000-4000-8000-000000000000")
    error = await refused(plane.api, with_status(other, allocation=an_allocation()))
    assert (error.code, error.reason) == (409, "Conflict")


async def test_without_a_version_a_write_overwrites_what_it_has_not_seen(plane: ControlPlane, namespace: str) -> None:
    claim = await a_stored_claim(plane, namespace, allocation=an_allocation())
    metadata = {key: claim["metadata"][key] for key in ("name", "namespace")}
    wiped = await plane.api.put_status({**claim, "metadata": metadata, "status": {}})
    assert "allocation" not in wiped["status"]


async def test_an_allocation_cannot_be_changed_in_any_part(plane: ControlPlane, namespace: str) -> None:
    claim = await a_stored_claim(plane, namespace, allocation=an_allocation())
    without_timestamp = {"devices": an_allocation()["devices"]}
    for other in (an_allocation("gpu-1"), without_timestamp):
        error = await refused(plane.api, with_status(claim, allocation=other))
        assert (error.code, error.reason) == (422, "Invalid")
        assert [(cause.reason, cause.field) for cause in error.causes] == [("FieldValueInvalid", "status.allocation")]


async def test_an_identical_write_changes_nothing_at_all(plane: ControlPlane, namespace: str) -> None:
    """So it does not void an earlier write that may still land."""
    claim = await a_stored_claim(plane, namespace, allocation=an_allocation())
    again = await plane.api.put_status(claim)
    assert again["metadata"]["resourceVersion"] == claim["metadata"]["resourceVersion"]


async def test_an_allocation_in_use_can_be_cleared_only_with_its_users(plane: ControlPlane, namespace: str) -> None:
    claim = await a_stored_claim(plane, namespace, allocation=an_allocation(), reservedFor=[USER])
    error = await refused(plane.api, with_status(claim, reservedFor=[USER]))
    assert error.code == 422
    assert [cause.field for cause in error.causes] == ["status.reservedFor"]
    cleared = await plane.api.put_status(with_status(claim))
    assert cleared["status"] == {}
    again = await plane.api.put_status(with_status(cleared, allocation=an_allocation("gpu-1")))
    assert again["status"]["allocation"] == an_allocation("gpu-1")


async def test_server_side_apply_brings_a_freed_allocation_back(plane: ControlPlane, namespace: str) -> None:
    """Why the agent writes by PUT: re-asserted, its old intent takes a device that is somebody else's by now."""
    await a_stored_claim(plane, namespace)
    intent = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": "c", "namespace": namespace},
        "status": {"allocation": an_allocation()},
    }
    path = f"/apis/resource.k8s.io/v1/namespaces/{namespace}/resourceclaims/c/status"

    async def assert_intent() -> Object:
        query = {"fieldManager": "agent"}
        return await plane.api.call("PATCH", path, intent, query, "application/apply-patch+yaml")

    claim = await assert_intent()
    await plane.api.put_status(with_status(claim))
    assert (await assert_intent())["status"]["allocation"] == an_allocation()


async def test_without_the_right_to_bind_a_write_is_invalid_not_forbidden(plane: ControlPlane, namespace: str) -> None:
    claim = await a_stored_claim(plane, namespace)
    allocated = with_status(claim, allocation=an_allocation())
    name = plane.unique_name("agent")
    agent = await plane.client(await plane.service_account(name, namespace))
    assert (await refused(agent, allocated)).code == 403
    status = Rule(GROUP, ["resourceclaims/status"], ["update"])
    await plane.grant(name, namespace, [status])

    async def invalid() -> StatusError | None:
        error = await refused(agent, allocated)
        return error if error.code != 403 else None  # the authorizer follows a watch

    error = await wait_for(invalid)
    assert (error.code, error.reason) == (422, "Invalid")
    assert [(cause.reason, cause.field) for cause in error.causes] == [("FieldValueForbidden", "status.allocation")]

    # In the claim's namespace alone the right to bind is none.
    binding = Rule(GROUP, ["resourceclaims/binding"], ["update"])
    await grant_in_namespace(plane, name, namespace, binding)
    await plane.grant(name, namespace, [status, Rule(GROUP, ["resourceclaims"], ["list"])])

    async def both_are_known() -> bool:
        try:
            await agent.list_all("ResourceClaim")
        except StatusError:
            return False
        return True

    await wait_for(both_are_known)
    assert (await refused(agent, allocated)).code == 422
    await plane.grant(name, namespace, [status, binding])

    async def written() -> Object | None:
        with suppress(StatusError):
            return await agent.put_status(allocated)
        return None

    assert (await wait_for(written))["status"]["allocation"] == an_allocation()


async def grant_in_namespace(plane: ControlPlane, name: str, namespace: str, rule: Rule) -> None:
    metadata = {"name": name, "namespace": namespace}
    rules = [{"apiGroups": [rule.api_group], "resources": list(rule.resources), "verbs": list(rule.verbs)}]
    common = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": metadata}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
    subjects = [{"kind": "ServiceAccount", **metadata}]
    await plane.api.create({**common, "kind": "Role", "rules": rules})
    await plane.api.create({**common, "kind": "RoleBinding", "roleRef": reference, "subjects": subjects})
