"""Fits the polynomials and tables of csrc/kernels/math.h and prints them as C++ arguments.

    python tools/fit_math.py            # every polynomial, with its largest error

Each entry of FITS names a function g, an interval and a degree. The polynomial is the weighted least-squares fit at
Chebyshev nodes, which is within a small factor of the best (minimax) polynomial. Coefficients are rounded to the
target precision from the lowest order up, and the remaining ones are fitted again after each rounding, so that later
coefficients make up for the rounding of earlier ones.
"""

import re
import struct

from mpmath import cos, erf, erfc, exp, expm1, log, log1p, lu_solve, matrix, mp, mpf, pi, sqrt, tanh

mp.dps = 60


def to_f32(c):
    return mpf(struct.unpack("f", struct.pack("f", float(c)))[0])


def to_f64(c):
    return mpf(float(c))


def nodes(a, b, n):
    return [(a + b) / 2 + (b - a) / 2 * cos((2 * i + 1) * pi / (2 * n)) for i in range(n)]


def fit(g, a, b, degree, rounding, weight=None):
    """Coefficients c[0..degree], lowest first, of a near-minimax polynomial for g on [a, b], and its error.

    The error is relative, or times weight(x) where that is given.
    """
    weight = weight or (lambda x: 1 / abs(g(x)))
    xs = nodes(mpf(a), mpf(b), 4 * degree + 9)
    rows = [(x, g(x), weight(x)) for x in xs]
    coefficients = []
    for fixed in range(degree + 1):
        free = range(fixed, degree + 1)
        known = [sum(c * x**k for k, c in enumerate(coefficients)) for x in xs]
        m = matrix(len(free), len(free))
        rhs = matrix(len(free), 1)
        for i, p in enumerate(free):
            rhs[i] = sum(w**2 * (y - k) * x**p for (x, y, w), k in zip(rows, known, strict=True))
            for j, q in enumerate(free):
                m[i, j] = sum(w**2 * x ** (p + q) for x, _, w in rows)
        coefficients.append(rounding(lu_solve(m, rhs)[0]))
    error = max(w * abs(sum(c * x**k for k, c in enumerate(coefficients)) - y) for x, y, w in rows)
    return coefficients, error


def near_zero(formula, series, threshold="1e-12"):
    """formula, with its limit where it would divide 0 by 0."""
    return lambda x: formula(x) if abs(x) > mpf(threshold) else series


LN2 = log(mpf(2))
S2 = sqrt(mpf(2))


def cdf(t):
    """The standard normal distribution function at -t."""
    return erfc(t / S2) / 2


# name: (g, from, to, degree in f32, degree in f64[, weight of the absolute error])
FITS = {
    # exp(r) = 1 + r + r^2 g(r)
    "exp": (
        near_zero(lambda r: (expm1(r) - r) / r**2, mpf(1) / 2),
        -LN2 / 2 * 1.001,
        LN2 / 2 * 1.001,
        4,
        9,
        lambda r: r**2 * exp(-r),
    ),
    # 2^r = 1 + r g(r)
    "exp2": (near_zero(lambda r: expm1(r * LN2) / r, LN2), -0.5001, 0.5001, 5, None),
    # log(1 + f) = f - f^2/2 + f^3 g(f)
    "log": (
        near_zero(lambda f: (log1p(f) - f + f**2 / 2) / f**3, mpf(1) / 3, "1e-8"),
        1 / S2 - 1,
        S2 - 1,
        8,
        None,
        lambda f: f**2,
    ),
    # 2 atanh(s) = 2 s + s z g(z), z = s^2
    "atanh": (
        near_zero(lambda z: (log((1 + sqrt(z)) / (1 - sqrt(z))) - 2 * sqrt(z)) / (sqrt(z) * z), mpf(2) / 3),
        0,
        mpf("0.02944"),
        None,
        7,
    ),
    # the same for log(1 + t), t in [0, 1], where s is up to 1/3
    "atanh_unit": (
        near_zero(lambda z: (log((1 + sqrt(z)) / (1 - sqrt(z))) - 2 * sqrt(z)) / (sqrt(z) * z), mpf(2) / 3),
        0,
        mpf("0.11112"),
        None,
        10,
        sqrt,
    ),
    # log(1 + t) = t + t^2 g(t) for t in [0, 1]
    "log1p_unit": (
        near_zero(lambda t: (log1p(t) - t) / t**2, -mpf(1) / 2, "1e-8"),
        0,
        1,
        8,
        None,
        lambda t: t**2 / log1p(t),
    ),
    # log(1 + r) = r + r^2 g(r), r as log_table() leaves it
    "log_table": (
        near_zero(lambda r: (log1p(r) - r) / r**2, -mpf(1) / 2, "1e-8"),
        -mpf(1) / 64,
        mpf(1) / 32,
        2,
        None,
        abs,
    ),
    # tanh(x) = x + x z g(z), z = x^2
    "tanh": (
        near_zero(lambda z: (tanh(sqrt(z)) - sqrt(z)) / (sqrt(z) * z), -mpf(1) / 3),
        0,
        mpf("0.3"),
        4,
        10,
    ),
    # erf(x) = x + x g(z), z = x^2
    "erf": (near_zero(lambda z: erf(sqrt(z)) / sqrt(z) - 1, 2 / sqrt(pi) - 1), 0, mpf("0.81"), 5, 11),
    # erfc(x) = 2^g(x) in f32, exp(g(x)) in f64, from 0.9 to where erf(x) is 1
    "erfc2": (lambda x: log(erfc(x)) / LN2, mpf("0.9"), 4, 6, None, erfc),
    "erfc": (lambda x: log(erfc(x)), mpf("0.9"), 6, None, 18, erfc),
    # normal_cdf(-t) = 2^g(t)
    "cdf": (lambda t: log(cdf(t)) / LN2, 0, mpf("14.5"), 10, None, lambda t: cdf(t) + mpf("3e-8")),
    # normal_cdf(-t) - t normal_pdf(t) = exp(-t^2 / 2) g(t)
    "slope": (
        lambda t: cdf(t) * exp(t**2 / 2) - t / sqrt(2 * pi),
        0,
        6,
        11,
        None,
        lambda t: exp(-(t**2) / 2) + mpf("1e-9"),
    ),
}


def hexadecimal(c):
    return re.sub("0*p", "p", float(c).hex())


def log_table():
    """1 / c and log(c) in f32, by the first five bits of the mantissa of x in [3/4, 3/2), c near the middle of those x.

    1 / c is the float nearby whose log is nearest to a float, as in S. Gal's accurate tables (1986).
    """
    inverse, logs = [], []
    for k in range(32):
        step = mpf(1) / (32 if k < 16 else 64)  # from 1 on, and from 3/4 on
        low = (1 + k * step) if k < 16 else (mpf(1) / 2 + k * step)
        if k in (0, 31):  # around 1, where the log is all in the remainder
            inverse.append(mpf(1))
            logs.append(mpf(0))
            continue
        nearest = to_f32(1 / (low + step / 2))
        candidates = [nearest + j * mpf(2) ** -24 for j in range(-500, 501)]
        best = min((c for c in candidates if to_f32(c) == c), key=lambda c: abs(log(c) - to_f32(log(c))))
        inverse.append(best)
        logs.append(-to_f32(log(best)))
    return inverse, logs


def tanh_table():
    """c, tanh(c) and the coefficients of tanh(c + t) = tanh(c) + c[1] t + ... + c[5] t^5 in f32, of 32 intervals.

    They are four of each power of two from 1/16 to 16, the first one from 0. c is the float near an interval's middle
    whose tanh is nearest to a float.
    """
    one_from, worst, rows = mpf("9.1"), 0, []
    for k in range(32):
        power = mpf(2) ** (k // 4 - 4)
        low, high = power * (4 + k % 4) / 4, power * (5 + k % 4) / 4
        if k == 0:  # x + x^3 g(x^2)
            g = near_zero(lambda z: (tanh(sqrt(z)) - sqrt(z)) / (sqrt(z) * z), -mpf(1) / 3)
            (third, fifth), _ = fit(g, 0, high**2, 1, to_f32)
            rows.append([mpf(0), mpf(0), mpf(1), mpf(0), third, mpf(0), fifth])
            continue
        if low > one_from:  # is not asked for
            rows.append([low, mpf(1)] + [mpf(0)] * 5)
            continue
        high = min(high, one_from)
        nearest = to_f32((low + high) / 2)
        candidates = [nearest + j * power * mpf(2) ** -23 for j in range(-300, 301)]
        center = min(candidates, key=lambda c: abs(tanh(c) - to_f32(tanh(c))) / tanh(c))
        value = to_f32(tanh(center))

        def g(t, center=center, value=value):
            return (tanh(center + t) - value) / t if abs(t) > mpf("1e-15") else 1 - value**2

        def weight(t, center=center):
            return abs(t) / tanh(center + t)

        coefficients, error = fit(g, low - center, high - center, 4, to_f32, weight)
        worst = max(worst, error)
        rows.append([center, value, *coefficients])
    return list(zip(*rows, strict=True)), worst


def pow_table():
    """1 / c and log2(c) in f64, by the first four bits of the mantissa of x in [3/4, 3/2), c amid those x."""
    inverse = []
    for k in range(16):
        middle = 1 + (k + mpf(1) / 2) / 16
        is_around_one = k in (0, 15)  # where the log is all in the remainder
        inverse.append(to_f64(1 if is_around_one else 1 / middle if k < 8 else 2 / middle))
    return inverse, [to_f64(-log(c) / LN2) for c in inverse]


if __name__ == "__main__":
    for name, table in zip(("1 / c", "log2(c)"), pow_table(), strict=True):
        print(f"pow_table {name}:\n    " + ", ".join(hexadecimal(c) for c in table))
    for name, table in zip(("1 / c", "log(c)"), log_table(), strict=True):
        print(f"log_table {name}:\n    " + ", ".join(hexadecimal(c) + "f" for c in table))
    tables, error = tanh_table()
    print(f"tanh_table: error {float(error):.2e}")
    print(",\n".join("    {" + ", ".join(hexadecimal(c) + "f" for c in table) + "}" for table in tables))
    for name, (g, a, b, degree32, degree64, *weight) in FITS.items():
        for degree, rounding, suffix in ((degree32, to_f32, "f"), (degree64, to_f64, "")):
            if degree is None:
                continue
            coefficients, error = fit(g, a, b, degree, rounding, *weight)
            print(f"{name}: error {float(error):.2e} on [{float(a):.4f}, {float(b):.4f}]")
            print("    " + ", ".join(hexadecimal(c) + suffix for c in coefficients))
