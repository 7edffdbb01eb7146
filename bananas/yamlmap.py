"""YAML text as a tree in which every key and value knows its line and column.

Decides what a scalar is and which YAML is refused; knows nothing about the keys of bananas.yaml. Called by
``bananas.manifest``. Three choices keep old YAML surprises out:

- Keys are text, always: a function may be called ``on``.
- Values follow YAML 1.2: only ``true`` and ``false`` are booleans, so ``no`` stays a word.
- A number that readers disagree about (``017``, ``1:30``, ``0x1F``, ``1_000``) is a problem, not a guess.

Size, depth and the number of nodes after aliases are expanded are bounded, so no file can exhaust memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import yaml

from bananas.settings import MIB

#: Bounds of one file: bytes, nesting, and nodes with every alias counted again.
MAX_BYTES = 1 * MIB
MAX_DEPTH = 24
MAX_NODES = 20_000

Scalar = str | int | float | bool | None
Loc = tuple[str | int, ...]


class Mark(NamedTuple):
    """A place in the text, both counted from 1."""

    line: int
    column: int


class Problem(NamedTuple):
    """One thing that is wrong; sorts by place."""

    mark: Mark
    #: Keys and list indexes from the root.
    loc: Loc
    #: What is wrong and what would be right.
    what: str

    def line(self, file: str) -> str:
        """``file:line:col: path: what``; the path is left out at the root."""
        path = ""
        for part in self.loc:
            path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
        return f"{file}:{self.mark.line}:{self.mark.column}: {f'{path}: ' if path else ''}{self.what}"


class Refused(Exception):
    """The text cannot be read at all; carries the one problem that stopped it."""

    def __init__(self, mark: Mark, what: str) -> None:
        super().__init__(what)
        self.problem = Problem(mark, (), what)


class Filled(str):
    """Text that came out of a ``${VAR}``; where a number is meant, it may be read as one."""

    __slots__ = ()


@dataclass(slots=True)
class Node:
    """A value and where it stands. A mapping's values and a list's items are nodes again."""

    mark: Mark
    value: Scalar | dict[str, Node] | list[Node]
    #: Where each key of a mapping stands.
    keys: dict[str, Mark] = field(default_factory=dict)
    #: Levels below this one.
    height: int = 0

    def plain(self) -> object:
        """The value without places: dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def locate(self, loc: Loc, *, key: bool = False) -> tuple[Mark, Loc]:
        """The place of the value at ``loc`` (of its key with ``key=True``), and the part of ``loc`` that exists.

        A mapping is pointed at by its key, for its value begins a line further down; so is a value left empty. When
        the last parts of ``loc`` do not exist, the place is that of the deepest value that does.
        """
        node, at = self, self.mark
        for depth, part in enumerate(loc):
            if isinstance(node.value, dict) and part in node.value:
                key_at, node = node.keys[str(part)], node.value[str(part)]
            elif isinstance(node.value, list) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                key_at = node.mark
            else:
                return at, loc[:depth]
            at = key_at if key or isinstance(node.value, dict | None) else node.mark
        return at, loc


def parse(text: str) -> tuple[Node, list[Problem]]:
    """The tree of one YAML document, and the problems that did not stop the reading.

    Raises Refused when the text is not YAML, is too large, or uses tags, several documents or keys that are no text.
    """
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise Refused(Mark(1, 1), f"the file is larger than {MAX_BYTES // MIB} MiB")
    try:
        return _Reader(text).document()
    except yaml.reader.ReaderError as e:
        before = text[: e.position]
        mark = Mark(before.count("\n") + 1, len(before) - before.rfind("\n"))
        raise Refused(mark, f"the character U+{ord(text[e.position]):04X} is not allowed in YAML; remove it") from e
    except yaml.MarkedYAMLError as e:
        raise _syntax(text, e) from e


def _syntax(text: str, error: yaml.MarkedYAMLError) -> Refused:
    at = error.problem_mark or error.context_mark
    mark = _mark(at) if at else Mark(1, 1)
    if at and text[at.index : at.index + 1] == "\t":
        return Refused(mark, "a tab; YAML allows only spaces for indentation")
    what = f"not valid YAML: {error.problem or error.context}"
    if error.context and error.context_mark and error.problem:
        start = _mark(error.context_mark)
        what += f" ({error.context} that begins at {start.line}:{start.column})"
    return Refused(mark, what)


class _Place(Protocol):
    """What both of PyYAML's readers call a mark; counted from 0."""

    line: int
    column: int


def _mark(mark: _Place | None) -> Mark:
    assert mark is not None, "the pure Python reader marks every event"
    return Mark(mark.line + 1, mark.column + 1)


_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?(0|[1-9][0-9]*)?(\.[0-9]*)?([eE][-+]?[0-9]+)?")
_LARGE = re.compile(r"[-+]?[1-9][0-9]{18,}")
# What some YAML reader takes for a number and another one does not, or not for the same.
_ODD = re.compile(
    r"[-+]?(0[0-9_]+(\.[0-9_]*)?|0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+|[0-9][0-9_]*"
    r"|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?|[0-9_]*\.[0-9_]+|\.(inf|Inf|INF))|\.(nan|NaN|NAN)"
)


def _scalar(text: str) -> tuple[Scalar, str]:
    """The value of an unquoted scalar, and what is wrong with it, if anything."""
    if text in _NULL:
        return None, ""
    if text in _BOOL:
        return _BOOL[text], ""
    if _INT.fullmatch(text):
        return int(text), ""
    if _LARGE.fullmatch(text):
        return text, f"{text} is too large a number; quote it if it is text"
    if _FLOAT.fullmatch(text) and any(c.isdigit() for c in text.lower().split("e")[0]):
        value = float(text)
        return (value, "") if abs(value) < 1e300 else (text, f"{text} is too large a number; quote it if it is text")
    if _ODD.fullmatch(text):
        return text, f"{text} means different things to different YAML readers; write a plain number, or quote it"
    return text, ""


class _Reader:
    """Builds the tree from parser events; the events keep nesting off the interpreter's stack until it is bounded."""

    def __init__(self, text: str) -> None:
        self._events: Iterator[yaml.Event] = yaml.parse(text, Loader=yaml.SafeLoader)
        self._anchors: dict[str, Node] = {}
        self._sizes: dict[str, int] = {}
        self._nodes = 0
        self._problems: list[Problem] = []

    def document(self) -> tuple[Node, list[Problem]]:
        next(self._events)  # the start of the stream
        event = next(self._events)
        if isinstance(event, yaml.StreamEndEvent):
            return Node(Mark(1, 1), None), []
        root = self._node(next(self._events), (), 0)
        next(self._events)  # the end of the document
        event = next(self._events)
        if not isinstance(event, yaml.StreamEndEvent):
            raise Refused(_mark(event.start_mark), "a second document begins here; one file holds one document")
        return root, self._problems

    def _count(self, nodes: int, mark: Mark) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise Refused(mark, f"more than {MAX_NODES} values, aliases counted each time; use fewer")

    def _node(self, event: yaml.Event, loc: Loc, depth: int) -> Node:
        mark = _mark(event.start_mark)
        if depth > MAX_DEPTH:
            raise Refused(mark, f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, mark, depth)
        assert isinstance(event, yaml.NodeEvent)
        self._count(1, mark)
        before = self._nodes
        if getattr(event, "tag", None) not in (None, "!"):
            raise Refused(mark, f"the tag {event.tag} is not used here; remove it")  # type: ignore[attr-defined]
        if isinstance(event, yaml.ScalarEvent):
            node = self._scalar(event, mark, loc)
        elif isinstance(event, yaml.SequenceStartEvent):
            items = self._items(loc, depth)
            node = Node(mark, items, height=1 + max((item.height for item in items), default=0))
        else:
            node = self._mapping(mark, loc, depth)
        if event.anchor:
            self._anchors[event.anchor] = node
            self._sizes[event.anchor] = self._nodes - before + 1
        return node

    def _alias(self, event: yaml.AliasEvent, mark: Mark, depth: int) -> Node:
        # An anchor is known only after its node is complete, so a node can never hold itself.
        name = str(event.anchor)
        if name not in self._anchors:
            raise Refused(mark, f"the alias *{name} has no anchor &{name} before it")
        self._count(self._sizes[name], mark)
        node = self._anchors[name]
        if depth + node.height > MAX_DEPTH:
            raise Refused(mark, f"nested deeper than {MAX_DEPTH} levels")
        return node

    def _scalar(self, event: yaml.ScalarEvent, mark: Mark, loc: Loc) -> Node:
        if event.style is not None or not event.implicit[0]:
            return Node(mark, event.value)
        value, wrong = _scalar(event.value)
        if wrong:
            self._problems.append(Problem(mark, loc, wrong))
        return Node(mark, value)

    def _items(self, loc: Loc, depth: int) -> list[Node]:
        items: list[Node] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(event, (*loc, len(items)), depth + 1))
        return items

    def _mapping(self, mark: Mark, loc: Loc, depth: int) -> Node:
        node = Node(mark, values := {})
        merged: list[Node] = []
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            at = _mark(event.start_mark)
            if not isinstance(event, yaml.ScalarEvent):
                raise Refused(at, "a key must be plain text")
            self._count(1, at)
            key = event.value
            child = self._node(next(self._events), (*loc, key), depth + 1)
            if key == "<<" and event.style is None:
                merged += child.value if isinstance(child.value, list) else [child]
            elif key in values:
                first = node.keys[key].line
                what = f"written twice, on line {first} and on line {at.line}; keep one"
                self._problems.append(Problem(at, (*loc, key), what))
            else:
                values[key], node.keys[key] = child, at
        for source in merged:
            if not isinstance(source.value, dict):
                raise Refused(source.mark, "<< takes a mapping, such as *name, or a list of mappings")
            for key, child in source.value.items():
                if key not in values:
                    values[key], node.keys[key] = child, source.keys[key]
        node.height = 1 + max((child.height for child in values.values()), default=0)
        return node


_VARIABLE = re.compile(r"\$(?:\$|\{([^}]*)\}?)")
_INSIDE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)


def fill(root: Node, environ: Mapping[str, str]) -> list[Problem]:
    """Replace ``${VAR}``, ``${VAR:-default}`` and ``$$`` in every text value, in place; returns what is missing.

    As in a shell, the default also stands in for an empty variable. Keys are left alone.
    """
    problems: list[Problem] = []
    done: set[int] = set()

    def visit(node: Node, loc: Loc) -> None:
        if id(node) in done:  # an alias: filled already, and a second time would fill what a variable held
            return
        done.add(id(node))
        if isinstance(node.value, dict):
            for key, child in node.value.items():
                visit(child, (*loc, key))
        elif isinstance(node.value, list):
            for index, child in enumerate(node.value):
                visit(child, (*loc, index))
        elif isinstance(node.value, str) and "$" in node.value:
            node.value, wrong = _fill_text(node.value, environ)
            problems.extend(Problem(node.mark, loc, what) for what in wrong)

    visit(root, ())
    return problems


def _fill_text(text: str, environ: Mapping[str, str]) -> tuple[str, list[str]]:
    wrong: list[str] = []

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        inside = _INSIDE.fullmatch(match[1])
        if not match[0].endswith("}") or not inside:
            wrong.append(
                f"{match[0]} is not a variable; write ${{NAME}} or ${{NAME:-default}}, or $$ for a dollar sign"
            )
            return ""
        name, default = inside[1], inside[2]
        value = environ.get(name)
        if value is None and default is None:
            wrong.append(
                f"the environment variable {name} is not set; set it, or write ${{{name}:-default}} for a default"
            )
        return (value or default or "") if default is not None else (value or "")

    return Filled(_VARIABLE.sub(replace, text)), wrong
