"""The shareID of a share of a device. Source: KEP-5075.

Upstream draws it by lot. Ours follows from the decision that gave the share, so that a replay of the ledger gives the
same one, and no two shares have the same: a claim's UID is unique, and so is a ledger sequence.
"""

from uuid import NAMESPACE_DNS, uuid5

_NAMESPACE = uuid5(NAMESPACE_DNS, "shares.dragoman.dev")


def share_id(claim_uid: str, ledger_sequence: int, result_index: int) -> str:
    """The shareID of one result of an allocation, a lowercase UUID.

    ledger_sequence: of the Allocate.
    """
    return str(uuid5(_NAMESPACE, f"{claim_uid}/{ledger_sequence}/{result_index}"))
