"""Operators and estimators: against autograd and LAPACK, their error bars over many seeds, interrupts, mistakes."""
import copy
import gc
import pickle
import subprocess
import sys
import warnings
import weakref

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
from hessian_nb.blocks import BlockMatrix
from hessian_nb.kinks import KinkWarning
from hessian_nb.operators import (CurvatureOperator, Estimate, SpectralDensity, block_norms, diagonal, frobenius,
                                  gauss_newton_operator, hessian_operator, lanczos, logdet, quadrature,
                                  spectral_density, term_operator, top_eigenpairs, trace)
from hessian_nb.push import terms
from hessian_nb.rules import Conv, CrossEntropy, Dense, Multiply, ReLU, SquaredError, Tanh


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

def test_hessian(problem, H):
    op, V = hessian_operator(*problem), np.random.default_rng(1).standard_normal((len(H), 3))
    for found in (op @ V, op.T @ V, op.H @ V, np.stack([op @ v for v in V.T], 1), (2*op - op) @ V):
        assert np.allclose(found, H @ V, rtol=1e-12, atol=1e-13)
    assert np.allclose(op.dense(), H, rtol=1e-12, atol=1e-13)
    assert op.shape == H.shape and op.dtype == float


def test_many_samples_go_in_chunks(problem, H):
    "200 copies of the same samples have the same mean."
    net, theta, X, Y = problem
    op = hessian_operator(net, theta, np.tile(X, (200, 1, 1, 1)), np.tile(Y, 200))
    V = np.random.default_rng(1).standard_normal((len(H), 3))
    assert np.allclose(op @ V, H @ V, rtol=1e-11, atol=1e-13) and np.allclose(op @ V, H @ V, rtol=1e-11, atol=1e-13)


def test_without_memory(problem, H):
    "The same where nothing may be kept between products."
    thrifty = CurvatureOperator(operators.Point(*problem, room=0), operators.all_terms)
    assert np.allclose(thrifty @ H, H @ H, rtol=1e-12, atol=1e-13)


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


def everything_that(op):
    "All that an operator says, by products and by the matrix."
    V = np.eye(len(op))[:, :2]
    return [op @ V, op.dense(), op.matrix().array, trace(op, len(op)).value, top_eigenpairs(op, len(op) - 1)[0]]


@pytest.mark.parametrize('change', ['theta', 'X', 'Y', 'loss', 'nodes'])
@pytest.mark.parametrize('asked', [True, False])
def test_it_owns_what_it_was_made_of(change, asked):
    "What is changed in place afterwards does not reach it, whether or not it was asked before."
    net, rng = Graph(), np.random.default_rng(0)
    a = net.node('a', Tanh(), net.node('h', Dense(4), net.input('x', 5)))
    net.output(net.node('z', Dense(3), a), SquaredError())
    theta, X, Y = net.init(0), rng.standard_normal((9, 5)), rng.standard_normal((9, 3))
    expected = everything_that(hessian_operator(net, theta.copy(), X.copy(), Y.copy()))
    op = hessian_operator(net, theta, X, Y)
    if asked: op @ np.ones(len(op))
    if change == 'theta': theta += 1
    if change == 'X': X *= 3
    if change == 'Y': Y += 5
    if change == 'loss': net.output('z', SquaredError(factor=7.))
    if change == 'nodes': net.output(net.node('end', Dense(2), 'z'), SquaredError())
    for found, was in zip(everything_that(op), expected): assert np.array_equal(found, was)


def operators_of(problem):
    return {'Hessian': hessian_operator(*problem, l2=.3), 'Gauss–Newton': gauss_newton_operator(*problem),
            'term': term_operator(*problem, kind='pure')}


def test_arithmetic(problem, H):
    op, other, v = *list(operators_of(problem).values())[:2], np.random.default_rng(1).standard_normal(len(H))
    A, B = op.dense(), other.dense()
    for found, expected in {2*op: 2*A, op*2: 2*A, np.float64(2)*op: 2*A, op/2: A/2, -op: -A, op.T: A, op.H: A,
                            op + other: A + B, op - other: A - B, op @ other: A @ B, op**2: A @ A}.items():
        assert isinstance(found, LinearOperator)
        assert np.allclose(found @ v, expected @ v, rtol=1e-11, atol=1e-12)
    assert np.allclose(v @ op, v @ A, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize('name', ['Hessian', 'Gauss–Newton', 'term'])
@pytest.mark.parametrize('again', [lambda op: pickle.loads(pickle.dumps(op)), copy.copy, copy.deepcopy],
                         ids=['pickle', 'copy', 'deepcopy'])
def test_copies(problem, name, again):
    op, v = operators_of(problem)[name], np.random.default_rng(1).standard_normal(problem[0].size)
    before = op @ v                              # what it has kept by now does not hinder
    twin = again(op)
    assert np.array_equal(twin @ v, before) and np.array_equal(twin.dense(), op.dense())
    assert repr(twin) == repr(op) and twin.places == op.places and twin.l2 == op.l2


def test_kinds_of_answers(problem, H):
    op = hessian_operator(*problem)
    assert type(op.dense()) is np.ndarray and type(op.matrix()) is BlockMatrix
    assert np.array_equal(op.matrix()['h', 'z'], op.dense()[op.places['h'], op.places['z']])
    for f in (np.asarray, np.array, np.linalg.eigvalsh):
        with pytest.raises(TypeError, match=r'op\.dense\(\)'): f(op)
    assert 'the Hessian' in repr(op) and f'{len(H)} × {len(H)}' in repr(op)
    for part in ('the Hessian', '41 samples', 'h 20'): assert part in op._repr_html_()


def test_complex_vectors(problem, H):
    "By their real and their imaginary part; never the real part alone."
    x, y = np.random.default_rng(1).standard_normal((2, len(H)))
    op = hessian_operator(*problem, l2=.3)
    assert np.allclose(op @ (x + 1j*y), op @ x + 1j*(op @ y), rtol=1e-12)
    assert np.allclose(op @ (1j*x), 1j*(op @ x), rtol=1e-12) and np.abs(op @ (1j*x)).max() > .1


def test_operators_go_with_their_last_name(problem):
    "A loop that makes one a step holds one, without the garbage collector."
    op = hessian_operator(*problem)
    op @ np.ones(len(op)), op.dense(), pickle.dumps(op)
    gone = weakref.ref(op.point)
    gc.disable()
    try:
        del op
        assert gone() is None
    finally: gc.enable()


def test_import_is_light():
    "Only what this module itself asks for: whatever else was loaded is put away before."
    code = """
import sys, hessian_nb.hessian, hessian_nb.gauss_newton
def heavy(): return [name for name in sys.modules if name.startswith(('scipy.stats', 'matplotlib'))]
for name in heavy(): del sys.modules[name]
import hessian_nb.operators
print(heavy())"""
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'


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
    with pytest.warns(KinkWarning) as told:
        op = hessian_operator(*given)
        op.dense(), op.dense(), op @ np.ones(net.size), pickle.loads(pickle.dumps(op)) @ np.ones(net.size)
    assert len(told) == 1
    for ask in (lambda op: op.dense(), lambda op: op @ np.ones(net.size)):
        op = gauss_newton_operator(*given, kinks='raise')
        for _ in range(2):                      # and again, as long as nobody has been answered
            with pytest.raises(ValueError, match='kink'): ask(op)
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


NUMBERS = np.random.default_rng(5)
DEGENERATE = {
    'zero': np.zeros(90), 'identity': np.ones(90), 'minus identity': -np.ones(90), 'one 5': [5.] + [0]*89,
    'three 5': [5.]*3 + [0]*87, 'threes and zeros': [3.]*20 + [0]*280,
    'twins': np.repeat(NUMBERS.standard_normal(60), 2),
    'tenfold': np.repeat(1/np.arange(1., 31), 10), 'semidefinite': [*NUMBERS.exponential(size=40), *[0]*150],
    'negative semidefinite': [*-NUMBERS.exponential(size=40), *[0]*150],
    'four values': NUMBERS.choice([1., 2, 3, 4], 200), 'ends of opposite sign': [2.]*5 + [-2.]*5 + [0]*120,
    'nearly twins': [1, 1 + 1e-9, 1 - 1e-9, *NUMBERS.random(150)/2],
    'far from zero': 1 + 1e-6*np.repeat(NUMBERS.random(50), 3), 'fading': 10.**-np.linspace(0, 16, 150),
    'tiny': 1e-130*np.repeat(NUMBERS.standard_normal(60), 2), 'huge': 1e130*np.repeat(NUMBERS.standard_normal(60), 2)}


@pytest.mark.parametrize('name', DEGENERATE)
@pytest.mark.parametrize('mixed', [False, True])
def test_repeated_eigenvalues(name, mixed):
    "With all their copies, at both ends, against the spectrum from which the matrix was made."
    spectrum = np.sort(np.asarray(DEGENERATE[name], float))
    A = matrix(spectrum) if mixed else np.diag(NUMBERS.permutation(spectrum))
    size = np.abs(spectrum).max() or 1.
    for k in (1, 4, 13, 21):
        for which, expected in {'largest': spectrum[::-1][:k], 'smallest': spectrum[:k]}.items():
            values, vectors = top_eigenpairs(A, k, which)
            assert np.allclose(values/size, expected/size, rtol=0, atol=1e-12), (k, which)
            assert np.allclose(A/size @ vectors, vectors*(values/size), atol=1e-10), (k, which)
            assert np.allclose(vectors.T @ vectors, np.eye(k), atol=1e-11), (k, which)


@pytest.mark.parametrize('seed', range(12))
def test_rank_deficient_networks(seed):
    "The smallest eigenvalues of Gauss–Newton are zero as often as its rank says, and the largest are LAPACK's."
    rng, net = np.random.default_rng(seed), Graph()
    v = net.node('a', Tanh(), net.node('h', Dense(int(rng.integers(8, 14))), net.input('x', 12)))
    loss = [CrossEntropy, SquaredError][seed % 2]()
    net.output(net.node('z', Dense(3), v), loss)
    X = np.eye(12)[rng.integers(0, 12, 8)] if seed > 8 else rng.standard_normal((8, 12))
    Y = rng.standard_normal((8, 3)) if seed % 2 else rng.integers(0, 3, 8)
    op = gauss_newton_operator(net, net.init(seed), X, Y)
    truth = np.linalg.eigvalsh(op.dense())
    assert net.size > 4*24 and truth[net.size - 25] < 1e-12             # of rank 24 at most
    for k in (1, 6, 20):
        assert np.abs(top_eigenpairs(op, k, 'smallest')[0]).max() < 1e-12
        assert np.allclose(top_eigenpairs(op, k)[0], truth[::-1][:k], rtol=0, atol=1e-12)


def counting(A):
    "The matrix as an operator, and the list of its directions."
    seen = []
    def many(V):
        seen.append(V.shape[1])
        return A @ V
    return LinearOperator(A.shape, lambda v: many(v.reshape(-1, 1))[:, 0], matmat=many, dtype=float), seen


def test_products_of_eigenpairs():
    "The certificate costs less than ARPACK alone, a loose tol less than none; nothing costs more than two matrices."
    A = matrix(np.r_[np.linspace(2, 1, 10), np.random.default_rng(0).random(500)/2])
    alone, spent_alone = counting(A)
    eigsh(alone, 10, which='LA', v0=np.random.default_rng(0).standard_normal(510))
    ours, spent = counting(A)
    top_eigenpairs(ours, 10)
    assert sum(spent) < 2*sum(spent_alone)
    even = matrix(np.linspace(0, 1, 510))
    strict, spent_strict = counting(even)
    loose, spent_loose = counting(even)
    top_eigenpairs(strict, 5, 'smallest')
    values, vectors = top_eigenpairs(loose, 5, 'smallest', tol=1e-2)
    assert sum(spent_loose) < sum(spent_strict)/1.5
    assert np.abs(even @ vectors - vectors*values).max() < 1e-2
    hard, spent_hard = counting(matrix(np.linspace(0, 1, 510)**4))
    assert np.allclose(top_eigenpairs(hard, 5, 'smallest')[0], np.linspace(0, 1, 510)[:5]**4, atol=1e-13)
    assert sum(spent_hard) <= 2*510 + 10


def test_an_end_that_cannot_be_settled(monkeypatch):
    "No raw complaint of ARPACK's: what is the matter, and what to do."
    A = matrix(10.**-np.linspace(0, 16, 300))
    def refuse(p, what, max_bytes): raise MemoryError('too large')
    monkeypatch.setattr(operators, 'refuse_matrix', refuse)
    with pytest.raises(np.linalg.LinAlgError, match='larger tol, such as 1e-06, or a smaller k. too large'):
        top_eigenpairs(A, 5, 'smallest')
    assert np.allclose(top_eigenpairs(A, 5, 'smallest', tol=1e-2)[0], 0, atol=1e-2)


def test_arpack_may_fail(monkeypatch):
    def fail(*args, **kwargs): raise operators.ArpackError(3)
    monkeypatch.setattr(operators, 'eigsh', fail)
    assert np.allclose(top_eigenpairs(MIXED, 3)[0], np.linalg.eigvalsh(MIXED)[:-4:-1])


@pytest.mark.parametrize('seed', range(20))
def test_probe(seed):
    "What it says is what LAPACK says, at levels above and below each of the largest eigenvalues."
    rng = np.random.default_rng(seed)
    spectrum = np.sort(np.repeat(rng.standard_normal(40), rng.integers(1, 4, 40)))
    A, n = operators._as_operator(matrix(spectrum, seed)), len(spectrum)
    assert operators._none_above(A, spectrum[-1] + 1e-9, rng.standard_normal(n), n)
    for x in np.unique(spectrum)[-4:]:
        assert not operators._none_above(A, x - 1e-3, rng.standard_normal(n), n)


def test_the_doubt_of_the_probe():
    "It is wrong as seldom as it says, and hardly less: with a large doubt it is wrong now and then."
    A = operators._as_operator(np.diag(np.append(np.zeros(99), 1.)))
    for doubt in (.3, .1):
        starts = np.random.default_rng(0).standard_normal((2000, 100))
        wrong = np.mean([operators._none_above(A, .5, v, 100, doubt) for v in starts])
        assert doubt/20 < wrong <= doubt
    assert not any(operators._none_above(A, .5, v, 100) for v in starts)


def test_random_numbers_are_given_as_everywhere():
    "An int, a Generator and a SeedSequence say the same; None is new each time; a Generator moves on."
    def given(): return 3, np.random.default_rng(3), np.random.SeedSequence(3)
    for f in (lambda rng: trace(MIXED, 30, rng=rng).value, lambda rng: diagonal(MIXED, 30, rng=rng).value,
              lambda rng: frobenius(MIXED, 30, rng=rng).value, lambda rng: spectral_density(MIXED, 2, 5, rng=rng).nodes,
              lambda rng: logdet(MIXED, 20., 2, 5, rng=rng).value,
              lambda rng: block_norms(MIXED, {'a': slice(0, 60)}, rng=rng)['a', 'a'].value,
              lambda rng: top_eigenpairs(np.diag([3.]*20 + [0]*280), 2, rng=rng)[1]):
        number, generator, sequence = (f(rng) for rng in given())
        assert np.array_equal(number, generator) and np.array_equal(number, sequence)
        assert not np.array_equal(number, f(4)) and not np.array_equal(f(None), f(None))
        moving = np.random.default_rng(3)
        assert np.array_equal(f(moving), number) and not np.array_equal(f(moving), number)


def test_any_matrix():
    truth = np.linalg.eigvalsh(MIXED)[::-1][:3]
    for A in (MIXED, scipy.sparse.csr_array(MIXED), BlockMatrix(MIXED, {'a': slice(0, 100)}), MIXED.astype(np.float32)):
        assert np.allclose(top_eigenpairs(A, 3)[0], truth, rtol=1e-5)


# Estimates.

ESTIMATES = {
    **{f'trace {m}': (lambda A, n, s, m=m: trace(A, n, m, s, batch=n), np.trace) for m in operators._TRACES},
    'frobenius': (lambda A, n, s: frobenius(A, n, s, batch=n), np.linalg.norm),
    'diagonal': (lambda A, n, s: entry(diagonal(A, n, s, batch=n), 5), lambda A: A[5, 5]),
    'block': (lambda A, n, s: block_norms(A, {'a': slice(0, 60), 'b': slice(60, 100)}, products=n//2, rng=s)['a', 'b'],
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
    def measured(steps): return lambda seed: logdet(FLAT, .1, probes=10, steps=steps, rng=seed)
    truth = np.linalg.slogdet(FLAT + .1*np.eye(100))[1]
    assert binom.ppf(.001, 400, .95)/400 <= share(measured(12), truth) <= binom.ppf(.999, 400, .95)/400
    poor = matrix(10.**-np.linspace(0, 4, 100))
    assert share(lambda seed: logdet(poor, probes=10, steps=2, rng=seed), np.linalg.slogdet(poor)[1], 40) < .1


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
    for method in operators._TRACES: assert trace(np.zeros((100, 100)), 30, method).value == 0
    assert frobenius(np.zeros((100, 100))).value == 0


def test_block_norms(problem, H):
    op = hessian_operator(*problem)
    assert [*block_norms(op)] == [(v, w) for v in ('h', 'k', 'z') for w in ('h', 'k', 'z')]
    for ord in ('fro', 2):
        for (v, w), e in block_norms(op, ord=ord, products=20).items():
            truth = np.linalg.norm(H[op.places[v], op.places[w]], ord)
            assert abs(e.value - truth) <= 5*e.stderr + 1e-10*truth, (v, w, ord)
    A = np.zeros((120, 120))
    A[:60, 60:] = np.random.default_rng(0).standard_normal((60, 60))
    found = block_norms(A + A.T, {'a': slice(0, 60), 'b': slice(60, 120)}, ord=2)
    assert np.isclose(found['a', 'b'].value, np.linalg.norm(A, 2), rtol=1e-10) and found['a', 'a'].value < 1e-10


def test_spectral_norms_of_large_blocks():
    A = matrix(np.r_[[3.]*4, [-3.]*4, np.random.default_rng(0).standard_normal(222)])
    spans = {'a.W': slice(0, 70), 'b': slice(70, 230), 'nothing': slice(230, 230)}
    found = block_norms(A, spans, ord=2)
    assert [*found] == [(v, w) for v in ('a.W', 'b') for w in ('a.W', 'b')]      # all that were asked for
    for (v, w), e in found.items():
        assert np.isclose(e.value, np.linalg.norm(A[spans[v], spans[w]], 2), rtol=1e-10) and e.stderr == 0


def test_estimates_of_estimates():
    e = Estimate(4., .8, 9)
    assert (-3*e).value == -12 and np.isclose((-3*e).stderr, 2.4) and (e*2).samples == 9
    assert e.sqrt().value == 2 and np.isclose(e.sqrt().stderr, .2) and float(e) == 4
    assert np.allclose(e.interval(.9), (4 - .8*1.859548, 4 + .8*1.859548)) and Estimate(3., 0.).interval() == (3, 3)
    with pytest.raises(ValueError, match='spread of at least 2'): Estimate.of(np.array([1.]))
    for level in (0, 1, 95, np.nan):
        with pytest.raises(ValueError, match='between 0 and 1'): e.interval(level)


def test_diagonal_of_few_draws():
    "Three draws: mean and standard error as in the textbook."
    Z = operators._rademacher(100, range(3), operators._entropy(7))
    draws = Z*(Z @ MIXED)
    found = diagonal(MIXED, 3, rng=7)
    assert np.allclose(found.value, draws.mean(0), rtol=1e-12)
    assert np.allclose(found.stderr, draws.std(0, ddof=1)/np.sqrt(3), rtol=1e-10) and found.samples == 3


def test_repr():
    assert repr(Estimate(1., np.nan, 9)) == '1 ± nan' and repr(Estimate(np.nan, 1., 9)) == 'nan ± 1'
    assert repr(Estimate(2., np.inf, 9)) == '2 ± inf' and 'nan' in repr(Estimate(np.full(3, np.nan), np.ones(3), 9))
    assert '<b>12.3 ± 0.4</b>' in Estimate(12.345, .42, 9)._repr_html_()
    assert '9 draws' in Estimate(1., 1., 9)._repr_html_()
    assert 'exact' in Estimate(1., 0.)._repr_html_()
    assert repr(Estimate(12.345, .42, 9)) == '12.3 ± 0.4' and repr(Estimate(1234.5, 42., 9)) == '1234 ± 42'
    assert repr(Estimate(1.234e-7, 4e-9, 9)) == '(1.23 ± 0.04)e-07' and repr(Estimate(0., 0.)) == '0 ± 0'


# The spectrum.

def test_lanczos_is_gauss_quadrature():
    "Exact for polynomials of degree 2k − 1."
    v = np.random.default_rng(0).standard_normal((2, 100))
    nodes, weights = quadrature(*lanczos(operators._as_operator(MIXED), v, 4))
    for q, x, w in zip(v, nodes, weights):
        exact = [q @ np.linalg.matrix_power(MIXED, a) @ q/(q @ q) for a in range(9)]
        found = [np.sum(w*x**a) for a in range(9)]
        assert np.allclose(found[:8], exact[:8], rtol=1e-10) and not np.isclose(found[8], exact[8], rtol=1e-10)


def test_lanczos_where_the_space_is_used_up():
    nodes, weights = quadrature(*lanczos(operators._as_operator(np.diag([1., 1, 1, 3, 3, 7])), np.ones((1, 6)), 6))
    found = {x: weights[np.isclose(nodes, x)].sum() for x in (1, 3, 7)}
    assert np.allclose(list(found.values()), [1/2, 1/3, 1/6]) and np.isclose(weights.sum(), 1)


LITTLE = {'2I': 2*np.eye(50), 'zero': np.zeros((50, 50)), 'three values': np.diag(np.repeat([1., 3, 7], 30)),
          'low rank': matrix(np.r_[[4., 3, 2], np.zeros(80)]) + .1*np.eye(83)}


@pytest.mark.parametrize('A', LITTLE.values(), ids=LITTLE)
def test_nodes_where_the_space_is_used_up(A):
    "Every node, of whatever weight, is an eigenvalue; a function of the matrix never meets another number."
    S, truth = spectral_density(A), np.linalg.eigvalsh(A)
    assert np.abs(S.nodes[:, :, None] - truth).min(2).max() < 1e-10 and (np.diff(S.nodes) >= 0).all()
    assert np.allclose(S.weights.sum(1), 1, rtol=1e-12) and (S.weights >= 0).all()
    assert np.isclose(S.trace(lambda x: x).value, np.trace(A), atol=5*S.trace(lambda x: x).stderr + 1e-10)


def test_logdet_where_the_space_is_used_up(problem):
    assert np.isclose(logdet(2*np.eye(50)).value, 50*np.log(2), rtol=1e-13)
    assert np.isclose(spectral_density(2*np.eye(50)).trace(np.log).value, 50*np.log(2), rtol=1e-13)
    net, theta, X, Y = problem
    op = gauss_newton_operator(net, theta, X[:6], Y[:6], l2=.1)
    found, truth = logdet(op), np.linalg.slogdet(op.dense())[1]
    assert abs(found.value - truth) < 4*found.stderr
    for singular in (np.diag([1.]*50 + [0]), np.diag([1.]*50 + [-1e-3])):
        with pytest.raises(ValueError, match='not positive definite'): logdet(singular)


@pytest.mark.parametrize('width', [1., 1e-2, 1e-4, 1e-6, 1e-8])
def test_narrow_densities_integrate_to_one(width):
    "A width as a part of the spectrum; nodes at its ends and in its middle."
    for A in MATRICES.values():
        span = np.ptp(np.linalg.eigvalsh(A))
        S = spectral_density(A, probes=4, steps=30, width=width*span)
        assert np.isclose(np.trapezoid(S.density, S.grid), 1, atol=1e-6) and len(S.grid) < 50_000
        assert (np.diff(S.grid) > 0).all()


def test_widths():
    S = spectral_density(MIXED)
    assert np.isclose(S.width, np.ptp(S.nodes)/100, rtol=1e-12)          # a hundredth of the spectrum
    for width in (0, -1, np.nan, 1e-12):
        with pytest.raises(ValueError, match='width=.*greater than'): spectral_density(MIXED, width=width)
    with pytest.raises(ValueError, match='ascending'): spectral_density(MIXED, grid=[1., 0.])
    own = np.array([-.5, .1, 2.])                                        # points far apart say the same as many
    fine = SpectralDensity(S.nodes, S.weights, 100, grid=np.linspace(-1, 3, 4001))
    assert np.allclose(SpectralDensity(S.nodes, S.weights, 100, grid=own).density,
                       np.interp(own, fine.grid, fine.density), rtol=1e-4)


def test_density_is_shown():
    S = spectral_density(MIXED)
    assert '100 eigenvalues' in repr(S) and '<table>' in S._repr_html_() and 'trace' in S._repr_html_()
    matplotlib = pytest.importorskip('matplotlib')
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    ax = plt.figure().subplots()
    assert S.plot(ax, label='here') is ax and ax.get_lines()[0].get_label() == 'here'
    assert np.array_equal(ax.get_lines()[0].get_ydata(), S.density) and S.plot() is not ax
    plt.close('all')


def test_a_batch_keeps_within_its_memory(monkeypatch):
    "The starts that walk together are as many as their vectors find room, and no answer depends on it."
    whole = spectral_density(MIXED, probes=7, steps=10)
    monkeypatch.setattr(operators, '_KEPT', 3.5*8*10*100)
    op, seen = counting(MIXED)
    few = spectral_density(op, probes=7, steps=10)
    assert max(seen) == 3 and np.allclose(few.nodes, whole.nodes, rtol=1e-10)


def test_lanczos_stays_orthogonal():
    "A hundred steps on a matrix with far outliers: each is one node, with the weight of its eigenvector."
    spectrum = np.r_[[1e6, 1e5, 1e4], np.random.default_rng(0).random(117)]
    A, v = matrix(spectrum), np.random.default_rng(1).standard_normal((1, 120))
    nodes, weights = quadrature(*lanczos(operators._as_operator(A), v, 100))
    for x in spectrum[:3]: assert np.sum(np.abs(nodes - x) < 1e-6*x) == 1
    values, vectors = np.linalg.eigh(A)
    assert np.allclose(weights[0, -3:], (vectors[:, -3:].T @ v[0])**2/(v @ v.T), rtol=1e-8)


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


RUNS = {**{f'trace {m}': (lambda A, m=m, **kw: trace(A, 45, m, batch=4, **kw)) for m in operators._TRACES},
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


OTHERS = {'matrix': lambda f: diagonal(FLAT, 45, checkpoint=f),
          'sequence of random numbers': lambda f: diagonal(MIXED, 45, 1, checkpoint=f),
          'quantity': lambda f: trace(MIXED, 45, checkpoint=f),
          'quantity and another matrix': lambda f: diagonal(MIXED[:90, :90], 45, checkpoint=f)}


@pytest.mark.parametrize('name', OTHERS)
def test_a_file_of_something_else(tmp_path, name):
    diagonal(MIXED, 45, checkpoint=tmp_path/'work.npz')
    with pytest.raises(ValueError, match='belongs to another computation'):
        OTHERS[name](tmp_path/'work.npz')


def test_a_file_of_more(tmp_path):
    diagonal(MIXED, 45, checkpoint=tmp_path/'work.npz')
    with pytest.raises(ValueError, match='holds 45 pieces .* more than the 20'):
        diagonal(MIXED, 20, checkpoint=tmp_path/'work.npz')


# Mistakes.

@pytest.mark.parametrize('f', [trace, diagonal, frobenius, spectral_density, top_eigenpairs, logdet])
def test_bad_operators(f):
    with pytest.raises(ValueError, match='square'): f(np.ones((90, 91)))
    with pytest.raises(ValueError, match='not symmetric'): f(np.triu(np.ones((120, 120))))
    with pytest.raises(ValueError, match='not finite'): f(np.full((120, 120), np.nan))
    with pytest.raises(TypeError, match='real'): f(1j*np.eye(120))


@pytest.mark.parametrize('f', [trace, diagonal, frobenius, spectral_density, top_eigenpairs])
def test_what_counts_as_symmetric(f):
    "A thousandth of the whole does not; round-off does. Numbers whose squares are none are another matter."
    skew = np.triu(np.random.default_rng(0).standard_normal((120, 120)), 1)
    A = matrix(np.linspace(-1, 1, 120))
    with pytest.raises(ValueError, match='not symmetric'): f(A + 1e-3*(skew - skew.T))
    for size in (1e-60, 1e-15, 1e60): f(size*(A + 1e-15*(skew - skew.T)))
    for size in (1e-200, 1e200):
        with pytest.raises(ValueError, match='of the size .*; scale it'): f(size*A)


@pytest.mark.parametrize('wrong, match', [
    (lambda op: top_eigenpairs(op, 0), 'from 1 to'), (lambda op: top_eigenpairs(op, op.shape[0] + 1), 'from 1 to'),
    (lambda op: top_eigenpairs(op, 2.5), 'from 1 to'), (lambda op: top_eigenpairs(op, 3.), 'from 1 to'),
    (lambda op: top_eigenpairs(op, None), 'from 1 to'), (lambda op: top_eigenpairs(op, True), 'from 1 to'),
    (lambda op: top_eigenpairs(op, 2, tol=-1), 'tol=-1'), (lambda op: top_eigenpairs(op, 2, tol=np.nan), 'tol=nan'),
    (lambda op: trace(op, 3, 'xtrace'), 'at least 4'), (lambda op: trace(op, 20.), 'whole number of at least 6'),
    (lambda op: trace(op, None), 'whole number of at least 6'), (lambda op: trace(op, 20, batch=0), 'batch=0'),
    (lambda op: spectral_density(op, batch=2.5), 'batch=2.5'), (lambda op: spectral_density(op, steps=0), 'steps=0'),
    (lambda op: frobenius(op, 5), 'at least 6'), (lambda op: block_norms(op, products=1), 'at least 2'),
    (lambda op: top_eigenpairs(op, 2, 'LM'), 'largest'),
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
    for l2 in (np.nan, np.inf, None, 1j, [1.]):
        with pytest.raises(ValueError, match='l2=.*finite number'): hessian_operator(net, theta, X, Y, l2=l2)
    with pytest.raises(TypeError, match='vectors of numbers'): hessian_operator(*problem) @ np.array(['a']*net.size)
    with pytest.raises(ValueError, match='theta has shape'): hessian_operator(net, theta[1:], X, Y)
    with pytest.raises(KeyError, match='the terms are'): term_operator(net, theta, X, Y, 'nobody')
    with pytest.raises(ValueError, match='no named blocks'): block_norms(np.eye(9))
