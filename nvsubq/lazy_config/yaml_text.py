"""YAML text that OmegaConf reads back as it was; PyYAML alone loses line breaks and quotes fewer numbers."""

from __future__ import annotations

import re
from typing import Any

import yaml

_BREAKS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]")  # folded or lost outside of double quotes
_NUMBER_LIKE = re.compile(r"[-+.]*[0-9]|[-+]?\.(inf|nan)", re.IGNORECASE)  # OmegaConf reads 1e3 as a number


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        style = '"' if _BREAKS.search(text) else "'" if _NUMBER_LIKE.match(text) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


def dump(values: Any) -> str:
    """Plain data in block style, keys in their order."""
    return yaml.dump(values, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)


LEVELS, VALUES, FOLLOWED, REFERENCES = 100, 100_000, 20_000, 50
"""How deep a config may be, how many values it may hold when its aliases are written out, how many when its
interpolations are followed, and how many interpolations a string may have. More is a mistake or an attack,
and takes minutes or all memory."""


def check_size(text: str) -> None:
    """Looks at the events of a parser, which takes no memory, before anything is built from them.

    Raises:
        yaml.YAMLError: a syntax error, or more than the limits above.
    """
    sizes: dict[str, int] = {}  # by anchor; 0 while it is open
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and the values before it
    count = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            open_nodes.append((event.anchor, count))
            sizes |= {event.anchor: 0} if event.anchor else {}
            if len(open_nodes) > LEVELS:
                raise _Refused(f"it has more than {LEVELS} levels", event)
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            anchor, before = open_nodes.pop()
            sizes |= {anchor: count - before + 1} if anchor else {}
            count += 1
        elif isinstance(event, yaml.AliasEvent):
            size = sizes.get(event.anchor, 1)  # PyYAML itself tells of an unknown one
            if size == 0:
                raise _Refused(f"*{event.anchor} contains itself", event)
            count += size
        elif isinstance(event, yaml.ScalarEvent):
            sizes |= {event.anchor: 1} if event.anchor else {}
            count += 1
            if event.value.count("${") > REFERENCES:
                raise _Refused(f"a value has more than {REFERENCES} interpolations", event)
        if count > VALUES:
            raise _Refused(f"it holds more than {VALUES} values when its aliases are written out", event)


class _Refused(yaml.YAMLError):
    def __init__(self, text: str, event: yaml.Event) -> None:
        super().__init__(f"{text} (line {event.start_mark.line + 1})")


def is_scalar(text: str) -> bool:
    """Whether the text is one scalar, such as the name of a file that is not there.

    Raises:
        yaml.YAMLError: a syntax error.
    """
    return isinstance(yaml.compose(text, Loader=yaml.SafeLoader), yaml.ScalarNode)
