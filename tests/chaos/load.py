"""Claims that come and go: files of manifests, and pods whose claims are made from templates."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import anyio

from tests.manifests import API, DRIVER, Manifest, claim_manifest, class_manifest, slice_manifest, write_manifests

SHARED_DRIVER = "shared.example.com"
SHARED_CLASS = "slot"
DEVICES = 48
SHARED_DEVICES = 6
CAPACITY = {f"slot-{index}": {"memory": "40Gi"} for index in range(SHARED_DEVICES)}
SHARE = "10Gi"
LIVING = 36  # files in each cluster
TICK_S = 0.25
LIVES_S = 6.0  # on average
# What a claim asks for, with how often it is so: its name begins with this.
SHAPES = {"one": 45, "pair": 10, "share": 20, "pod": 20, "none": 5}


class Load:
    """Writes the clusters' directories, and knows what is in them."""

    def __init__(self, root: Path, clusters: Sequence[str], seed: int) -> None:
        self.created = 0
        self.shapes: Counter[str] = Counter()
        self._directories = {name: root / name for name in clusters}
        self._chance = random.Random(f"load {seed}")
        self._living: dict[str, list[str]] = {name: [] for name in clusters}  # files
        self._claims: dict[str, list[str]] = {}  # by file

    def write_inventory(self, source: str) -> None:
        """The classes in every cluster, all devices at the source."""
        for directory in self._directories.values():
            template = {"spec": claim_manifest("x")["spec"]}
            write_manifests(
                directory / "classes.yaml",
                class_manifest(),
                class_manifest(SHARED_CLASS, driver=SHARED_DRIVER),
                {
                    "apiVersion": API,
                    "kind": "ResourceClaimTemplate",
                    "metadata": {"name": "one", "namespace": "default"},
                    "spec": template,
                },
            )
        half = DEVICES // 2
        slices = [
            slice_manifest([f"gpu-{index}" for index in range(first, first + half)], name=f"rack-{first}", slices=2)
            for first in (0, half)
        ]
        shared: list[str | Manifest] = [
            {
                "name": name,
                "allowMultipleAllocations": True,
                "capacity": {"memory": {"value": amounts["memory"], "requestPolicy": {"default": SHARE}}},
            }
            for name, amounts in CAPACITY.items()
        ]
        slices.append(slice_manifest(shared, name="slots", pool="slots", driver=SHARED_DRIVER))
        write_manifests(self._directories[source] / "slices.yaml", *slices)

    async def run(self, seconds: float) -> None:
        """Create and delete for so long."""
        with anyio.move_on_after(seconds):
            while True:
                for cluster in self._directories:
                    self._change(cluster)
                await anyio.sleep(TICK_S)

    def claims(self) -> dict[str, set[str]]:
        """By cluster, the claims that there must be; a pod's is named as the pod, without what is added to it."""
        return {
            cluster: {claim for file in files for claim in self._claims[file]}
            for cluster, files in self._living.items()
        }

    def _change(self, cluster: str) -> None:
        living = self._living[cluster]
        for file in list(living):
            if self._chance.random() < TICK_S / LIVES_S:
                living.remove(file)
                (self._directories[cluster] / f"{file}.yaml").unlink()
        for _ in range(min(LIVING - len(living), 4)):
            self._create(cluster)

    def _create(self, cluster: str) -> None:
        file = f"file-{self.created}"
        documents = []
        self._claims[file] = []
        for _ in range(self._chance.choice((1, 1, 2))):
            shape = self._chance.choices(list(SHAPES), list(SHAPES.values()))[0]
            name = f"{shape}-{self.created}"
            self.created += 1
            self.shapes[shape] += 1
            self._claims[file].append(name)
            documents.append(_document(shape, name))
        write_manifests(self._directories[cluster] / f"{file}.yaml", *documents)
        self._living[cluster].append(file)


class Wanted(NamedTuple):
    """devices: whole ones. shares: of SHARE each."""

    devices: int = 0
    shares: int = 0


def wanted(name: str) -> Wanted | None:
    """What the claim asks for, by its name; None: something that does not exist."""
    shape = name.partition("-")[0]
    return {"one": Wanted(1), "pod": Wanted(1), "pair": Wanted(2), "share": Wanted(shares=1), "none": None}[shape]


def plain_name(name: str) -> str:
    """Without what the making of a claim from a template adds."""
    return "-".join(name.split("-")[:2])


def _document(shape: str, name: str) -> Manifest:
    match shape:
        case "pair":
            return claim_manifest(name, count=2)
        case "share":
            return claim_manifest(name, device_class=SHARED_CLASS, capacity={"requests": {"memory": SHARE}})
        case "none":
            return claim_manifest(name, f'device.driver == "{DRIVER}" && device.driver == "nobody"')
        case "pod":
            return {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": "default"},
                "spec": {
                    "containers": [{"name": "main"}],
                    "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "one"}],
                },
            }
    return claim_manifest(name)
