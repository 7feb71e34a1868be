"""Calculus against closed forms on quadratics and polynomials of whole numbers, and what every mistake is told."""
import warnings

import autograd
import autograd.numpy as anp
import hypothesis
import matplotlib
import numpy as np
import pytest
from hypothesis import assume, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from scipy.linalg import hilbert

from hessian_nb import calculus as c

matplotlib.use('agg')


def given(*strategies):
    "hypothesis.given, the same examples in every run, however slow the machine."
    same = settings(deadline=None, max_examples=100, derandomize=True, database=None)
    return lambda test: same(hypothesis.given(*strategies)(test))


def whole(*shape, size=5):
    "Arrays of whole numbers, as floats: sums and products of them are exact."
    return st.lists(st.integers(-size, size), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))).map(
        lambda numbers: np.array(numbers, float).reshape(shape))


def sized(*shapes, largest=4):
    "One array for each shape, `m` in them replaced by one common dimension."
    def arrays(m): return st.tuples(*(whole(*(m if n == 'm' else n for n in shape)) for shape in shapes))
    return st.integers(1, largest).flatmap(arrays)


def symmetric(A): return A + A.T


def orthogonal(seed, m): return np.linalg.qr(np.random.default_rng(seed).normal(size=(m, m)))[0]


def quadratic(A, b): return lambda x: x @ A @ x/2 + b @ x


def monomials(coefficients, exponents):
    "x -> Σ_k c_k Π_j x_j^{e_kj}"
    return lambda x: anp.sum(coefficients*anp.prod(x**exponents, axis=1))


def slopes(coefficients, exponents, j):
    "Coefficients and exponents of the derivative with respect to x_j."
    lowered = exponents.copy()
    lowered[:, j] = np.maximum(lowered[:, j] - 1, 0)
    return coefficients*exponents[:, j], lowered


# Derivatives

@given(sized(('m', 'm'), ('m',), ('m',)))
def test_quadratic(case):
    A, b, x = case
    A = symmetric(A)
    f = quadratic(A, b)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')      # a constant gradient is one that autograd remarks on
        np.testing.assert_array_equal(c.gradient(f, x), A @ x + b)
        np.testing.assert_array_equal(c.hessian(f, x), A)
        np.testing.assert_array_equal(c.jacobian(f, x), [A @ x + b])
        np.testing.assert_allclose(c.difference_hessian(f, x), A, atol=1e-7)
        np.testing.assert_allclose(c.difference_hessian(f, x, h=1.), A, atol=1e-13)


@given(whole(3, 4), whole(4))
def test_linear_map(A, x): np.testing.assert_array_equal(c.jacobian(lambda x: A @ x, x), A)


@given(whole(4), st.lists(st.integers(0, 3), min_size=12, max_size=12), whole(3, size=3).filter(np.all))
def test_polynomial(coefficients, exponents, x):
    exponents = np.array(exponents).reshape(4, 3)
    f = monomials(coefficients, exponents)
    first = [slopes(coefficients, exponents, j) for j in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        g, H = c.gradient(f, x), c.hessian(f, x)
    np.testing.assert_allclose(g, [monomials(*s)(x) for s in first], rtol=1e-12, atol=1e-9)
    second = [[monomials(*slopes(*s, j))(x) for j in range(3)] for s in first]
    np.testing.assert_allclose(H, second, rtol=1e-12, atol=1e-9)


@given(st.floats(1e-8, 1e3))
def test_peano_is_unsymmetric(h):
    def peano(x): return x[0]*x[1]*(x[0]**2 - x[1]**2)/(x[0]**2 + x[1]**2)
    H = c.difference_hessian(peano, [0., 0.], h)
    np.testing.assert_allclose(H, [[0, -1], [1, 0]], atol=1e-14)
    assert abs(c.asymmetry(H) - 2) < 1e-13


@given(sized(('m', 'm')))
def test_asymmetry(case):
    A, = case
    assert c.asymmetry(A) == max(abs(A[i, j] - A[j, i]) for i in range(len(A)) for j in range(len(A)))
    assert c.asymmetry(symmetric(A)) == 0


# Functions that autograd would take for constants, wholly or in part

A = np.array([[1., 2.], [5., -3.]])
MIXED = {
    'dot': lambda x: np.dot(A, x) @ x, 'inner': lambda x: np.inner(A, x) @ x, 'vdot': lambda x: np.vdot(x, A @ x),
    'tensordot': lambda x: np.tensordot(A, x, 1) @ x, 'einsum': lambda x: np.einsum('ij,i,j', A, x, x),
    'matmul': lambda x: np.matmul(A, x) @ x, 'outer': lambda x: np.sum(A*np.outer(x, x)),
    'array': lambda x: x @ np.array([x[0], 2*x[1]]), 'asarray': lambda x: np.asarray(x) @ A @ x,
    'stack': lambda x: np.sum(x*np.stack([x[0], 2*x[1]])), 'concatenate': lambda x: x @ np.concatenate([x[:1], x[:1]]),
    'diag': lambda x: anp.sum(np.diag(x) @ x), 'where': lambda x: anp.sum(np.where(x > 0, x, 2*x)*x),
    'cumsum': lambda x: np.cumsum(x) @ x, 'polyval': lambda x: np.polyval([1., 2., 3.], x[0]),
    'square': lambda x: np.sum(np.square(x)), 'linear in part': lambda x: np.dot(A, x) @ x + anp.sum(x),
    'in a list': lambda x: anp.sum(anp.array([np.dot(A, x)[0], x[1]])*x), 'no numpy at all': lambda x: x[0]*x[1] + x[1]}


def whole_differences(f, x):
    "Gradient and Hessian of a quadratic from its values at whole numbers, exact."
    E = np.eye(x.size)
    slope = [(f(x + e) - f(x - e))/2 for e in E]
    bend = [[(f(x + d + e) - f(x + d - e) - f(x - d + e) + f(x - d - e))/4 for d in E] for e in E]
    return np.array(slope), np.array(bend)


@pytest.mark.parametrize('f', MIXED.values(), ids=MIXED)
def test_plain_numpy_in_f_is_right_or_refused(f):
    x = np.array([3., 2.])
    g, H = whole_differences(f, x)
    for derivative, expected in ((c.gradient, g), (c.hessian, H), (c.jacobian, g[None])):
        try: found = derivative(f, x)
        except TypeError as error: assert 'autograd.numpy' in str(error)
        else: np.testing.assert_allclose(found, expected, rtol=1e-14)


@pytest.mark.parametrize('name', ['dot', 'array', 'stack', 'polyval', 'cumsum', 'linear in part'])
@pytest.mark.parametrize('derivative', [c.gradient, c.hessian, c.jacobian, c.difference_hessian])
def test_what_autograd_would_lose_is_refused(derivative, name):
    with pytest.raises(TypeError, match='autograd.numpy'): derivative(MIXED[name], [3., 2.])


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('f', [lambda x: 3., lambda x: 3, lambda x: anp.sign(x[0]), lambda x: anp.floor(x[1]),
                               lambda x: x[0] if x[0] > 2 else 0.])
def test_constants_have_no_slope(f):
    np.testing.assert_array_equal(c.gradient(f, [1., -2.5]), [0, 0])
    np.testing.assert_array_equal(c.jacobian(f, [1., -2.5]), [[0, 0]])
    np.testing.assert_array_equal(c.hessian(f, [1., -2.5]), [[0, 0], [0, 0]])


def test_f_may_write_into_its_argument():
    "As far as autograd lets it: the derivative is that of f at x all the same."
    def f(x):
        x += 1
        return anp.sum(x**2)
    x = np.array([1., 2.])
    np.testing.assert_array_equal(c.gradient(f, x), [4, 6])
    np.testing.assert_array_equal(c.hessian(f, x), 2*np.eye(2))
    np.testing.assert_array_equal(x, [1, 2])


@pytest.mark.filterwarnings('error')
def test_linear_functions_have_no_curvature():
    for f in (lambda x: 3*x[0] - x[1], lambda x: anp.abs(x[0]) + x[1]):
        np.testing.assert_array_equal(c.hessian(f, [1., -2.]), np.zeros((2, 2)))


def peano(x): return x[0]*x[1]*(x[0]**2 - x[1]**2)/(x[0]**2 + x[1]**2)


BRANCHES = {
    'the value at one point': (c.hessian, lambda x: 0. if x[0] == x[1] == 0 else peano(x), [0., 0.]),
    'the value on a line': (c.gradient, lambda x: 5. if x[0] == 1 else x[0] + x[1], [1., 2.]),
    'a jump': (c.gradient, lambda x: anp.floor(x[0]), [1., .5]),
    'an if at its kink': (c.gradient, lambda x: x[0] if x[0] > 0 else 0., [0., 2.]),
    'a kink of the gradient': (c.hessian, lambda x: anp.maximum(x[0], 0.), [0., 2.]),
    'components': (c.jacobian, lambda x: np.zeros(2) if x[0] == 1 else x, [1., 2.])}


@pytest.mark.parametrize('derivative, f, x', BRANCHES.values(), ids=BRANCHES)
def test_a_branch_taken_at_one_point_is_no_constant(derivative, f, x):
    with pytest.raises(ValueError, match='constant'): derivative(f, x)


# Models

@given(sized(('m', 'm'), ('m',), ('m',), ('m',)))
def test_taylor_of_a_quadratic_is_exact(case):
    A, b, x0, x = case
    f, D = quadratic(symmetric(A), b), x - x0
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert c.taylor(f, x0)(x) == f(x)
        assert c.taylor(f, x0, 1)(x) == f(x0) + D @ (symmetric(A) @ x0 + b)
        assert c.taylor(f, x0, 0)(x) == f(x0)


@given(st.floats(.5, 4), st.floats(.1, 10))
def test_observed_order(p, C):
    h = np.logspace(-3, 0, 7)
    assert abs(c.observed_order(h, -C*h**p) - p) < 1e-9


@given(sized(('m', 'm'), ('m',), ('m',)), whole(3))
def test_descent_model(case, epsilon):
    A, b, x = case
    f, g = quadratic(symmetric(A), b), symmetric(A) @ x + b
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        np.testing.assert_array_equal(c.descent_model(f, x, epsilon), [f(x - e*g) for e in epsilon])


# Eigenvalues

@given(sized(('m', 'm'), ('m',)), st.floats(.01, 100))
def test_directional_curvature(case, scale):
    A, d = case
    H = symmetric(A)
    assume(d.any())
    curvature = c.directional_curvature(H, d)
    eigenvalues, weights = c.eigen_weights(H, d)
    tol = 1e-12*(1 + abs(H).max())
    assert abs(curvature - d @ H @ d/(d @ d)) < tol and abs(curvature - weights @ eigenvalues) < tol
    assert abs(curvature - c.directional_curvature(H, -scale*d)) < tol
    assert abs(weights.sum() - 1) < 1e-12 and (weights >= 0).all()
    assert eigenvalues[0] - tol <= curvature <= eigenvalues[-1] + tol


@given(sized(('m', 'm'), ('m',)))
def test_optimal_step(case):
    A, g = case
    H = symmetric(A)
    assume(g.any())
    if g @ H @ g <= 0:
        with pytest.raises(ValueError, match='no best step'): c.optimal_step(g, H)
        return
    step = c.optimal_step(g, H)
    np.testing.assert_allclose(step, g @ g/(g @ H @ g), rtol=1e-12)
    top = np.linalg.eigvalsh(H)[-1]
    assert top > 0 and step >= (1 - 1e-12)/top

    def model(epsilon): return -epsilon*(g @ g) + epsilon**2*(g @ H @ g)/2
    assert model(step) < min(model(.99*step), model(1.01*step))


@given(st.integers(2, 5), st.integers(0, 1000), st.floats(-3, 1.9))
def test_optimal_step_is_worst_along_the_top_eigenvector(m, seed, other):
    Q = orthogonal(seed, m)
    H = (Q*np.r_[2., np.full(m - 1, other)]) @ Q.T
    H = symmetric(H)/2
    np.testing.assert_allclose(c.optimal_step(Q[:, 0], H), 1/2, rtol=1e-12)
    tilted = Q[:, 0] + .3*Q[:, 1]
    assert c.optimal_step(tilted, H) > 1/2 if tilted @ H @ tilted > 0 else True


@pytest.mark.parametrize('signs', [(-1, 0, 1), (0, 1), (-1, 0), (-1, 1), (1,), (-1,), (0,)])
@given(st.lists(st.floats(.5, 3), min_size=1, max_size=5), st.integers(0, 1000))
def test_classify(signs, sizes, seed):
    spectrum, Q = sizes*np.resize(signs, len(sizes)), orthogonal(seed, len(sizes))
    H = symmetric((Q*spectrum) @ Q.T)/2
    expected = ('saddle' if spectrum.max() > 0 > spectrum.min() else 'minimum' if spectrum.min() > 0 else
                'maximum' if spectrum.max() < 0 else 'inconclusive')
    assert c.classify(H, tol=1e-12) == expected
    if spectrum.all(): assert c.classify(H) == expected
    f = quadratic(H, np.zeros(len(H)))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        if spectrum.all(): assert c.second_derivative_test(f, np.zeros(len(H))) == expected


@given(sized(('m', 'm'), ('m', 'm')), st.floats(.001, 3))
def test_a_verdict_survives_its_tolerance(case, tol):
    "Weyl: a Hessian that is off by at most `tol` gets the verdict of the exact one, or none."
    exact, E = map(symmetric, case)
    assume(E.any())
    measured = exact + .999*tol*E/np.linalg.norm(E, 2)
    assert c.classify(measured, tol) in ('inconclusive', c.classify(exact, 1e-12))


@given(st.lists(st.floats(.01, 100), min_size=1, max_size=5), st.lists(st.booleans(), min_size=5, max_size=5),
       st.integers(0, 1000))
def test_condition_number(sizes, signs, seed):
    spectrum = np.array(sizes)*np.where(signs[:len(sizes)], 1, -1)
    Q = orthogonal(seed, len(spectrum))
    H = symmetric((Q*spectrum) @ Q.T)/2
    np.testing.assert_allclose(c.condition_number(H), max(abs(a/b) for a in spectrum for b in spectrum), rtol=1e-9)


@pytest.mark.parametrize('H', [np.diag([1., 0.]), np.outer([.1, .2, .3], [.1, .2, .3]), hilbert(14)])
def test_condition_number_of_what_rounding_cannot_tell_from_singular(H): assert c.condition_number(H) == np.inf


# Numbers whose squares leave the range of floats

@given(sized(('m', 'm'), ('m',)), st.integers(-1000, 1000))
def test_the_length_of_a_direction_does_not_matter(case, power):
    A, d = case
    H = symmetric(A)
    assume(d.any())
    scaled = np.ldexp(d, power)
    assert c.directional_curvature(H, scaled) == c.directional_curvature(H, d)
    np.testing.assert_array_equal(c.eigen_weights(H, scaled)[1], c.eigen_weights(H, d)[1])
    if c.directional_curvature(H, d) > 1e-9: assert c.optimal_step(scaled, H) == c.optimal_step(d, H)


@pytest.mark.parametrize('size', [1e-320, 1e-200, 1., 1e200, 1e300])
def test_directions_of_any_size(size):
    assert abs(c.directional_curvature(np.eye(2), [size, size]) - 1) < 1e-15
    np.testing.assert_allclose(c.eigen_weights(np.diag([1., 2.]), [size, size])[1], [.5, .5], rtol=1e-15)
    np.testing.assert_allclose(c.optimal_step([size, size], np.diag([1., 3.])), 1/2, rtol=1e-15)


@pytest.mark.parametrize('size', [1e-200, 1., 1e200, 1e300])
def test_lipschitz_estimate_of_any_size(size):
    points = size*np.array([[1., 0.], [4., 4.], [4., 0.]])
    def slope(x): return x @ np.array([3., 4.])
    np.testing.assert_allclose(c.lipschitz_estimate(slope, points), 5, rtol=1e-14)
    def step(x): return anp.where(x[0] > 2*size, size, 0.)      # no slope at the points, a jump between them
    np.testing.assert_allclose(c.lipschitz_estimate(step, points), 1/3, rtol=1e-14)


@pytest.mark.parametrize('size', [1e-200, 1e200])
def test_curvatures_of_any_size(size):
    H = size*np.array([[3., 2.], [2., 3.]])
    assert c.classify(H) == 'minimum' and c.classify(-H) == 'maximum'
    np.testing.assert_allclose(c.condition_number(H), 5, rtol=1e-14)
    np.testing.assert_allclose(c.directional_curvature(H, [1, 1]), 5*size, rtol=1e-14)
    np.testing.assert_allclose(c.stable_step(H), .4/size, rtol=1e-14)
    np.testing.assert_allclose(c.contraction(H, .2/size), .8, rtol=1e-14)
    np.testing.assert_allclose(c.newton_step([5*size, 5*size], H), [-1, -1], rtol=1e-14)


# Iterations

@given(st.lists(st.floats(.5, 8), min_size=1, max_size=4), st.floats(.05, .95), st.integers(0, 1000))
def test_gradient_descent_contracts_as_promised(spectrum, part, seed):
    spectrum, Q = np.array(spectrum), orthogonal(seed, len(spectrum))
    H = symmetric((Q*spectrum) @ Q.T)/2
    limit = c.stable_step(H)
    np.testing.assert_allclose(limit, 2/spectrum.max(), rtol=1e-12)
    rho = c.contraction(H, part*limit)
    # 1 - ελ cancels where ε is the best step: its error is that of 1
    np.testing.assert_allclose(rho, max(abs(1 - part*limit*spectrum)), rtol=1e-12, atol=1e-14)
    assert rho < 1 < c.contraction(H, 1.01*limit)
    path = c.gradient_descent(quadratic(H, 0*spectrum), Q.sum(1), part*limit, 5)
    errors = np.linalg.norm(path, axis=1)
    assert path.shape == (6, len(spectrum)) and (errors[1:] <= rho*errors[:-1] + 1e-12).all()
    np.testing.assert_allclose(path[-1], np.linalg.matrix_power(np.eye(len(H)) - part*limit*H, 5) @ path[0], atol=1e-12)


@given(sized(('m', 'm'), ('m',), ('m',)))
def test_newton_solves_a_quadratic_in_one_step(case):
    A, b, x0 = case
    H = symmetric(A)
    assume(np.linalg.cond(H) < 1e6)
    path = c.newton(quadratic(H, b), x0, 1)
    np.testing.assert_allclose(H @ path[1] + b, 0, atol=1e-7)
    np.testing.assert_allclose(path[1] - x0, c.newton_step(H @ x0 + b, H), atol=1e-12)


@given(st.floats(-.9, .9))
def test_newton_on_a_strictly_convex_function(x0):
    path = c.newton(lambda x: anp.sqrt(1 + x[0]**2), [x0], 1)
    np.testing.assert_allclose(path[1], -x0**3, atol=1e-14)


# Over sets of points

@given(sized(('m', 'm'), (5, 'm')))
def test_lipschitz_of_a_gradient(case):
    A, points = case
    H = symmetric(A)
    assume(H.any())
    estimate = c.lipschitz_estimate(autograd.grad(quadratic(H, np.zeros(len(H)))), points)
    np.testing.assert_allclose(estimate, np.linalg.norm(H, 2), rtol=1e-12)


@given(st.integers(0, 1000), st.integers(2, 8))
def test_lipschitz_estimate_is_a_lower_bound_that_grows(seed, k):
    points = np.random.default_rng(seed).uniform(-2, 2, size=(k, 2))
    def f(x): return anp.sin(3*x[0])*anp.cos(x[1])       # ‖∇f‖² = 9cos²cos² + sin²sin² ≤ 9
    few, all_ = c.lipschitz_estimate(f, points[:2]), c.lipschitz_estimate(f, points)
    chord = max(abs(f(a) - f(b))/np.linalg.norm(a - b) for i, a in enumerate(points) for b in points[:i])
    steepest = max(np.linalg.norm([3*np.cos(3*a)*np.cos(b), -np.sin(3*a)*np.sin(b)]) for a, b in points)
    assert few <= all_ <= 3
    np.testing.assert_allclose(all_, max(chord, steepest), rtol=1e-12)


def test_lipschitz_sees_a_jump_between_flat_points():
    "Gradients are zero at all points, the chords are not; repeated points divide nothing by zero."
    def step(x): return anp.tanh(100*x[0])
    estimate = c.lipschitz_estimate(step, [[-1.], [-1.], [1.]])
    np.testing.assert_allclose(estimate, 1, rtol=1e-12)


@given(sized(('m', 'm'), (3, 'm')))
def test_refute_convexity(case):
    A, points = case
    for H in (symmetric(A), A @ A.T):
        f = quadratic(H, np.zeros(len(H)))
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            witness = c.refute_convexity(f, points, tol=1e-9)
        smallest = np.linalg.eigvalsh(H)[0]
        assert (witness is not None) == (smallest < -1e-9)
        if witness:
            x, curvature, v = witness
            assert any((x == p).all() for p in points) and abs(curvature - smallest) < 1e-10
            assert f(x + v) + f(x - v) < 2*f(x)


@pytest.mark.parametrize('seed', range(10))
def test_the_witness_is_where_the_curvature_is_negative(seed):
    "The rounding error of a large Hessian must not hide the small negative curvature of another point."
    v = np.random.default_rng(seed).normal(size=3)
    def f(x): return 1e9*(v @ x)**2 if x[0] > 0 else -1e-10*x[0]**4
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        witness = c.refute_convexity(f, [[1., 0, 0], [-1., 0, 0]])
    assert witness and witness[0][0] == -1


# Drawing

def bowl(x): return x[0]**2 + 2*x[1]**2


def test_grid_values():
    values = c.grid_values(bowl, [0., 1., 2.], [5., 7.])
    np.testing.assert_array_equal(values, [[50, 51, 54], [98, 99, 102]])


def test_draw():
    ax = Figure().subplots()
    path = np.array([[0., 1.], [2., 3.]])
    c.draw_path(ax, path, color='red')
    c.draw_contours(ax, bowl, np.linspace(-1, 1, 5), np.linspace(-1, 1, 6), [.5, 1])
    c.draw_eigenvectors(ax, np.array([[3., 2.], [2., 3.]]), [0, 0], length=np.sqrt(2))
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), path)
    assert ax.lines[0].get_color() == 'red' and ax.get_xlabel() == '$x_1$'
    arrows = {text.get_text() or tuple(text.xyann) for text in ax.texts}
    assert {'λ = 1', 'λ = 5'} <= arrows
    tips = sorted(tuple(np.round(text.xy, 12)) for text in ax.texts if text.get_text())
    assert tips == [(1, -1), (1, 1)]


def test_curvature_has_the_colours_of_the_book():
    "Red where a function curves upwards, blue where it curves downwards, as the scale RdBu_r has it."
    ax = Figure().subplots()
    c.draw_eigenvectors(ax, np.diag([2., -2.]), [0, 0])
    arrows = [text for text in ax.texts if not text.get_text()]
    colours = {tuple(abs(np.round(text.xy))): to_rgb(text.arrow_patch.get_edgecolor()) for text in arrows}
    red, _, blue = colours[1, 0]
    assert red > 2*blue
    red, _, blue = colours[0, 1]
    assert blue > 2*red


# What a mistake is told

I, SKEW = np.eye(2), np.array([[0., 1.], [-1., 0.]])
MISTAKES = {
    'a matrix for a point': (ValueError, r'x has shape \(1, 2\); give a flat', lambda: c.gradient(bowl, [[1., 2.]])),
    'a number for a point': (ValueError, r'shape \(\).*\[x\]', lambda: c.hessian(bowl, 3.)),
    'no coordinates': (ValueError, r'shape \(0,\)', lambda: c.jacobian(bowl, [])),
    'NaN in the point': (ValueError, 'NaN or infinity in 1 of its 2', lambda: c.taylor(bowl, [np.nan, 0])),
    'a vector-valued f': (ValueError, r'returned shape \(2,\).*use jacobian', lambda: c.hessian(lambda x: x, [1., 2.])),
    'a matrix-valued f': (ValueError, 'a number or a flat', lambda: c.jacobian(lambda x: anp.outer(x, x), [1., 2.])),
    'f is infinite': (ValueError, 'f.x. is not finite', lambda: c.gradient(lambda x: x[0] + np.inf, [1.])),
    'f has no slope': (ValueError, 'derivative of f is not finite', lambda: c.gradient(lambda x: anp.sqrt(x[0]), [0.])),
    'float in f': (TypeError, 'autograd.numpy', lambda: c.gradient(lambda x: float(x[0]), [1.])),
    'np.array in f': (TypeError, 'autograd.numpy', lambda: c.jacobian(lambda x: np.array([x[0], x[1]]), [1., 2.])),
    'a list from f': (TypeError, 'autograd.numpy', lambda: c.jacobian(lambda x: [x[0], x[1]], [1., 2.])),
    'np.asarray in f': (TypeError, 'autograd.numpy', lambda: c.gradient(lambda x: np.asarray(x, float)[0], [1.])),
    'order 3': (ValueError, 'order is 3', lambda: c.taylor(bowl, [1., 2.], 3)),
    'an order of nothing': (ValueError, 'no order', lambda: c.observed_order([1., .5], [1., 0.])),
    'an order of one point': (ValueError, 'two different distances', lambda: c.observed_order([.5], [.1])),
    'an order of one distance': (ValueError, 'two different distances', lambda: c.observed_order([.5, .5], [.1, .2])),
    'errors of other distances': (ValueError, 'two different distances', lambda: c.observed_order([1, .5], [1, 2, 3])),
    'an error that is NaN': (ValueError, 'no order', lambda: c.observed_order([1., .5], [1., np.nan])),
    'an infinite error': (ValueError, 'no order', lambda: c.observed_order([1., .5], [1., np.inf])),
    'differences of no width': (ValueError, 'h is 0', lambda: c.difference_hessian(bowl, [1., 2.], h=0)),
    'differences of width NaN': (ValueError, 'h is nan', lambda: c.difference_hessian(bowl, [1., 2.], h=np.nan)),
    'differences lost in rounding': (ValueError, 'h is 1e-20', lambda: c.difference_hessian(bowl, [1., 2.], h=1e-20)),
    'differences lost on one side': (ValueError, 'h is 1e-16', lambda: c.difference_hessian(bowl, [1., .5], h=1e-16)),
    'a complex point': (ValueError, 'real', lambda: c.gradient(bowl, np.array([1j, 2.]))),
    'a complex value': (ValueError, 'real', lambda: c.gradient(lambda x: x[0]*np.complex128(1j), [1., 2.])),
    'a complex H': (ValueError, 'real', lambda: c.classify(1j*I)),
    'a tolerance that is NaN': (ValueError, 'tol is nan', lambda: c.classify(I, tol=np.nan)),
    'a tolerance below 0': (ValueError, 'tol is -1', lambda: c.classify(I, tol=-1)),
    'a tolerance of convexity below 0': (ValueError, 'tol is -1', lambda: c.refute_convexity(bowl, [[1., 2.]], -1)),
    'a gradient bound that is NaN': (ValueError, 'gtol is nan', lambda: c.second_derivative_test(bowl, [1, 2], np.nan)),
    'a step of the model that is NaN': (ValueError, 'epsilon', lambda: c.descent_model(bowl, [1., 2.], [.1, np.nan])),
    'a model beyond the floats': (FloatingPointError, 'range', lambda: c.descent_model(bowl, [1., 2.], 1e200)),
    'a contraction by NaN': (ValueError, 'step is nan', lambda: c.contraction(I, np.nan)),
    'a step beyond the floats': (FloatingPointError, 'range', lambda: c.stable_step(1e-310*I)),
    'Newton beyond the floats': (FloatingPointError, 'range', lambda: c.newton_step([1e200, 0], 1e-200*I)),
    'Newton runs off': (FloatingPointError, 'range', lambda: c.newton(lambda x: 1e-200*x[0]**2 + 1e200*x[0], [0.], 1)),
    'Newton lands beyond the floats': (FloatingPointError, 'range',
                                       lambda: c.newton(lambda x: 1e-310*x[0]*x[0]/2 - .02*x[0], [1e308], 1)),
    'descent into a branch': (ValueError, 'constant',
                              lambda: c.gradient_descent(lambda x: x[0] if x[0] > 0 else 0., [1.], .5, 3)),
    'curvatures beyond the floats': (ValueError, 'H is too large', lambda: c.classify(np.full((2, 2), 1.7e308))),
    'a slope beyond the floats': (FloatingPointError, 'range',
                                  lambda: c.lipschitz_estimate(lambda x: 1e200*anp.sign(x[0]), [[1e-200], [-1e-200]])),
    'steps backwards': (ValueError, 'steps is -3', lambda: c.gradient_descent(bowl, [1., 1.], .1, -3)),
    'half a step': (ValueError, 'steps is 2.5', lambda: c.newton(bowl, [1., 1.], 2.5)),
    'H not square': (ValueError, r'H has shape \(1, 2\)', lambda: c.classify([[1., 2.]])),
    'asymmetry of a row': (ValueError, r'H has shape \(1, 2\)', lambda: c.asymmetry([[1., 2.]])),
    'H empty': (ValueError, r'H has shape \(0, 0\)', lambda: c.condition_number(np.zeros((0, 0)))),
    'H with NaN': (ValueError, 'H holds NaN', lambda: c.contraction(I*np.nan, .1)),
    'H unsymmetric': (ValueError, 'not symmetric: entries differ by up to 2', lambda: c.eigen_weights(SKEW, [1, 0])),
    'd does not fit': (ValueError, r'd has shape \(3,\)', lambda: c.directional_curvature(I, [1, 0, 0])),
    'd is zero': (ValueError, 'd is zero', lambda: c.eigen_weights(I, [0, 0])),
    'g is zero': (ValueError, 'the gradient is zero', lambda: c.optimal_step([0, 0], I)),
    'falling without end': (ValueError, 'no best step', lambda: c.optimal_step([0, 1], np.diag([1., -1]))),
    'no curvature but rounding': (ValueError, 'no best step', lambda: c.optimal_step([0, 1], np.diag([1., 1e-18]))),
    'no critical point': (ValueError, 'not a critical point', lambda: c.second_derivative_test(bowl, [1., 0])),
    'κ of zero': (ValueError, 'H is zero', lambda: c.condition_number(0*I)),
    'unstable at any step': (ValueError, 'negative eigenvalue -1', lambda: c.stable_step(-I)),
    'stable at every step': (ValueError, 'no curvature limits', lambda: c.stable_step(0*I)),
    'a step backwards': (ValueError, 'must be positive', lambda: c.gradient_descent(bowl, [1., 1.], -1, 3)),
    'a step that is NaN': (ValueError, 'must be positive', lambda: c.gradient_descent(bowl, [1., 1.], np.nan, 3)),
    'running off': (FloatingPointError, 'too long', lambda: c.gradient_descent(bowl, [1., 1.], 10, 1000)),
    'singular H': (np.linalg.LinAlgError, 'singular', lambda: c.newton(lambda x: x[0]**4, [0.], 1)),
    'H singular to working precision': (np.linalg.LinAlgError, 'singular to working precision',
                                        lambda: c.newton_step([1, 0], I - .5*(1 - 1e-17))),
    'g does not fit': (ValueError, r'the gradient has shape \(3,\)', lambda: c.newton_step([1, 0, 0], I)),
    'a point for points': (ValueError, 'points has shape', lambda: c.refute_convexity(bowl, [0., 0.])),
    'one point': (ValueError, 'at least 2', lambda: c.lipschitz_estimate(bowl, [[0., 0.]])),
    'no points': (ValueError, 'at least 1', lambda: c.refute_convexity(bowl, np.zeros((0, 2)))),
    'a point at infinity': (ValueError, 'points holds NaN', lambda: c.lipschitz_estimate(bowl, [[0, 0], [0, np.inf]])),
}


@pytest.mark.parametrize('kind, words, mistake', MISTAKES.values(), ids=MISTAKES)
@pytest.mark.filterwarnings('ignore')
def test_mistake(kind, words, mistake):
    with pytest.raises(kind, match=words): mistake()


def test_an_error_of_f_is_left_alone():
    "What goes wrong inside f for a reason of its own keeps its own words."
    def broken(x): raise TypeError('mine')
    with pytest.raises(TypeError, match='mine'): c.gradient(broken, [1.])
