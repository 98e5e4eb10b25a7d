"""Generated from the op table: nobody writes a parity test by hand, so backends cannot drift apart.

For every op, case, size and float type: the active backend agrees with the definition evaluated in long double (it may
err at most twice as much as the definition evaluated plainly in the same precision), changes none of its inputs, gives
the same bits for any number of threads, and its first and second derivatives agree with finite differences.
Seen to fail: with tanh's Numba twin replaced by x, with that twin writing into x, with dw's arguments swapped in
bilinear_triple.
"""

from __future__ import annotations

import functools
import zlib

import numpy as np
import pytest

import generant
from generant import ops
from generant.autograd import vjp
from generant.ops._table import TABLE, Row

ROWS = [row for row in TABLE.values() if isinstance(row, Row)]


def make_arrays(row: Row, dims: dict, dtype: str, attrs: dict, optional: bool = True, seed: int = 0) -> list:
    """Random inputs that fit the spec; the same numbers in every dtype."""
    rng = np.random.default_rng(zlib.crc32(f"{row.name}{sorted(dims.items())}{sorted(attrs.items())}{seed}".encode()))
    arrays = []
    for i, term in enumerate(row.spec.inputs):
        shape: list[int] = []
        for letter in term.dims:
            if letter == "...":
                shape += dims.get("_", dims.get(f"_{i}", ()))
            else:
                shape.append(int(letter) if letter.isdigit() else dims[letter])
        domain = row.domain.get(term.name)
        if term.optional and not optional:
            arrays.append(None)
        elif term.dtype is None or term.dtype.kind == "f":
            a = rng.standard_normal(shape).astype(np.float32)  # exact in every dtype
            if domain == "positive":
                a = np.abs(a) + np.float32(0.3)
            arrays.append(a.astype(dtype if term.dtype is None else term.dtype))
        elif domain in dims:
            arrays.append(rng.integers(0, dims[domain], shape, dtype=term.dtype))
        else:
            arrays.append(rng.integers(1, 100, shape).astype(term.dtype))
    return arrays


def call_attrs(row: Row, attrs: dict, dims: dict, dtype: str | None = None) -> dict:
    """The attributes of one call: letters of the output that are attributes, and dtype where T comes from there."""
    names = {p.name for p in row.keywords}
    full = {k: v for k, v in dims.items() if k in names} | dict(attrs)
    if "need" in names and "need" not in full:
        full["need"] = tuple(range(len(row.spec.outputs)))
    if "dtype" in names and dtype is not None:
        full["dtype"] = dtype
    return full


def copies(arrays: list) -> list:
    return [None if a is None else a.copy() for a in arrays]


def outputs(call, row: Row, arrays: list, attrs: dict) -> list:
    """Everything a call produces: its outputs and the arrays it changed in place."""
    arrays = copies(arrays)
    made = call(*arrays, **attrs)
    made = [] if made is None else list(made) if isinstance(made, tuple) else [made]
    return made + [arrays[i] for i in row.effects if arrays[i] is not None]


def fits(row: Row, dims: dict, attrs: dict, optional: bool = True) -> bool:
    """Whether this size goes with these attributes: the tables cross every size with every attribute."""
    widest = row.dtypes[-1]
    xs, attrs = make_arrays(row, dims, widest, attrs, optional), call_attrs(row, attrs, dims, widest)
    try:
        row.plan(xs, attrs)
        row._check_values(*xs, **attrs)
    except (ValueError, TypeError):
        return False
    return True


CASES = [
    pytest.param(row, dims, attrs, optional, id=f"{row.name}-{i}.{j}{'' if optional else '-no-optional'}")
    for row in ROWS
    for i, dims in enumerate(row.sizes)
    for j, attrs in enumerate(row.cases)
    for optional in ((True, False) if any(t.optional for t in row.spec.inputs) else (True,))
    if fits(row, dims, attrs, optional)
]


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS if row.sizes])
def test_every_size_and_every_attribute_is_used(row: Row) -> None:
    """No case of a table fits nothing, so that none is left out in silence."""
    used = [case.values for case in CASES if case.values[0] is row]
    for dims in row.sizes:
        assert any(case[1] is dims for case in used), dims
    for attrs in row.cases:
        assert any(case[2] is attrs for case in used), attrs


def exact_and_plain(row: Row, xs: list, attrs: dict) -> tuple[list, list]:
    """The definition in long double, and in the precision of xs."""
    wide = [x.astype(np.longdouble) if x is not None and t.dtype is None else x
            for x, t in zip(xs, row.spec.inputs, strict=True)]
    has_float = row.spec.float_type(xs) is not None
    attrs = {**row.defaults, **attrs}
    with np.errstate(all="ignore"):
        return (outputs(row.definition, row, wide if has_float else xs, attrs),
                outputs(row.definition, row, xs, attrs))


def largest(a: np.ndarray) -> float:
    """The largest finite magnitude."""
    a = np.abs(np.asarray(a))
    return a[np.isfinite(a)].max(initial=0)


CASES_BY_DTYPE = [
    pytest.param(*case.values, dtype, id=f"{case.id}-{dtype}") for case in CASES for dtype in case.values[0].dtypes
]


@pytest.mark.parametrize("row, dims, attrs, optional, dtype", CASES_BY_DTYPE)
def test_kernel_agrees_with_definition(row: Row, dims: dict, attrs: dict, optional: bool, dtype: str) -> None:
    """Error to the long double definition <= 2x that of the plain definition + 4 eps of the largest value."""
    case, attrs = (dims, dtype, attrs, optional), call_attrs(row, attrs, dims, dtype)
    xs = make_arrays(row, *case)
    exact, plain = exact_and_plain(row, xs, attrs)
    errors = [largest(a - b) if a is not None and a.dtype.kind == "f" else 0 for a, b in zip(plain, exact, strict=True)]
    for seed in range(1, 6):  # one number may be right by luck, so its error is the worst of several
        if any(y is not None and np.size(y) < 8 for y in exact):
            more, same = exact_and_plain(row, make_arrays(row, *case, seed), attrs)
            errors = [e if a is None or a.dtype.kind != "f" else max(e, largest(a - b))
                      for e, a, b in zip(errors, same, more, strict=True)]
    with np.errstate(all="ignore"):
        ours = outputs(row.all, row, xs, attrs)
    assert len(ours) == len(exact)
    for got, want, error in zip(ours, exact, errors, strict=True):
        if got is None:
            continue
        want = np.asarray(want)
        assert got.shape == want.shape
        if got.dtype.kind != "f" or row.spec.float_type(xs) is None:
            np.testing.assert_array_equal(got, want)
            continue
        np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want))
        with np.errstate(invalid="ignore"):
            found = largest(got - want)
        allowed = 2 * error + 4 * np.finfo(dtype).eps * largest(want)
        assert found <= allowed, f"error {found:.3g}, allowed {allowed:.3g}"


@pytest.mark.parametrize("row, dims, attrs, optional", CASES)
def test_inputs_unchanged_and_same_bits_for_any_thread_count(row: Row, dims, attrs, optional) -> None:
    """A kernel reads its inputs only, and what it computes does not depend on who computes it."""
    xs, attrs = make_arrays(row, dims, "float32", attrs, optional), call_attrs(row, attrs, dims)
    before = copies(xs)
    threads, results = generant.get_num_threads(), []
    try:
        for n in (1, 2, 3, 8):
            generant.set_num_threads(n)
            results.append(outputs(row.all, row, xs, attrs))
    finally:
        generant.set_num_threads(threads)
    if not row.effects:
        row(*xs, **attrs)
    for a, b in zip(xs, before, strict=True):
        if a is not None:
            np.testing.assert_array_equal(a, b)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                assert a.tobytes() == b.tobytes()


def small(row: Row, dims: dict) -> bool:
    shapes = [v if isinstance(v, tuple) else (v,) for v in dims.values()]
    return all(int(np.prod(s)) <= 2000 for s in shapes) and int(np.prod([np.prod(s) for s in shapes])) < 60000


DIFFERENTIABLE = [
    pytest.param(row, dims, attrs, id=f"{row.name}-{i}.{j}")
    for row in ROWS
    # stop_gradient lies about its derivative; a backward kernel's caches are not free inputs, and the second derivative
    # of its forward op goes through it
    if row.rule is not None and not row.effects and row.name != "stop_gradient"
    and all(p.name != "need" for p in row.keywords)
    for i, dims in enumerate(row.sizes)
    if small(row, dims)
    for j, attrs in enumerate(row.cases)
    if any(t.dtype is None for t in row.spec.inputs) and fits(row, dims, attrs)
]


def floats(row: Row, arrays: list) -> list[int]:
    """The inputs a derivative can be taken in."""
    terms = zip(row.spec.inputs, arrays, strict=True)
    return [i for i, (t, a) in enumerate(terms) if t.dtype is None and a is not None]


def weighted(outs, weights):
    """A scalar that depends on every entry of every public float output."""
    total = None
    for y, w in zip(outs, weights, strict=True):
        if y is not None and w is not None:
            term = ops.sum(ops.mul(y, w))
            total = term if total is None else ops.add(total, term)
    return total


@pytest.mark.parametrize("row, dims, attrs", DIFFERENTIABLE)
def test_derivatives(row: Row, dims: dict, attrs: dict) -> None:
    """First derivative, and second unless documented to have one only, in a random direction of float64, against
    central differences."""
    xs, attrs = make_arrays(row, dims, "float64", attrs), call_attrs(row, attrs, dims, "float64")
    active = floats(row, xs)
    for seed in range(5):  # a direction in which a kink (relu, max, ...) is stepped over is passed by
        if derivatives_agree(row, xs, attrs, active, np.random.default_rng(seed)):
            return
    pytest.fail("no direction found in which the function is smooth")


def derivatives_agree(row: Row, xs: list, attrs: dict, active: list[int], rng: np.random.Generator) -> bool:
    """Assert agreement in one random direction; False if differences of two widths say it is not smooth there."""
    direction = [rng.standard_normal(xs[i].shape) for i in active]

    def public(outs):
        return (outs if isinstance(outs, tuple) else (outs,))[: row.n_public]

    weights = [rng.standard_normal(y.shape) if y.dtype.kind == "f" else None for y in public(row(*xs, **attrs))]

    def value(*moved):
        at = list(xs)
        for i, v in zip(active, moved, strict=True):
            at[i] = v
        return weighted(public(row(*at, **attrs)), weights)

    def slope(*moved):
        """The derivative of value along `direction`."""
        _, pull = vjp(value, *moved)
        grads = zip(pull(np.ones(())), direction, strict=True)
        terms = [ops.sum(ops.mul(g, d)) for g, d in grads if g is not None]
        return functools.reduce(ops.add, terms, np.zeros(()))

    def along(f, h):
        return float(f(*[xs[i] + h * d for i, d in zip(active, direction, strict=True)]))

    def central(f, h):  # error h^4
        return (8 * (along(f, h) - along(f, -h)) - (along(f, 2 * h) - along(f, -2 * h))) / (12 * h)

    point = [xs[i] for i in active]
    with np.errstate(all="ignore"):
        checks = [(float(slope(*point)), value, 2e-7)]
        if "differentiable once" not in " ".join(str(row.__doc__).split()).lower():
            grads = vjp(slope, *point)[1](np.ones(()))
            second = sum(float((g * d).sum()) for g, d in zip(grads, direction, strict=True) if g is not None)
            checks.append((second, slope, 1e-6))
        scale = max(1.0, *[float(np.abs(d).sum()) for d in direction])
        for ours, f, tolerance in checks:
            wide, narrow = central(f, 2e-5), central(f, 1e-5)
            if abs(wide - narrow) > tolerance * max(scale, abs(narrow)):
                return False
            assert abs(ours - narrow) <= tolerance * max(scale, abs(narrow))
    return True


MISMATCHED = [
    pytest.param(row, i, id=f"{row.name}-{term.name}")
    for row in ROWS
    if row.shape is None and row.sizes
    for i, term in enumerate(row.spec.inputs)
    if any(letter.isalpha() and sum(letter in t.dims for t in row.spec.inputs) > 1 for letter in term.dims)
]


@pytest.mark.parametrize("row, i", MISMATCHED)
def test_a_wrong_size_is_named(row: Row, i: int) -> None:
    """The error names the op, the letter, both sizes and every shape."""
    dims = row.sizes[-1]
    attrs = call_attrs(row, row.cases[0], dims)
    xs = make_arrays(row, dims, "float32", attrs)
    letters = row.spec.inputs[i].dims
    at = next(k for k, x in enumerate(letters) if x.isalpha() and sum(x in t.dims for t in row.spec.inputs) > 1)
    xs[i] = np.concatenate([xs[i], xs[i]], at - len(letters) if "..." in letters[:at] else at)
    with pytest.raises(ValueError, match=rf"{row.name}: \w+ is \d+ but \w+ has \w+ = \d+ \("):
        row(*xs, **attrs)


@pytest.mark.parametrize("row", [pytest.param(r, id=r.name) for r in ROWS if r.spec.inputs and r.sizes])
def test_wrong_types_are_named(row: Row) -> None:
    """Integers, object arrays and lists are refused by name; None too, where an array is needed."""
    dims, attrs = row.sizes[-1], call_attrs(row, row.cases[0], row.sizes[-1])
    for i, term in enumerate(row.spec.inputs):
        for bad in ("object", "int16", "list", "none"):
            xs = make_arrays(row, dims, "float32", attrs)
            xs[i] = xs[i].tolist() if bad == "list" else None if bad == "none" else xs[i].astype(bad)
            if (bad == "none" and term.optional) or isinstance(xs[i], (int, float)):
                continue
            with pytest.raises(TypeError, match=rf"{row.name}.*{term.name}"):
                row(*xs, **attrs)
    with pytest.raises(TypeError, match=row.name):
        row(*make_arrays(row, dims, "float32", attrs), no_such_attribute=1, **attrs)
