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


def is_scalar(text: str) -> bool:
    """Whether the text is one scalar, such as the name of a file that is not there.

    Raises:
        yaml.YAMLError: a syntax error.
    """
    return isinstance(yaml.compose(text, Loader=yaml.SafeLoader), yaml.ScalarNode)
