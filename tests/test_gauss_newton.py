"""Gauss–Newton, residual, Jacobian, Fisher and the ways of solving, on random networks and at the edges.

The oracle writes each network out plainly, one sample at a time, and differentiates it by autograd: oracle.py."""
import tracemalloc
import warnings

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from hypothesis import assume
from numpy.linalg import LinAlgError, norm
from support import oracle
from support.checks import error, on_networks

from hessian_nb import gauss_newton as module
from hessian_nb.gauss_newton import (Linear, cheapest, costs, empirical_fisher, fisher, gauss_newton,
                                     gauss_newton_step, gram, jacobian, loss_curvature, objective, objective_gradient,
                                     residual, with_loss)
from hessian_nb.graph import Graph
from hessian_nb.hessian import decompose, hessian_vector
from hessian_nb.kinks import KinkWarning
from hessian_nb.push import loss_only
from hessian_nb.rules import (Add, AvgPool, Conv, CrossEntropy, Dense, Flatten, LayerNorm, Multiply, ReLU, Softplus,
                              SquaredError, Tanh)

pytestmark = [pytest.mark.filterwarnings('ignore:Output seems independent of input'),
              pytest.mark.filterwarnings('ignore:.*exactly on a kink')]
METHODS = 'direct', 'cg', 'gram'


# Oracles.

def output(net, x): return lambda t: oracle.forward(net, oracle.tied(net, t), x)[net.output_node].reshape(-1)

def plain_jacobian(net, theta, X, Y):
    return np.array([autograd.jacobian(output(net, x))(theta) for x, _ in oracle.samples(net, X, Y)])

def plain_curvature(net, theta, X, Y):
    "B of every sample."
    shape = net.nodes[net.output_node].shape
    return np.array([autograd.hessian(lambda z: oracle.loss_value(net, z.reshape(shape), y))(output(net, x)(theta))
                     for x, y in oracle.samples(net, X, Y)])

def plain_gradients(net, theta, X, Y):
    "Each sample's own gradient."
    def one(x, y):
        return autograd.grad(lambda t: oracle.loss_value(net, oracle.forward(net, oracle.tied(net, t), x)[
            net.output_node], y))(theta)
    return np.array([one(x, y) for x, y in oracle.samples(net, X, Y)])

def plain_fisher(net, theta, X, Y):
    "Σ_c p_c g_c g_cᵀ, the mean over the samples."
    z = np.array([output(net, x)(theta) for x, _ in oracle.samples(net, X, Y)])
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    g = [plain_gradients(net, theta, X, np.full(len(z), c)) for c in range(z.shape[1])]
    return sum(np.einsum('n,ni,nj->ij', p[:, c], gc, gc) for c, gc in enumerate(g))/len(z)


# Random networks.

@on_networks(120)
def test_matrices(net, theta, X, Y):
    "G, the residual, both with their sums to H and by reduction, and the product with G."
    G, scale = oracle.gauss_newton(net, theta, X, Y), norm(H := oracle.hessian(net, theta, X, Y))
    ours, rest, v = gauss_newton(net, theta, X, Y), residual(net, theta, X, Y), np.cos(np.arange(theta.size))
    N = len(oracle.samples(net, X, Y))
    yield error(ours, G, scale)
    yield error(rest, H - G, scale)
    yield error((ours + rest).dense(), H)
    yield error(gauss_newton(net, theta, X, Y, l2=.3), G + .3*np.eye(theta.size), scale)
    yield error(gauss_newton(net, theta, X, Y, l2=.3, reduction='sum'), N*G + .3*np.eye(theta.size), N*scale)
    yield error(residual(net, theta, X, Y, reduction='sum'), N*(H - G), N*scale)
    yield error(hessian_vector(net, theta, X, Y, v, loss_only), G @ v, scale*norm(v))

@on_networks(100)
def test_jacobian(net, theta, X, Y):
    "J of several inputs, shared parameters, dead nodes; the slopes that Linear carries back; J, B and G fit together."
    J, true = jacobian(net, theta, X), plain_jacobian(net, theta, X, Y)
    assert J.shape == true.shape
    yield error(J, true)
    c = np.cos(np.arange(true[..., 0].size)).reshape(len(true), *net.nodes[net.output_node].shape)
    pulled = with_loss(net, Linear()).gradient(theta, X, c, 'sum')
    yield error(pulled, np.einsum('nk,nkp->p', c.reshape(len(true), -1), true), norm(true)*norm(c))
    B = plain_curvature(net, theta, X, Y)
    yield error(loss_curvature(net, theta, X, Y), B)
    yield error(np.einsum('nkp,nkl,nlq->pq', J, B, J)/len(J), gauss_newton(net, theta, X, Y), norm(J)**2*norm(B))

@on_networks(80)
def test_gram_and_steps(net, theta, X, Y):
    "The Gram matrix has G's eigenvalues; the ways of solving agree with a plain solve; a loss not convex is refused."
    G, l2 = oracle.gauss_newton(net, theta, X, Y), .5
    B = np.linalg.eigvalsh(plain_curvature(net, theta, X, Y))
    if B.min() < -1e-9*abs(B).max():
        for call in (gram, lambda *a: gauss_newton_step(*a, l2=l2, method='gram')):
            with pytest.raises(ValueError, match='not convex in z'): call(net, theta, X, Y)
        if np.linalg.eigvalsh(G)[0] < -l2 - 1e-9:
            with pytest.raises(LinAlgError, match='not positive definite'):
                gauss_newton_step(net, theta, X, Y, l2=l2, method='direct')
        return (yield 0.)
    assume(norm(G) < 1e4)
    M = gram(net, theta, X, Y)
    values, ours = np.sort(np.linalg.eigvalsh(G))[::-1], np.sort(np.linalg.eigvalsh(M))[::-1]
    r = min(len(values), len(ours))
    assert np.array_equal(M, M.T) or error(M, M.T) < 1e-15
    yield error(ours[:r], values[:r], norm(G))
    yield error(np.r_[ours[r:], values[r:]], 0*np.r_[ours[r:], values[r:]], norm(G))
    g = plain_gradients(net, theta, X, Y).mean(0) + l2*theta
    d = np.linalg.solve(G + l2*np.eye(theta.size), -g)
    for method in METHODS:
        found = gauss_newton_step(net, theta, X, Y, l2=l2, method=method)
        yield error(found.d, d)/10
        assert found.method == method and (found.products > 0) == (method == 'cg' and g.any())

@on_networks(60)
def test_fisher(net, theta, X, Y):
    "The empirical Fisher of any loss, and the Fisher of the losses with a model, against per-sample gradients."
    g = plain_gradients(net, theta, X, Y)
    yield error(empirical_fisher(net, theta, X, Y), g.T @ g/len(g), norm(g)**2/len(g))
    yield error(empirical_fisher(net, theta, X, Y, reduction='sum'), g.T @ g, norm(g)**2)
    if isinstance(net.loss_rule, CrossEntropy):
        yield error(fisher(net, theta, X), true := plain_fisher(net, theta, X, Y))
        yield error(true, oracle.gauss_newton(net, theta, X, Y))
    elif isinstance(net.loss_rule, SquaredError):
        yield error(fisher(net, theta, X), oracle.gauss_newton(net, theta, X, Y))
    else:
        with pytest.raises(TypeError, match='no model'): fisher(net, theta, X)


# By kind, at the edges.

def mixed(loss=None):
    "Two inputs, a kernel and a dense matrix used twice each, a norm, a sum, a product."
    net = Graph()
    a = net.node('a', Tanh(), net.node('h', Conv(2, kernel=3, padding=1), net.input('x', (1, 4, 4))))
    b = net.node('b', Conv(2, kernel=3, padding=1, bias=False), a)
    c = net.node('c', Conv(2, kernel=3, padding=1, bias=False), net.node('t', Softplus(), b), theta='b')
    s = net.node('n', LayerNorm(), net.node('q', Dense(4), net.node('m', AvgPool(2), net.node('s', Add(), c, a))))
    d = net.node('d', Dense(4), net.node('f', Flatten(), net.input('y', (2, 2))))
    e = net.node('e', Dense(4), net.node('u', Tanh(), d), theta='d')
    net.output(net.node('z', Dense(3), net.node('p', Multiply(), s, e)), loss or CrossEntropy())
    return net


def dense(*widths, loss=None):
    net = Graph()
    v = net.input('x', widths[0])
    for i, width in enumerate(widths[1:-1]): v = net.node(f'a{i}', Tanh(), net.node(f'h{i}', Dense(width), v))
    net.output(net.node('z', Dense(widths[-1]), v), loss or CrossEntropy())
    return net


def data_for(net, N, seed=0):
    rng, K = np.random.default_rng(seed), net.nodes['z'].size
    X = {v: rng.standard_normal((N, *node.shape)) for v, node in net.nodes.items() if node.rule is None}
    squared = isinstance(net.loss_rule, SquaredError)
    Y = rng.standard_normal((N, K)) if squared else rng.integers(0, K, N)
    return net, net.init(seed), X if len(X) > 1 else X['x'], Y


@pytest.fixture(params=[CrossEntropy(), SquaredError(.5), SquaredError(3.)], ids=repr)
def case(request): return data_for(mixed(request.param), 9)


def test_all_ways_on_a_mixed_network(case):
    G, J = oracle.gauss_newton(*case), plain_jacobian(*case)
    assert error(jacobian(*case[:3]), J) < 1e-13 and error(gauss_newton(*case), G) < 1e-13
    assert error(gauss_newton(*case), decompose(*case)['z', 'gauss-newton'].dense()) < 1e-14
    assert error(residual(*case), oracle.hessian(*case) - G) < 1e-12
    assert np.isclose(objective(*case, l2=.6), oracle.loss(*case) + .3*case[1] @ case[1], rtol=1e-13)
    g = plain_gradients(*case).mean(0) + .01*case[1]
    assert error(objective_gradient(*case, l2=.01), g) < 1e-13
    d = np.linalg.solve(G + .01*np.eye(len(G)), -g)
    for method in METHODS: assert error(gauss_newton_step(*case, l2=.01, method=method).d, d) < 1e-10, method
    assert error(fisher(*case[:3]), G) < 1e-13

@pytest.mark.parametrize('method', METHODS)
def test_reductions_of_a_step(case, method):
    "The sum with N times the regulariser is N times the mean: the same step."
    mean = gauss_newton_step(*case, l2=.02, method=method)
    summed = gauss_newton_step(*case, l2=.02*9, reduction='sum', method=method)
    assert error(summed.d, mean.d) < 1e-10
    wrong = gauss_newton_step(*case, l2=.02, reduction='sum', method=method)
    assert error(wrong.d, mean.d) > 1e-3

def test_untied_blocks_add_up(case):
    for whole in (gauss_newton, residual, empirical_fisher):
        tied, U = whole(*case), whole(*case, untied=True)
        for q, uses in {'b': 'bc', 'd': 'de', 'h': 'h'}.items():
            assert error(sum(U[v, w] for v in uses for w in uses), tied[q, q]) < 1e-12

@pytest.mark.parametrize('size', [1, 2, 5])
def test_chunks_do_not_matter(case, monkeypatch, size):
    J, M = jacobian(*case[:3]), gram(*case)
    monkeypatch.setattr(module, 'chunk_of_rows', lambda net, K: size)
    assert error(jacobian(*case[:3]), J) < 1e-14 and error(gram(*case), M) < 1e-14

def test_bands_of_the_gram_matrix_do_not_matter():
    "More samples than one band holds."
    case = data_for(dense(5, 4, 3), 600)
    M, J = gram(*case), jacobian(*case[:3])
    p = np.exp(case[0].predict(*case[1:3]))
    p /= p.sum(1, keepdims=True)
    S = (np.eye(3) - p[:, :, None])*np.sqrt(p)[:, None]
    rows = (S.transpose(0, 2, 1) @ J).reshape(1800, -1)
    assert error(M, rows @ rows.T/600) < 1e-13

def test_the_gram_matrix_of_dense_layers_forms_no_rows():
    "Its memory is that of the matrix, far below that of J."
    case = data_for(dense(300, 400, 4), 40)
    module.gram(*data_for(dense(3, 4), 2))
    tracemalloc.start()
    M = gram(*case)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    J_bytes = costs(case[0], 40)['J'].bytes
    assert M.shape == (160, 160) and peak < J_bytes/4 and J_bytes > 1e8

def test_the_jacobian_takes_its_own_memory():
    case = data_for(dense(100, 100, 10), 150)
    tracemalloc.start()
    J = jacobian(*case[:3])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < J.nbytes + 60e6 and J.nbytes > 1.2e8

def test_saturated_probabilities_keep_their_digits():
    "The root of B where softmax is nearly one-hot: relative to the small entries, not to 1."
    net = Graph()
    net.output(net.node('z', Dense(2, bias=False), net.input('x', 1)), CrossEntropy())
    theta, X, Y = np.array([20., -20.]), np.ones((1, 1)), np.array([0])
    tail = 1/(1 + np.exp(40.))                                 # p = (1 − tail, tail), B = tail(1 − tail)[[1,−1],[−1,1]]
    assert np.isclose(np.trace(gram(net, theta, X, Y)), 2*tail, rtol=1e-12)

def plateau(z): return anp.sum(z**4)

def test_a_loss_without_targets():
    net = dense(3, 4, 2, loss=plateau)
    problem = net, net.init(1), np.random.default_rng(0).standard_normal((6, 3)), None
    G, g = oracle.gauss_newton(*problem), plain_gradients(*problem)
    assert error(gauss_newton(*problem[:3]), G) < 1e-13 and error(empirical_fisher(*problem[:3]), g.T @ g/6) < 1e-13
    for method in METHODS:
        d = gauss_newton_step(*problem[:3], l2=.1, method=method).d
        assert error(d, np.linalg.solve(G + .1*np.eye(len(G)), -g.mean(0) - .1*problem[1])) < 1e-10

def test_outputs_of_any_shape():
    net = Graph()
    net.output(net.node('z', Conv(2, kernel=2), net.input('x', (1, 3, 3))), SquaredError())
    problem = data_for(net, 4)[:3] + (np.random.default_rng(1).standard_normal((4, 2, 2, 2)),)
    assert jacobian(*problem[:3]).shape == (4, 8, 10)
    G, g = oracle.gauss_newton(*problem), plain_gradients(*problem).mean(0)
    d = np.linalg.solve(G + np.eye(10), -g - problem[1])
    for method in METHODS: assert error(gauss_newton_step(*problem, l2=1, method=method).d, d) < 1e-12
    drawn = fisher(*problem[:3], draws=400).dense()
    assert .01 < error(drawn, G) < .2

def test_drawn_targets():
    "They are those of the model: the error falls like 1/√m, the seed decides them, the chunks do not."
    for loss in (CrossEntropy(), SquaredError(2.)):
        case = data_for(dense(3, 4, 3, loss=loss), 12)
        F = oracle.gauss_newton(*case)
        off = [np.mean([error(fisher(*case[:3], draws=m, rng=s), F) for s in range(12)]) for m in (4, 400)]
        assert 5 < off[0]/off[1] < 20 and off[1] < .1
        one, again, other = (fisher(*case[:3], draws=3, rng=s).dense() for s in (5, 5, 6))
        assert np.array_equal(one, again) and error(other, one) > 1e-3

def test_nothing_to_do():
    "No parameters, or none that reach the output."
    net = Graph()
    net.output(net.node('z', Tanh(), net.input('x', 2)), SquaredError())
    X, Y = np.ones((3, 2)), np.zeros((3, 2))
    assert jacobian(net, net.init(), X).shape == (3, 2, 0) and gauss_newton(net, net.init(), X, Y).shape == (0, 0)
    assert not gram(net, net.init(), X, Y).any()
    net = Graph()
    net.node('aside', Dense(2), net.input('x', 2))
    net.output(net.node('z', Tanh(), 'x'), SquaredError())
    assert not jacobian(net, net.init(), X).any() and not gauss_newton(net, net.init(), X, Y).dense().any()
    for method in METHODS:                                       # the regulariser alone: d = −θ
        assert error(gauss_newton_step(net, net.init(), X, Y, l2=.1, method=method).d, -net.init()) < 1e-12, method

def test_at_a_minimum_the_step_is_zero():
    net = dense(3, 2, loss=SquaredError())
    theta, X = np.zeros(net.size), np.ones((4, 3))
    for method in METHODS: assert not gauss_newton_step(net, theta, X, np.zeros((4, 2)), l2=1, method=method).d.any()


def kinked():
    net = Graph()
    a = net.node('a', ReLU(), net.node('h', Conv(2, kernel=2), net.input('x', (1, 4, 4))))
    net.output(net.node('z', Dense(3), a), CrossEntropy())
    net, theta, X, Y = data_for(net, 5)
    net.view(theta)['h.b'][:] = 0
    X[:, :, :2, :2] = 0
    return net, theta, X, Y

@pytest.mark.filterwarnings('default:.*exactly on a kink')
def test_kinks_are_told_once_and_as_asked():
    case, calls = kinked(), [gauss_newton, residual, gram, empirical_fisher]
    calls += [lambda *a, **k: jacobian(*a[:3], **k), lambda *a, **k: fisher(*a[:3], **k)]
    calls += [lambda *a, m=method, **k: gauss_newton_step(*a, l2=.1, method=m, **k) for method in METHODS]
    for call in calls:
        with pytest.warns(KinkWarning, match=r"10 entries .* 'a' \(ReLU\(\)\) 10") as caught: call(*case)
        assert len(caught) == 1 and caught[0].filename == __file__
        with pytest.raises(ValueError, match='exactly on a kink'): call(*case, kinks='raise')
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            call(*case, kinks='ignore')


# Singular and indefinite.

def test_without_regulariser():
    "Direct and Gram refuse; CG finds the least-norm step where there is one, and says so where there is none."
    for loss in (CrossEntropy(), SquaredError()):
        case = data_for(dense(6, 3, loss=loss), 2)
        with pytest.raises(LinAlgError, match="l2=0: give a larger l2.*method='cg'"):
            gauss_newton_step(*case, method='direct')
        with pytest.raises(ValueError, match='divides by l2 and got l2=0'): gauss_newton_step(*case, method='gram')
        G, g = oracle.gauss_newton(*case), plain_gradients(*case).mean(0)
        least = -np.linalg.pinv(G, rcond=1e-10, hermitian=True) @ g
        assert np.linalg.matrix_rank(G, hermitian=True, tol=1e-10) < len(G)
        assert error(gauss_newton_step(*case, method='cg', tol=1e-11).d, least) < 1e-8
    straight = data_for(dense(2, 1, loss=lambda z, y: anp.sum(z - y) + 0*anp.sum(z**2)), 5)
    with pytest.raises(LinAlgError, match='vᵀGv = 0 ≤ 0'): gauss_newton_step(*straight, method='cg')

def test_what_cholesky_does_not_notice():
    "A matrix that is singular to working precision only: no answer without digits."
    with pytest.raises(LinAlgError, match='to working precision; do this instead'):
        module.positive_solve(np.diag([1., 1e-19]), np.ones(2), 'do this instead')

def test_an_indefinite_matrix_is_refused():
    net = dense(2, 1, loss=lambda z, y: anp.sum(anp.log(1 + (z - y)**2)))
    case = net, 3*net.init(0), 3*np.random.default_rng(3).standard_normal((6, 2)), np.zeros((6, 1))
    lowest = np.linalg.eigvalsh(oracle.gauss_newton(*case))[0]
    assert lowest < -.05
    with pytest.raises(LinAlgError, match='not positive definite'): gauss_newton_step(*case, l2=.01, method='direct')
    with pytest.raises(LinAlgError, match='give a larger l2'): gauss_newton_step(*case, l2=.01, method='cg')
    with pytest.raises(ValueError, match="not convex in z: B has the eigenvalue -0.2.*method='direct' or 'cg'"):
        gauss_newton_step(*case, l2=.01, method='gram')
    bold = [gauss_newton_step(*case, l2=1 - lowest, method=method).d for method in ('direct', 'cg')]
    assert error(*bold) < 1e-10


# The count, and the choice by it.

def test_costs():
    net = dense(6, 5, 4)
    table = costs(net, 7)
    J = jacobian(*data_for(net, 7)[:3])
    assert table['J'].bytes == J.nbytes and table['J, one sample'].bytes == J[0].nbytes
    assert table['G'].bytes == 2*8*net.size**2
    assert table['cg iteration'].work == 2*7*(30 + 5 + 2*20)          # θ of h, the tanh, θ of z and through z
    assert table['direct'].work == 7*net.size**2/2 + net.size**3/6
    kernel = (28**2*(5 + 4) + 7**2*(7 + 6))/2                         # rows: d of each layer; features: with the 1
    assert np.isclose(table['gram'].work, kernel + 7*4*75 + 28**3/6)
    text = repr(table)
    assert all(name in text for name in table) and '7 samples, K = 4, p = 59' in text
    assert list(costs(mixed(), 3)) == list(table)

def test_the_cheapest_is_chosen():
    wide, narrow = dense(64, 800, 10), dense(4, 3, 2)
    assert cheapest(wide, 5, .1) == 'gram' and cheapest(wide, 5, 0) == 'cg' and cheapest(wide, 5000, .1) == 'cg'
    assert cheapest(narrow, 5000, .1) == 'direct'
    assert cheapest(wide, 5, .1, max_bytes=1e4) == 'cg'
    unknown = dense(64, 800, 10, loss=lambda z, y: anp.sum((z - y)**2))
    assert cheapest(unknown, 5, .1) == 'cg'                           # whether B has a root is not known beforehand
    case = data_for(dense(30, 60, 3), 4)
    assert gauss_newton_step(*case, l2=.1).method == 'gram'
    step = gauss_newton_step(*case, l2=.1, method='cg')
    assert 'cg' in repr(step) and f'{step.products} products' in repr(step)
    assert step.cost.work == step.products*costs(case[0], 4)['cg iteration'].work and step.seconds > 0


# Errors.

ERRORS = [
    (ValueError, 'got l2=-1; expected a finite number', lambda c: gauss_newton(*c, l2=-1)),
    (ValueError, 'got l2=nan', lambda c: objective(*c, l2=np.nan)),
    (ValueError, 'got l2=', lambda c: objective_gradient(*c, l2=np.ones(2))),
    (ValueError, 'l2=0.1 belongs to the parameters', lambda c: gauss_newton(*c, l2=.1, untied=True)),
    (ValueError, "method='lu'; expected one of", lambda c: gauss_newton_step(*c, l2=.1, method='lu')),
    (ValueError, "reduction='average'", lambda c: gauss_newton_step(*c, l2=.1, reduction='average')),
    (ValueError, "kinks='no'", lambda c: jacobian(*c[:3], kinks='no')),
    (ValueError, 'theta has shape', lambda c: jacobian(c[0], c[1][1:], c[2])),
    (ValueError, 'draws=0; expected a whole number', lambda c: fisher(*c[:3], draws=0)),
    (ValueError, 'draws=2.5', lambda c: fisher(*c[:3], draws=2.5)),
    (ValueError, 'CrossEntropy needs labels', lambda c: gauss_newton(*c[:3])),
    (ValueError, 'no samples', lambda c: jacobian(*c[:2], c[2][:0])),
    (LinAlgError, 'in 2 products; give a larger l2, tol or maxiter',
     lambda c: gauss_newton_step(*c, l2=1e-6, method='cg', maxiter=2)),
    (MemoryError, 'Jacobian of 6 samples, 3 × 55 each, .*max_bytes.*method="cg"',
     lambda c: jacobian(*c[:3], max_bytes=1000)),
    (MemoryError, 'Gauss–Newton matrix has 55 × 55', lambda c: gauss_newton(*c, max_bytes=1000)),
    (MemoryError, 'the residual has 55 × 55', lambda c: residual(*c, max_bytes=1000)),
    (MemoryError, "Gram matrix of 6 samples × 3 outputs.*method='cg'", lambda c: gram(*c, max_bytes=1000)),
    (MemoryError, 'Fisher matrix has 55', lambda c: fisher(*c[:3], max_bytes=1000))]

@pytest.mark.parametrize('kind, text, mistake', ERRORS, ids=[text for _, text, _ in ERRORS])
def test_errors(kind, text, mistake):
    with pytest.raises(kind, match=text): mistake(data_for(dense(4, 4, 4, 3), 6))
