"""`deploy/nats/three-nodes` is what `dragoman nats-config` writes for three servers, with keys that are no secret.

`python -m tests.cli.test_deploy` writes it anew.
"""

import hashlib
from pathlib import Path

import nkeys

from broker.adapters.nats_config import NatsPlan, plan_files

DIRECTORY = Path(__file__).parents[2] / "deploy/nats/three-nodes"
HOSTS = ("n1.nats.example.com", "n2.nats.example.com", "n3.nats.example.com")
PLAN = NatsPlan(clusters=("east", "west"), hosts=HOSTS, subscribers=("audit",), bytes_max=20 << 30)


def expected() -> dict[str, str]:
    seeds = {}
    for role in PLAN.roles:
        secret = hashlib.sha256(b"example " + role.name.encode()).digest()
        seeds[role.name] = bytes(nkeys.encode_seed(secret, nkeys.PREFIX_BYTE_USER)).decode()
    return {str(path): text for path, text in plan_files(PLAN, seeds).items()}


def test_the_example_is_up_to_date() -> None:
    assert {path.name: path.read_text() for path in DIRECTORY.iterdir()} == expected()


def test_every_role_has_a_place_of_its_own_for_answers() -> None:
    names = [role.name for role in PLAN.roles]
    assert len(names) == len(set(names))
    assert all("." not in name for name in names)  # else one inbox would be inside another


if __name__ == "__main__":
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for name, text in expected().items():
        (DIRECTORY / name).write_text(text)
