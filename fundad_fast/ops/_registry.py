# SPDX-License-Identifier: Apache-2.0
"""What an operator is: a definition that decides who is right, and backends that must agree."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

OPS: dict[str, Op] = {}


@dataclass(frozen=True)
class Backend:
    """One way to run an operator.

    Attributes:
        name: ``cpu``, ``cuda``, ``triton``, ``torch``, ...
        run: takes the operator's arguments, already validated.
        why_not: takes the same arguments; ``None`` if ``run`` can take them, else the reason in
            words.
    """

    name: str
    run: Callable[..., Any]
    why_not: Callable[..., str | None]


@dataclass
class Op:
    """An operator, registered with ``torch.library`` as ``fundad::<name>``.

    The schema names every argument and gives no default: torch drops an argument that equals its
    default, and the functions below would see a different number of them. Defaults belong to the
    public Python function. No argument is modified, and no result shares memory with one.

    Attributes:
        name: also the name of the operator's file in every layer.
        schema: torch's notation, ``(Tensor x, int k) -> (Tensor, Tensor)``; ``Tensor[]``,
            ``Tensor?``, ``int``, ``float``, ``bool`` and ``str`` all pass.
        reference: the definition, in float64, obvious and slow.
        fake: makes empty results of the right shape, type and device, after judging shapes and
            options: ``ValueError`` with the operator's name, what was wanted and what was given
            (``torch._check_value`` does this under tracing too). It must not look at the data.
        samples: small, named, nasty arguments, made once. The first one should be an ordinary case.
        check: ``check(args, got, want)`` raises ``AssertionError`` if the results of a backend and
            of the reference differ by more than rounding.
        bad: named arguments that must be refused, each with a pattern for the message.
        values: judges what only the data can tell, ``ValueError`` if it cannot be used.
    """

    name: str
    schema: str
    reference: Callable[..., Any]
    fake: Callable[..., Any]
    samples: Callable[[], Mapping[str, tuple[Any, ...]]]
    check: Callable[..., None]
    bad: Callable[[], Mapping[str, tuple[tuple[Any, ...], str]]] = dict
    values: Callable[..., None] | None = None
    backends: dict[str, Backend] = field(default_factory=dict)  # in order of preference
    _forced: str | None = None

    def __post_init__(self) -> None:
        OPS[self.name] = self
        self.samples = functools.cache(self.samples)
        qualified = f"fundad::{self.name}"
        torch.library.define(qualified, self.schema)
        # The choice of a backend is made inside the operator, so that no graph breaks on it.
        torch.library.impl(qualified, ("cpu", "cuda"), self._run)
        torch.library.register_fake(qualified, self.fake)

    @property
    def call(self) -> Callable[..., Any]:
        """The operator as torch knows it; takes every argument of the schema in order."""
        return getattr(torch.ops.fundad, self.name).default

    def backend(
        self, name: str, why_not: Callable[..., str | None] = lambda *args: None
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorator: add a backend, less preferred than those added before it."""

        def add(run: Callable[..., Any]) -> Callable[..., Any]:
            self.backends[name] = Backend(name, run, why_not)
            return run

        return add

    def autograd(self, backward: Callable[..., Any], setup_context: Callable[..., Any]) -> None:
        """Make the operator differentiable; see ``torch.library.register_autograd``."""
        torch.library.register_autograd(
            f"fundad::{self.name}", backward, setup_context=setup_context
        )

    @contextlib.contextmanager
    def using(self, backend: str) -> Iterator[None]:
        """Force a backend for a while, before ``FUNDAD_BACKEND``; for tests and benchmarks."""
        if backend not in self.backends:
            raise ValueError(_no_such_backend(self, backend))
        before, self._forced = self._forced, backend
        try:
            yield
        finally:
            self._forced = before

    def choose(self, *args: Any) -> Backend:
        """The backend that will run these arguments.

        Raises:
            NotImplementedError: none can; the message lists every refusal.
            ValueError: ``FUNDAD_BACKEND`` cannot be understood.
        """
        chosen, refusals = self._try_all(*args)
        if chosen is None:
            listed = "".join(f"\n  {name}: {reason}" for name, reason in refusals.items())
            raise NotImplementedError(f"no backend of {self.name} can run this call{listed}")
        return chosen

    def _try_all(self, *args: Any) -> tuple[Backend | None, dict[str, str]]:
        wanted = self._forced or forced_backend(self.name)
        refusals: dict[str, str] = {}
        for backend in self.backends.values():
            if wanted not in (None, backend.name):
                refusals[backend.name] = f"{wanted} was asked for"
                continue
            reason = backend.why_not(*args)
            if reason is None:
                return backend, refusals
            refusals[backend.name] = reason
        return None, refusals

    def _run(self, *args: Any) -> Any:
        self.fake(*args)
        if self.values is not None:
            self.values(*args)
        return self.choose(*args).run(*args)


def forced_backend(op: str) -> str | None:
    """What ``FUNDAD_BACKEND`` asks of an operator, or ``None``.

    The variable is a list such as ``nearest=triton,kcenter=cpu``. A bare name, as in ``torch`` or
    ``torch,kcenter=cpu``, is for every operator that has such a backend and is not named itself.
    """
    return _parse(os.environ.get("FUNDAD_BACKEND", ""), tuple(OPS)).get(op)


@functools.lru_cache(maxsize=8)
def _parse(text: str, known: tuple[str, ...]) -> dict[str, str]:
    everywhere: dict[str, str] = {}
    named: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        op, equals, backend = (p.strip() for p in part.partition("="))
        if not equals:
            having = [name for name in known if op in OPS[name].backends]
            if not having:
                offered = sorted({b for name in known for b in OPS[name].backends})
                raise ValueError(
                    f"FUNDAD_BACKEND={text!r}: no operator has a backend {op!r}; "
                    f"use one of {', '.join(offered)}"
                )
            if everywhere:
                raise ValueError(f"FUNDAD_BACKEND={text!r}: more than one name without an operator")
            everywhere = dict.fromkeys(having, op)
        elif op not in known:
            raise ValueError(
                f"FUNDAD_BACKEND={text!r}: no operator {op!r}; use one of {', '.join(known)}"
            )
        elif backend not in OPS[op].backends:
            raise ValueError(f"FUNDAD_BACKEND={text!r}: {_no_such_backend(OPS[op], backend)}")
        elif op in named:
            raise ValueError(f"FUNDAD_BACKEND={text!r}: {op} is named twice")
        else:
            named[op] = backend
    return everywhere | named


def _no_such_backend(op: Op, backend: str) -> str:
    return f"{op.name} has no backend {backend!r}; use one of {', '.join(op.backends)}"


@dataclass(frozen=True)
class Choice:
    """What an operator does with a tensor on a device.

    Attributes:
        op, device: the question.
        chosen: the backend that runs an ordinary call, or ``None`` if none can.
        refusals: the backends preferred to it, each with its reason.
        backends: all of them, in order of preference.
    """

    op: str
    device: str
    chosen: str | None
    refusals: dict[str, str]
    backends: tuple[str, ...]


def choices() -> list[Choice]:
    """Which backend each operator chooses on the CPU and, where there is one, on a CUDA device."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    found = []
    for op in OPS.values():
        args = next(iter(op.samples().values()))
        for device in devices:
            chosen, refusals = op._try_all(*to(device, args))
            name = None if chosen is None else chosen.name
            found.append(Choice(op.name, device, name, refusals, tuple(op.backends)))
    return found


def to(device: str, args: Any) -> Any:
    """The same arguments with their tensors on a device."""
    if isinstance(args, Tensor):
        return args.to(device)
    if isinstance(args, (list, tuple)):
        return type(args)(to(device, arg) for arg in args)
    return args
