"""From bytes to objects: what API servers and people send."""

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
import yaml

from schemas.manifests import parse_manifests
from schemas.resource.decode import decode_json, to_builtins
from tests.bench.fleet import DEVICES_IN_SLICE, a_claim_for, selects_model, some_slices
from tests.bench.measure import Table, count, growth, least, ms, per_call, progress, ratio, us

SLICES = (16, 64, DEVICES_IN_SLICE)
MANIFESTS = (10, 100, 1_000)


def measure(slices: Sequence[int] = SLICES, manifests: Sequence[int] = MANIFESTS) -> list[Table]:
    """One slice as JSON, many claims as YAML."""
    return [_json(slices), _yaml(manifests)]


def _json(sizes: Sequence[int]) -> Table:
    rows, before = [], None
    for size in sizes:
        progress(f"decode: a slice of {size} devices")
        data = json.dumps(to_builtins(some_slices(size)[0])).encode()
        assert to_builtins(decode_json(data)) == json.loads(data)
        # An object of an older version, or with a null, takes the slower way; so does every mistake.
        older = json.dumps({**json.loads(data), "apiVersion": "resource.k8s.io/v1beta2"}).encode()
        ours, slower, plain, as_dict = least(
            5,
            per_call(partial(decode_json, data)),
            per_call(partial(decode_json, older)),
            per_call(partial(json.loads, data)),
            per_call(partial(msgspec.json.decode, data)),
        )
        rows.append(
            [
                count(size),
                f"{len(data) / 1024:.0f}",
                us(ours),
                ratio(ours, plain),
                ratio(ours, as_dict),
                growth(before, size, ours),
                ratio(slower, ours),
            ]
        )
        before = (size, ours)
    header = ["devices", "KiB", "ours us", "to json.loads", "to msgspec to dict", "growth", "v1beta2 to v1"]
    return Table("decode: a ResourceSlice from JSON to Structs", header, rows)


def _yaml(sizes: Sequence[int]) -> Table:
    rows, before = [], None
    for size in sizes:
        progress(f"decode: {size} manifests")
        objects = [to_builtins(a_claim_for(selects_model(index), index)) for index in range(size)]
        text = yaml.dump_all(objects, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False)

        def ours(text: str = text) -> list[Any]:
            return [document.decode() for document in parse_manifests(text, "claims.yaml").documents]

        def plain(text: str = text) -> list[Any]:
            return list(yaml.load_all(text, Loader=yaml.CSafeLoader))

        assert len(ours()) == size
        took, alone = least(3, per_call(ours), per_call(plain))
        rows.append([count(size), ms(took), ratio(took, alone), growth(before, size, took)])
        before = (size, took)
    header = ["claims", "ours ms", "to yaml.CSafeLoader", "growth"]
    return Table("decode: claims in one YAML file, to Structs with places for errors", header, rows)
