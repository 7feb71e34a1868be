"""The graph: its parameters and data, values, δ, P, J and gradients, and that nothing changes behind its back.

The oracles are autograd's derivatives of a forward pass of this file, which calls no rule but `value`."""
import pickle
import sys

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad, jacobian
from autograd import hessian as autograd_hessian
from support.random_networks import CURVED, LOSSES, POLYNOMIAL, SHARING, descriptions, live, on_different

from hessian_nb.graph import (Axes, Data, Graph, back, backward, boxes_of, depending, edges_of, reaching,
                              total_jacobians)
from hessian_nb.hessian import attribute, decompose, hessian
from hessian_nb.node import LOSS, THETA, Rule
from hessian_nb.rules import (GELU, Abs, Add, Concat, Conv, CrossEntropy, Dense, HardTanh, LayerNorm, MatMul, MaxPool,
                              Multiply, ReLU, Softmax, SquaredError, Tanh, Transpose)


def forward(net, theta, X, nudges=None):
    "Every node's value, sample-last, with something added to some of them."
    f = {}
    for name, v in net.nodes.items():
        slots = {p: theta[q.offset:q.offset + q.size] for p, q in net.parameters.items()}
        x = [f[p] for p in v.parents]
        f[name] = X[name] if v.rule is None else v.rule.value(x, v.unpack(slots[v.theta]) if v.theta else None)
        if nudges and name in nudges: f[name] = f[name] + nudges[name]
    return f


def losses(net, theta, X, Y, nudges=None):
    z = forward(net, theta, X, nudges)[net.output_node]
    return net.loss_rule.value([z] if Y is None else [z, Y], None)


def sample_last(net, X, Y):
    "The data as rules take them, laid out here."
    X = X if isinstance(X, dict) else {next(iter(net.nodes)): X}
    Y = None if Y is None else np.asarray(Y)
    if Y is not None and net.loss_rule.__class__ is not CrossEntropy: Y = np.moveaxis(Y, 0, -1)
    return {name: np.moveaxis(np.asarray(x, float), 0, -1) for name, x in X.items()}, Y


def close(found, true, tolerance=1e-10):
    size = max(1, np.abs(true).max(initial=0))
    return np.shape(found) == np.shape(true) and np.abs(np.asarray(found) - true).max(initial=0) < tolerance*size


# First-order quantities of random networks.

def check_first_order(net, theta, X, Y):
    "Gradient, δ, P and J: what they say against derivatives of the plain forward pass."
    X_, Y_ = sample_last(net, X, Y)
    N = next(iter(X_.values())).shape[-1]
    data = net.data(X, Y, loss=True)
    local = backward(net.linearize(theta, data))
    P = total_jacobians(local)
    zeros = {at.name: np.zeros(at.value.shape) for at in local[:-1]}
    delta = grad(lambda nudges: anp.sum(losses(net, theta, X_, Y_, nudges)))(zeros)
    assert close(net.gradient(theta, X, Y), grad(lambda t: anp.mean(losses(net, t, X_, Y_)))(theta))
    assert np.isclose(net.loss(theta, X, Y, reduction='sum'), np.sum(losses(net, theta, X_, Y_)), rtol=1e-12)
    for at in local[:-1]:
        if at.name not in live(net): assert at.delta is None
        else: assert close(at.delta, delta[at.name].reshape(at.d, N)), at.name
    out = net.output_node
    d = net.nodes[out].size
    rows = np.broadcast_to(np.eye(d).reshape(d, d, 1, 1), (d, d, 1, N))
    J = np.zeros((N, d, net.size))
    for at, A in back(local, {out: rows}):
        if A is None or at.name == LOSS: continue
        assert close(np.moveaxis(A[:, :, 0], -1, 0), P[out, at.name]), at.name
        if at.flat is not None: J[:, :, net.span(at.name)] += np.moveaxis(at.rule.pull(at, THETA, A)[:, :, 0], -1, 0)
    true = jacobian(lambda t: forward(net, t, X_)[out].reshape(d, N))(theta)          # (d, N, p)
    assert close(J, np.moveaxis(true, 1, 0))
    return len(local)


def test_first_order_of_random_networks():
    "Smooth ones: at a tie, which may be one of θ-equal pieces, δ of the pieces is a convention."
    smooth = descriptions([*POLYNOMIAL, *CURVED, *SHARING, 'custom', 'custom_theta'], list(LOSSES), 2, 9, 4)
    assert max(on_different(20, smooth, check_first_order)) > 6


def test_delta_is_not_added_in_place():
    "A sum hands one array to both of its parents; what one of them gets besides must not reach the other."
    net = Graph()
    x = net.input('x', 3)
    p = net.node('p', Dense(3), x)
    q = net.node('q', Dense(3), x)
    r = net.node('r', Tanh(), p)                        # p has a child that is older than the sum, so it comes later
    s = net.node('s', Add(), p, q)
    net.output(net.node('z', Multiply(), r, s), SquaredError())
    rng = np.random.default_rng(0)
    check_first_order(net, net.init(0), rng.standard_normal((4, 3)), rng.standard_normal((4, 3)))


def test_back_goes_to_the_nodes_that_are_wanted():
    net = Graph()
    x = net.input('x', 2)
    a = net.node('a', Dense(2), x)
    net.output(net.node('z', Add(), a, x), SquaredError())
    local = net.linearize(net.init(), net.data(np.ones((3, 2)), np.zeros((3, 2)), loss=True))
    assert [at.name for at, _ in back(local, {}, live={'z', 'a'})] == ['z', 'a']
    backward(local, live={'z', 'a'})
    assert [at.delta is None for at in local] == [True, False, False, False]       # x, a, z, ℒ
    def started(at): return [(1, np.full((1, 2, 1, 3), 5.))] if at.name == 'z' else []
    reached = {at.name: A is not None for at, A in back(local, {}, sources=started)}
    assert reached == {'x': True, 'a': False, 'z': False, LOSS: False}
    assert [at.name for at, A in back(local, {}, live={'z', 'a'}, sources=started) if A is not None] == []


# Parameters.

def test_parameters_lie_in_one_vector():
    net = Graph()
    net.parameter('k', (2, 3), initial=7)
    net.parameter('start', 2, initial=[1., 2.])
    net.node('h', Dense(4), net.input('x', 3))
    theta = net.init()
    view = net.view(theta)
    assert list(view) == ['k', 'start', 'h.W', 'h.b'] and net.size == theta.size == 6 + 2 + 12 + 4
    assert np.array_equal(theta[:8], [7]*6 + [1, 2]) and view['h.W'].shape == (4, 3)
    view['h.b'][1] = 100.
    assert theta[-3] == 100.
    assert net.view(theta.tolist())['k'].shape == (2, 3)
    with pytest.raises(TypeError, match=r'type float32.*astype\(float\)'): net.view(theta.astype(np.float32))


def test_a_start_that_is_given_is_a_copy():
    start = np.ones(2)
    net = Graph()
    net.parameter('k', 2, initial=start)
    start[:] = 5
    net.init()[:] = 9
    assert np.array_equal(net.init(), [1, 1])


def test_random_starts():
    net = Graph()
    net.node('h', Dense(200), net.node('c', Conv(8, 5), net.input('x', (4, 9, 9))))
    assert np.array_equal(net.init(3), net.init(rng=np.random.default_rng(3)))
    assert not np.array_equal(net.init(3), net.init(4)) and not np.array_equal(net.init(None), net.init(None))
    view = net.view(net.init(0))
    for name, fan_in in (('c.W', 4*25), ('h.W', 8*25)):
        assert np.isclose(view[name].var()*fan_in, 1, rtol=.15) and abs(view[name].mean())*np.sqrt(fan_in) < .15


def test_axes():
    net = Graph()
    x = net.input('x', 3)
    a = net.node('a', Dense(3), x)
    b = net.node('b', Dense(3), a, theta='a')
    net.output(net.node('z', lambda u, t: t*u, b, theta=net.parameter('k', 3)), SquaredError())
    tied, untied = Axes(net), Axes(net, untied=True)
    assert tied.places == {'a': slice(0, 12), 'a.W': slice(0, 9), 'a.b': slice(9, 12), 'k': slice(12, 15)}
    assert untied.places == {'a': slice(0, 12), 'a.W': slice(0, 9), 'a.b': slice(9, 12), 'b': slice(12, 24),
                             'b.W': slice(12, 21), 'b.b': slice(21, 24), 'z': slice(24, 27)}
    assert (tied.size, untied.size) == (15, 27)
    local = {at.name: at for at in net.linearize(net.init(), net.data(np.ones((1, 3)), np.ones((1, 3)), loss=True))}
    assert [tied.span(local[v]) for v in 'abz'] == [slice(0, 12), slice(0, 12), slice(12, 15)]
    assert [untied.span(local[v]) for v in 'abz'] == [slice(0, 12), slice(12, 24), slice(24, 27)]


def test_sharing_needs_the_same_slots():
    "Equal shapes do not do, unless the parameter is a plain one."
    class Scaled(Rule):
        def infer(self, shapes): return shapes[0]
        def parameters(self, shapes): return {'gain': (2, 2)}
        def value(self, x, theta): return x[0]*theta['gain'][0, 0]
    net = Graph()
    h = net.node('h', Dense(2, bias=False), net.input('x', 2))
    with pytest.raises(ValueError, match="node 's': needs a parameter with slots {'gain'"):
        net.node('s', Scaled(), h, theta='h')
    net.node('s', Scaled(), h, theta=net.parameter('k', (2, 2)))
    assert net.nodes['s'].slots == {'gain': (2, 2)}


# Data.

def small(loss=None, shape=(2,)):
    net = Graph()
    net.output(net.node('h', Dense(2), net.input('x', shape)), loss or SquaredError())
    return net


@pytest.mark.parametrize('shape, N', [((), 4), ((2,), 1), ((2, 3), 5), ((1, 1), 1)])
def test_data_are_copies(shape, N):
    "Also where their layout is already the one that is needed: single numbers, single samples."
    for Y, loss in ((np.ones((N, 2)), SquaredError()), (np.ones(N), lambda z, y: y*anp.sum(z**2))):
        net = small(loss, shape)
        X = np.ones((N, *shape))
        data = net.data(X, Y, loss=True)
        assert not np.shares_memory(data.X['x'], X) and not np.shares_memory(data.Y, Y)
        X[...], Y[...] = 5, 5
        assert (data.X['x'] == 1).all() and (data.Y == 1).all() and net.data(data) is data


def test_parts_of_data():
    data = Data({'x': np.arange(14.).reshape(2, 7)}, np.arange(7), 7)
    assert [chunk.Y.tolist() for chunk in data.chunks(3)] == [[0, 1], [2, 3], [4, 5, 6]]
    assert [chunk.N for chunk in data.chunks(3)] == [2, 2, 3] and [chunk.N for chunk in data.chunks(99)] == [7]
    taken = data.take([6, 0, 0])
    assert taken.N == 3 and taken.Y.tolist() == [6, 0, 0] and taken.X['x'].tolist() == [[6, 0, 0], [13, 7, 7]]
    assert data.part(2, 4).X['x'].tolist() == [[2, 3], [9, 10]]
    assert (data.weight('mean'), data.weight('sum')) == (1/7, 1)
    assert Data({}, None, 3).take([1]).Y is None


def test_inputs_of_different_lengths():
    net = Graph()
    net.output(net.node('s', Add(), net.input('x', 2), net.input('y', 2)), SquaredError())
    with pytest.raises(ValueError, match="different numbers of samples: {'x': 3, 'y': 2}"):
        net.predict([], {'x': np.ones((3, 2)), 'y': np.ones((2, 2))})
    with pytest.raises(ValueError, match=r"2 inputs; give X as a dict with the keys \['x', 'y'\]"):
        net.predict([], np.ones((3, 2)))
    with pytest.raises(ValueError, match='no inputs yet'): Graph().forward([], np.ones((3, 2)))


def test_a_mini_batch_and_the_samples_as_they_are():
    rng = np.random.default_rng(0)
    net, X, Y = small(), rng.standard_normal((9, 2)), rng.standard_normal((9, 2))
    theta, data = net.init(1), net.data(X, Y, loss=True)
    loss, gradient = net.value_gradient(theta, data.take([5, 2]))
    assert np.isclose(loss, net.loss(theta, X[[5, 2]], Y[[5, 2]]), rtol=1e-14)
    assert np.allclose(gradient, net.gradient(theta, X[[5, 2]], Y[[5, 2]]), rtol=1e-13)
    assert np.allclose(net.gradient(theta, X, Y, reduction='sum'), 9*net.gradient(theta, X, Y), rtol=1e-13)


def test_chunks_add_up(monkeypatch):
    "Whatever the size of a chunk: values, loss and gradient."
    rng = np.random.default_rng(0)
    net, X, Y = small(), rng.standard_normal((11, 2)), rng.standard_normal((11, 2))
    theta = net.init(1)
    whole = net.predict(theta, X), net.loss(theta, X, Y), net.gradient(theta, X, Y)
    sizes = []
    monkeypatch.setattr(Graph, 'chunk', lambda self, N: sizes.append(N) or 3)
    for found, true in zip((net.predict(theta, X), net.loss(theta, X, Y), net.gradient(theta, X, Y)), whole):
        assert np.allclose(found, true, rtol=1e-13)
    assert sizes == [11]*3


# Losses.

def test_a_loss_with_targets_or_without():
    net = small(lambda z, y=None: anp.sum(z**2) if y is None else anp.sum((z - y)**2))
    theta, X = net.init(), np.ones((3, 2))
    z = net.predict(theta, X)
    assert np.isclose(net.loss(theta, X), np.mean(np.sum(z**2, 1)), rtol=1e-14)
    assert np.isclose(net.loss(theta, X, np.ones((3, 2))), np.mean(np.sum((z - 1)**2, 1)), rtol=1e-14)


def test_a_loss_is_tried_once():
    "With targets, and not again with every evaluation."
    calls = []
    def loss(z, y):
        calls.append(1)
        return anp.sum((z - y)**2)
    net = small(loss)
    data = np.ones((1, 2)), np.zeros((1, 2))
    net.loss(net.init(), *data)
    first = len(calls)
    net.loss(net.init(), *data)
    assert first > 3 and len(calls) == first + 1
    net.output('h', loss)
    net.loss(net.init(), *data)
    assert len(calls) > first + 4


def test_a_rule_of_a_users_own_as_a_loss():
    "Tried out when its data come."
    class Distance(Rule):
        def value(self, x, theta): return anp.sum((x[0] - x[1])**2, axis=0)
    class Distances(Rule):
        def value(self, x, theta): return (x[0] - x[1])**2
    net = small(Distance())
    theta, X, Y = net.init(), np.ones((3, 2)), np.zeros((3, 2))
    assert np.isclose(net.loss(theta, X, Y), np.mean(np.sum(net.predict(theta, X)**2, 1)), rtol=1e-14)
    net.output('h', Distances())
    with pytest.raises(ValueError, match=r"loss: Distances\(\) gives a value of shape \(2,\)"): net.loss(theta, X, Y)


def test_rules_of_a_users_own_are_tried():
    "What infer says must be what value gives."
    class Wrong(Rule):
        def infer(self, shapes): return (7,)
        def value(self, x, theta): return x[0]
    class Nothing(Rule):
        def value(self, x, theta): return x[0]
    class Slots(Rule):
        def infer(self, shapes): return shapes[0]
        def parameters(self, shapes): return {'w': 1.5}
        def value(self, x, theta): return x[0]
    class Number(Rule):
        def infer(self, shapes): return 2
        def value(self, x, theta): return anp.sin(x[0])
    net = small()
    refused = [(Wrong(), ValueError, r"node 'r': Wrong\(\) gives a value of shape \(2,\).*infer says \(7,\)"),
               (Nothing(), NotImplementedError, "node 'r': Nothing has no infer"),
               (Slots(), ValueError, "node 'r': slot 'w': got shape 1.5")]
    for rule, kind, text in refused:
        with pytest.raises(kind, match=text): net.node('r', rule, 'h')
        assert list(net.nodes) == ['x', 'h'] and list(net.parameters) == ['h']
    assert net.node('r', Number(), 'h').shape == (2,)


# Nothing changes behind its back.

def test_what_is_asked_is_answered_for_what_was_there():
    "A decomposition, although computed later, is that of the θ, the data, the nodes and the loss that it was given."
    rng = np.random.default_rng(0)
    net = Graph()
    h = net.node('h', Tanh(), net.node('a', Dense(3), net.input('x', 2)))
    z = net.node('z', Dense(2), h)
    net.output(z, SquaredError())
    theta, X, Y = net.init(1), rng.standard_normal((5, 2)), rng.standard_normal((5, 2))
    H = hessian(net, theta, X, Y)
    before = H.dense().copy()
    D = decompose(net, theta, X, Y)
    theta -= 1
    X *= 3
    Y += 1
    net.node('more', Dense(4), z)
    net.output(z, lambda z: anp.sum(anp.exp(z)))
    assert np.allclose(D.total().dense(), before, rtol=1e-13, atol=1e-14)
    H.certify()


def test_snapshot():
    net = small()
    seen = net.snapshot()
    net.output(net.node('z', Dense(3), 'h'), CrossEntropy())
    assert list(seen.nodes) == ['x', 'h'] and list(seen.parameters) == ['h']
    assert seen.output_node == 'h' and isinstance(seen.loss_rule, SquaredError)


# What a graph is besides.

def test_which_nodes_matter():
    net = Graph()
    x, y = net.input('x', 2), net.input('y', 2)
    a = net.node('a', Tanh(), x)
    b = net.node('b', Dense(2), y)
    c = net.node('c', Add(), a, b)
    net.node('dead', Dense(2), c)
    z = net.node('z', Dense(2), c)
    net.output(z, SquaredError())
    assert reaching(net) == {*'xyabcz'} and depending(net) == {*'bcz', LOSS}
    assert depending(net, {'z'}) == {'z', LOSS} and depending(net, {'dead'}) == {LOSS}
    assert net.parents() == {'x': (), 'y': (), 'a': ('x',), 'b': ('y',), 'c': ('a', 'b'), 'dead': ('c',), 'z': ('c',),
                             LOSS: ('z',)}


def test_a_loss_of_autograd_makes_a_network_traced():
    assert not small().traced and small(lambda z: anp.sum(z**2)).traced


def test_pictures():
    assert 'no nodes yet' in Graph()._repr_html_()
    net = Graph()
    x = net.input('<x>', 2)
    k = net.parameter('k', (2, 2))
    a = net.node('a', Dense(2, bias=False), x, theta=k)
    b = net.node('b', Multiply(), a, a)
    net.node('dead', Dense(3), b)
    assert all(box.alive for box in boxes_of(net).values())            # no output yet
    net.output(b, SquaredError())
    boxes, edges = boxes_of(net), edges_of(net)
    assert {name: (box.kind, box.alive) for name, box in boxes.items()} == {
        (THETA, 'k'): ('parameter', True), '<x>': ('input', True), 'a': ('node', True), 'b': ('node', True),
        'dead': ('node', False), LOSS: ('loss', True)}
    assert boxes['dead'].lines == ['dead: Dense(3)', '→ 3', 'W 3×2, b 3'] and boxes['a'].lines == ['a: Dense(2)', '→ 2']
    assert set(edges) == {('<x>', 'a', 1, True), ((THETA, 'k'), 'a', 1, True), ('a', 'b', 2, True),
                          ('b', 'dead', 1, False), ('b', LOSS, 1, True)}
    assert '&lt;x&gt;' in net._repr_html_() and '<x>' not in net._repr_html_()
    assert repr(net) == "Graph of 4 nodes with 13 parameters, output 'b' by SquaredError(0.5)"
    assert repr(Graph()) == 'Graph of 0 nodes with 0 parameters, no output yet'


def test_pickle():
    "A graph of every kind of rule, with parameters that start at random and at what is given."
    net = Graph()
    x = net.input('x', (2, 4, 4))
    a = net.node('a', ReLU(), net.node('c', Conv(2, 3, padding=1), x))
    b = net.node('b', Conv(2, 3, padding=1), net.node('m', HardTanh(), a), theta='c')
    p = net.node('p', MaxPool(2), net.node('s', Multiply(), b, net.node('abs', Abs(), a)))
    d = net.node('d', LayerNorm(), net.node('f', Dense(4), p))
    w = net.parameter('k', (4, 4), initial=np.eye(4))
    e = net.node('e', Dense(4, bias=False), net.node('g', GELU(), d), theta=w)
    t = net.node('t', Dense(4), net.node('two', Concat(), e, d))
    net.output(net.node('z', Softmax(), t), SquaredError())
    other = pickle.loads(pickle.dumps(net))
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((3, 2, 4, 4)), rng.standard_normal((3, 4))
    assert np.array_equal(other.init(5), net.init(5)) and np.array_equal(other.view(other.init(5))['k'], np.eye(4))
    assert np.array_equal(other.gradient(net.init(5), X, Y), net.gradient(net.init(5), X, Y))
    tower = Graph()
    u = tower.node('u', Transpose(), tower.input('x', (2, 3)))
    tower.output(tower.node('z', MatMul(), u, 'x'), CrossEntropy())
    X = X[:, 0, :2, :3]
    assert np.array_equal(pickle.loads(pickle.dumps(tower)).predict([], X), tower.predict([], X))


def test_depth_is_no_danger(monkeypatch):
    "2,000 nodes with a stack for few calls: nothing here goes deeper with the graph."
    net = Graph()
    v = net.input('x', 2)
    for i in range(1000): v = net.node(f't{i}', Tanh(), net.node(f'h{i}', Dense(2), v, theta='h0' if i else None))
    net.output(v, SquaredError())
    theta, X, Y = net.init(0), np.ones((1, 2)), np.zeros((1, 2))
    depth = len(__import__('inspect').stack())
    limit = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(depth + 120)
        slope = net.gradient(theta, X, Y)
        assert len(reaching(net)) == 2001 and len(depending(net)) == 2001
        assert len(pickle.loads(pickle.dumps(net)).nodes) == 2001
        assert set(net.forward(theta, X)) == set(net.nodes)
    finally: sys.setrecursionlimit(limit)
    steps = 1e-6*np.eye(net.size)
    assert np.abs(slope).max() > 1e-3
    assert np.allclose(slope, [(net.loss(theta + e, X, Y) - net.loss(theta - e, X, Y))/2e-6 for e in steps], atol=1e-9)


# What is not finite.

def smallest():
    "f_a = θ₁x and f_out = θ₂f_a."
    net = Graph()
    a = net.node('a', Dense(1, bias=False), net.input('x', 1))
    net.output(net.node('out', Dense(1, bias=False), a), SquaredError())
    return net


def test_where_it_overflows():
    net = smallest()
    with np.errstate(over='ignore'), pytest.raises(ValueError, match="node 'out': its value is not finite at 1 of 2"):
        net.gradient([1e200, 1e200], [[1.], [0.]], [[0.], [0.]])
    with pytest.raises(ValueError, match="node 'a': the gradient that comes back to it is not finite, though the loss"):
        net.gradient([1e-150, 1.], [[1e250]], [[0.]])
    with pytest.raises(ValueError, match="node 'out': the gradient"): net.gradient([1e200, 1e-80], [[1.]], [[0.]])


def test_curvature_of_the_smallest_network_by_hand():
    "ℓ = ½(θ₂θ₁x − y)² at x = 3, y = 1, θ = (2, −1): the numbers of the chapter."
    net = smallest()
    theta, X, Y = [2., -1.], [[3.]], [[1.]]
    assert net.loss(theta, X, Y) == 24.5 and np.array_equal(net.gradient(theta, X, Y), [21, -42])
    assert np.array_equal(hessian(net, theta, X, Y).dense(), [[9, -39], [-39, 36]])
    assert np.array_equal(autograd_hessian(lambda t: .5*(t[1]*t[0]*3 - 1)**2)(np.array(theta)), [[9, -39], [-39, 36]])
    assert attribute(net, theta, X, Y, [1., 1.]).total() == 9 - 78 + 36
