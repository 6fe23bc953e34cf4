"""Objects that the agent keeps in its cluster as the broker says: how they are marked, and what may have to be done."""

import msgspec

from cluster_agent.ports import ApiObject
from schemas.resource.untyped import as_dict

PROJECTED_LABEL = "dragoman.dev/projected"


class Create(msgspec.Struct, frozen=True):
    object: ApiObject


class Update(msgspec.Struct, frozen=True):
    """With the uid and resourceVersion of what was found."""

    object: ApiObject


class Delete(msgspec.Struct, frozen=True):
    object: ApiObject


class Foreign(msgspec.Struct, frozen=True):
    """Somebody else's object has the name."""

    name: str


Step = Create | Update | Delete | Foreign


def is_projected(found: ApiObject) -> bool:
    """We have written it."""
    return as_dict(as_dict(found.get("metadata")).get("labels")).get(PROJECTED_LABEL) == "true"
