"""What can be told of a chat template from its syntax tree, without rendering it."""

from collections.abc import Iterable

from jinja2 import Environment, meta, nodes

_PART_FILTERS = {"selectattr", "rejectattr", "map"}
"""Filters that only make sense on a list of parts."""


def free_variables(tree: nodes.Template, environment: Environment) -> frozenset[str]:
    """Names that the template takes from whoever renders it; Jinja's and our functions are not among them."""
    return frozenset(meta.find_undeclared_variables(tree)) - environment.globals.keys()


def wants_parts(tree: nodes.Template) -> bool:
    """Whether the template reads a message's content as a list of parts, `{"type": "text", "text": ...}`, only.

    It does when it goes through the content or takes a member of one of its items, and nowhere asks whether it is a
    string: templates that ask read both.
    """
    names = {
        assign.target.name
        for assign in tree.find_all(nodes.Assign)
        if isinstance(assign.target, nodes.Name) and _is_content(assign.node, names=())
    }
    if any(test.name == "string" and _is_content(test.node, names=names) for test in tree.find_all(nodes.Test)):
        return False
    loops = any(_is_content(loop.iter, names=names) for loop in tree.find_all(nodes.For))
    filters = any(
        item.name in _PART_FILTERS and item.node is not None and _is_content(item.node, names=names)
        for item in tree.find_all(nodes.Filter)
    )
    return loops or filters or any(_takes_from_item(node, names) for node in _members(tree))


def _members(tree: nodes.Template) -> Iterable[nodes.Getitem | nodes.Getattr]:
    yield from tree.find_all(nodes.Getitem)
    yield from tree.find_all(nodes.Getattr)


def _takes_from_item(node: nodes.Getitem | nodes.Getattr, names: Iterable[str]) -> bool:
    """Whether the node is like `message.content[0].text`; `message.content[0]` alone may be a letter of a string."""
    item = node.node
    numbered = isinstance(item, nodes.Getitem) and isinstance(item.arg, nodes.Const) and isinstance(item.arg.value, int)
    return numbered and isinstance(item, nodes.Getitem) and _is_content(item.node, names=names)


def _is_content(node: nodes.Node, *, names: Iterable[str]) -> bool:
    """Whether the node is `x["content"]`, `x.content`, or a name that stands for it."""
    if isinstance(node, nodes.Name):
        return node.name in names
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    return isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value == "content"
