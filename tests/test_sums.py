"""Rows that become a matrix: every way of the plan, small tiles, many uses, equal bits."""
import autograd.numpy as anp
import numpy as np
import pytest
from support.cases import channels, close, convolutional, data_for, dense, forced, recurrent

from hessian_nb import sums as room
from hessian_nb.graph import Axes, Graph
from hessian_nb.hessian import Point, curvature, decompose, hessian, hessian_vector
from hessian_nb.node import THETA, Rule
from hessian_nb.plan import rows_of, shapes_only
from hessian_nb.push import all_terms, terms
from hessian_nb.rules import (Add, Affine, AvgPool, Conv, CrossEntropy, Dense, Diagonal, Flatten, MaxPool, Multiply,
                              SquaredError, Tanh)


def by_way(net, theta, X, Y, seeds=all_terms, untied=False, **how):
    return curvature(Point(net, theta, X, Y), seeds, untied, plan=forced(net, **how)).dense()


@pytest.mark.parametrize('untied', [False, True])
@pytest.mark.parametrize('make', [convolutional, channels])
@pytest.mark.parametrize('chosen', ['0', '01', '012', '1', '12', '013', '3', '01234567'])
def test_what_is_carried_and_what_is_pushed_agree(make, chosen, untied):
    "Tangents that meet and the push from both sides, for several ways of sharing the parameters between them."
    net = make()
    case, names = (net, *data_for(net, 23, 4)), [n for n, v in net.nodes.items() if v.theta]
    key = next(t for t in terms(net) if t[1] == 'mixed')
    thetas = list(dict.fromkeys(net.nodes[n].theta for n in names))
    early = [n for n in names if str(thetas.index(net.nodes[n].theta)) in chosen]
    for seeds in (all_terms, lambda t: t == key):
        pushed = by_way(*case, seeds, untied, chunk=7)
        assert close(by_way(*case, seeds, untied, carried=early, chunk=7), pushed)


@pytest.mark.parametrize('chunk', [1, 4, 22])
def test_chunks_do_not_matter(chunk):
    net = convolutional()
    case = net, *data_for(net, 23, 4)
    assert close(by_way(*case, chunk=chunk), hessian(*case).dense())


def test_equal_calls_give_equal_bits():
    "Chunks on several threads add up in their order."
    net = dense(20, 16, 8, 5)
    case = net, *data_for(net, 3000, 5)
    first = by_way(*case, chunk=100)
    for _ in range(6): assert np.array_equal(by_way(*case, chunk=100), first)


@pytest.mark.parametrize('make, outputs', [(convolutional, 4), (channels, 4), (lambda: recurrent(Dense(4), 6, 3,
                                                                                                 CrossEntropy()), 3),
                                           (lambda: dense(6, 5, 4, 3), 3)])
def test_small_tiles(monkeypatch, make, outputs):
    "Mirroring, laying down and adding up uses, in pieces so small that every loop turns."
    net = make()
    case = net, *data_for(net, 23, outputs)
    monkeypatch.setattr(room._mirror, '__defaults__', (7,))
    monkeypatch.setattr(room._place_own, '__defaults__', (50.,))
    monkeypatch.setattr(room.contract_uses, '__defaults__', (5,))
    for plan in (None, forced(net)):
        H = curvature(Point(*case), all_terms, plan=plan)
        assert close(H.dense(), hessian(*case).dense()) and hessian(*case).certify(quiet=True) < 1e-13


def skips(last):
    "Networks on which writing in place into what another node still reads is wrong."
    net = Graph()
    h = net.node('h', Dense(3), net.input('x', 4))
    c = net.node('c', Tanh(), h)
    u = net.node('u', Dense(3), net.node('s', Add(), h, c))
    t = net.node('t', Tanh(), h)
    net.output(net.node('z', last, u, t), SquaredError())
    return net


def two_layers():
    net = Graph()
    x = net.input('x', 4)
    a, b = net.node('a', Dense(3), x), net.node('b', Dense(3), x)
    q = net.node('q', Tanh(), a)
    net.output(net.node('z', Multiply(), q, net.node('s', Add(), a, b)), SquaredError())
    return net


@pytest.mark.parametrize('make', [lambda: skips(Add()), lambda: skips(Multiply()), two_layers])
def test_nothing_is_written_into_what_others_read(make):
    net, rng = make(), np.random.default_rng(0)
    theta, X, Y = net.init(0), rng.standard_normal((9, 4)), rng.standard_normal((9, 3))
    H, v = hessian(net, theta, X, Y), rng.standard_normal(net.size)
    assert H.certify(quiet=True) < 1e-13 and close(hessian_vector(net, theta, X, Y, v), H @ v, 1e-12)
    slope = [(net.loss(theta + e, X, Y) - net.loss(theta - e, X, Y))/2e-6 for e in 1e-6*np.eye(net.size)]
    assert np.allclose(net.gradient(theta, X, Y), slope, atol=1e-8)


class TokenDense(Affine):
    "A layer of a user's own: one Dense for every token of (tokens, features). It states its two maps and no more."
    def __init__(self, units): self.units, self.bias = units, True
    def rows(self): return self.units
    def fan_in(self, shape): return (shape[1],)
    def infer(self, shapes): return (self.units, shapes[0][0])
    def features(self, shape, V):
        return anp.reshape(anp.swapaxes(anp.reshape(V, (len(V), *shape, -1)), 1, 2), (len(V), shape[1], -1))
    def fold(self, shape, A, t): return A.reshape(len(A), *shape[::-1], t).swapaxes(1, 2).reshape(len(A), -1, t)


class Unflatten(Flatten):
    "The same entries in another shape."
    def __init__(self, *shape): self.shape = shape
    def infer(self, shapes): return self.shape
    def value(self, x, theta): return anp.reshape(x[0], (*self.shape, x[0].shape[-1]))


def after_a_convolution(*rules):
    "Rules that come after a convolution on (2, 6), with a dead end beside them."
    net = Graph()
    h = v = net.node('h', Conv(4, kernel=3), net.input('x', (2, 6)))
    for i, rule in enumerate(rules): v = net.node(f'v{i}', rule, v)
    net.node('nowhere', Tanh(), h)
    net.output(net.node('z', Dense(4), v), CrossEntropy())
    return net


@pytest.mark.parametrize('rules', [[Tanh(), TokenDense(3)], [Tanh(), TokenDense(4), Tanh(), TokenDense(2)],
                                   [Unflatten(1, 4, 4), AvgPool(2), Tanh()], [Unflatten(2, 8), MaxPool(2)],
                                   [Dense(24), Unflatten(4, 6), AvgPool(3)]])
def test_rows_are_kept_apart_only_where_they_are(rules):
    "Layers whose features or windows are not in the order of the rows that a tangent keeps apart."
    net = after_a_convolution(*rules)
    case, names = (net, *data_for(net, 9, 4)), [n for n, v in net.nodes.items() if v.theta]
    for i in range(len(names) + 1):
        H = hessian(*case)
        H.array = by_way(*case, carried=names[:i])
        assert H.certify(quiet=True) < 1e-13


@pytest.mark.parametrize('uses', [3, 6])
def test_many_uses_of_one_parameter(uses):
    "A few uses are added up where they meet a layer, many are one row; the terms add up to a certified Hessian."
    net = recurrent(Dense(4), uses, 3, CrossEntropy())
    theta, X, Y = data_for(net, 70, 3)
    axes, first = Axes(net), next(at for at in shapes_only(net) if at.name == 'r0')
    rows = [type(row).__name__ for row in rows_of(net, list(axes.start), axes)(first)]
    assert rows == (['ValueRow', 'FeatureRow'] if uses == 3 else ['ThetaRow'])
    H, D = hessian(net, theta, X, Y), decompose(net, theta, X, Y)
    assert H.certify(quiet=True) < 1e-13 and close(D.total().dense(), H.dense())
    v = np.random.default_rng(0).standard_normal(net.size)
    for kind, part in D.by_kind().items():
        assert close(part @ v, hessian_vector(net, theta, X, Y, v, seeds=lambda t, kind=kind: t[1] == kind), 1e-11)
    for (node, kind), part in D.items():
        assert close(part @ v, hessian_vector(net, theta, X, Y, v, seeds=lambda t, key=(node, kind): t == key), 1e-11)


class Twice(Dense):
    "z = W(2x) + b: features of its own, and so no longer δ xᵀ."
    rank_one = False
    def features(self, shape, V): return 2*V
    def fold(self, shape, A, t): return 2*A


@pytest.mark.parametrize('uses', [1, 2, 6])
def test_a_layer_with_features_of_its_own(uses):
    "Each use alone, a few, and as one row."
    net = recurrent(Twice(3), uses, 2, SquaredError())
    theta, X, Y = data_for(net, 9, 2)
    assert hessian(net, theta, X, np.eye(2)[Y]).certify(quiet=True) < 1e-13
    class Wrong(Twice): rank_one = True
    with pytest.raises(TypeError, match="node 'w': .*rank_one = False"): net.node('w', Wrong(3), 'a')


class Power(Diagonal):
    "b_c x², with one b for each channel: a parameter of another size than the value."
    def parameters(self, shapes): return {'': (shapes[0][0],)}
    def value(self, x, theta): return theta[:, None, None]*x[0]**2
    def slopes(self, at): return [2*at.theta[:, None, None]*at.x[0]]
    def bend(self, at, s, t): return 2*at.theta[:, None, None]*np.ones_like(at.x[0])
    def pairs(self, slots): return [(0, 0), (0, THETA)]
    def by(self, *slots): return Rule if THETA in slots else Diagonal
    def pull(self, at, slot, A, total=False): return self.by(slot).pull(self, at, slot, A, total)
    def tangent(self, at, slot, V): return self.by(slot).tangent(self, at, slot, V)
    def pull_diagonal(self, at, slot, e): return self.by(slot).pull_diagonal(self, at, slot, e)
    def seed(self, at, s, t): return self.by(s, t).seed(self, at, s, t)
    def curve(self, at, s, t, V, total=False): return self.by(s, t).curve(self, at, s, t, V, total)


def test_an_entrywise_rule_with_a_parameter():
    net = Graph()
    net.output(net.node('p', Power(), net.node('c', Conv(2, 2), net.input('x', (1, 4)))), SquaredError())
    X, Y = np.random.default_rng(0).standard_normal((2, 6, 1, 4)), np.zeros((6, 2, 3))
    assert hessian(net, net.init(), X[0], Y).certify(quiet=True) < 1e-13
