"""Operators and estimators: against autograd and LAPACK, their error bars over many seeds, interrupts, mistakes."""
import warnings

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
import scipy.sparse
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, cg, eigsh, lobpcg
from scipy.stats import binom
from threadpoolctl import threadpool_limits

from hessian_nb import operators
from hessian_nb.graph import Graph
from hessian_nb.hessian import BlockMatrix, KinkWarning, Products, terms
from hessian_nb.operators import (Estimate, block_norms, diagonal, frobenius, gauss_newton_operator, hessian_operator,
                                  lanczos, logdet, quadrature, spectral_density, term_operator, top_eigenpairs, trace)
from hessian_nb.rules import Conv, CrossEntropy, Dense, Multiply, ReLU, Tanh


@pytest.fixture(autouse=True)
def one_thread():
    "The matrices here are small."
    with threadpool_limits(1): yield


@pytest.fixture(scope='module')
def problem():
    net = Graph()
    a = net.node('a', Tanh(), net.node('h', Conv(2, kernel=3), net.input('x', (1, 5, 5))))
    b = net.node('b', Tanh(), net.node('k', Conv(2, kernel=3, padding=1), a))
    net.output(net.node('z', Dense(4), net.node('m', Multiply(), a, b)), CrossEntropy())
    rng = np.random.default_rng(0)
    return net, net.init(0), rng.standard_normal((41, 1, 5, 5)), rng.integers(0, 4, 41)


@pytest.fixture(scope='module')
def H(problem):
    net, theta, X, Y = problem
    data = net.data(X, Y, loss=True)
    return autograd.hessian(lambda t: anp.mean(net.losses(t, data)))(theta)


def matrix(spectrum, seed=0):
    "A symmetric matrix with these eigenvalues."
    Q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(spectrum),)*2))
    return Q*np.asarray(spectrum, float) @ Q.T


i = np.arange(1, 101)
DECAY, FLAT, MIXED = matrix(i**-2.), matrix(1 + i/100), matrix(np.where(i < 11, 12. - i, np.sin(i)))
MATRICES = {'decay': DECAY, 'flat': FLAT, 'mixed': MIXED}


# The operators.

@pytest.mark.parametrize('chunked', [False, True])
def test_hessian(problem, H, chunked):
    op, V = hessian_operator(*problem), np.random.default_rng(1).standard_normal((len(H), 3))
    if chunked: op.products.chunks = list(op.products.data.chunks(5))
    for found in (op @ V, op.T @ V, op.H @ V, np.stack([op @ v for v in V.T], 1), (2*op - op) @ V):
        assert np.allclose(found, H @ V, rtol=1e-12, atol=1e-13)
    assert np.allclose(op.dense(), H, rtol=1e-12, atol=1e-13)
    assert op.shape == H.shape and op.dtype == float and (len(op.products.chunks) > 5) == chunked


def test_without_memory(problem, H):
    "The same where nothing may be kept between products."
    net, theta, X, Y = problem
    thrifty = Products(net, theta, X, Y, room=0)
    assert np.allclose(thrifty(H), H @ H, rtol=1e-12, atol=1e-13) and not thrifty.kept


def test_options(problem, H):
    v = np.random.default_rng(1).standard_normal(len(H))
    assert np.allclose(hessian_operator(*problem, reduction='sum', l2=.3) @ v, 41*H @ v + .3*v, rtol=1e-12)
    assert np.allclose(hessian_operator(*problem, l2=.3).dense(), H + .3*np.eye(len(H)), rtol=1e-12, atol=1e-13)


def test_gauss_newton(problem):
    net, theta, X, Y = problem
    J = autograd.jacobian(lambda t: net.values(t, net.data(X))['z'])(theta)            # (4, N, p)
    z = net.predict(theta, X)
    P = np.exp(z)/np.exp(z).sum(1, keepdims=True)
    B = np.einsum('nk,kl->nkl', P, np.eye(4)) - P[:, :, None]*P[:, None]
    G = np.einsum('knp,nkl,lnq->pq', J, B, J)/len(X)
    assert np.allclose(gauss_newton_operator(*problem) @ np.eye(net.size), G, rtol=1e-11, atol=1e-13)


def test_terms(problem, H):
    net = problem[0]
    def total(chosen): return sum(term_operator(*problem, *key) @ np.eye(len(H)) for key in chosen)
    assert np.allclose(total(terms(net)), H, rtol=1e-11, atol=1e-13)
    assert np.allclose(total([(node, None) for node in {n for n, _ in terms(net)}]), H, rtol=1e-11, atol=1e-13)
    assert np.allclose(total([(None, kind) for kind in {k for _, k in terms(net)}]), H, rtol=1e-11, atol=1e-13)


def test_same_twice(problem):
    v = np.random.default_rng(1).standard_normal(problem[0].size)
    assert np.array_equal(hessian_operator(*problem) @ v, hessian_operator(*problem) @ v)
    for a, b in zip(*(top_eigenpairs(hessian_operator(*problem), 3) for _ in range(2))): assert np.array_equal(a, b)


def test_theta_is_copied(problem):
    net, theta, X, Y = problem
    moving, v = theta.copy(), np.ones(net.size)
    op = Products(net, moving, X, Y, room=0)
    before = op(v[None])
    moving += 1
    assert np.array_equal(op(v[None]), before)


def test_scipy(problem, H):
    op, start = hessian_operator(*problem), np.random.default_rng(1).standard_normal((len(H), 4))
    values = np.linalg.eigvalsh(H)
    assert np.allclose(eigsh(op, 3, which='BE', return_eigenvectors=False), values[[0, -2, -1]], rtol=1e-9)
    assert np.allclose(lobpcg(op, start, tol=1e-8, maxiter=300)[0][:2], values[:-3:-1], rtol=1e-8)
    damped = hessian_operator(*problem, l2=1 - values[0])
    d, info = cg(damped, start[:, 0], rtol=1e-12)
    assert info == 0 and np.allclose(damped @ d, start[:, 0], atol=1e-9)


@pytest.mark.parametrize('method', ['Newton-CG', 'trust-ncg', 'trust-krylov'])
def test_minimize(problem, method):
    net, theta, X, Y = problem
    found = minimize(lambda t: net.loss(t, X, Y) + .05*t @ t, theta, method=method,
                     jac=lambda t: net.gradient(t, X, Y) + .1*t,
                     hessp=lambda t, v: hessian_operator(net, t, X, Y, l2=.1) @ v)
    assert np.linalg.norm(net.gradient(found.x, X, Y) + .1*found.x) < 1e-4


def test_kinks_are_told_once():
    net = Graph()
    a = net.node('a', ReLU(), net.node('h', Dense(2), net.input('x', 3)))
    net.output(net.node('z', Dense(2), a), CrossEntropy())
    given = net, np.zeros(net.size), np.ones((5, 3)), np.zeros(5, int)
    with pytest.warns(KinkWarning) as told:
        op = hessian_operator(*given)
        top_eigenpairs(op, 2)
        trace(op, 6)
    assert len(told) == 1
    with pytest.raises(ValueError, match='kink'): gauss_newton_operator(*given, kinks='raise') @ np.ones(net.size)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        hessian_operator(*given, kinks='ignore') @ np.ones(net.size)


# Eigenpairs.

@pytest.mark.parametrize('A', MATRICES.values(), ids=MATRICES)
@pytest.mark.parametrize('k', [1, 7, 40, 100])
def test_eigenpairs(A, k):
    truth = np.linalg.eigvalsh(A)
    for which, expected in {'largest': truth[::-1][:k], 'smallest': truth[:k]}.items():
        values, vectors = top_eigenpairs(A, k, which)
        assert values.shape == (k,) and vectors.shape == (100, k)
        assert np.allclose(values, expected, rtol=1e-10, atol=1e-13)
        assert np.allclose(A @ vectors, vectors*values, atol=1e-10)
        assert np.allclose(vectors.T @ vectors, np.eye(k), atol=1e-10)


REPEATED = {'zero': np.zeros((90, 90)), 'identity': np.eye(90), 'triple': np.diag([5.]*3 + [0]*87)}


@pytest.mark.parametrize('A', REPEATED.values(), ids=REPEATED)
def test_repeated_eigenvalues(A):
    values, vectors = top_eigenpairs(A, 4)
    assert np.allclose(values, np.sort(np.diag(A))[:-5:-1], atol=1e-12)
    assert np.allclose(vectors.T @ vectors, np.eye(4), atol=1e-10)


def test_any_matrix():
    truth = np.linalg.eigvalsh(MIXED)[::-1][:3]
    for A in (MIXED, scipy.sparse.csr_array(MIXED), BlockMatrix(MIXED, {'a': slice(0, 100)}), MIXED.astype(np.float32)):
        assert np.allclose(top_eigenpairs(A, 3)[0], truth, rtol=1e-5)


# Estimates.

ESTIMATES = {
    **{f'trace {m}': (lambda A, n, s, m=m: trace(A, n, m, s, batch=n), np.trace) for m in operators.TRACES},
    'frobenius': (lambda A, n, s: frobenius(A, n, s, batch=n), np.linalg.norm),
    'diagonal': (lambda A, n, s: entry(diagonal(A, n, s, batch=n), 5), lambda A: A[5, 5]),
    'block': (lambda A, n, s: block_norms(A, {'a': slice(0, 60), 'b': slice(60, 100)}, products=n//2, seed=s)['a', 'b'],
              lambda A: np.linalg.norm(A[:60, 60:]))}


def entry(e, j): return Estimate(e.value[j], e.stderr[j], e.samples)


def share(estimate, truth, seeds=400):
    "How many intervals of 95 % hold the truth."
    found = [estimate(seed).interval() for seed in range(seeds)]
    return sum(low <= truth <= high for low, high in found)/seeds


@pytest.mark.parametrize('A', MATRICES.values(), ids=MATRICES)
@pytest.mark.parametrize('name', [n for n in ESTIMATES if n != 'trace xtrace'])
def test_coverage(name, A):
    "Within what chance allows for 95 %: 1 in 1000 too few or too many; squares of few draws are skewed and lose 2 %."
    estimate, truth = ESTIMATES[name]
    honest = .93 if name in ('frobenius', 'block') else .95
    low, high = binom.ppf(.001, 400, honest)/400, binom.ppf(.999, 400, .95)/400
    assert low <= share(lambda seed: estimate(A, 45, seed), truth(A)) <= high


def test_coverage_of_xtrace():
    "Its draws are not independent: fewer intervals hold the truth than they say, but not by much."
    estimate, truth = ESTIMATES['trace xtrace']
    assert .80 <= share(lambda seed: estimate(DECAY, 45, seed), truth(DECAY)) < binom.ppf(.001, 400, .95)/400


def test_coverage_of_quadrature():
    "With enough steps the bar is true; with two it is not, for each probe errs in the same way."
    def measured(steps): return lambda seed: logdet(FLAT, .1, probes=10, steps=steps, seed=seed)
    truth = np.linalg.slogdet(FLAT + .1*np.eye(100))[1]
    assert binom.ppf(.001, 400, .95)/400 <= share(measured(12), truth) <= binom.ppf(.999, 400, .95)/400
    poor = matrix(10.**-np.linspace(0, 4, 100))
    assert share(lambda seed: logdet(poor, probes=10, steps=2, seed=seed), np.linalg.slogdet(poor)[1], 40) < .1


@pytest.mark.parametrize('name', ESTIMATES)
def test_unbiased(name):
    "The mean over 400 seeds is the truth, to what its own scatter allows (a root: to one part in 100)."
    estimate, truth = ESTIMATES[name]
    found = Estimate.of(np.array([estimate(MIXED, 45, seed).value for seed in range(400)]))
    slack = .01*truth(MIXED) if name in ('frobenius', 'block') else 0
    assert abs(found.value - truth(MIXED)) <= 4*found.stderr + slack


def test_the_length_of_what_is_left_out():
    "XTrace on a small matrix, where the size of the rest counts."
    small = matrix(1 + i[:20]/20)
    found = Estimate.of(np.array([trace(small, 18, 'xtrace', seed).value for seed in range(400)]))
    assert abs(found.value - np.trace(small)) < 4*found.stderr


def test_variances():
    "Hutchinson: 2‖A − diag A‖²_F; an entry of the diagonal: the rest of its row, squared."
    off = MIXED - np.diag(np.diag(MIXED))
    assert np.isclose(trace(MIXED, 99, 'hutchinson').stderr**2*99, 2*np.sum(off**2), rtol=.5)
    many = [trace(MIXED, 90, 'hutchinson', seed).stderr**2*90 for seed in range(100)]
    assert np.isclose(np.mean(many), 2*np.sum(off**2), rtol=.05)
    many = [diagonal(MIXED, 90, seed).stderr**2*90 for seed in range(100)]
    assert np.allclose(np.mean(many, 0), (off**2).sum(1), rtol=.1)


def test_sketches_help():
    "Where the spectrum decays, Hutch++ and XTrace err far less than Hutchinson."
    def error(method):
        away = [trace(DECAY, 45, method, seed).value - np.trace(DECAY) for seed in range(50)]
        return np.sqrt(np.mean(np.square(away)))
    assert error('hutch++') < error('hutchinson')/10 and error('xtrace') < error('hutchinson')/10


def test_exact():
    "As many products as rows, or a matrix without noise: no error."
    for e, truth in ((trace(MIXED, 100), np.trace(MIXED)), (frobenius(MIXED, 100), np.linalg.norm(MIXED)),
                     (trace(np.diag(i), 2, 'hutchinson'), 5050)):
        assert np.isclose(e.value, truth, rtol=1e-13) and e.stderr == 0
    assert np.array_equal(diagonal(MIXED, 100).value, np.diag(MIXED))
    assert np.array_equal(diagonal(np.diag(i), 2).value, i) and not diagonal(np.diag(i), 2).stderr.any()
    low = matrix(np.where(i < 6, 6. - i, 0))                                          # rank 5
    for method in ('hutch++', 'xtrace'): assert np.isclose(trace(low, 30, method).value, 15, rtol=1e-10)
    for method in operators.TRACES: assert trace(np.zeros((100, 100)), 30, method).value == 0
    assert frobenius(np.zeros((100, 100))).value == 0


def test_block_norms(problem, H):
    op = hessian_operator(*problem)
    for ord in ('fro', 2):
        for (v, w), e in block_norms(op, ord=ord, products=20).items():
            truth = np.linalg.norm(H[op.places[v], op.places[w]], ord)
            assert abs(e.value - truth) <= 5*e.stderr + 1e-10*truth, (v, w, ord)
    A = np.zeros((120, 120))
    A[:60, 60:] = np.random.default_rng(0).standard_normal((60, 60))
    found = block_norms(A + A.T, {'a': slice(0, 60), 'b': slice(60, 120)}, ord=2)
    assert np.isclose(found['a', 'b'].value, np.linalg.norm(A, 2), rtol=1e-10) and found['a', 'a'].value < 1e-10


def test_repr():
    assert repr(Estimate(12.345, .42, 9)) == '12.3 ± 0.4' and repr(Estimate(1234.5, 42., 9)) == '1234 ± 42'
    assert repr(Estimate(1.234e-7, 4e-9, 9)) == '(1.23 ± 0.04)e-07' and repr(Estimate(0., 0.)) == '0 ± 0'


# The spectrum.

def test_lanczos_is_gauss_quadrature():
    "Exact for polynomials of degree 2k − 1."
    v = np.random.default_rng(0).standard_normal((2, 100))
    nodes, weights = quadrature(*lanczos(operators.as_operator(MIXED), v, 4))
    for q, x, w in zip(v, nodes, weights):
        exact = [q @ np.linalg.matrix_power(MIXED, a) @ q/(q @ q) for a in range(9)]
        found = [np.sum(w*x**a) for a in range(9)]
        assert np.allclose(found[:8], exact[:8], rtol=1e-10) and not np.isclose(found[8], exact[8], rtol=1e-10)


def test_lanczos_where_the_space_is_used_up():
    nodes, weights = quadrature(*lanczos(operators.as_operator(np.diag([1., 1, 1, 3, 3, 7])), np.ones((1, 6)), 6))
    found = {x: weights[np.isclose(nodes, x)].sum() for x in (1, 3, 7)}
    assert np.allclose(list(found.values()), [1/2, 1/3, 1/6]) and np.isclose(weights.sum(), 1)


@pytest.mark.parametrize('A', [*MATRICES.values(), np.zeros((9, 9)), np.eye(9), -np.eye(9), np.ones((1, 1))])
def test_density_integrates_to_one(A):
    S = spectral_density(A)
    assert np.isclose(np.trapezoid(S.density, S.grid), 1, atol=1e-7) and (S.density >= 0).all()


def test_density():
    "All steps: the nodes are the eigenvalues; the density and its bar against the smoothed eigenvalues."
    S, truth = spectral_density(MIXED, probes=200, steps=60, width=.3), np.linalg.eigvalsh(MIXED)
    assert S.width == .3 and np.isclose(S.nodes.max(), truth[-1]) and np.isclose(S.nodes.min(), truth[0])
    bells = np.exp(-.5*((S.grid[:, None] - truth)/.3)**2).mean(1)/(.3*np.sqrt(2*np.pi))
    seen = bells > 1e-4
    z = (S.density - bells)[seen]/S.stderr[seen]
    assert np.abs(z).max() < 4.5 and np.mean(np.abs(z) < 1.96) > .85
    own = np.linspace(-1, 1, 7)
    assert spectral_density(MIXED, grid=own).density.shape == (7,)


def test_trace_of_a_function():
    S, truth = spectral_density(FLAT, probes=50, steps=20), np.linalg.eigvalsh(FLAT)
    for f in (np.log, np.sqrt, lambda x: 1/x, np.exp):
        e = S.trace(f)
        assert abs(e.value - f(truth).sum()) < 4*e.stderr


# Interrupted work.

def interrupted(A, after):
    "The matrix, until it has been asked so many times."
    left = iter(range(after))
    def many(V):
        if next(left, None) is None: raise KeyboardInterrupt
        return A @ V
    return LinearOperator(A.shape, lambda v: many(v.reshape(-1, 1))[:, 0], matmat=many, dtype=float)


RUNS = {**{f'trace {m}': (lambda A, m=m, **kw: trace(A, 45, m, batch=4, **kw)) for m in operators.TRACES},
        'frobenius': lambda A, **kw: frobenius(A, 45, batch=4, **kw),
        'diagonal': lambda A, **kw: diagonal(A, 45, batch=4, **kw),
        'density': lambda A, **kw: spectral_density(A, 9, 5, batch=2, **kw),
        'logdet': lambda A, **kw: logdet(A, 20., 9, 5, batch=2, **kw)}


def numbers(found):
    names = 'value', 'stderr', 'density', 'nodes', 'weights'
    return [getattr(found, n) for n in names if hasattr(found, n)]


@pytest.mark.parametrize('name', RUNS)
@pytest.mark.parametrize('after', [7, 9, 11])
def test_resumed(tmp_path, name, after):
    run, file = RUNS[name], tmp_path/'work.npz'
    with pytest.raises(KeyboardInterrupt): run(interrupted(MIXED, after), checkpoint=file)
    assert np.load(file)['done'] > 0
    for a, b in zip(numbers(run(MIXED)), numbers(run(MIXED, checkpoint=file))): assert np.array_equal(a, b)
    again = run(interrupted(MIXED, 1), checkpoint=file)                 # finished: only the fingerprint asks
    for a, b in zip(numbers(run(MIXED)), numbers(again)): assert np.array_equal(a, b)


def test_more_draws(tmp_path):
    "A finished run of independent draws is the beginning of a longer one."
    file = tmp_path/'work.npz'
    trace(MIXED, 20, 'hutchinson', checkpoint=file)
    assert trace(MIXED, 50, 'hutchinson', checkpoint=file).samples == 50
    whole = trace(MIXED, 50, 'hutchinson')
    assert np.isclose(trace(MIXED, 50, 'hutchinson', checkpoint=file).value, whole.value, rtol=1e-12)


OTHERS = {'matrix': lambda f: diagonal(FLAT, 45, checkpoint=f), 'seed': lambda f: diagonal(MIXED, 45, 1, checkpoint=f),
          'quantity': lambda f: trace(MIXED, 45, checkpoint=f), 'fewer': lambda f: diagonal(MIXED, 20, checkpoint=f),
          'size': lambda f: diagonal(MIXED[:90, :90], 45, checkpoint=f)}


@pytest.mark.parametrize('other', OTHERS.values(), ids=OTHERS)
def test_a_file_of_something_else(tmp_path, other):
    diagonal(MIXED, 45, checkpoint=tmp_path/'work.npz')
    with pytest.raises(ValueError, match='belongs to something else'): other(tmp_path/'work.npz')


# Mistakes.

@pytest.mark.parametrize('f', [trace, diagonal, frobenius, spectral_density, top_eigenpairs, logdet])
def test_bad_operators(f):
    with pytest.raises(ValueError, match='square'): f(np.ones((90, 91)))
    with pytest.raises(ValueError, match='not symmetric'): f(np.triu(np.ones((120, 120))))
    with pytest.raises(ValueError, match='not finite'): f(np.full((120, 120), np.nan))
    with pytest.raises(TypeError, match='real'): f(1j*np.eye(120))


@pytest.mark.parametrize('wrong, match', [
    (lambda op: top_eigenpairs(op, 0), 'from 1 to'), (lambda op: top_eigenpairs(op, op.shape[0] + 1), 'from 1 to'),
    (lambda op: top_eigenpairs(op, 2.5), 'from 1 to'), (lambda op: top_eigenpairs(op, 2, 'LM'), 'largest'),
    (lambda op: trace(op, 1, 'hutchinson'), 'at least 2'), (lambda op: trace(op, 5), 'at least 6'),
    (lambda op: trace(op, 20, 'hutch'), 'hutch\\+\\+'), (lambda op: diagonal(op, 1), 'at least 2'),
    (lambda op: spectral_density(op, probes=1), 'at least 2'), (lambda op: spectral_density(op, width=0), 'positive'),
    (lambda op: logdet(op, -100.), 'not positive definite'), (lambda op: block_norms(op, ord=1), "'fro' or 2"),
    (lambda op: op @ np.ones(3), 'got an array of shape \\(3,\\)'),
    (lambda op: op @ np.full(op.shape[0], np.nan), 'finite')])
def test_mistakes(problem, wrong, match):
    with pytest.raises(ValueError, match=match): wrong(hessian_operator(*problem))


def test_mistakes_of_construction(problem):
    net, theta, X, Y = problem
    with pytest.raises(ValueError, match='l2'): hessian_operator(net, theta, X, Y, l2=np.nan)
    with pytest.raises(ValueError, match='theta has shape'): hessian_operator(net, theta[1:], X, Y)
    with pytest.raises(KeyError, match='the terms are'): term_operator(net, theta, X, Y, 'nobody')
    with pytest.raises(ValueError, match='no named blocks'): block_norms(np.eye(9))
