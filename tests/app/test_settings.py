"""The config file: what it says, and how its mistakes are told."""

from pathlib import Path

import pytest

from broker.app.settings import load_federation, parse_federation
from broker.errors import ConfigError

FABRIC = {"name": "rack7", "source": "hub", "clusters": ["east", "west"], "pools": [{"driver": "gpu.example.com"}]}


def test_reads_fabrics_with_their_source_and_clusters(tmp_path: Path) -> None:
    path = tmp_path / "federation.yaml"
    path.write_text(
        "clusters: [hub, east, west]\nhub: hub\nfabrics:\n"
        "- {name: rack7, source: hub, clusters: [east, west], pools: [{driver: gpu.example.com, pool: 'rack7-*'}]}\n"
    )
    federation = load_federation(path)
    fabric = federation.fabric_of("gpu.example.com", "rack7-a")
    assert fabric is not None
    assert (fabric.source, fabric.clusters) == ("hub", ["east", "west"])
    assert federation.fabric_of("gpu.example.com", "rack8") is None
    assert federation.class_owner(fabric.clusters[0]) == "hub"
    assert federation.must_be_heard(fabric) == ["east", "hub", "west"]


def test_an_empty_file_is_a_federation_of_whoever_comes(tmp_path: Path) -> None:
    path = tmp_path / "federation.yaml"
    path.write_text("")
    assert load_federation(path).fabrics == []


@pytest.mark.parametrize(
    ("config", "said"),
    [
        pytest.param([], "f: the file: Expected `object`, got `array`", id="not a mapping"),
        pytest.param({"fabric": []}, "f: the file: Object contains unknown field `fabric`", id="an unknown field"),
        pytest.param({"hub": 7}, "f: hub: Expected `str`, got `int`", id="a wrong type"),
        pytest.param(
            {"fabrics": [{**FABRIC, "sources": "x"}]}, "f: fabrics[0]: Object contains unknown field", id="inside"
        ),
        pytest.param(
            {"fabrics": [{**FABRIC, "pools": [{"drivr": "x"}]}]}, "f: fabrics[0].pools[0]: ", id="deep inside"
        ),
        pytest.param({"clusters": ["East"]}, "f: clusters[0]: 'East' is not a DNS label", id="a bad name"),
        pytest.param({"clusters": ["east", "east"]}, "f: clusters[1]: 'east' is there twice", id="a cluster twice"),
        pytest.param({"fabrics": [FABRIC, FABRIC]}, "f: fabrics[1].name: fabric 'rack7' is there twice", id="a fabric"),
        pytest.param(
            {"clusters": ["east", "west"], "fabrics": [FABRIC]},
            "f: fabrics[0].source: cluster 'hub' is not in clusters (east, west)",
            id="a source that takes no part",
        ),
        pytest.param({"fabrics": [{**FABRIC, "clusters": []}]}, "f: fabrics[0].clusters: no cluster", id="nobody"),
        pytest.param({"fabrics": [{**FABRIC, "pools": []}]}, "f: fabrics[0].pools: the fabric has no", id="no pools"),
        pytest.param({"stale_after_s": 1}, "f: stale_after_s: 1 is not between 3 and 86400 s", id="stale too soon"),
        pytest.param({"stale_after_s": "soon"}, "f: stale_after_s: Expected `float`, got `str`", id="no number"),
        pytest.param(
            {"device_health": {"healthy": ["a b"]}},
            "f: device_health.healthy[0]: 'a b' is no type of a condition",
            id="a condition that there cannot be",
        ),
        pytest.param(
            {"clusters": ["east", "west"], "device_taint_rules": {"clusters": ["west", "north"]}},
            "f: device_taint_rules.clusters[1]: cluster 'north' is not in clusters (east, west)",
            id="rules for a cluster that takes no part",
        ),
        pytest.param(
            {"device_taint_rules": {"clusters": ["west", "west"]}},
            "f: device_taint_rules.clusters[1]: 'west' is there twice",
            id="rules for a cluster twice",
        ),
        pytest.param(
            {"device_health": {"unhealthy": ["Healthy"]}},
            "f: device_health: 'Healthy' is in healthy and in unhealthy",
            id="a condition of both kinds",
        ),
        pytest.param({"lost_after_s": 30}, "f: lost_after_s: 30 is not above stale_after_s (30)", id="lost too soon"),
        pytest.param({"lost_after_s": 1e6}, "f: lost_after_s: 1e+06 is not above", id="lost too late"),
        pytest.param(
            {"ledger": {"segment_entries": 10**9}}, "f: ledger.segment_entries: 1000000000 is too many", id="no segment"
        ),
        pytest.param(
            {
                "clusters": ["a"],
                "fabrics": [{"name": "f", "source": "a", "clusters": ["a"], "pools": [{"driver": ""}]}],
            },
            "f: fabrics[0].pools[0].driver: an empty pattern matches no pool",
            id="a pattern of nothing",
        ),
        pytest.param({"believe_labels": True}, "f: believe_labels: is not a setting", id="labels are not for files"),
    ],
)
def test_a_mistake_is_told_with_the_path_of_its_field(config: object, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_federation(config, "f")
    assert str(caught.value).startswith(said)


def test_broken_yaml_is_told_with_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "federation.yaml"
    path.write_text("clusters: [east\nhub: x\n")
    with pytest.raises(ConfigError, match=r"federation\.yaml, line 2, column \d+: "):
        load_federation(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(
            "clusters: [a]\nclusters: [b]\n", 'line 2, column 1: the key "clusters" is there twice', id="a key"
        ),
        pytest.param(
            "fabrics:\n- {name: x, name: y, source: a, clusters: [a], pools: [{}]}\n",
            'line 2, column 13: the key "name" is there twice',
            id="a key of a fabric",
        ),
        pytest.param("hub: 2020-99-99\n", None, id="no date is meant"),
        pytest.param("stale_after_s: " + "9" * 5_000, "stale_after_s: ", id="a number of 5,000 digits"),
        pytest.param("clusters: " + "[" * 5_000, "nested too deeply", id="nested 5,000 deep"),
    ],
)
def test_what_yaml_leaves_open_is_not_guessed(tmp_path: Path, text: str, said: str | None) -> None:
    path = tmp_path / "federation.yaml"
    path.write_text(text)
    if said is None:
        assert load_federation(path).hub == "2020-99-99"
        return
    with pytest.raises(ConfigError) as caught:
        load_federation(path)
    assert said in str(caught.value)


def test_a_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    path = tmp_path / "federation.yaml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_federation(path)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_federation(tmp_path / "absent.yaml")
