"""A YAML file as values that know their line: interpolations and references are followed, nothing is run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modlib.runtime.errors import ConfigError

MOST_BYTES = 4 << 20
MOST_DEPTH = 50
_PLAIN = ("map", "seq", "str", "int", "float", "bool", "null", "merge")
_WHOLE = re.compile(r"\$\{([\w.\-]+)\}")
_ANY = re.compile(r"\$\{([^${}]*)\}")
_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?")


@dataclass(frozen=True)
class Node:
    """A value of the file.

    Args:
        value: A dict or list of nodes, or a scalar.
        line: From 1.
        path: Its keys from the outside in, joined by dots.
    """

    value: Any
    line: int
    path: str

    def leaves(self) -> Iterator[Node]:
        """The scalars below it."""
        inside = self.value.values() if isinstance(self.value, dict) else self.value
        if not isinstance(self.value, dict | list):
            yield self
            return
        for node in inside:
            yield from node.leaves()


class Unresolved(str):
    """An interpolation that only the running program of old could follow, such as `${cuda_env:RANK}`."""


def read_tree(path: Path) -> Node:
    """The file as nodes.

    Raises:
        ConfigError: It cannot be read, is no YAML, is too large, or is no mapping.
    """
    try:
        import yaml
    except ImportError as error:
        raise ConfigError("reading YAML needs the package PyYAML; pip install 'modlib[migrate]'") from error
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError(f"size of {path} ({path.stat().st_size} bytes) must be at most {MOST_BYTES}")
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"{path} cannot be read: {reason}; check the path") from error
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{path} must be a YAML mapping, as a training config is")
        return _node(root, loader, "", 0)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path} must be YAML: {' '.join(str(error).split())[:200]}") from error


def _node(node: Any, loader: Any, path: str, depth: int) -> Node:
    import yaml

    line = node.start_mark.line + 1
    if depth > MOST_DEPTH:
        raise ConfigError(f"line {line} must be at most {MOST_DEPTH} levels deep")
    if node.tag.removeprefix("tag:yaml.org,2002:") not in _PLAIN:
        raise ConfigError(f"line {line}: {path} must be plain YAML, and has the tag {node.tag}")
    if isinstance(node, yaml.MappingNode):
        pairs = {str(loader.construct_object(key)): value for key, value in node.value}
        inner = {key: _node(one, loader, f"{path}.{key}" if path else key, depth + 1) for key, one in pairs.items()}
        return Node(inner, line, path)
    if isinstance(node, yaml.SequenceNode):
        return Node([_node(one, loader, f"{path}.{n}", depth + 1) for n, one in enumerate(node.value)], line, path)
    value = loader.construct_object(node)
    if isinstance(value, str) and node.style is None and _NUMBER.fullmatch(value):
        value = float(value.replace("_", ""))  # YAML 1.1 takes 1e-4 for a text
    return Node(value, line, path)


class Tree:
    """A training config: its root, and what the nodes mean.

    Args:
        root: From `read_tree`.
    """

    def __init__(self, root: Node) -> None:
        self.root = root

    def at(self, path: str) -> Node | None:
        """The node at a path of keys; None where there is none."""
        node = self.root
        for key in path.split("."):
            inside = self.followed(node).value
            if isinstance(inside, dict) and key in inside:
                node = inside[key]
            elif isinstance(inside, list) and key.isdecimal() and int(key) < len(inside):
                node = inside[int(key)]
            else:
                return None
        return node

    def followed(self, node: Node, seen: tuple[str, ...] = ()) -> Node:
        """The node that a node stands for: a reference to a top-level entry, or an interpolation of a whole value."""
        target = None
        if isinstance(node.value, dict) and "instance_key" in node.value:
            target = str(node.value["instance_key"].value)
        elif isinstance(node.value, str) and (match := _WHOLE.fullmatch(node.value)):
            target = match[1]
        if target is None:
            return node
        if target in seen:
            raise ConfigError(f"line {node.line}: {node.path} refers to itself by {' -> '.join([*seen, target])}")
        found = self.at(target)
        return node if found is None else self.followed(found, (*seen, target))

    def value(self, node: Node) -> Any:
        """A node's value as plain Python, with every interpolation in it."""
        node = self.followed(node)
        if isinstance(node.value, dict):
            return {key: self.value(one) for key, one in node.value.items()}
        if isinstance(node.value, list):
            return [self.value(one) for one in node.value]
        if not isinstance(node.value, str) or "${" not in node.value:
            return node.value

        def text(match: re.Match[str]) -> str:
            found = self.at(match[1]) if re.fullmatch(r"[\w.\-]+", match[1]) else None
            return match[0] if found is None else str(self.value(found))

        replaced = _ANY.sub(text, node.value)
        return Unresolved(replaced) if "${" in replaced else replaced


@dataclass(frozen=True)
class Component:
    """A node with component_key, variant_key and config.

    Args:
        kind: `component_key/variant_key`.
        fields: Of its config.
        node: Where it is.
    """

    kind: str
    fields: dict[str, Node]
    node: Node


def component_of(tree: Tree, node: Node | None) -> Component | None:
    """The component that a node is or refers to; None where it is none."""
    if node is None:
        return None
    found = tree.followed(node)
    if not isinstance(found.value, dict) or "component_key" not in found.value or "variant_key" not in found.value:
        return None
    config = found.value.get("config")
    fields = config.value if config is not None and isinstance(config.value, dict) else {}
    return Component(f"{found.value['component_key'].value}/{found.value['variant_key'].value}", fields, found)
