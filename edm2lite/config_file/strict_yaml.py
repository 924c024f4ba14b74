"""YAML without its surprises: a number is what it looks like, no key stands twice, nothing grows.

YAML 1.1 reads ``1:30`` as 90, ``010`` as 8 and ``no`` as false, takes the last of two equal keys,
and can name a value and repeat it, which makes a text of a few lines gigabytes large. Here numbers
are decimal, truth values are ``true`` and ``false``, and the rest is refused.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

_DEEPEST = 50
_TRUTH = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$")
_FLOAT = re.compile(
    r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9_]+)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.inf$|^\.nan$"
)


class _Loader(yaml.SafeLoader):
    """The safe loader, with the rules of this module."""

    yaml_implicit_resolvers: dict[str, Any] = {  # noqa: RUF012 as the base class has it
        first: [
            (tag, regexp)
            for tag, regexp in resolvers
            if tag.rpartition(":")[2] in ("null", "merge")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(f"line {mark.line + 1}: names for values (&, *) are not supported")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                line = node.value[i][0].start_mark.line + 1
                raise yaml.YAMLError(
                    f"line {line}: {key} must be given once, it stands there again"
                )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _TRUTH, list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def parse(text: str) -> Any:
    """The content of a YAML text.

    Raises:
        yaml.YAMLError: If it is not YAML, gives a key twice, or names values to repeat them.

    Example:
        >>> parse("seed: 1:30\\nlr: 1.0e-2\\nfolder: no")
        {'seed': '1:30', 'lr': 0.01, 'folder': 'no'}
    """
    depth = 0
    for bracket in re.findall(r"[\[\]{}]", text):  # those in quotes too: no configuration has many
        depth += 1 if bracket in "[{" else -1
        if depth > _DEEPEST:  # reading them would take seconds
            raise yaml.YAMLError("brackets are nested too deeply")
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise yaml.YAMLError("brackets are nested too deeply") from None
