"""One control plane on loopback: etcd, kube-apiserver, and kube-scheduler and kube-controller-manager where wanted.

There is no kubelet: nodes are made by hand, and what kubelets would do to pods is done by the test.
"""

import base64
import itertools
import secrets
import shutil
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import aiohttp
import msgspec
import yaml

from tests.controlplane.api import Api, Object, connect
from tests.controlplane.certificates import Certificates, make_certificates
from tests.controlplane.ports import reserved_ports
from tests.controlplane.process import Program
from tests.controlplane.programs import Programs

ISSUER = "https://kubernetes.default.svc"
# What acts on pods, claims and their owners. Not node-lifecycle: it would find that no kubelet renews anything and
# evict the pods. All the others only cost time: each is given its account first, twenty calls a second.
CONTROLLERS = (
    "resourceclaim-controller",
    "device-taint-eviction-controller",
    "taint-eviction-controller",
    "garbage-collector-controller",
    "pod-garbage-collector-controller",
    "namespace-controller",
    "serviceaccount-controller",
    "root-ca-certificate-publisher-controller",
    "validatingadmissionpolicy-status-controller",
    "resourcequota-controller",
    "job-controller",
    "deployment-controller",
    "replicaset-controller",
    "statefulset-controller",
    "disruption-controller",
)
# ServiceAccount: a pod of a namespace would wait until kube-controller-manager has made its account.
# TaintNodesByCondition: taints every new node until node-lifecycle finds it ready.
NO_ADMISSION = "ServiceAccount,TaintNodesByCondition"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What a control plane is like where it is not the default one.

    feature_gates: for all programs.
    serve: versions of APIs, such as "resource.k8s.io/v1beta1", besides the default ones.
    binding_timeout_s: how long kube-scheduler waits for binding conditions; None for its default of ten minutes.
    arguments: by program, more of its flags, such as {"kube-controller-manager": ["--kube-api-qps=500"]}.
    """

    scheduler: bool = True
    controller_manager: bool = True
    feature_gates: Mapping[str, bool] = {}
    serve: Sequence[str] = ()
    binding_timeout_s: int | None = None
    arguments: Mapping[str, Sequence[str]] = {}


class Identity(NamedTuple):
    """Somebody who may call the API server. user: as RBAC and audit know it. kubeconfig: for this user."""

    user: str
    token: str
    kubeconfig: Path


class Rule(NamedTuple):
    """A rule of RBAC."""

    api_group: str
    resources: Sequence[str]
    verbs: Sequence[str]
    resource_names: Sequence[str] = ()


class ControlPlane:
    """A running control plane; made by `start`.

    api: calls as system:masters. ca: PEM file of the CA that signed the API server's certificate.
    admin, scheduler_identity: as whom `api` and kube-scheduler call.
    """

    def __init__(self, programs: Programs, directory: Path, ports: Sequence[int], options: Options) -> None:
        self.directory = directory
        self.api: Api  # once the API server runs
        etcd, peers, secure, scheduler, controller_manager = ports
        self.server = f"https://127.0.0.1:{secure}"
        self._certificates = make_certificates(directory)
        self.ca = self._certificates.ca
        self._names = itertools.count(1)
        self._clients = AsyncExitStack()
        tokens = {user: secrets.token_hex(16) for user in ("admin", *_COMPONENTS)}
        self._write_tokens(tokens)
        self.admin = Identity("admin", tokens["admin"], self.kubeconfig("admin", tokens["admin"]))
        kubeconfigs = {user: self.kubeconfig(user.partition(":")[2], tokens[user]) for user in _COMPONENTS}
        scheduler_user = "system:kube-scheduler"
        self.scheduler_identity = Identity(scheduler_user, tokens[scheduler_user], kubeconfigs[scheduler_user])
        gates = ",".join(f"{gate}={str(is_on).lower()}" for gate, is_on in sorted(options.feature_gates.items()))
        common = [f"--feature-gates={gates}"] if gates else []

        def program(binary: Path, arguments: Sequence[str], url: str) -> Program:
            more = options.arguments.get(binary.name, [])
            log = directory / f"{binary.name}.log"
            return Program(binary, [*arguments, *more], log, lambda: _answers(url))

        self.etcd = program(programs.etcd, _etcd_arguments(directory, etcd, peers), f"http://127.0.0.1:{etcd}/readyz")
        self.apiserver = program(
            programs.kube_apiserver,
            [*_apiserver_arguments(directory, self._certificates, etcd, secure, options.serve), *common],
            f"{self.server}/readyz",
        )
        self.scheduler = program(
            programs.kube_scheduler,
            [*self._scheduler_arguments(kubeconfigs["system:kube-scheduler"], scheduler, options), *common],
            f"https://127.0.0.1:{scheduler}/readyz",
        )
        self.controller_manager = program(
            programs.kube_controller_manager,
            [
                *self._controller_manager_arguments(kubeconfigs["system:kube-controller-manager"], controller_manager),
                *common,
            ],
            f"https://127.0.0.1:{controller_manager}/healthz",
        )

    @property
    def programs(self) -> list[Program]:
        """In the order of their start."""
        return [self.etcd, self.apiserver, self.scheduler, self.controller_manager]

    def unique_name(self, prefix: str) -> str:
        """A name that nothing in this control plane has yet, for tests that share it."""
        return f"{prefix}-{next(self._names)}"

    # --- who calls

    def kubeconfig(self, name: str, token: str, server: str = "", ca: Path | None = None) -> Path:
        """A kubeconfig file, as `kubectl` takes it, for the user with this token.

        server, ca: of what stands in front of the API server, if something does. An http:// server has no CA.
        """
        server = server or self.server
        cluster = {"server": server}
        if server.startswith("https:"):
            cluster["certificate-authority-data"] = base64.b64encode((ca or self.ca).read_bytes()).decode()
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
            "current-context": "test",
        }
        path = self.directory / f"{name.replace('/', '-').replace(':', '-')}.kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return path

    async def service_account(self, name: str, namespace: str = "default", rules: Sequence[Rule] = ()) -> Identity:
        """A new ServiceAccount with these rights in the whole cluster; its token is good for an hour."""
        await self.api.create(
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}}
        )
        if rules:
            await self.grant(name, namespace, rules)
        return await self.identify(name, namespace)

    async def identify(self, name: str, namespace: str = "default", seconds: int = 3600) -> Identity:
        """The ServiceAccount of that name, such as one that a chart made, with a new token (600 seconds or more)."""
        request: Object = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": seconds},
        }
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        token = (await self.api.call("POST", path, request))["status"]["token"]
        user = f"system:serviceaccount:{namespace}:{name}"
        return Identity(user, token, self.kubeconfig(f"{namespace}-{name}", token))

    async def grant(self, name: str, namespace: str, rules: Sequence[Rule]) -> None:
        """Give a ServiceAccount these rights in the whole cluster, in place of those that this gave it before."""
        metadata = {"name": f"test:{namespace}:{name}"}
        role = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": metadata,
            "rules": [
                {
                    "apiGroups": [rule.api_group],
                    "resources": list(rule.resources),
                    "verbs": list(rule.verbs),
                    **({"resourceNames": list(rule.resource_names)} if rule.resource_names else {}),
                }
                for rule in rules
            ],
        }
        binding = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": metadata["name"]},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        }
        await self.api.apply([role, binding])

    async def client(self, identity: Identity) -> Api:
        """Calls as somebody; closed with the control plane."""
        return await self._clients.enter_async_context(connect(self.server, self.ca, identity.token))

    # --- what stands in for kubelets and people

    async def add_namespace(self, prefix: str = "test", **labels: str) -> str:
        """A new namespace; its name."""
        name = self.unique_name(prefix)
        await self.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        return name

    async def add_node(self, name: str, labels: Mapping[str, str] = {}, cpu: str = "64", pods: int = 110) -> Object:
        """A node that is ready, without taints, on which any pod fits for a long time."""
        capacity = {"cpu": cpu, "memory": "256Gi", "pods": str(pods)}
        node: Object = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **labels}},
            "status": {
                "capacity": capacity,
                "allocatable": capacity,
                "conditions": [{"type": "Ready", "status": "True", "reason": "Test"}],
            },
        }
        return await self.api.create(node)

    async def finish_pod(self, name: str, namespace: str, phase: str = "Succeeded") -> None:
        """What its kubelet does when its containers have ended."""
        await self.api.merge("Pod", name, namespace, {"status": {"phase": phase}}, "status")

    async def delete_pod(self, name: str, namespace: str) -> None:
        """Delete it at once: there is no kubelet to confirm that it has stopped."""
        await self.api.delete("Pod", name, namespace, gracePeriodSeconds=0)

    # --- running

    async def start(self, programs: Sequence[Program]) -> None:
        """Start them in this order, each when the one before is ready."""
        for program in programs:
            await program.start()

    async def restart_apiserver(self) -> None:
        """End it at once and start it again, on the same port and data."""
        await self.apiserver.kill()
        await self.apiserver.start()

    async def end(self) -> None:
        """End all programs, the last started first. Logs stay, data does not."""
        await self._clients.aclose()
        for program in reversed(self.programs):
            await program.kill()
        shutil.rmtree(self.directory / "etcd", ignore_errors=True)

    def logs_since_shown(self) -> str:
        """What the programs said since this was last asked; printed, pytest shows it with a test that failed."""
        said = [(program.log, program.said_since_shown()) for program in self.programs]
        return "\n".join(f"--- {log}\n{text}" for log, text in said if text)

    # --- how the programs are run

    def _write_tokens(self, tokens: Mapping[str, str]) -> None:
        groups = {"admin": "system:masters"}
        lines = [f'{token},{user},{user},"{groups.get(user, "")}"' for user, token in tokens.items()]
        (self.directory / "tokens.csv").write_text("\n".join(lines) + "\n")

    def _scheduler_arguments(self, kubeconfig: Path, port: int, options: Options) -> list[str]:
        config: Object = {
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "clientConnection": {"kubeconfig": str(kubeconfig)},
            "leaderElection": {"leaderElect": False},
        }
        if options.binding_timeout_s is not None:
            arguments = {
                "apiVersion": "kubescheduler.config.k8s.io/v1",
                "kind": "DynamicResourcesArgs",
                "bindingTimeout": f"{options.binding_timeout_s}s",
            }
            plugin = {"name": "DynamicResources", "args": arguments}
            config["profiles"] = [{"schedulerName": "default-scheduler", "pluginConfig": [plugin]}]
        path = self.directory / "scheduler.yaml"
        path.write_text(yaml.safe_dump(config))
        return [f"--config={path}", *_serving(port, self._certificates), *_delegation(kubeconfig)]

    def _controller_manager_arguments(self, kubeconfig: Path, port: int) -> list[str]:
        return [
            f"--kubeconfig={kubeconfig}",
            *_delegation(kubeconfig),
            *_serving(port, self._certificates),
            "--leader-elect=false",
            "--use-service-account-credentials",
            f"--service-account-private-key-file={self._certificates.token_key}",
            f"--root-ca-file={self._certificates.ca}",
            f"--controllers={','.join(CONTROLLERS)}",
        ]


_COMPONENTS = ("system:kube-scheduler", "system:kube-controller-manager")


@asynccontextmanager
async def start(
    programs: Programs,
    directory: Path,
    options: Options = Options(),  # noqa: B008  # immutable
) -> AsyncIterator[ControlPlane]:
    """Run a control plane in `directory` until the end of the block; ready for calls as soon as this returns.

    Raises: ProgramDiedError with the end of the log of the program that did not get ready.
    """
    directory.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240  # nothing else runs yet
    with reserved_ports(5) as ports:
        plane = ControlPlane(programs, directory, ports, options)
        try:
            await plane.start([plane.etcd, plane.apiserver])
            async with connect(plane.server, plane.ca, plane.admin.token) as api:
                plane.api = api
                await plane.start(
                    [plane.scheduler] * options.scheduler + [plane.controller_manager] * options.controller_manager
                )
                plane.logs_since_shown()  # a failure of a test is not about the start
                yield plane
        finally:
            await plane.end()


def _etcd_arguments(directory: Path, port: int, peers: int) -> list[str]:
    client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peers}"
    return [
        f"--data-dir={directory / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",  # the data need not outlive the machine
        "--log-level=warn",
    ]


def _apiserver_arguments(
    directory: Path, certificates: Certificates, etcd: int, port: int, serve: Sequence[str]
) -> list[str]:
    return [
        f"--etcd-servers=http://127.0.0.1:{etcd}",
        *_serving(port, certificates),
        f"--token-auth-file={directory / 'tokens.csv'}",
        # Nobody has a certificate and no proxy is in front; but without these the other programs ask for them for ever.
        f"--client-ca-file={certificates.ca}",
        f"--requestheader-client-ca-file={certificates.ca}",
        "--requestheader-allowed-names=nobody",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--authorization-mode=RBAC",
        f"--service-account-issuer={ISSUER}",
        f"--service-account-key-file={certificates.token_key}",
        f"--service-account-signing-key-file={certificates.token_key}",
        "--service-cluster-ip-range=10.0.0.0/24",
        # Nobody looks for it in the cluster; without an address it wants an interface besides loopback.
        "--endpoint-reconciler-type=none",
        "--advertise-address=192.0.2.1",
        f"--disable-admission-plugins={NO_ADMISSION}",
        *([f"--runtime-config={','.join(f'{version}=true' for version in serve)}"] if serve else []),
    ]


def _serving(port: int, certificates: Certificates) -> list[str]:
    return [
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        f"--tls-cert-file={certificates.serving}",
        f"--tls-private-key-file={certificates.serving_key}",
    ]


def _delegation(kubeconfig: Path) -> list[str]:
    return [f"--authentication-kubeconfig={kubeconfig}", f"--authorization-kubeconfig={kubeconfig}"]


async def _answers(url: str) -> bool:
    """The program there says that it is ready; that it is ours is sure, as nobody else is given its port."""
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    timeout = aiohttp.ClientTimeout(total=2)
    with suppress(aiohttp.ClientError, TimeoutError):
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=unverified), timeout=timeout) as session,
            session.get(url) as response,
        ):
            return response.status == 200
    return False
