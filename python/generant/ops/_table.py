"""The op table: an op is a decorated Python function whose body is its definition.

The definition is slow and obviously right. It is the documentation, the test oracle, the derivative rule of fused
kernels and the last-resort backend. A kernel is the same name again in csrc/cpu or _numba; nothing else is written per
op: the binding, the checks, the dispatch, the tests and the benchmarks come from this table.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ..autograd import TABLE, Op, bilinear_triple, fused, linear_pair, rule, through_definition
from . import _device, _dispatch
from ._spec import DTYPE_NUMBER, DTYPES, Spec

__all__ = ["TABLE", "Row", "bilinear_triple", "fused", "linear_pair", "op", "rule"]


MAX_DIMS = 6  # kMaxDims of csrc/kernel.h


MEMO = 64  # combinations of shapes and attributes remembered per op, as in csrc/bind.cpp


class Plan(NamedTuple):
    """A checked combination of shapes, dtypes and attributes."""

    dtype: np.dtype  # T
    attrs: dict[str, Any]  # every attribute of the kernel, in signature order
    outputs: list[tuple[np.dtype, tuple[int, ...]] | None]  # None: not wanted


class Row(Op):
    """An op with its spec, definition and test cases."""

    def __init__(self, definition: Callable, spec: str, **options: Any) -> None:
        name = definition.__name__
        self.definition, self.__doc__, self.__module__ = definition, definition.__doc__, definition.__module__
        self.__name__ = self.__qualname__ = name
        self.__signature__ = inspect.signature(definition)
        self.shape: Callable | None = options["shape"]
        self.spec = Spec(name, spec, loose=self.shape is not None)
        self.derive: Callable | None = options["derive"]
        self.check: Callable | None = options["check"]
        self.choices: dict[str, tuple[str, ...]] = options["choices"]
        self.float32_only: dict[str, str] = options["float32_only"]
        self.variants: dict[str, str] = options["variants"]
        self.dtypes = ("float32",) if options["single"] else ("float32", "float64")
        self.sizes, self.cases, self.domain = options["sizes"], options["attrs"], options["domain"]
        self.caches: int = options["caches"]
        self.has_kernel: bool = options["native"]
        self.elementwise: bool = options["elementwise"]
        self._plans: dict[tuple, Plan] = {}
        self.prepared_on_device: dict[tuple, Any] = {}  # see _device.py
        self.keywords = [p for p in self.__signature__.parameters.values() if p.kind is p.KEYWORD_ONLY]
        self.n_arrays = len(self.spec.inputs)
        n_public = len(self.spec.outputs) - self.caches
        names = [t.name for t in self.spec.inputs]
        super().__init__(
            name, self._first_run, self._first_run_all, n_public, options["keep"], options["effects"], names
        )
        self.defaults = {p.name: p.default for p in self.keywords if p.default is not p.empty}
        if options["composite"]:
            through_definition(self, definition)

    # ---- choosing an implementation: once, at the first call, so that importing the table stays cheap ----

    def _first_run(self, *args: Any, **attrs: Any) -> Any:
        self._choose()
        return self.run(*args, **attrs)

    def _first_run_all(self, *args: Any, **attrs: Any) -> tuple:
        self._choose()
        return self.run_all(*args, **attrs)

    def kernel_name(self, attrs: dict[str, Any]) -> str:
        """The kernel that serves these attributes."""
        return "_".join([self.name, *(value for name, value in self.variants.items() if attrs[name] == value)])

    def implementation(self) -> str:
        """The backend that serves this op here: native, numba or definition."""
        wanted = _dispatch.backend()
        if not self.has_kernel or wanted == "definition":
            return "definition"
        if wanted == "native" and f"{self.name}.f32" in _dispatch.native_module().kernels():  # type: ignore[union-attr]
            return "native"
        twins = _dispatch.numba_kernels() if wanted == "numba" or not _dispatch.strict() else {}
        found = "numba" if twins and self.name in twins else "definition"
        if found != wanted:
            message = f"{self.name}: the {wanted} backend has no kernel for it; its {found} serves"
            if _dispatch.strict():
                raise RuntimeError(f"{message} (GENERANT_STRICT=1 makes this an error)")
            warnings.warn(message, RuntimeWarning, stacklevel=4)
        return found

    def _choose(self) -> None:
        found = self.implementation()
        if found == "native":
            self.run, self.run_all = self._native_runner(False), self._native_runner(True)
        else:
            execute = self._run_numba if found == "numba" else self._run_definition
            self.run = lambda *xs, **a: self._public(self._normalise(execute, False, xs, a))
            self.run_all = lambda *xs, **a: self._normalise(execute, True, xs, a)

    def _public(self, outs: tuple) -> Any:
        return outs[0] if self.n_public == 1 else outs[: self.n_public] if self.n_public else None

    # ---- native ----

    def prepared(self, xs: Sequence[Any], attrs: dict, every: bool, kernels: Callable | None = None) -> tuple:
        """(kernel number, ((dtype number, shape) or None per output), attributes as numbers) of a checked native call.

        Of xs only shapes and dtypes are looked at. kernels() gives kernel numbers by name, of the CPU if left out.
        """
        plan = self.plan(xs, attrs, every)
        number = (kernels or _native_kernels)()[self.row_name(plan)]
        outs = tuple(None if o is None else (DTYPE_NUMBER[o[0]], o[1]) for o in plan.outputs)
        return number, outs, tuple(self._encode(plan.attrs))

    def row_name(self, plan: Plan) -> str:
        """The name of the kernel that serves a checked call, in its float type."""
        return f"{self.kernel_name(plan.attrs)}.{'f32' if plan.dtype == np.float32 else 'f64'}"

    def _native_runner(self, every: bool) -> Callable:
        native: Any = _dispatch.native_module()

        def prepare(xs: tuple, attrs: dict) -> tuple:
            return self.prepared(xs, attrs, every)

        def slow(*xs: Any, **attrs: Any) -> Any:
            outs = self._normalise(again, every, xs, attrs)
            return outs if every else self._public(outs)

        def again(every: bool, xs: tuple, attrs: dict) -> tuple:
            if any(x is not None and x.dtype == np.longdouble for x in xs):
                return self._run_definition(every, xs, attrs)
            self._remembered_plan(xs, attrs, every)  # what the runner would hand back here fails with a message instead
            outs = runner(*xs, **attrs)
            return outs if every else (outs,) if self.n_public == 1 else outs or ()

        effects = sum(1 << i for i in self.effects)
        check = None if self.check is None else self._named_check(self.check)
        runner = native.Runner(prepare, slow, check, every, self.n_public, self.n_arrays, effects)
        return runner

    def _check_values(self, *xs: Any, **attrs: Any) -> None:
        """The op's own check of values, after shapes and dtypes have passed."""
        if self.check is not None:
            self._named(self.check, *xs, **attrs)

    def _named_check(self, check: Callable) -> Callable:
        """`_check_values` in one frame: it runs at every call."""

        def checked(*xs: Any, **attrs: Any) -> None:
            try:
                check(*xs, **attrs)
            except (TypeError, ValueError):
                self._named(check, *xs, **attrs)

        return checked

    def _named(self, function: Callable, *args: Any, **kwargs: Any) -> Any:
        """function(...), its errors starting with the op's name."""
        try:
            return function(*args, **kwargs)
        except (TypeError, ValueError) as error:
            if str(error).startswith(self.name + ":"):
                raise
            raise type(error)(f"{self.name}: {error}") from None

    def _encode(self, attrs: dict[str, Any]) -> list[float]:
        """Attributes as the doubles a kernel reads."""
        values: list[float] = []
        for name, v in attrs.items():
            if v is None:
                values.append(float("nan"))
            elif isinstance(v, str):
                values.append(float(self.choices[name].index(v)))
            elif isinstance(v, tuple):
                values += [float(len(v)), *map(float, v)]
            else:
                values.append(float(v))
        return values

    # ---- the other backends, and everything that is not plain dense NumPy ----

    def _normalise(self, execute: Callable, every: bool, xs: Sequence[Any], attrs: dict) -> tuple:
        """Run `execute(every, arrays, attrs)` on dense NumPy arrays; torch in, torch out. Device arrays go to CUDA."""
        torch = any(map(_dispatch.is_torch, xs))
        if len(xs) > self.n_arrays:
            raise TypeError(f"{self.name}: got {len(xs)} arrays, wanted at most {self.n_arrays}; the rest by keyword")
        if any(map(_device.is_device, xs)):
            return _device.run(self, every, xs, {k: _plain(self.name, k, v) for k, v in attrs.items()})
        number = _dispatch.float_type_of(xs)
        arrays = tuple(
            None
            if x is None
            else x
            if type(x) is np.ndarray and x.flags.carray and x.dtype.isnative and x.dtype.kind in "fiu"
            else _dispatch.as_dense(self.name, term.name, x, term.dtype or number, i in self.effects)
            for i, (x, term) in enumerate(zip(xs, self.spec.inputs, strict=False))
        )
        outs = execute(every, arrays, {k: _plain(self.name, k, v) for k, v in attrs.items()})
        return tuple(map(_dispatch.to_torch, outs)) if torch else outs

    def _run_numba(self, every: bool, xs: tuple, attrs: dict) -> tuple:
        if any(x is not None and x.dtype == np.longdouble for x in xs):
            return self._run_definition(every, xs, attrs)
        plan = self._remembered_plan(xs, attrs, every)
        self._check_values(*xs, **attrs)
        outs = tuple([None if o is None else np.empty(o[1], o[0]) for o in plan.outputs])
        twins: Any = _dispatch.numba_kernels()
        xs = xs + (None,) * (self.n_arrays - len(xs))
        twins[self.kernel_name(plan.attrs)](*xs, *outs, *plan.attrs.values())
        return outs

    def _run_definition(self, every: bool, xs: tuple, attrs: dict) -> tuple:
        plan = self._remembered_plan(xs, attrs, every)
        self._check_values(*xs, **attrs)
        dtype = {"dtype": plan.dtype.name} if "dtype" in self.__signature__.parameters else {}
        made = self.definition(*xs, **plan.attrs, **dtype)
        made = () if made is None else made if isinstance(made, tuple) else (made,)
        return tuple(
            [
                None if o is None else np.asarray(y, o[0] if o[0] != np.float64 else None).astype(o[0], copy=False)
                for y, o in zip(made, plan.outputs, strict=True)
            ]
        )

    # ---- checking ----

    def _remembered_plan(self, xs: tuple, attrs: dict[str, Any], every: bool) -> Plan:
        """`plan`, worked out once per combination: what the native Runner's memo is to kernels. attrs are plain values;
        their types are part of the key, because True is not 1 to a check."""
        key = (
            every,
            tuple([None if x is None else (x.dtype, x.shape) for x in xs]),
            tuple([(name, type(value), value) for name, value in attrs.items()]),
        )
        plan = self._plans.get(key)
        if plan is None:
            plan = self.plan(xs, attrs, every)
            if len(self._plans) >= MEMO:
                self._plans.clear()
            self._plans[key] = plan
        return plan

    def plan(self, xs: Sequence[Any], attrs: dict[str, Any], every: bool = True) -> Plan:
        """Check arrays and attributes; the float type, the complete attributes and the outputs to allocate."""
        try:
            bound = self.__signature__.bind(*xs, **attrs)
        except TypeError as error:
            raise TypeError(f"{self.name}: {error}") from None
        bound.apply_defaults()
        arrays = [bound.arguments[t.name] for t in self.spec.inputs]
        given = {p.name: bound.arguments[p.name] for p in self.keywords}
        for p in self.keywords:
            self._check_attribute(p.name, given[p.name], p.default)
        for name, options in self.choices.items():
            if given[name] not in options:
                raise ValueError(f"{self.name}: {name} must be one of {', '.join(options)}, got {given[name]!r}")
        for p in self.keywords:
            if (isinstance(p.default, tuple) or p.name == "shape") and isinstance(given[p.name], (int, float)):
                given[p.name] = (given[p.name],)
        if "eps" in given and not given["eps"] >= 0:
            raise ValueError(f"{self.name}: eps must be at least 0, got {given['eps']}")
        dtype = self.spec.float_type(arrays)
        if "dtype" in given:
            dtype = _float_dtype(self.name, given.pop("dtype"))
        dtype = dtype or np.dtype(np.float32)
        if dtype.name == "float64" and "float64" not in self.dtypes:
            raise TypeError(f"{self.name}: the arrays must be float32, got {dtype}; convert them with .astype first")
        for name, value in self.float32_only.items():
            if given[name] == value and dtype == np.float64:
                raise TypeError(
                    f"{self.name}: {name} = {value!r} is for float32 arrays, got {dtype}; convert them first"
                )
        dims = self.spec.check(arrays)
        if self.shape is not None:
            shapes = self._named(self.shape, tuple(None if a is None else a.shape for a in arrays), given)
        else:
            if self.derive is not None:
                dims.update(self._named(self.derive, dims, given))
            for term in self.spec.outputs:
                for letter in term.dims:
                    if letter not in dims and letter in given:
                        dims[letter] = given[letter]
                        if isinstance(given[letter], bool) or not isinstance(given[letter], (int, np.integer)):
                            raise TypeError(f"{self.name}: {letter} must be an integer, got {given[letter]!r}")
            if "..." not in dims and "shape" in given:
                dims["..."] = tuple(given["shape"])
            shapes = self.spec.output_shapes(dims)
        outputs: list = [(t.dtype or dtype, s) for t, s in zip(self.spec.outputs, shapes, strict=True)]
        for s in shapes:
            if any(n < 0 for n in s):
                raise ValueError(f"{self.name}: a size is negative in the wanted shape {s}")
        if self.has_kernel:
            for s in (*shapes, *(a.shape for a in arrays if a is not None)):
                if len(s) > MAX_DIMS:
                    raise ValueError(f"{self.name}: an array of shape {s} has more than {MAX_DIMS} dimensions")
        if "need" in given:
            outputs = [o if i in given["need"] else None for i, o in enumerate(outputs)]
        if not every:
            outputs[self.n_public :] = [None] * self.caches
        return Plan(dtype, given, outputs)

    def _check_attribute(self, name: str, value: Any, default: Any) -> None:
        """Refuse what no kernel could read: the default tells what kind of value is wanted."""
        numbers = (int, float, np.integer, np.floating)
        if isinstance(default, bool):
            fits, wanted = isinstance(value, bool), "True or False"
        elif isinstance(default, str):
            fits, wanted = isinstance(value, (str, type, np.dtype)), "a string"
        elif isinstance(default, float):
            fits, wanted = isinstance(value, numbers) and not isinstance(value, bool), "a number"
        elif isinstance(default, int):
            fits, wanted = isinstance(value, (int, np.integer)) and not isinstance(value, bool), "an integer"
        else:
            fits, wanted = value is None or isinstance(value, (*numbers, tuple)), "a number or a tuple"
            fits = fits or name in self.choices
        if not fits:
            raise TypeError(f"{self.name}: {name} must be {wanted}, got {value!r}")


@cache
def _native_kernels() -> dict[str, int]:
    native: Any = _dispatch.native_module()
    return native.kernels()


def _plain(op: str, name: str, value: Any) -> Any:
    """An attribute as a plain Python value."""
    if isinstance(value, list):
        value = tuple(value)
    if isinstance(value, tuple):
        return tuple([_plain(op, name, v) for v in value])
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    if isinstance(value, (type, np.dtype)):
        return np.dtype(value).name
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{op}: {name} must be a number, a string or a tuple, got {type(value).__name__}")


def _float_dtype(op: str, dtype: Any) -> np.dtype:
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = np.dtype(object)
    if found not in (DTYPES["float32"], DTYPES["float64"]):
        raise TypeError(f"{op}: dtype must be float32 or float64, got {dtype!r}")
    return found


def op(
    spec: str,
    *,
    sizes: Sequence[dict[str, Any]] = (),
    attrs: Sequence[dict[str, Any]] = ({},),
    domain: dict[str, str] | None = None,
    choices: dict[str, tuple[str, ...]] | None = None,
    float32_only: dict[str, str] | None = None,
    variants: dict[str, str] | None = None,
    single: bool = False,
    derive: Callable | None = None,
    shape: Callable | None = None,
    check: Callable | None = None,
    caches: int = 0,
    effects: tuple[int, ...] = (),
    keep: str = "xy",
    native: bool = True,
    composite: bool = False,
    elementwise: bool = False,
) -> Callable[[Callable], Row]:
    """Declare an op; the decorated function is its definition.

    spec: see _spec.py. sizes, attrs, domain: what the generated tests run it on (domain: argument -> "positive", ...).
    choices: the values of string attributes; float32_only: the ones of them that float64 arrays cannot have;
    variants: the one of them that a kernel of its own serves, which is called op_value;
    single: there is no kernel for float64 at all.
    derive(dims, attrs) -> sizes of output letters no input carries; shape(shapes, attrs) -> output shapes, where
    letters cannot say it; both may raise on bad sizes and attributes. check(*arrays, **attrs) raises on bad values.
    caches: that many last outputs are for the rule only. effects: the inputs it changes in place. keep: which of
    inputs ("x") and outputs ("y") the rule reads. native=False: NumPy's own views and copies are the implementation.
    composite=True: differentiate through the definition. elementwise=True: element i of the output depends on element i
    of the inputs that have its shape, so that a recorded step may write it over one of them.
    """

    def declare(definition: Callable) -> Row:
        row = Row(
            definition, spec, sizes=sizes, attrs=attrs, domain=domain or {}, choices=choices or {},
            float32_only=float32_only or {}, variants=variants or {}, single=single, derive=derive, shape=shape,
            check=check, caches=caches, effects=effects, keep=keep, native=native, composite=composite,
            elementwise=elementwise,
        )
        TABLE[row.name] = row
        return row

    return declare
