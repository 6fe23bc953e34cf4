"""The config file: who takes part. Every mistake is named with the path of its field and what to do."""

import re
from pathlib import Path
from typing import Any

import msgspec

from broker.errors import ConfigError
from broker.world.federation import Fabric, Federation
from broker.world.keys import ClusterId
from schemas.manifests import yaml_text
from schemas.manifests.yaml_text import YamlTextError
from schemas.resource.names import qualified_name

SEGMENT_ENTRIES_MIN = 100
SEGMENT_ENTRIES_MOST = 100_000_000  # far above what a start can read
STALE_AFTER_S_LEAST = 3.0
SILENCE_S_MOST = 86_400.0  # well below the 72 h that DRA_STATE keeps a message
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def load_federation(path: Path) -> Federation:
    """Read a config file. Raises: ConfigError."""
    try:
        found = yaml_text.load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"config file {path} is not UTF-8 text: {error}") from error
    except YamlTextError as error:
        raise ConfigError(f"{path}, line {error.line}, column {error.column}: {error.message}") from error
    return parse_federation(found if found is not None else {}, str(path))


def parse_federation(found: Any, place: str) -> Federation:
    """Check a config. place: for messages. Raises: ConfigError naming the field."""
    if isinstance(found, dict) and "believe_labels" in found:
        raise ConfigError(f"{place}: believe_labels: is not a setting; only `dragoman up` and `demo` believe labels")
    try:
        federation = msgspec.convert(found, Federation)
    except msgspec.ValidationError as error:
        text, _, where = str(error).partition(" - at `$")
        raise ConfigError(f"{place}: {where.strip('.`') or 'the file'}: {text}") from error
    problems = check_federation(federation)
    if problems:
        raise ConfigError("\n".join(f"{place}: {problem}" for problem in problems))
    return federation


def check_federation(federation: Federation) -> list[str]:
    """What is wrong with a config, each with the path of its field."""
    problems = []

    def check_name(path: str, name: str) -> None:
        if not _DNS_LABEL.fullmatch(name):
            problems.append(f"{path}: {name!r} is not a DNS label (lower case letters, digits and -, at most 63)")

    def check_cluster(path: str, name: ClusterId) -> None:
        check_name(path, name)
        if federation.clusters and name not in federation.clusters:
            problems.append(f"{path}: cluster {name!r} is not in clusters ({', '.join(federation.clusters)})")

    if federation.ledger.segment_entries < SEGMENT_ENTRIES_MIN:
        problems.append(
            f"ledger.segment_entries: {federation.ledger.segment_entries} is too few, give {SEGMENT_ENTRIES_MIN} or"
            " more: each new segment begins with all that is held"
        )
    if federation.ledger.segment_entries > SEGMENT_ENTRIES_MOST:
        problems.append(
            f"ledger.segment_entries: {federation.ledger.segment_entries} is too many, give {SEGMENT_ENTRIES_MOST} or"
            " fewer: a start reads all of a segment"
        )
    for index, name in enumerate(federation.clusters):
        check_name(f"clusters[{index}]", name)
        if name in federation.clusters[:index]:
            problems.append(f"clusters[{index}]: {name!r} is there twice")
    if federation.hub:
        check_cluster("hub", federation.hub)
    if not STALE_AFTER_S_LEAST <= federation.stale_after_s <= SILENCE_S_MOST:
        problems.append(
            f"stale_after_s: {federation.stale_after_s:g} is not between {STALE_AFTER_S_LEAST:g} and "
            f"{SILENCE_S_MOST:g} s: agents send a heartbeat each second, and some may be late"
        )
    if not federation.stale_after_s < federation.lost_after_s <= SILENCE_S_MOST:
        problems.append(
            f"lost_after_s: {federation.lost_after_s:g} is not above stale_after_s ({federation.stale_after_s:g}) and "
            f"at most {SILENCE_S_MOST:g} s: later DRA_STATE forgets what a cluster said"
        )
    health = federation.device_health
    for field, types in (("healthy", health.healthy), ("unhealthy", health.unhealthy)):
        for index, type_ in enumerate(types):
            if (wrong := qualified_name(type_)) is not None:
                problems.append(f"device_health.{field}[{index}]: {type_!r} is no type of a condition: {wrong}")
    if both := sorted(set(health.healthy) & set(health.unhealthy)):
        problems.append(f"device_health: {both[0]!r} is in healthy and in unhealthy: a condition cannot mean both")
    written_to = federation.device_taint_rules.clusters
    for index, name in enumerate(written_to):
        check_cluster(path := f"device_taint_rules.clusters[{index}]", name)
        if name in written_to[:index]:
            problems.append(f"{path}: {name!r} is there twice")
    for index, fabric in enumerate(federation.fabrics):
        path = f"fabrics[{index}]"
        check_name(f"{path}.name", fabric.name)
        if fabric.name in {each.name for each in federation.fabrics[:index]}:
            problems.append(f"{path}.name: fabric {fabric.name!r} is there twice")
        check_cluster(f"{path}.source", fabric.source)
        problems += _fabric_problems(path, fabric)
        for number, name in enumerate(fabric.clusters):
            check_cluster(f"{path}.clusters[{number}]", name)
    return problems


def _fabric_problems(path: str, fabric: Fabric) -> list[str]:
    problems = []
    if not fabric.clusters:
        problems.append(f"{path}.clusters: no cluster reaches the fabric; list those that do")
    if not fabric.pools:
        problems.append(f"{path}.pools: the fabric has no pools; give patterns for driver and pool")
    for index, pattern in enumerate(fabric.pools):
        problems += [
            f"{path}.pools[{index}].{field}: an empty pattern matches no pool; leave it out to mean any"
            for field, text in (("driver", pattern.driver), ("pool", pattern.pool))
            if not text
        ]
    if len(set(fabric.clusters)) != len(fabric.clusters):
        problems.append(f"{path}.clusters: a cluster is there twice")
    return problems
