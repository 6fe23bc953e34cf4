import pytest

from cluster_agent.adapters.generated_claims import generated_name, template_references
from cluster_agent.ports import ApiObject


@pytest.mark.parametrize(
    ("pod", "claim", "beginning"),
    [
        pytest.param("pod0", "gpu", "pod0-gpu-", id="both names in full"),
        pytest.param("p" * 53, "gpu", "p" * 52 + "-gp-", id="too long by one: both lose a part of their length"),
        pytest.param("p" * 200, "c" * 60, "p" * 43 + "-" + "c" * 13 + "-", id="far too long"),
    ],
)
def test_a_name_is_made_of_pod_and_claim_and_fits_a_dns_label(pod: str, claim: str, beginning: str) -> None:
    name = generated_name("default", pod, claim)
    assert name[:-5] == beginning
    assert len(name) <= 63


def test_names_differ_by_namespace_pod_and_claim() -> None:
    names = {
        generated_name("default", "pod", "gpu"),
        generated_name("team", "pod", "gpu"),
        generated_name("default", "pod-a", "gpu"),
        generated_name("default", "pod", "a-gpu"),
    }
    assert len({name[-5:] for name in names}) == 4


@pytest.mark.parametrize(
    ("pod", "expected"),
    [
        pytest.param({}, [], id="no spec"),
        pytest.param({"spec": {"resourceClaims": None}}, [], id="no claims"),
        pytest.param({"spec": {"resourceClaims": [{"name": "a", "resourceClaimName": "c"}]}}, [], id="a claim by name"),
        pytest.param(
            {"spec": {"resourceClaims": [{"name": "a", "resourceClaimTemplateName": "t"}, {"name": "b"}, 5]}},
            [("a", "t")],
            id="one from a template among others",
        ),
    ],
)
def test_finds_the_claims_that_are_made_from_templates(pod: ApiObject, expected: list[tuple[str, str]]) -> None:
    assert list(template_references(pod)) == expected
