"""Reverse-mode differentiation by nested boxes.

An op called on plain arrays computes and returns plain arrays: no graph, no mode switch. Called on a `Var`, it also
appends the call to that Var's `Trace`. `vjp` boxes its inputs, runs the function and walks the trace backwards. Rules
are written with the same ops one level down, so a gradient taken inside a traced function is itself traced: gradient
penalties need nothing more. The only global state is a counter.

Deliberately absent: requires_grad, no_grad, detach, zero_grad, forward mode. A plain array is a constant.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

__all__ = ["Op", "Trace", "Var", "bilinear_triple", "fused", "grad", "linear_pair", "rule", "value_and_grad", "vjp"]

TABLE: dict[str, Op] = {}  # every op by name; filled by generant.ops
_level = itertools.count()


def lookup(name: str) -> Op:
    """The op of that name."""
    if name not in TABLE:
        import generant.ops  # noqa: F401  the operators of Var need the table, whoever made the Var
    return TABLE[name]


class Trace:
    """The op calls under one `vjp`, in the order they ran (a topological order).

    note: what is told of every call instead of keeping it on the tape (see recording); in-place ops are allowed then.
    """

    __slots__ = ("closed", "level", "note", "size", "tape")

    def __init__(self, note: Callable[..., None] | None = None) -> None:
        self.level, self.size = next(_level), 0  # later traces are inner traces; size: slots handed out
        self.tape: list[Call] = []
        self.closed, self.note = False, note

    def box(self, value: Any) -> Var | None:
        if value is None:
            return None
        self.size += 1
        return Var(value, self, self.size)


# One op call as its trace remembers it: slots name arrays, values are kept only where the rule reads them.
# (op, attrs, needs, slots of the inputs, slots of the outputs, inputs, outputs); a plain tuple, as this path is hot
Call = tuple[Any, dict, list, list, list, list, Any]


class Kept:
    """What is remembered of an array that the rule does not read: shape and dtype."""

    __slots__ = ("dtype", "ndim", "shape")

    def __init__(self, array: Any) -> None:
        self.shape, self.ndim, self.dtype = array.shape, array.ndim, array.dtype


def _leaves_the_trace(what: str) -> Callable:
    def refuse(self: Var, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            f"{what} of a traced array is not defined: it stands for every value the input may take. Use generant.ops "
            "on it, and branch, print or convert plain arrays outside the traced function"
        )

    return refuse


_UFUNCS = {
    "add": "add", "subtract": "sub", "multiply": "mul", "divide": "div", "true_divide": "div", "matmul": "matmul",
}


def _binary(name: str, scalar: Callable[[float], dict], reflected: bool = False) -> Callable:
    """An operator method: op `name` for arrays, `affine` with the attributes scalar(c) for a number c."""

    def method(self: Var, other: Any) -> Any:
        if isinstance(other, (int, float, np.generic)) and not isinstance(other, (bool, np.bool_)):
            return lookup("affine")(self, **scalar(float(other)))
        if isinstance(other, (str, bytes)) or not hasattr(other, "shape"):
            return NotImplemented
        return lookup(name)(other, self) if reflected else lookup(name)(self, other)

    return method


class Var:
    """One array as one trace sees it: its value a level down, the trace, and its slot number there."""

    __slots__ = ("slot", "trace", "value")
    __array_priority__ = 1000
    __hash__ = object.__hash__

    def __init__(self, value: Any, trace: Trace, slot: int) -> None:
        self.value, self.trace, self.slot = value, trace, slot

    shape = property(lambda self: tuple(self.value.shape))
    ndim = property(lambda self: self.value.ndim)
    size = property(lambda self: math.prod(self.value.shape))
    dtype = property(lambda self: self.value.dtype)
    T = property(lambda self: lookup("transpose")(self))

    def __repr__(self) -> str:
        return f"Var(shape={self.shape}, dtype={self.dtype}, trace level {self.trace.level})"

    __add__ = _binary("add", lambda c: {"shift": c})
    __radd__ = _binary("add", lambda c: {"shift": c}, reflected=True)
    __sub__ = _binary("sub", lambda c: {"shift": -c})
    __rsub__ = _binary("sub", lambda c: {"scale": -1.0, "shift": c}, reflected=True)
    __mul__ = _binary("mul", lambda c: {"scale": c})
    __rmul__ = _binary("mul", lambda c: {"scale": c}, reflected=True)
    __truediv__ = _binary("div", lambda c: {"scale": 1.0 / c})

    def __rtruediv__(self, other: Any) -> Any:
        if isinstance(other, (int, float, np.generic)):
            return lookup("affine")(lookup("reciprocal")(self), scale=float(other))
        return lookup("div")(other, self) if hasattr(other, "shape") else NotImplemented

    def __neg__(self) -> Any:
        return lookup("affine")(self, scale=-1.0)

    def __matmul__(self, other: Any) -> Any:
        return lookup("matmul")(self, other)

    def __rmatmul__(self, other: Any) -> Any:
        return lookup("matmul")(other, self)

    def __pow__(self, exponent: Any) -> Any:
        if not isinstance(exponent, (int, float)):
            return NotImplemented
        return lookup("square")(self) if exponent == 2 else lookup("power")(self, exponent=float(exponent))

    def __abs__(self) -> Any:
        return lookup("abs")(self)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """array + var reaches the op; any other NumPy function of a Var is refused, with what to do instead."""
        name = _UFUNCS.get(ufunc.__name__)
        if name is not None and method == "__call__" and not kwargs:
            return lookup(name)(*[float(a) if isinstance(a, np.generic) else a for a in inputs])
        return _leaves_the_trace(f"numpy.{ufunc.__name__} (use the op of generant.ops)")(self)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return _leaves_the_trace("a NumPy array")(self)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return _leaves_the_trace(f"numpy.{func.__name__}")(self)

    __bool__ = _leaves_the_trace("the truth value")
    __len__ = _leaves_the_trace("len()")
    __iter__ = _leaves_the_trace("iteration")
    __contains__ = _leaves_the_trace("`in`")
    __float__ = _leaves_the_trace("float()")
    __int__ = _leaves_the_trace("int()")
    __index__ = _leaves_the_trace("an index")
    __getitem__ = _leaves_the_trace("indexing (see ops.gather, ops.split)")
    __eq__ = _leaves_the_trace("==")
    __ne__ = _leaves_the_trace("!=")
    __lt__ = _leaves_the_trace("<")
    __le__ = _leaves_the_trace("<=")
    __gt__ = _leaves_the_trace(">")
    __ge__ = _leaves_the_trace(">=")


Gradients = Sequence[Any]  # one array or None (zero) per input
Rule = Callable[..., Gradients]


class Op:
    """A row of the op table, as differentiation sees it.

    run(*arrays, **attrs)      the public outputs on plain arrays: one array, a tuple, or None if there are none
    run_all(*arrays, **attrs)  every output as a tuple, caches included
    rule(gys, ys, needs, *xs, **attrs)   gradients of the inputs. gys: gradients arriving at the outputs, None for zero;
                               ys: the outputs (if keep has "y"); needs: which inputs want a gradient;
                               xs: the inputs (their shapes only, unless keep has "x")
    """

    def __init__(
        self, name: str, run: Callable, run_all: Callable, n_public: int = 1, keep: str = "xy", effects: tuple = (),
        array_names: Sequence[str] = (),
    ) -> None:
        self.name, self.run, self.run_all = name, run, run_all
        self.n_public, self.keep, self.effects = n_public, keep, effects
        self.rule: Rule | None = None
        self.array_names = frozenset(array_names)
        self.defaults: dict[str, Any] = {}  # attributes a rule sees even where the caller left them out

    def __repr__(self) -> str:
        return f"<op {self.name}>"

    def __call__(self, *args: Any, **attrs: Any) -> Any:
        if attrs and not self.array_names.isdisjoint(attrs):
            args, attrs = self._positional(args, attrs)
        for a in args:
            if type(a) is Var:
                outs = self._traced(args, attrs)
                return outs[0] if self.n_public == 1 else outs[: self.n_public] if self.n_public else None
        return self.run(*args, **attrs)

    def all(self, *args: Any, **attrs: Any) -> tuple:
        """Every output, caches included; None for one that was not asked for."""
        if attrs and not self.array_names.isdisjoint(attrs):
            args, attrs = self._positional(args, attrs)
        for a in args:
            if type(a) is Var:
                return self._traced(args, attrs)
        return self.run_all(*args, **attrs)

    def _positional(self, args: Sequence[Any], attrs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Arrays that were given by name, in their places."""
        try:
            bound = inspect.signature(self).bind(*args, **attrs)
        except TypeError as error:
            raise TypeError(f"{self.name}: {error}") from None
        last = max(i for i, name in enumerate(inspect.signature(self).parameters) if name in bound.arguments
                   and name in self.array_names)
        names = [name for name in inspect.signature(self).parameters if name in self.array_names][: last + 1]
        rest = {k: v for k, v in attrs.items() if k not in self.array_names}
        return tuple(bound.arguments.get(name) for name in names), rest

    def _traced(self, args: Sequence[Any], attrs: dict[str, Any]) -> tuple:
        trace: Any = None  # the innermost trace among the arguments
        level = -1
        for a in args:
            if type(a) is Var and a.trace.level > level:
                trace = a.trace
                level = trace.level
        if trace.closed:
            raise TypeError(f"{self.name}: a traced array outlived the function it was traced in")
        inner, needs, slots = [], [], []
        nested = False
        for a in args:
            mine = type(a) is Var and a.trace is trace
            needs.append(mine)
            slots.append(a.slot if mine else None)
            if mine:
                a = a.value
            nested = nested or type(a) is Var
            inner.append(a)
        for i in self.effects if trace.note is None else ():
            if i < len(needs) and needs[i]:
                raise TypeError(f"{self.name} changes its arguments in place and cannot be differentiated")
        if self.defaults:
            attrs = {**self.defaults, **attrs}
        values = self.all(*inner, **attrs) if nested else self.run_all(*inner, **attrs)
        box = trace.box
        outs = tuple([box(v) for v in values])
        if trace.note is not None:
            trace.note(self, attrs, slots, inner, outs)
            return outs
        keep = self.keep
        trace.tape.append((
            self, attrs, needs, slots, [None if o is None else o.slot for o in outs],
            inner if "x" in keep else [Kept(a) if hasattr(a, "shape") else a for a in inner],
            values if "y" in keep else (None,) * len(values),
        ))
        return outs


def vjp(f: Callable, *xs: Any) -> tuple[Any, Callable[..., list]]:
    """f(*xs), and `pull`: given one cotangent per output of f (None for zero), the gradients in xs (None for zero).

    f returns an array or a tuple of arrays. A cotangent may be a number, for every element of its output. `pull` frees
    each activation after its last use, so it works once.
    """
    trace = Trace()
    leaves = [trace.box(x) for x in xs]
    try:
        out = f(*leaves)
        many = isinstance(out, tuple)
        mine = [o.slot if type(o) is Var and o.trace is trace else None for o in (out if many else (out,))]
        values = tuple(
            o.value if m is not None else o for o, m in zip(out if many else (out,), mine, strict=True)
        )
        tape, trace.tape = trace.tape, []
    finally:
        trace.closed = True
        trace.tape = []
    wanted = [leaf.slot for leaf in leaves if leaf is not None]
    likes = list(values)
    del leaves, out
    pulled = False

    def pull(*cotangents: Any) -> list:
        nonlocal pulled
        if pulled:
            raise RuntimeError("vjp: pull was called twice; its activations are gone after the first time")
        pulled = True
        if len(cotangents) != len(mine):
            raise ValueError(f"vjp: pull got {len(cotangents)} cotangents for {len(mine)} outputs")
        add = lookup("add")
        arrived: dict[int, Any] = {}
        for slot, g, like in zip(mine, cotangents, likes, strict=True):
            if g is not None and slot is not None:
                g = _full(like, g) if isinstance(g, (int, float)) else g
                arrived[slot] = add(arrived[slot], g) if slot in arrived else g
        likes.clear()
        while tape:
            op, attrs, needs, slots_in, slots_out, inputs, outputs = tape.pop()
            gys = [arrived.pop(s, None) for s in slots_out]
            for g in gys:
                if g is not None:
                    break
            else:
                continue
            if op.rule is None:
                raise TypeError(f"{op.name} is not differentiable")
            for slot, g in zip(slots_in, op.rule(gys, outputs, needs, *inputs, **attrs), strict=False):
                if g is not None and slot is not None:
                    arrived[slot] = add(arrived[slot], g) if slot in arrived else g
        return [arrived.get(s) for s in wanted]

    return (values if many else values[0]), pull


def _full(x: Any, value: float) -> Any:
    """An array like x; an op where x is traced, so that an outer trace sees it."""
    if type(x) is np.ndarray:
        return np.full(x.shape, value, x.dtype)
    return lookup("full_like")(x, value=value)


def value_and_grad(f: Callable) -> Callable:
    """The value of a scalar function and its gradient in the first argument, an array or a list of arrays.

    If f returns a tuple, its first entry is differentiated and the others are returned as they are:
    value_and_grad(f)(params, *rest) -> (value or tuple of values, gradient or list of gradients).
    """

    def run(params: Any, *rest: Any) -> tuple[Any, Any]:
        single = not isinstance(params, (list, tuple))
        xs = [params] if single else list(params)
        y, pull = vjp(lambda *p: f(p[0] if single else list(p), *rest), *xs)
        loss = y[0] if isinstance(y, tuple) else y
        if math.prod(loss.shape) != 1:
            raise ValueError(f"value_and_grad: the function must return a scalar, got shape {tuple(loss.shape)}")
        ones = _full(loss, 1.0)
        grads = pull(ones, *[None] * (len(y) - 1)) if isinstance(y, tuple) else pull(ones)
        grads = [_full(x, 0.0) if g is None else g for x, g in zip(xs, grads, strict=True)]
        return y, grads[0] if single else grads

    return run


def grad(f: Callable) -> Callable:
    """The gradient of a scalar function in its first argument. Nest freely."""
    both = value_and_grad(f)
    return lambda x, *rest: both(x, *rest)[1]


# ---- the four kinds of rule ---------------------------------------------------------------------------------------


def rule(op: Op, function: Rule) -> None:
    """Give op its derivative: function(gys, ys, needs, *xs, **attrs) -> a gradient or None per input."""
    op.rule = function


def linear_pair(f: Op, f_t: Op) -> None:
    """f is linear in its one array and f_t its adjoint under the same attributes: each is the other's rule."""
    f.rule = lambda gys, ys, needs, x, **a: [f_t(gys[0], **a)]
    f_t.rule = lambda gys, ys, needs, x, **a: [f(gys[0], **a)]
    f.keep = f_t.keep = ""


def bilinear_triple(
    f: Op, dx: Op, dw: Op, dx_attrs: Callable | None = None, dw_attrs: Callable | None = None
) -> None:
    """y = f(x, w), dx(g, w) and dw(x, g) contract one trilinear form, so together they are closed under
    differentiation, to every order (matrix product, convolution).

    The three take the same attributes, and dx and dw some of their own where an output's shape does not follow from
    the inputs': dx_attrs(x) gives those of dx, for x of that shape, dw_attrs(w) those of dw.
    """

    def of_x(x: Any) -> dict[str, Any]:
        return dx_attrs(x) if dx_attrs else {}

    def of_w(w: Any) -> dict[str, Any]:
        return dw_attrs(w) if dw_attrs else {}

    def f_rule(gys: Any, ys: Any, needs: Any, x: Any, w: Any, **a: Any) -> Gradients:
        return [
            dx(gys[0], w, **of_x(x), **a) if needs[0] else None, dw(x, gys[0], **of_w(w), **a) if needs[1] else None
        ]

    def dx_rule(gys: Any, ys: Any, needs: Any, g: Any, w: Any, **a: Any) -> Gradients:
        a = {k: v for k, v in a.items() if k not in of_x(gys[0])}
        return [
            f(gys[0], w, **a) if needs[0] else None, dw(gys[0], g, **of_w(w), **a) if needs[1] else None
        ]

    def dw_rule(gys: Any, ys: Any, needs: Any, x: Any, g: Any, **a: Any) -> Gradients:
        a = {k: v for k, v in a.items() if k not in of_w(gys[0])}
        return [
            dx(g, gys[0], **of_x(x), **a) if needs[0] else None, f(x, gys[0], **a) if needs[1] else None
        ]

    f.rule, dx.rule, dw.rule = f_rule, dx_rule, dw_rule
    f.keep = dx.keep = dw.keep = "x"


def fused(op: Op, backward: Op, composite: Callable) -> None:
    """A hand-written kernel with a hand-written gradient. `composite` spells op's first output in simple ops; an op
    stands for its own definition there.

    backward(g, *inputs, *caches, *, need, **attrs) returns one gradient per input, None for those not in `need`.
    First order runs the kernel `backward`; higher orders differentiate `composite`.
    """

    body = getattr(composite, "definition", composite)

    def op_rule(gys: Any, ys: Any, needs: Any, *xs: Any, **a: Any) -> Gradients:
        if gys[0] is None:
            return [None] * len(xs)
        xs = (*xs, *[None] * (len(op.array_names) - len(xs)))  # optional ones left out: caches follow them
        need = tuple([i for i, n in enumerate(needs) if n])
        return backward.all(gys[0], *xs, *ys[op.n_public :], need=need, **a)

    def backward_rule(hs: Any, ys: Any, needs: Any, g: Any, *rest: Any, need: tuple, **a: Any) -> Gradients:
        n = len(hs)  # one output per input of op
        point = [g, *rest[:n]]
        active = [i for i, wanted in enumerate(needs[: n + 1]) if wanted]
        hs = [hs[i] for i in need]

        def first_order(*moved: Any) -> tuple:
            at = list(point)
            for i, v in zip(active, moved, strict=True):
                at[i] = v
            xs = at[1:]

            def of_needed(*wanted: Any) -> Any:
                ys = list(xs)
                for i, v in zip(need, wanted, strict=True):
                    ys[i] = v
                y = body(*ys, **a)
                return y[0] if isinstance(y, tuple) else y

            grads = vjp(of_needed, *[xs[i] for i in need])[1](at[0])
            return tuple(_full(xs[i], 0.0) if gi is None else gi for i, gi in zip(need, grads, strict=True))

        grads = vjp(first_order, *[point[i] for i in active])[1](*hs)
        out: list[Any] = [None] * (1 + len(rest))
        for i, gi in zip(active, grads, strict=True):
            out[i] = gi
        return out

    op.rule, backward.rule = op_rule, backward_rule
    op.keep, backward.keep = "xy", "x"


def through_definition(op: Op, definition: Callable) -> None:
    """Differentiate op by differentiating its definition, which must be written in ops."""

    def op_rule(gys: Any, ys: Any, needs: Any, *xs: Any, **a: Any) -> Gradients:
        active = [i for i, n in enumerate(needs) if n]

        def of_active(*moved: Any) -> Any:
            at = list(xs)
            for i, v in zip(active, moved, strict=True):
                at[i] = v
            return definition(*at, **a)

        grads = vjp(of_active, *[xs[i] for i in active])[1](*gys)
        out: list[Any] = [None] * len(xs)
        for i, g in zip(active, grads, strict=True):
            out[i] = g
        return out

    op.rule, op.keep = op_rule, "x"
