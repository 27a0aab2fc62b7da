# SPDX-License-Identifier: Apache-2.0
"""Every operator, backend, instruction set and sample. A new operator needs no new test here."""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fundad_fast import ops
from fundad_fast.ops import OPS, _adapt, _registry
from fundad_fast.ops._registry import Op, to

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
ISAS = ["base", "avx2", "avx512", "avx512vnni"]


def tensors(args: Any) -> Iterator[Tensor]:
    if isinstance(args, Tensor):
        yield args
    elif isinstance(args, (list, tuple)):
        for arg in args:
            yield from tensors(arg)


@functools.cache
def sample_and_truth(name: str, device: str, sample: str) -> tuple[tuple[Any, ...], Any]:
    args = to(device, OPS[name].samples()[sample])
    return args, OPS[name].reference(*args)


def ordinary(name: str) -> tuple[Any, ...]:
    return next(iter(OPS[name].samples().values()))


def need(isa: str) -> None:
    module = _adapt.native()
    if module.Isa[isa] > module.best_isa():
        pytest.skip(f"this CPU has no {isa}")


def run(op: Op, backend: str, args: tuple[Any, ...]) -> Any:
    if reason := op.backends[backend].why_not(*args):
        pytest.skip(reason)
    with op.using(backend):
        return op.call(*args)


def cases() -> list[Any]:
    found = []
    for name, op in OPS.items():
        for backend in op.backends:
            for isa in ISAS if backend == "cpu" else [""]:
                for device in DEVICES:
                    for sample, args in op.samples().items():
                        label = "-".join(filter(None, (name, backend, isa, device, sample)))
                        large = sum(t.numel() for t in tensors(args)) > 100_000
                        interpreted = backend == "triton" and device == "cpu"
                        marks = [pytest.mark.slow] if interpreted and large else []
                        case = (name, backend, isa, device, sample)
                        found.append(pytest.param(*case, id=label, marks=marks))
    return found


@pytest.mark.parametrize("name, backend, isa, device, sample", cases())
def test_agrees_with_the_reference(name, backend, isa, device, sample, monkeypatch):
    if isa:
        need(isa)
        monkeypatch.setenv("FUNDAD_ISA", isa)
    op = OPS[name]
    args, want = sample_and_truth(name, device, sample)
    before = [t.clone() for t in tensors(args)]
    got = run(op, backend, args)
    op.check(args, got, want)
    for now, then in zip(tensors(args), before, strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=0, equal_nan=True)
    given = {t.untyped_storage().data_ptr() for t in tensors(args) if t.numel()}
    assert not given & {t.untyped_storage().data_ptr() for t in tensors(got) if t.numel()}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", [name for name, op in OPS.items() if "cpu" in op.backends])
def test_same_bits_for_any_number_of_threads(name, isa, monkeypatch):
    need(isa)
    monkeypatch.setenv("FUNDAD_ISA", isa)
    for args in OPS[name].samples().values():
        results = []
        for threads in (1, 3):
            monkeypatch.setattr(_adapt, "threads", lambda work, n=threads: n)
            results.append(list(tensors(run(OPS[name], "cpu", args))))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


BAD = [(name, bad) for name, op in OPS.items() for bad in op.bad()]


@pytest.mark.parametrize("name, bad", BAD, ids=["-".join(case) for case in BAD])
def test_bad_arguments_are_refused_in_words(name, bad):
    args, pattern = OPS[name].bad()[bad]
    with pytest.raises(ValueError, match=pattern) as refusal:
        OPS[name].call(*args)
    assert str(refusal.value).startswith(f"{name}: ")


@pytest.mark.parametrize("name", OPS)
def test_opcheck(name):
    torch.library.opcheck(OPS[name].call, ordinary(name))


@pytest.mark.parametrize("name", OPS)
def test_no_graph_break(name):
    op = OPS[name]
    args = ordinary(name)
    torch._dynamo.reset()  # of one piece of code no more than eight forms are kept
    compiled = torch.compile(lambda *a: op.call(*a), fullgraph=True, backend="aot_eager")
    op.check(args, compiled(*args), op.reference(*args))


@pytest.mark.parametrize("name", OPS)
def test_every_operator_can_run_anywhere_and_refuses_something(name):
    assert "torch" in OPS[name].backends
    assert OPS[name].samples()
    assert OPS[name].bad()


@pytest.mark.parametrize("name", [name for name in OPS if name in ops.__all__])
def test_public_operators_say_what_they_take_and_give(name):
    public = getattr(ops, name)
    for part in ("Args:", "Returns:", "Raises:"):
        assert part in public.__doc__


# ------------------------------------------------------------------------------ choice of backend


@pytest.mark.parametrize("name", OPS)
def test_the_environment_forces_a_backend(name, monkeypatch):
    op = OPS[name]
    for backend, form in op.backends.items():
        if form.why_not(*ordinary(name)) is None:
            for value in (f"{name}={backend}", f" {name} = {backend} ,", backend):
                monkeypatch.setenv("FUNDAD_BACKEND", value)
                assert op.choose(*ordinary(name)).name == backend


def test_a_bare_name_applies_where_it_is_known_and_a_named_operator_goes_first(monkeypatch):
    monkeypatch.setenv("FUNDAD_BACKEND", "cpu,nearest=torch")
    assert _registry.forced_backend("nearest") == "torch"
    assert _registry.forced_backend("kcenter") == "cpu"
    for name, op in OPS.items():
        if "cpu" not in op.backends:
            assert _registry.forced_backend(name) is None


@pytest.mark.parametrize(
    "value, pattern",
    [
        ("tensorflow", "no operator has a backend 'tensorflow'; use one of .*cpu.*torch"),
        ("nearst=cpu", "no operator 'nearst'; use one of .*nearest"),
        ("nearest=faster", "nearest has no backend 'faster'; use one of cpu, torch"),
        ("nearest=", "nearest has no backend ''"),
        ("cpu,torch", "more than one name without an operator"),
        ("nearest=cpu,nearest=torch", "nearest is named twice"),
    ],
)
def test_a_wrong_wish_is_an_error_that_says_what_there_is(value, pattern, monkeypatch):
    monkeypatch.setenv("FUNDAD_BACKEND", value)
    with pytest.raises(ValueError, match=pattern):
        OPS["nearest"].call(*ordinary("nearest"))


def test_the_last_error_lists_every_refusal(monkeypatch):
    op = OPS["nearest"]
    monkeypatch.setenv("FUNDAD_BACKEND", "nearest=cuda")
    if torch.cuda.is_available():
        pytest.skip("the CUDA form runs here")
    with pytest.raises(NotImplementedError) as refusal:
        op.call(*ordinary("nearest"))
    text = str(refusal.value)
    assert text.startswith("no backend of nearest can run this call")
    assert "cpu: cuda was asked for" in text
    assert "torch: cuda was asked for" in text
    assert "cuda: " in text


def test_using_rejects_an_unknown_backend_and_restores():
    op = OPS["nearest"]
    with pytest.raises(ValueError, match="no backend 'fast'"), op.using("fast"):
        pass
    with op.using("torch"):
        assert op.choose(*ordinary("nearest")).name == "torch"
    assert op.choose(*ordinary("nearest")).name == "cpu"


def test_status_names_a_choice_for_every_operator():
    status = ops.status()
    assert set(status) == {"build", "ops"}
    assert {choice.op for choice in status["ops"]} == set(OPS)
    for choice in status["ops"]:
        assert choice.chosen in choice.backends
        assert choice.chosen not in choice.refusals


# --------------------------------------------------------------------- instruction set, build


def test_isa_is_checked(monkeypatch):
    monkeypatch.setenv("FUNDAD_ISA", "sse9")
    with pytest.raises(ValueError, match="FUNDAD_ISA='sse9': use one of base, avx2, avx512"):
        OPS["nearest"].call(*ordinary("nearest"))
    native = _adapt.native()
    monkeypatch.delenv("FUNDAD_ISA")
    assert _adapt.isa() == native.best_isa()
    monkeypatch.setenv("FUNDAD_ISA", "base")
    assert _adapt.isa() == native.Isa.base
    old = types.SimpleNamespace(Isa=native.Isa, best_isa=lambda: native.Isa.avx2)
    monkeypatch.setattr(_adapt, "_native", old)
    monkeypatch.setenv("FUNDAD_ISA", "avx512")
    with pytest.raises(ValueError, match="go up to avx2"):
        _adapt.isa()


def load_adapt_again() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("adapt_again", _adapt.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Broken:
    """Finds the native module, and fails to load it."""

    def __init__(self, error: ImportError) -> None:
        self.error = error

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name == "fundad_fast._native":
            raise self.error


def test_without_a_native_module_torch_runs_and_says_why(monkeypatch):
    monkeypatch.setitem(sys.modules, "fundad_fast._native", None)  # as if it were not there
    adapt = load_adapt_again()
    assert adapt.no_cpu(torch.ones(1)) == "the native module is not built"
    assert adapt.no_cuda(torch.ones(1)) == "the native module is not built"
    assert adapt.build() == {"native": "not built: operators run as torch code"}
    with pytest.raises(ImportError, match="not built"):
        adapt.native()
    monkeypatch.setattr(_adapt, "_native", None)
    for name, op in OPS.items():
        assert op.choose(*ordinary(name)).name == "torch"
    with OPS["nearest"].using("cpu"), pytest.raises(NotImplementedError, match="is not built"):
        OPS["nearest"].call(*ordinary("nearest"))


@pytest.mark.parametrize(
    "error, kind, pattern",
    [
        (
            ImportError("libx.so: cannot open"),
            ImportError,
            "cannot be loaded .libx.*pip install",
        ),
        (ModuleNotFoundError("No module named 'y'", name="y"), ModuleNotFoundError, "'y'"),
    ],
)
def test_a_broken_native_module_is_an_error_with_its_cause(error, kind, pattern, monkeypatch):
    monkeypatch.delitem(sys.modules, "fundad_fast._native", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(error), *sys.meta_path])
    with pytest.raises(kind, match=pattern) as raised:
        load_adapt_again()
    assert error in (raised.value, raised.value.__cause__)


def test_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert _adapt.threads(1e9) == 7
    assert _adapt.threads(1e3) == 1
    monkeypatch.setattr(_adapt, "_forked", True)
    assert _adapt.threads(1e9) == 1


def test_a_data_loaders_worker_does_not_hang():
    """A forked worker has lost OpenMP's pool; torch runs one thread there, and so must we."""
    code = """
import torch
from fundad_fast import ops
torch.set_num_threads(2)
q, bank = torch.randn(2, 2000, 64)
prepared = ops.nearest_prepare(bank)
index = ops.nearest(q, bank, prepared=prepared)[1]  # two threads, before the fork

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 2
    def __getitem__(self, i):
        return ops.nearest(q, bank, prepared=prepared)[1]

for got in torch.utils.data.DataLoader(Rows(), num_workers=1, multiprocessing_context="fork"):
    assert torch.equal(got[0], index)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
