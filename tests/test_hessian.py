"""The engine beyond correctness on random graphs: plans, chunks, tangents, kinks, limits, cost."""
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
from functools import partial
from itertools import product
from pathlib import Path

import autograd.numpy as anp
import numpy as np
import pytest
from autograd.extend import defvjp, primitive
from threadpoolctl import threadpool_limits

from hessian_nb import graph
from hessian_nb import hessian as engine
from hessian_nb.graph import Graph, Rule, backward
from hessian_nb.hessian import KinkWarning, attribute, decompose, hessian, hessian_vector, input_hessian, plan
from hessian_nb.rules import (Add, Affine, AvgPool, Concat, Conv, CrossEntropy, Dense, Diagonal, Flatten, LeakyReLU,
                              MaxPool, Multiply, ReLU, Softplus, SquaredError, Tanh, Transpose)

HERE = Path(__file__).parent


def convolutional():
    "Convolutions that share a kernel, a skip, a product, pooling."
    net = Graph()
    a = net.node('a', Tanh(), net.node('h', Conv(3, kernel=3, padding=1), net.input('x', (1, 6, 6))))
    b = net.node('b', Conv(3, kernel=3, padding=1, bias=False), a)
    c = net.node('c', Conv(3, kernel=3, padding=1, bias=False), net.node('t', Softplus(), b), theta='b')
    s = net.node('s', Multiply(), net.node('sum', Add(), c, a), a)
    q = net.node('q', Dense(5), net.node('m', MaxPool(2), s))
    net.output(net.node('z', Dense(4), net.node('r', Tanh(), q)), CrossEntropy())
    return net


def dense(*widths):
    net = Graph()
    v = net.input('x', widths[0])
    for i, width in enumerate(widths[1:-1]): v = net.node(f'a{i}', Tanh(), net.node(f'h{i}', Dense(width), v))
    net.output(net.node('z', Dense(widths[-1]), v), CrossEntropy())
    return net


def data_for(net, N, classes, seed=0):
    rng = np.random.default_rng(seed)
    return net.init(seed), rng.standard_normal((N, *net.nodes['x'].shape)), rng.integers(0, classes, N)


def close(a, b, tolerance=1e-13): return np.linalg.norm(a - b) <= tolerance*np.linalg.norm(b)


@pytest.fixture
def case():
    net = convolutional()
    return net, *data_for(net, 23, 4)


def planned(monkeypatch, **changes):
    "Let every plan differ from what it would be."
    monkeypatch.setattr(engine, 'plan', lambda net, N, **how: engine.Plan(**{**vars(plan(net, N, **how)), **changes}))


@pytest.mark.parametrize('chunk', [1, 4, 22])
def test_chunks_do_not_matter(case, monkeypatch, chunk):
    whole = hessian(*case).dense()
    planned(monkeypatch, chunk=chunk)
    assert close(hessian(*case).dense(), whole)


def channels():
    """What becomes of directions that move one channel each: kept through pooling and Flatten, taken row by row, met by
    others of as many and of other channels, mixed by a transposition, by the kernel of another number of channels."""
    net = Graph()
    h = net.node('h', Conv(4, kernel=3, padding=1), net.input('x', (2, 6, 6)))
    b = net.node('b', Conv(4, kernel=(1, 3), padding=(0, 1), bias=False), net.node('a', Tanh(), h))
    s = net.node('s', MaxPool(2), net.node('m', Multiply(), b, h))
    c = net.node('c', Conv(6, kernel=2, stride=1), net.node('t', Transpose(2, 0, 1), s))
    f = net.node('f', Flatten(), net.node('g', Softplus(), net.node('e', Conv(2, kernel=2), s)))
    q = net.node('q', Multiply(), net.node('j', Dense(5), c), net.node('k', Dense(5), f, theta=None))
    net.output(net.node('z', Dense(4), net.node('u', Concat(), q, f)), CrossEntropy())
    return net


@pytest.mark.parametrize('untied', [False, True])
@pytest.mark.parametrize('make', [convolutional, channels])
@pytest.mark.parametrize('chosen', ['0', '01', '012', '1', '12', '013', '3', '01234567'])
def test_what_is_carried_and_what_is_pushed_agree(monkeypatch, make, chosen, untied):
    "Tangents that meet and the push from both sides, for several ways of sharing the parameters between them."
    net = make()
    case, names = (net, *data_for(net, 23, 4)), [n for n, v in net.nodes.items() if v.theta]
    planned(monkeypatch, carried=[], pushed=names, chunk=7)
    key = next(t for t in engine.terms(net) if t[1] == 'mixed')
    pushed, term = hessian(*case, untied=untied).dense(), decompose(*case, untied=untied)[key].dense()
    thetas = list(dict.fromkeys(net.nodes[n].theta for n in names))
    early = [n for n in names if str(thetas.index(net.nodes[n].theta)) in chosen]
    planned(monkeypatch, carried=early, pushed=[n for n in names if n not in early], chunk=7)
    assert close(hessian(*case, untied=untied).dense(), pushed)
    assert close(decompose(*case, untied=untied)[key].dense(), term)


def test_a_tangent_by_rows_says_what_the_written_one_says():
    "Through every rule of the network, bent, coupled and met: as if its zeros were written out."
    net = channels()
    theta, X, Y = data_for(net, 5, 4)
    local = backward(net, net.linearize(theta, net.data(X, Y, loss=True)))
    at, whole = {a.name: a for a in local}, engine.Tangent.whole
    J = engine.Tangent.of(at['h'])
    assert J.rows == 4 and J.array.shape == (19, 144, 1, 5) and whole(J).shape == (76, 144, 1, 5)
    moved = {'h': J}
    for name, parent, slot, kept in [('a', 'h', 0, 4), ('b', 'a', 0, 1), ('m', 'h', 1, 4), ('s', 'm', 0, 4),
                                     ('e', 's', 0, 1), ('t', 's', 0, 1)]:
        moved[name] = moved[parent].through(at[name], slot)
        written = engine.Tangent(whole(moved[parent])).through(at[name], slot)
        assert moved[name].rows == kept and np.allclose(whole(moved[name]), written.array, rtol=1e-13, atol=1e-13)
    for name, parent in ('b', 'a'), ('e', 's'):
        written = engine.Tangent(whole(moved[parent])).coupled(at[name], 0)
        assert np.allclose(moved[parent].coupled(at[name], 0), written, rtol=1e-13, atol=1e-13)
    bent, rng = J.bent(at['a'], 0, 0), np.random.default_rng(0)
    assert bent.rows == 4 and np.allclose(whole(bent), engine.Tangent(whole(J)).bent(at['a'], 0, 0).array)
    several = [J, bent, *(engine.Tangent(rng.standard_normal((3, 144, 1, 5)), rows) for rows in (1, 2))]
    for A, B in product(several, several):
        assert np.allclose(engine.meet(A, B), np.einsum('aexn,bexn->ab', whole(A), whole(B)))


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
def test_rows_are_kept_apart_only_where_they_are(monkeypatch, rules):
    "Layers whose features or windows are not in the order of the rows that a tangent keeps apart."
    net = after_a_convolution(*rules)
    case, names = (net, *data_for(net, 9, 4)), [n for n, v in net.nodes.items() if v.theta]
    for i in range(len(names) + 1):
        planned(monkeypatch, carried=names[:i], pushed=names[i:])
        assert hessian(*case).certify(quiet=True) < 1e-13


class Scaled(Rule):
    "A rule whose closed form forgets to add up over the samples."
    traced = False
    def infer(self, shapes): return shapes[0]
    def parameters(self, shapes): return {'a': shapes[0]}
    def value(self, x, theta): return theta['a'][..., None]*x[0]
    def pull(self, at, slot, A, total=False): return A*(at.x[0] if slot == 'θ' else at.theta['a'][..., None])[:, None]


def test_a_rule_that_does_not_add_up_over_the_samples_is_told():
    net = Graph()
    s = net.node('s', Scaled(), net.node('h', Dense(4), net.input('x', 3)))
    net.output(net.node('z', Dense(4), s), CrossEntropy())
    theta, X, Y = data_for(net, 5, 4)
    with pytest.raises(ValueError, match=r"node 's'.*total=True.*\(1, 4, 1, 5\)"):
        hessian_vector(net, theta, X, Y, theta)


def test_the_plan_pushes_small_maps_and_carries_the_weights_of_large_ones():
    small, large = dense(8, 6, 3), Graph()
    v = large.node('a', Tanh(), large.node('h', Conv(4, kernel=3), large.input('x', (1, 28, 28))))
    large.output(large.node('z', Dense(10), large.node('m', AvgPool(13), v)), CrossEntropy())
    assert plan(small, 100).carried == [] and plan(small, 100).chunk == 100
    assert plan(large, 100).carried == ['h'] and plan(large, 100).pushed == ['z']
    theta, X, Y = data_for(large, 3, 10)
    assert hessian(large, theta, X, Y).certify() < 1e-13


class Swish(Rule):
    "A rule of a user's own that states its value and nothing else."
    def infer(self, shapes): return shapes[0]
    def value(self, x, theta): return x[0]/(1 + anp.exp(-x[0]))


def test_autograd_never_runs_in_threads(monkeypatch):
    "Autograd keeps one stack of traces for all threads; a rule that needs it takes the work of its network to one."
    alone, seen, make_vjp = Graph(), set(), graph.make_vjp
    a = alone.node('a', Swish(), alone.node('h', Dense(4), alone.input('x', 5)))
    alone.output(alone.node('z', Dense(3), a), CrossEntropy())
    monkeypatch.setattr(graph, 'make_vjp', lambda *a: seen.add(threading.get_ident()) or make_vjp(*a))
    planned(monkeypatch, chunk=5)
    theta, X, Y = data_for(alone, 60, 3)
    assert hessian(alone, theta, X, Y).certify() < 1e-12 and len(seen) == 1
    assert not engine.traced(convolutional())


def test_an_interrupt_stops_the_work(case, monkeypatch):
    planned(monkeypatch, chunk=1)
    begun, linearize = [], Graph.linearize

    def once(net, *args):
        begun.append(1)
        if len(begun) == 3: raise KeyboardInterrupt
        return linearize(net, *args)
    monkeypatch.setattr(Graph, 'linearize', once)
    with pytest.raises(KeyboardInterrupt): hessian(*case)
    assert len(begun) < len(case[2])


def test_reduction(case):
    N = len(case[2])
    assert close(hessian(*case, reduction='sum').dense(), N*hessian(*case).dense())
    v = np.random.default_rng(1).standard_normal(case[0].size)
    assert np.isclose(attribute(*case, v, reduction='sum').total(), N*attribute(*case, v).total(), rtol=1e-13)
    assert close(hessian_vector(*case, v, reduction='sum'), N*hessian_vector(*case, v))


def test_attribution_per_sample_is_that_of_each_sample_alone(case):
    net, theta, X, Y = case
    v = np.random.default_rng(1).standard_normal(net.size)
    together = attribute(net, theta, X, Y, v)
    for i in (0, 7, 22):
        alone = attribute(net, theta, X[i:i+1], Y[i:i+1], v)
        for key in together: assert np.isclose(together.per_sample[key][i], alone[key], rtol=1e-10, atol=1e-14)
    for key in together: assert together[key] == together.per_sample[key].mean()


def test_nodes_beside_the_way_get_zero_blocks():
    net = Graph()
    x = net.input('x', 3)
    net.node('aside', Dense(2), x)
    net.output(net.node('z', Dense(2), x), SquaredError())
    theta, X = net.init(), np.ones((4, 3))
    H = hessian(net, theta, X, np.zeros((4, 2)))
    assert not H['aside', 'z'].any() and not H['aside', 'aside'].any() and H['z', 'z'].any()
    K = input_hessian(net, theta, X, np.zeros((4, 2)))
    assert K['aside', 'z'].shape == (4, 2, 2) and not K['aside', 'x'].any()
    assert not any(node == 'aside' for node, _ in decompose(net, theta, X, np.zeros((4, 2))))


def test_a_network_without_parameters_has_an_empty_hessian():
    net = Graph()
    net.output(net.node('a', Tanh(), net.input('x', 2)), SquaredError())
    assert hessian(net, net.init(), np.ones((3, 2)), np.zeros((3, 2))).shape == (0, 0)


def kinked():
    "Biases at zero put every blank position on the channel's kink."
    net = Graph()
    a = net.node('a', ReLU(), net.node('h', Conv(2, kernel=2), net.input('x', (1, 4, 4))))
    net.output(net.node('z', Dense(3), a), CrossEntropy())
    theta, X, Y = data_for(net, 5, 3)
    net.view(theta)['h.b'][:] = 0
    X[:, :, :2, :2] = 0
    return net, theta, X, Y


def test_kinks_are_told_once_and_as_asked():
    case = kinked()
    v = np.ones(case[0].size)
    def along(*a, **k): return attribute(*a, v, **k)
    def product(*a, **k): return hessian_vector(*a, v, **k)
    for call in (hessian, decompose, along, product, input_hessian):
        with pytest.warns(KinkWarning, match=r"10 entries .* 'a' \(ReLU\(\)\) 10") as caught: call(*case)
        assert len(caught) == 1 and caught[0].filename == __file__      # told where the user called
        with pytest.raises(ValueError, match='exactly on a kink'): call(*case, kinks='raise')
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            call(*case, kinks='ignore')
    with pytest.raises(ValueError, match="expected 'warn', 'raise' or 'ignore'"): hessian(*case, kinks='no')


def test_structural_zeros_are_no_kinks():
    net = Graph()
    a = net.node('a', ReLU(), net.node('h', Conv(2, kernel=2, bias=False), net.input('x', (1, 4, 4))))
    m = net.node('m', MaxPool(2, stride=1), a)
    net.output(net.node('z', Dense(3), m), CrossEntropy())
    theta, X, Y = data_for(net, 5, 3)
    X[:, :, :3, :3] = 0
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        hessian(net, theta, X, Y)


def test_a_large_matrix_is_refused_before_it_is_made():
    net = dense(64, 500, 130, 10)
    theta, X, Y = data_for(net, 1000, 10)
    v = np.random.default_rng(0).standard_normal(net.size)
    tracemalloc.start()
    with pytest.raises(MemoryError, match=r'98,940 × 98,940 entries.*attribute.*hessian_vector.*max_bytes'):
        hessian(net, theta, X, Y)
    with pytest.raises(MemoryError): decompose(net, theta, X, Y)
    a, Hv = attribute(net, theta, X, Y, v), hessian_vector(net, theta, X, Y, v)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300e6 < 8*net.size**2       # nothing of size p × p was there at any time
    assert np.isclose(a.total(), v @ Hv, rtol=1e-12)


def test_attribution_costs_at_most_two_products():
    "In processor time on one core, which other processes do not disturb."
    net = dense(64, 500, 130, 10)
    theta, X, Y = data_for(net, 1000, 10)
    v = np.random.default_rng(0).standard_normal(net.size)
    def seconds(f):
        start = time.process_time()
        f(net, theta, X, Y, v)
        return time.process_time() - start
    with threadpool_limits(1): pairs = [(seconds(attribute), seconds(hessian_vector)) for _ in range(7)]
    assert np.median([a/h for a, h in pairs]) < 2


def test_a_certificate_fails_on_a_wrong_matrix(case):
    H = hessian(*case)
    assert H.certify() < 1e-13
    H['q', 'h'][:] *= 1 + 1e-6
    assert H.certify() > 1e-9


def test_blocks_are_views_and_the_matrix_is_an_array(case):
    H = hessian(*case)
    assert np.shares_memory(H['h.W', 'z'], H.dense()) and np.asarray(H) is H.dense()
    assert H['h', 'z'].shape == (30, 24) and H['h.W', 'z.b'].shape == (27, 4)
    assert np.array_equal(H['h', 'z'], H['z', 'h'].T) and (H - H).dense().any() == 0
    assert H.names == ['h', 'b', 'q', 'z'] and hessian(*case, untied=True).names == ['h', 'b', 'c', 'q', 'z']


def test_many_samples_keep_the_memory_small():
    net = dense(20, 16, 8, 5)
    theta, X, Y = data_for(net, 40000, 5)
    net.data(X, Y, loss=True)
    tracemalloc.start()
    H = hessian(net, theta, X, Y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2*8*net.size**2 + 300e6
    assert close(H.dense(), np.mean([hessian(net, theta, X[i::8], Y[i::8]).dense() for i in range(8)], axis=0), 1e-12)


def test_a_function_with_a_parameter_keeps_the_memory_small():
    "Its own block is summed over the samples at once: (p_v, p_v) numbers for each of them would be 820 MB here."
    net = Graph()
    k = net.parameter('k', (20, 16))
    h = net.node('m', lambda u, k: anp.sin(anp.dot(u, k)), net.input('x', 20), theta=k, batched=True)
    net.output(net.node('z', Dense(3), h), CrossEntropy())
    theta, X, Y = data_for(net, 1000, 3)
    tracemalloc.start()
    H = hessian(net, theta, X, Y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6 and H.certify(quiet=True) < 1e-13


def recurrent(layer, uses, outputs, loss):
    "One layer with as many outputs as inputs, used several times with a tanh behind each, between two dense ones."
    net = Graph()
    h = net.node('a', Tanh(), net.node('first', Dense(layer.units), net.input('x', 5)))
    for i in range(uses): h = net.node(f't{i}', Tanh(), net.node(f'r{i}', layer, h, theta='r0' if i else None))
    net.output(net.node('z', Dense(outputs), h), loss)
    return net


@pytest.mark.parametrize('uses', [3, 6])
def test_many_uses_of_one_parameter(uses):
    "A few uses are added up where they meet a layer, many are one row; the terms add up to a certified Hessian."
    net = recurrent(Dense(4), uses, 3, CrossEntropy())
    theta, X, Y = data_for(net, 70, 3)
    starts, first = engine.starts(net), next(at for at in engine.hollow(net) if at.name == 'r0')
    sides = [port.side for port in engine.ports_of(net, list(starts), starts)(first)]
    assert sides == (['value', 'features'] if uses == 3 else [engine.THETA])
    H, terms = hessian(net, theta, X, Y), decompose(net, theta, X, Y)
    assert H.certify(quiet=True) < 1e-13 and close(terms.total().dense(), H.dense())
    v = np.random.default_rng(0).standard_normal(net.size)
    for kind, part in terms.by_kind().items():
        assert close(part @ v, hessian_vector(net, theta, X, Y, v, seeds=lambda t, kind=kind: t[1] == kind), 1e-11)
    for (node, kind), part in terms.items():
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
    def pairs(self, slots): return [(0, 0), (0, engine.THETA)]
    def by(self, *slots): return Rule if engine.THETA in slots else Diagonal
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


def test_a_number_is_pulled_to_by_one_pullback():
    "The gradient needs no second derivative of a function, and that of one number neither."
    f = primitive(np.sin)
    defvjp(f, lambda out, u: lambda g: g*np.cos(u) if isinstance(g, np.ndarray) else 1/0)
    net = Graph()
    number = net.parameter('k', ())
    net.output(net.node('f', lambda u, t: f(u*t), net.input('x', 2), theta=number), lambda z: anp.sum(z))
    x, theta = np.ones((4, 2)), net.init()
    assert np.isclose(net.gradient(theta, x)[0], 2*np.cos(theta[0]))


def test_parts_of_a_fingerprint_do_not_run_into_each_other():
    parts = (.9, 10), (.91, 0), (1, 23), (12, 3), ([1], 2), ([1, 2],), ([1, 2], [])
    prints = [engine.fingerprint(*part) for part in parts]
    arrays = [engine.fingerprint(A) for A in (np.zeros((2, 3)), np.zeros((3, 2)), np.zeros((2, 3), np.int64))]
    assert len({*prints, *arrays}) == len(prints) + len(arrays)


def test_a_definition_knows_what_functions_hold():
    "Autograd's functions, functions inside functions, partials; not where they lie in memory."
    def net(f):
        net = Graph()
        net.output(net.node('f', f, net.node('h', Dense(2), net.input('x', 2))), SquaredError())
        return engine.fingerprint(engine.definition(net))
    def holds(inner): return lambda u: inner(u)
    def power(u, k): return u**k
    functions = [lambda: anp.sin, lambda: anp.tanh, lambda: holds(anp.sin), lambda: holds(anp.tanh),
                 lambda: partial(power, k=2), lambda: partial(power, k=3)]
    assert len({net(f()) for f in functions}) == len(functions)
    assert all(net(f()) == net(f()) for f in functions)


# --- interrupted and resumed

FUNCTIONS = {2.: lambda held: lambda u: anp.sin(2.*u + held), 3.: lambda held: lambda u: anp.sin(3.*u + held)}


def small_case(slope=.1, factor=.5, inside=2., held=1.):
    net = Graph()
    a = net.node('a', LeakyReLU(slope), net.node('h', Dense(4), net.input('x', 3)))
    net.output(net.node('z', Dense(2), net.node('s', FUNCTIONS[inside](held), a)), SquaredError(factor))
    return net


@pytest.mark.parametrize('change', [{'slope': .2}, {'factor': 1.}, {'inside': 3.}, {'held': 2.}])
def test_a_checkpoint_of_another_network_is_refused(tmp_path, monkeypatch, change):
    "Settings of rules and of the loss count, and numbers in a function, though none of them may show."
    rng, file = np.random.default_rng(0), tmp_path/'sums.npz'
    X, Y = rng.standard_normal((500, 3)), rng.standard_normal((500, 2))
    planned(monkeypatch, chunk=10)
    save, saved = engine.Checkpoint.save, []

    def stop(self, **arrays):
        self.saved = -1e9
        save(self, **arrays)
        saved.append(1)
        if len(saved) == 2: raise KeyboardInterrupt
    monkeypatch.setattr(engine.Checkpoint, 'save', stop)
    net, other = small_case(), small_case(**change)
    with pytest.raises(KeyboardInterrupt): hessian(net, net.init(0), X, Y, checkpoint=file)
    with pytest.raises(ValueError, match='belongs to another computation'):
        hessian(other, net.init(0), X, Y, checkpoint=file)
    again = small_case()
    assert close(hessian(again, net.init(0), X, Y, checkpoint=file).dense(), hessian(net, net.init(0), X, Y).dense())


SLOW = '''
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)    # which a job in the background may ignore
import hessian_nb.hessian as engine
from test_hessian import data_for, dense
net = dense(20, 16, 8, 5)
theta, X, Y = data_for(net, 40000, 5)
class Eager(engine.Checkpoint):
    def save(self, **arrays):
        self.saved = -1e9
        super().save(**arrays)
        print('saved', flush=True)
        time.sleep(.2)
engine.Checkpoint, engine.plan_ = Eager, engine.plan
engine.plan = lambda net, N, **how: engine.Plan(**{**vars(engine.plan_(net, N, **how)), 'chunk': 500})
engine.hessian(net, theta, X, Y, checkpoint=sys.argv[1])
'''


@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_hessian_goes_on(tmp_path, monkeypatch, how):
    "A process that is stopped in the middle leaves a file from which only the rest is computed, with the same result."
    file = tmp_path/'half.npz'
    run = subprocess.Popen([sys.executable, '-c', SLOW, file], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                           env={**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, [HERE.parent, HERE]))})
    for _ in range(3): assert run.stdout.readline() == b'saved\n'
    run.send_signal(how)
    assert run.wait() != 0
    assert 12000 <= np.load(file)['done'] < 40000

    net = dense(20, 16, 8, 5)
    theta, X, Y = data_for(net, 40000, 5)
    whole = hessian(net, theta, X, Y).dense()
    planned(monkeypatch, chunk=500)
    with pytest.raises(ValueError, match='belongs to another computation'):
        hessian(net, theta + 1e-9, X, Y, checkpoint=file)
    seen = []
    monkeypatch.setattr(engine, 'backward', lambda *args: seen.append(args[1][-1].n) or backward(*args))
    assert close(hessian(net, theta, X, Y, checkpoint=file).dense(), whole, 1e-13)
    assert 0 < sum(seen) <= 40000 - 12000 and not file.exists()
