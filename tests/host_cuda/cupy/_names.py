"""The functions and types that CuPy 14 has under NumPy's names and that the stand-in computes with NumPy."""

from __future__ import annotations

FUNCTIONS = frozenset(
    """
    abs absolute acos acosh add all allclose amax amin angle any append arange arccos arccosh arcsin arcsinh arctan
    arctan2 arctanh argmax argmin argpartition argsort argwhere around array_equal array_equiv array_split
    asfortranarray asin asinh astype atan atan2 atanh atleast_1d atleast_2d atleast_3d average bincount bitwise_and
    bitwise_count bitwise_invert bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor bool
    bool_ broadcast_arrays broadcast_shapes broadcast_to byte can_cast cbrt cdouble ceil choose clip column_stack
    complex128 complex64 complexfloating compress concat concatenate conj conjugate convolve copy copysign corrcoef
    correlate cos cosh count_nonzero cov cross csingle cumprod cumsum cumulative_prod cumulative_sum deg2rad degrees
    delete diag diag_indices diag_indices_from diagflat diagonal diff digitize divide divmod dot double dsplit
    dstack dtype ediff1d einsum equal exp exp2 expand_dims expm1 extract eye fabs fill_diagonal finfo fix
    flatnonzero flip fliplr flipud float16 float32 float64 float_power floating floor floor_divide fmax fmin fmod
    frexp full gcd generic gradient greater greater_equal half heaviside histogram histogram2d histogramdd hsplit
    hstack hypot identity iinfo imag indices inexact inner int16 int32 int64 int8 int_ intc integer interp
    intersect1d intp invert isclose iscomplex iscomplexobj isdtype isfinite isfortran isin isinf isnan isneginf
    isposinf isreal isrealobj isscalar issubdtype ix_ kron lcm ldexp left_shift less less_equal lexsort linspace log
    log10 log1p log2 logaddexp logaddexp2 logical_and logical_not logical_or logical_xor logspace long longlong
    mask_indices matmul matrix_transpose max maximum mean median meshgrid min min_scalar_type minimum mod modf
    moveaxis multiply nan_to_num nanargmax nanargmin nancumprod nancumsum nanmax nanmean nanmedian nanmin nanprod
    nanstd nansum nanvar ndim negative nextafter nonzero not_equal number ones outer pad partition percentile
    permute_dims place positive pow power prod promote_types ptp put put_along_axis putmask quantile rad2deg radians
    ravel ravel_multi_index real reciprocal remainder repeat reshape resize result_type right_shift rint roll
    rollaxis rot90 round row_stack searchsorted select setdiff1d setxor1d shape short sign signbit signedinteger sin
    sinc single sinh size sort split sqrt square squeeze stack std subtract sum swapaxes take take_along_axis tan
    tanh tensordot tile trace transpose trapezoid tri tril tril_indices tril_indices_from trim_zeros triu
    triu_indices triu_indices_from true_divide trunc ubyte uint uint16 uint32 uint64 uint8 uintc uintp ulong
    ulonglong union1d unique unique_all unique_counts unique_inverse unique_values unravel_index unsignedinteger
    unwrap ushort vander var vdot vsplit vstack where zeros
    """.split()
)

LINALG = frozenset(
    """
    LinAlgError cholesky cond cross det eig eigh eigvals eigvalsh inv lstsq matmul matrix_power matrix_rank
    matrix_transpose norm pinv qr slogdet solve svd tensorinv tensorsolve
    """.split()
)

METHODS = tuple(
    """
    all any argmax argmin argpartition argsort choose clip compress conj conjugate cumprod cumsum diagonal dot flatten
    max mean min nonzero prod ptp ravel repeat round searchsorted std sum swapaxes take trace var
    """.split()
)

# Python's operators and the ufunc of each.
BINARY = {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "matmul": "matmul",
    "truediv": "true_divide",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "divmod": "divmod",
    "pow": "power",
    "lshift": "left_shift",
    "rshift": "right_shift",
    "and": "bitwise_and",
    "or": "bitwise_or",
    "xor": "bitwise_xor",
}
COMPARISONS = {
    "lt": "less",
    "le": "less_equal",
    "eq": "equal",
    "ne": "not_equal",
    "gt": "greater",
    "ge": "greater_equal",
}
UNARY = {"neg": "negative", "pos": "positive", "abs": "absolute", "invert": "invert"}
