"""The sandbox that chat templates run in: without names that lead out of it, and with limits of time and memory."""

from __future__ import annotations

import json
import os
import re
import resource
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

RENDER_LIMIT_S = 10.0
"""Seconds that a template may take for one conversation; usual ones take less than a thousandth of one."""
RENDER_LIMIT_BYTES = 1 << 30
"""Memory that a template may take besides what the process has."""
_NUMBER_LIMIT_BITS = 4096  # of a product or power: longer ones take as long as one likes in one operation

# Halves of surrogate pairs: no text that can be written as UTF-8 has them, so that they stand for nothing else.
BEGIN, END = "\ud800", "\udc00"
_RENDERING = threading.RLock()  # the limit of memory is the whole process's


class LimitReached(Exception):
    """A template took more than a limit allows; the text names it."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja2's sandbox, made stricter."""

    has_generation_blocks = False
    intercepted_binops = frozenset({"*", "**"})
    deadline = float("inf")

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Within it a template is compiled or rendered, with RENDER_LIMIT_S and RENDER_LIMIT_BYTES.

        Raises:
            LimitReached: It takes more.
        """
        with _RENDERING:
            self.deadline = time.monotonic() + RENDER_LIMIT_S
            try:
                with _memory_limited():
                    yield
            except MemoryError as error:
                text = f"{RENDER_LIMIT_BYTES >> 20} MiB of memory (RENDER_LIMIT_BYTES)"
                raise LimitReached(text) from error

    def look_at_the_clock(self) -> None:
        """What takes long is made of loops and calls, and each of them asks here."""
        if time.monotonic() > self.deadline:
            raise LimitReached(f"{RENDER_LIMIT_S:g} s (RENDER_LIMIT_S)")

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, "_timed", [], [], None, None, lineno=loop.lineno)
        tree.set_environment(self)
        return tree

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __self.look_at_the_clock()
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Products and powers of whole numbers stay short; of texts and lists, the memory is limited."""
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > _NUMBER_LIMIT_BITS:
                raise LimitReached(f"numbers of {_NUMBER_LIMIT_BITS} bits")
        return super().call_binop(context, operator, left, right)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        """Stop at once: Jinja2 itself would go on with an empty value, and print nothing."""
        raise SecurityError(f"'{attribute}' of {type(obj).__name__} is asked for")


class _GenerationBlocks(Extension):
    """`{% generation %}` ... `{% endgeneration %}`: what is in it stands between marks."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        self.environment.has_generation_blocks = True  # type: ignore[attr-defined]
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        return f"{BEGIN}{caller()}{END}"


class _Names(Namespace):
    """What `namespace(...)` makes: without names that begin with an underscore, which Python has its own for."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        values = dict(*args[1:], **kwargs)
        for name in values:
            _checked_name(name)
        Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _checked_name(name)
        super().__setitem__(name, value)


def _checked_name(name: Any) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"'{name}' of a namespace is set")


def sandbox() -> Sandbox:
    """A new one."""
    extensions = [_GenerationBlocks, "jinja2.ext.loopcontrols"]
    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters |= {"tojson": _tojson, "_timed": _timed}
    environment.globals |= {"raise_exception": _raise_exception, "namespace": _Names}
    del environment.filters["random"], environment.globals["lipsum"]  # a text must not depend on chance
    return environment


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As templates expect it: Jinja2's own writes `<` and quotes as HTML needs them."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


class _Timed:
    """What a loop goes through, with a look at the clock each time."""

    def __init__(self, inner: Any, look: Callable[[], None]) -> None:
        self.inner, self.look = inner, look

    def __iter__(self) -> Iterator[Any]:
        for one in self.inner:
            self.look()
            yield one

    def __len__(self) -> int:
        return len(self.inner)


@pass_context
def _timed(context: Context, value: Any) -> Iterable[Any]:
    environment: Any = context.environment
    return _Timed(value, environment.look_at_the_clock)


@contextmanager
def _memory_limited() -> Iterator[None]:
    """The address space of this process may grow by RENDER_LIMIT_BYTES and no more; where the system knows its size."""
    try:
        descriptor = os.open("/proc/self/statm", os.O_RDONLY)
    except OSError:
        yield
        return
    pages = int(os.read(descriptor, 64).split()[0])
    os.close(descriptor)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + RENDER_LIMIT_BYTES
    if soft != resource.RLIM_INFINITY:
        limit = min(limit, soft)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def hidden_names(tree: nodes.Template) -> Iterator[str]:
    """Names that Python reserves for itself, such as `__class__`, where a template writes them out."""
    for attribute in tree.find_all(nodes.Getattr):
        if attribute.attr.startswith("__"):
            yield attribute.attr
    for constant in tree.find_all(nodes.Const):
        if isinstance(constant.value, str) and re.fullmatch(r"__\w+__", constant.value):
            yield constant.value
