"""Strict YAML: a file becomes plain values, and every key remembers its place.

Scalars follow YAML 1.2: 8e-6 is a float; no, off, 012 and 3:30 are strings. Duplicate keys, tags and aliases are
refused. ``base: other.yaml`` names a file, relative to this one, whose keys are inherited.
"""

import re
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES, MAX_DEPTH = 256 * 1024, 16
TAG = "tag:yaml.org,2002:"
Loc = tuple[str, ...]  # a key path
Marks = dict[Loc, str]  # where each key stands: "file:line:column"


class UserError(Exception):
    """Something the user can put right; the command line prints it without a traceback."""


class ConfigError(UserError):
    """A config that cannot be read, or does not fit its model."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}  # SafeLoader's own are YAML 1.1


_FLOAT = r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?"
for _kind, _pattern in {"null": "~|null|", "bool": "true|false", "int": r"[-+]?(0|[1-9]\d*)", "float": _FLOAT}.items():
    _Loader.add_implicit_resolver(f"{TAG}{_kind}", re.compile(f"^({_pattern})$"), None)


def read(path: Path, seen: tuple[Path, ...] = ()) -> tuple[dict, Marks]:
    """The keys of ``path`` over those of its ``base``, and where each of them stands."""
    if path.resolve() in seen:
        raise ConfigError(f"{path}: inheritance cycle through 'base'")
    if not path.is_file():
        raise ConfigError(f"{path}: no such config file")
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"{path}: {path.stat().st_size} bytes; a config has at most {MAX_BYTES}")
    marks: Marks = {}
    try:
        tree = parse(path.read_bytes(), str(path), marks)
    except OSError as error:
        raise ConfigError(f"{path}: not readable: {error.strerror}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys at the top level, got {tree!r:.80}")
    base = tree.pop("base", None)
    if base is None:
        return tree, marks
    if not isinstance(base, str):
        raise ConfigError(f"{marks['base',]}: base: expected the path of another config (got {base!r:.80})")
    parent, inherited = read(path.parent / base, (*seen, path.resolve()))
    return merge(parent, tree), inherited | marks


def parse(text: str | bytes, name: str, marks: Marks) -> Any:
    """One YAML document as plain values; ``marks`` receives the place of every key."""

    def plain(node: yaml.Node, loc: Loc, key: yaml.Node) -> Any:
        marks[loc] = at = f"{name}:{key.start_mark.line + 1}:{key.start_mark.column + 1}"
        if node.tag.removeprefix(TAG) not in {"map", "seq", "str", "int", "float", "bool", "null"}:
            raise ConfigError(f"{at}: tag {node.tag!r} is refused")
        if isinstance(node, yaml.SequenceNode):
            return [plain(item, (*loc, str(i)), item) for i, item in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            return loader.construct_object(node)
        names = [k.value for k, _ in node.value]
        for i, (k, _) in enumerate(node.value):
            if not isinstance(k, yaml.ScalarNode) or k.value in names[:i]:
                place = f"{name}:{k.start_mark.line + 1}:{k.start_mark.column + 1}"
                raise ConfigError(f"{place}: duplicate or complex key {str(k.value)[:80]!r}")
        return {k.value: plain(value, (*loc, k.value), k) for k, value in node.value}

    try:
        depth = 0
        for event in yaml.parse(text, _Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > MAX_DEPTH:
                line = event.start_mark.line + 1
                raise ConfigError(
                    f"{name}:{line}: YAML aliases and more than {MAX_DEPTH} levels are refused; use 'base'"
                )
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else plain(node, (), node)
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        at = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise ConfigError(f"{at}: not valid YAML: {getattr(error, 'problem', None) or error}") from None


def merge(low: dict, high: dict) -> dict:
    """``high`` wins; mappings merge key by key, everything else is replaced."""
    both = {k: merge(low[k], v) for k, v in high.items() if isinstance(v, dict) and isinstance(low.get(k), dict)}
    return low | high | both
