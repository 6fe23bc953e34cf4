"""A real Kubernetes control plane for tests: etcd, kube-apiserver, kube-scheduler and kube-controller-manager.

`make controlplane` (a part of `make test`) builds the programs from the Go modules beside this file, once for a
machine: they are kept in ~/.cache/dragoman (XDG_CACHE_HOME). KUBEBUILDER_ASSETS may name a directory that has them all.
Without them, K3s in a container is the control plane that tests share, where a Docker engine answers; tests that start
one of their own, and all without an engine, are skipped with the reason. Where CI=true or
DRAGOMAN_REQUIRE_KUBERNETES=1 they fail.

    from tests.controlplane.fixture import chosen, namespace, plane, programs, shared_plane, start_plane

    async def test_something(plane: ControlPlane, namespace: str) -> None:
        rules = [Rule("resource.k8s.io", ["resourceclaims"], ["get", "list", "watch"])]
        agent = await plane.service_account("agent", namespace, rules)
        await plane.api.apply(MANIFEST, namespace)            # as system:masters
        client = await plane.client(agent)                    # as the agent; the code under test takes agent.kubeconfig
        claim = await plane.api.until("ResourceClaim", "c", namespace, lambda claim: "status" in claim)

    async def test_a_restart(start_plane: StartPlane) -> None:
        east = await start_plane("east", controller_manager=False, feature_gates={"DRAConsumableCapacity": False})
        await east.add_node("n1")
        await east.restart_apiserver()                        # or east.apiserver.kill(), .send_signal(), .start()

- `fixture.py`: the fixtures; `plane` is shared by all tests of a session, `start_plane` makes more
- `plane.py`: ControlPlane, its Options, Identity and Rule; `start` for use without pytest
- `api.py`: the tests' own client, independent of the agent's, with `wait_for`
- `k3s.py`: which of them is taken, and K3s, with what is not to be had there
- `process.py`: one program; `programs.py`: where the programs are and how they are built
"""
