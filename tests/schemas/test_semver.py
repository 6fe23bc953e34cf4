import pytest

from schemas.semver import Semver, SemverError


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("0.0.0", id="zeros"),
        pytest.param("1.2.3", id="three numbers"),
        pytest.param("1.2.3-alpha.1", id="a prerelease"),
        pytest.param("1.2.3-0a.-.x-y", id="odd identifiers"),
        pytest.param("1.2.3+001.b-c", id="build metadata may have leading zeros"),
        pytest.param("1.2.3-rc.1+build.5", id="both"),
        pytest.param(f"{2**64 - 1}.0.0", id="the largest number"),
    ],
)
def test_reads_what_it_prints(text: str) -> None:
    assert str(Semver.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("1", id="one number"),
        pytest.param("1.2", id="two numbers"),
        pytest.param("1.2.3.4", id="four numbers"),
        pytest.param("v1.2.3", id="a leading v"),
        pytest.param("01.2.3", id="a leading zero"),
        pytest.param("1.2.3-01", id="a leading zero in a numeric identifier"),
        pytest.param("1.2.3-", id="an empty prerelease"),
        pytest.param("1.2.3-a..b", id="an empty identifier"),
        pytest.param("1.2.3+", id="empty build metadata"),
        pytest.param("1.2.3-a_b", id="a character that is not allowed"),
        pytest.param(" 1.2.3", id="a space"),
        pytest.param("1.2.3\n", id="a line break"),
        pytest.param(f"{2**64}.0.0", id="a number beyond 64 bits"),
        pytest.param(f"1.0.0-{2**64}", id="an identifier beyond 64 bits"),
    ],
)
def test_refuses_what_is_no_version(text: str) -> None:
    with pytest.raises(SemverError, match="expected"):
        Semver.parse(text)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        pytest.param("v1.2.3", "1.2.3", id="drops the v"),
        pytest.param("1", "1.0.0", id="adds minor and patch"),
        pytest.param("v1.2", "1.2.0", id="adds patch"),
        pytest.param("01.002.0003", "1.2.3", id="drops leading zeros"),
        pytest.param("00.0.00", "0.0.0", id="keeps the last zero"),
        pytest.param("1.2.03-rc.1", "1.2.3-rc.1", id="the patch number before a prerelease, too"),
    ],
)
def test_normalizing_forgives(text: str, version: str) -> None:
    assert str(Semver.parse(text, normalize=True)) == version


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("vv1.2.3", id="two v"),
        pytest.param("V1.2.3", id="an upper-case V"),
        pytest.param("1.2-rc.1", id="a prerelease of a short version"),
        pytest.param("1.2+build", id="build metadata of a short version"),
        pytest.param("1.2.3-01", id="a leading zero in an identifier"),
        pytest.param("", id="nothing"),
        pytest.param(" 1.2.3", id="a space"),
    ],
)
def test_normalizing_does_not_forgive_everything(text: str) -> None:
    with pytest.raises(SemverError, match="expected"):
        Semver.parse(text, normalize=True)


def test_order_is_that_of_the_semver_specification() -> None:
    ascending = [
        "0.9.10",
        "1.0.0-1",
        "1.0.0-2",
        "1.0.0-10",
        "1.0.0-alpha",
        "1.0.0-alpha.1",
        "1.0.0-alpha.beta",
        "1.0.0-beta",
        "1.0.0",
        "1.0.1",
        "1.2.0",
        "1.10.0",
        "2.0.0",
    ]
    versions = [Semver.parse(text) for text in ascending]
    mixed = versions[::2] + versions[1::2]
    assert sorted(mixed) == versions
    for index, lower in enumerate(versions):
        assert lower <= lower
        assert lower >= lower
        for higher in versions[index + 1 :]:
            assert lower < higher
            assert higher > lower
            assert lower != higher


def test_build_metadata_does_not_count() -> None:
    one, other = Semver.parse("1.0.0+a"), Semver.parse("1.0.0+b")
    assert one == other
    assert hash(one) == hash(other)
    assert not one < other
