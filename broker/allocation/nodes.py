"""Which nodes reach which devices, and what an allocation says about it.

Sources: nodeName, nodeSelector, allNodes, perDeviceNodeSelection and skipNodeOperations of ResourceSlice (KEP-5945);
corev1.NodeSelector; Node.status.declaredFeatures.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from schemas.resource import Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm

OPTIONAL_NODE_OPERATIONS = "DRAOptionalNodeOperations"  # what a kubelet declares that can skip a driver's operations


class NodeView(msgspec.Struct, frozen=True):
    """A node as selectors see it.

    name: "" for a node that is only supposed to exist (see `hypothetical_nodes`): nothing can be bound to it.
    skips_operations: its kubelet can leave out what a slice's skipNodeOperations names; supposed of a node that is not
        known.
    """

    name: str
    labels: Mapping[str, str] = msgspec.field(default_factory=dict)
    skips_operations: bool = True


def node_views(nodes: Mapping[str, Node]) -> list[NodeView]:
    """The nodes of a cluster, by name and in its order.

    They all skip operations or none does: the pod may come to any that the node selector of the allocation allows,
    which cannot say what a kubelet must be able to do, and kube-scheduler drops the allocation where it cannot.
    """
    skips = all(OPTIONAL_NODE_OPERATIONS in each.status.declared_features for each in nodes.values())
    return [NodeView(name, node.metadata.labels, skips) for name, node in sorted(nodes.items())]


@dataclass(frozen=True, slots=True)
class Reach:
    """The nodes that reach a device: all of them, one by its name, those that a selector matches, or none."""

    everywhere: bool = False
    node_name: str = ""
    selector_text: str = ""  # `selector` in a form that can be hashed
    selector: NodeSelector | None = field(default=None, compare=False)
    _hash: int = field(init=False, compare=False, repr=False, default=0)  # it is looked up very often

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.everywhere, self.node_name, self.selector_text)))

    def __hash__(self) -> int:
        return self._hash

    def includes(self, node: NodeView) -> bool:
        """The node reaches the device."""
        if self.selector is not None:
            return node_matches(self.selector, node)
        return self.everywhere or (self.node_name != "" and self.node_name == node.name)


EVERYWHERE = Reach(everywhere=True)
NOWHERE = Reach()


def reach_of(node_name: str | None, all_nodes: bool | None, selector: NodeSelector | None) -> Reach:
    """Read the three fields of a slice or a device, the first that is set wins, as upstream reads them."""
    if node_name:
        return Reach(node_name=node_name)
    if all_nodes:
        return EVERYWHERE
    if selector is not None:
        return Reach(selector_text=msgspec.json.encode(selector).decode(), selector=selector)
    return NOWHERE


def node_matches(selector: NodeSelector, node: NodeView) -> bool:
    """One of the terms holds; a term without requirements, or with one that we do not know, does not."""
    return any(_term_matches(term, node) for term in selector.node_selector_terms)


def _term_matches(term: NodeSelectorTerm, node: NodeView) -> bool:
    if not term.match_expressions and not term.match_fields:
        return False
    fields = {"metadata.name": node.name}
    return all(_holds(each, node.labels) for each in term.match_expressions) and all(
        each.key in fields and _holds(each, fields) for each in term.match_fields
    )


def _holds(requirement: NodeSelectorRequirement, labels: Mapping[str, str]) -> bool:
    value = labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return value in requirement.values
        case "NotIn":
            return value not in requirement.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt":
            actual, limit = _integer(value), _integer(requirement.values[0] if requirement.values else None)
            if actual is None or limit is None:
                return False
            return actual > limit if requirement.operator == "Gt" else actual < limit
        case _:
            return False


def _integer(text: str | None) -> int | None:
    if text is None or not text.removeprefix("-").removeprefix("+").isdecimal():
        return None
    return int(text)


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """Nodes that can use the same devices, so that one search speaks for all of them.

    node: the first of them.
    reaches: what they reach besides EVERYWHERE; None means whatever there is (used only to explain a failure).
    """

    node: NodeView
    reaches: frozenset[Reach] | None

    def sees(self, reach: Reach) -> bool:
        """The nodes of the group reach a device with this reach."""
        return reach.everywhere or self.reaches is None or reach in self.reaches


ANY_NODE = NodeGroup(NodeView(""), None)


def node_groups(nodes: Iterable[NodeView], reaches: Iterable[Reach]) -> list[NodeGroup]:
    """Group the nodes by what they reach, the groups in the order of their first node.

    reaches: all that occur on the devices in question.
    """
    by_name: dict[str, list[Reach]] = {}
    selected: list[Reach] = []
    for reach in dict.fromkeys(reaches):
        if reach.node_name:
            by_name.setdefault(reach.node_name, []).append(reach)
        elif reach.selector is not None:
            selected.append(reach)
    groups: dict[tuple[frozenset[Reach], bool], NodeGroup] = {}
    for node in nodes:
        seen = frozenset([*by_name.get(node.name, ()), *(each for each in selected if each.includes(node))])
        groups.setdefault((seen, node.skips_operations), NodeGroup(node, seen))
    return list(groups.values())


def hypothetical_nodes(reaches: Iterable[Reach]) -> Iterator[NodeView]:
    """The nodes to suppose where no Node object is known: a directory of manifests rarely has any.

    One for each node name and each node selector that occurs, in their order, with just the labels that the selector
    asks for; last, one that reaches only what all nodes reach.
    """
    for reach in dict.fromkeys(reaches):
        if reach.node_name:
            yield NodeView(reach.node_name)
        elif reach.selector is not None:
            yield from (_node_for(term) for term in reach.selector.node_selector_terms)
    yield NodeView("")


def _node_for(term: NodeSelectorTerm) -> NodeView:
    labels: dict[str, str] = {}
    for each in term.match_expressions:
        wanted = {
            "In": each.values[:1],
            "Exists": [labels.get(each.key, "")],
            "Gt": [str(int(value) + 1) for value in each.values[:1] if _integer(value) is not None],
            "Lt": [str(int(value) - 1) for value in each.values[:1] if _integer(value) is not None],
        }.get(each.operator, [])
        labels.update((each.key, value) for value in wanted)
    names = [value for each in term.match_fields if each.operator == "In" for value in each.values[:1]]
    return NodeView(names[0] if names else "", labels)


def selector_for_results(chosen: Sequence[tuple[Reach, bool]], node: NodeView) -> NodeSelector | None:
    """Where an allocation can be used; None means everywhere.

    chosen: for each device of the claim its reach, and whether it binds to the node.
    As upstream: one node if any device is local to it or binds to it, else all requirements that occur, each once.
    """
    if any(reach.node_name or binds for reach, binds in chosen):
        return NodeSelector(
            node_selector_terms=[
                NodeSelectorTerm(
                    match_fields=[NodeSelectorRequirement(key="metadata.name", operator="In", values=[node.name])]
                )
            ]
        )
    fields: list[NodeSelectorRequirement] = []
    expressions: list[NodeSelectorRequirement] = []
    for reach, _ in chosen:
        # The API allows one term there; a selector without terms reaches no node, so it cannot occur here.
        if reach.selector is not None:
            term = reach.selector.node_selector_terms[0]
            _add_new(term.match_fields, fields)
            _add_new(term.match_expressions, expressions)
    if not fields and not expressions:
        return None
    return NodeSelector(node_selector_terms=[NodeSelectorTerm(match_fields=fields, match_expressions=expressions)])


def _add_new(requirements: Iterable[NodeSelectorRequirement], known: list[NodeSelectorRequirement]) -> None:
    for each in requirements:
        same = (each.key, each.operator, set(each.values))
        if all((other.key, other.operator, set(other.values)) != same for other in known):
            known.append(each)
