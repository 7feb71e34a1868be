"""A mistake gets one exception of a fitting type, whose message names the place, what came and what to do."""
import autograd.numpy as anp
import numpy as np
import pytest

from hessian_nb.graph import Graph
from hessian_nb.hessian import attribute, decompose, hessian, hessian_vector, input_hessian
from hessian_nb.rules import (Add, Concat, Conv, CrossEntropy, Dense, MatMul, MaxPool, Multiply, Softmax, SquaredError,
                              Tanh)


def start():
    "A graph with an input and a dense layer; a number, and a parameter of two, which few of the tests use."
    net = Graph()
    x, h = net.input('x', (2, 3)), net.node('h', Dense(4), 'x')
    net.node('s', lambda u: anp.sum(u), x)
    net.parameter('k', 2)
    return net, x, h


def other(): return start()[1]


BUILD = [
    (ValueError, "node 'a': parent 'y' is no node of this graph; nodes here: x, h, s",
     lambda n, x, h: n.node('a', Tanh(), 'y')),
    (ValueError, "node 'a': parent 'a' is no node.*no cycles", lambda n, x, h: n.node('a', Tanh(), 'a')),
    (ValueError, "node 'a': parent 'x' is a node of another graph", lambda n, x, h: n.node('a', Tanh(), other())),
    (ValueError, "node 'h': a node of this name exists", lambda n, x, h: n.node('h', Tanh(), x)),
    (ValueError, "node 'a': got no parents", lambda n, x, h: n.node('a', Tanh())),
    (ValueError, "got the name 'a.b'.*without dots", lambda n, x, h: n.node('a.b', Tanh(), x)),
    (ValueError, "got the name 'ℒ'", lambda n, x, h: n.node('ℒ', Tanh(), x)),
    (ValueError, "got the name None", lambda n, x, h: n.node(None, Tanh(), x)),
    (ValueError, r"got the name \['a'\]", lambda n, x, h: n.node(['a'], Tanh(), x)),
    (ValueError, "got the name 'k.W'", lambda n, x, h: n.parameter('k.W', 2)),
    (ValueError, "input 'y': got shape", lambda n, x, h: n.input('y', (2, 0))),
    (ValueError, "input 'y': got shape True", lambda n, x, h: n.input('y', True)),
    (ValueError, r"parameter 'q': got shape -3; expected positive whole", lambda n, x, h: n.parameter('q', -3)),
    (ValueError, r"parameter 'q': got shape \(2\.5,\)", lambda n, x, h: n.parameter('q', (2.5,))),
    (ValueError, r"parameter 'q': got shape None", lambda n, x, h: n.parameter('q', None)),
    (ValueError, r"parameter 'q': initial=.*no array of real numbers of shape \(3,\)",
     lambda n, x, h: n.parameter('q', 3, initial=np.ones(4))),
    (ValueError, "parameter 'q': initial=.*no array of real numbers",
     lambda n, x, h: n.parameter('q', 3, initial=lambda rng: 1.)),
    (ValueError, "parameter 'q': initial=1j is no array of real", lambda n, x, h: n.parameter('q', 3, initial=1j)),
    (ValueError, "parameter 'q': initial= holds numbers that are not finite",
     lambda n, x, h: n.parameter('q', 3, initial=np.nan)),
    (ValueError, "parameter 'h' exists already", lambda n, x, h: n.parameter('h', 2)),
    (ValueError, "parameter 'k' exists already; name the node differently", lambda n, x, h: n.node('k', Dense(2), x)),
    (TypeError, "node 'a': got a parent of type list; .*not as a list", lambda n, x, h: n.node('a', Add(), [x, x])),
    (TypeError, "node 'a': got the class Tanh.*Tanh\\(\\)", lambda n, x, h: n.node('a', Tanh, x)),
    (TypeError, "node 'a': got int", lambda n, x, h: n.node('a', 3, x)),
    (TypeError, "node 'a': batched= is for functions", lambda n, x, h: n.node('a', Tanh(), x, batched=True)),
    (ValueError, "node 'a': there is no parameter 'q'.*there are: h",
     lambda n, x, h: n.node('a', Dense(4), x, theta='q')),
    (ValueError, "node 'a': there is no parameter \\['h'\\]", lambda n, x, h: n.node('a', Dense(4), x, theta=['h'])),
    (ValueError, "node 'a': parameter 'h' is one of another graph",
     lambda n, x, h: n.node('a', Dense(4), x, theta=start()[0].parameters['h'])),
    (ValueError, "node 'a': parameter 'h' is one of another graph",
     lambda n, x, h: n.node('a', Dense(4), x, theta=start()[2])),
    (ValueError, "node 'a': Tanh.*no parameter.*ignored", lambda n, x, h: n.node('a', Tanh(), x, theta='h')),
    (ValueError, "node 'a': needs a parameter with slots", lambda n, x, h: n.node('a', Dense(5), x, theta='h')),
    (ValueError, "node 'a': Add.*one shape", lambda n, x, h: n.node('a', Add(), x, h)),
    (ValueError, "node 'a': Multiply.*one shape", lambda n, x, h: n.node('a', Multiply(), x, h)),
    (ValueError, "node 'a': Tanh.*takes one parent, got 2", lambda n, x, h: n.node('a', Tanh(), x, x)),
    (ValueError, "node 'a': Conv.*does not fit", lambda n, x, h: n.node('a', Conv(1, 9), x)),
    (ValueError, "node 'a': got an input of shape \\(4,\\)", lambda n, x, h: n.node('a', MaxPool(2), h)),
    (ValueError, "node 'a': Concat.*agree", lambda n, x, h: n.node('a', Concat(), x, h)),
    (ValueError, "node 'a': MatMul.*\\(m, k\\) and \\(k, p\\)", lambda n, x, h: n.node('a', MatMul(), x, x)),
    (ValueError, "node 'a': CrossEntropy.*is a loss.*net.output", lambda n, x, h: n.node('a', CrossEntropy(), h)),
    (ValueError, "node 'a': Softmax.*single number",
     lambda n, x, h: n.node('a', Softmax(), 's')),
    (ValueError, "node 'a': the function ignores its parent 'x'", lambda n, x, h: n.node('a', lambda u, v: u, h, x)),
    (ValueError, "node 'a': the function ignores its parameter 'k'",
     lambda n, x, h: n.node('a', lambda u, t: u, h, theta='k')),
    (TypeError, "node 'a': the function fails.*autograd.numpy", lambda n, x, h: n.node('a', lambda u: u @ u, x)),
    (TypeError, "node 'a': the function fails.*read-only.*without writing", lambda n, x, h: n.node('a', overwrite, h)),
    (TypeError, "node 'a': the function fails.*read-only.*without writing",
     lambda n, x, h: n.node('a', overwrite, h, batched=True)),
    (TypeError, "node 'a': the function gives numbers of type complex128",
     lambda n, x, h: n.node('a', lambda u: 1j*u, h)),
    (ValueError, "finite differences", lambda n, x, h: n.node('a', lambda u: u*float(getattr(u, '_value', u)[0]), h)),
    (ValueError, "batched=True.*must not mix", lambda n, x, h: n.node('a', lambda u: u - u[0], x, batched=True)),
    (ValueError, "batched=True.*leading axis", lambda n, x, h: n.node('a', lambda u: anp.sum(u), x, batched=True)),
    (ValueError, "output: parent 'y' is no node", lambda n, x, h: n.output('y', CrossEntropy())),
    (TypeError, "output: got a parent of type list", lambda n, x, h: n.output([h], CrossEntropy())),
    (TypeError, "loss: got the class CrossEntropy", lambda n, x, h: n.output(h, CrossEntropy)),
    (TypeError, "loss: got NoneType", lambda n, x, h: n.output(h, None)),
    (TypeError, "loss: λ needs 3 arguments", lambda n, x, h: n.output(h, lambda z, y, w: anp.sum(z))),
    (ValueError, r"loss: λ gives a value of shape \(4,\).*one number for each sample",
     lambda n, x, h: n.output(h, lambda z: z**2)),
    (ValueError, r"loss: Tanh\(\) gives a value of shape \(4,\).*one number for each sample",
     lambda n, x, h: n.output(h, Tanh())),
    (ValueError, "loss: the function ignores the prediction z", lambda n, x, h: n.output(h, lambda z: 3.)),
    (TypeError, "loss: the function gives numbers of type complex128",
     lambda n, x, h: n.output(h, lambda z: 1j*anp.sum(z))),
    (ValueError, "loss: autograd's slope .* finite differences", lambda n, x, h: n.output(h, loses_its_slope)),
    (TypeError, "loss: the function fails", lambda n, x, h: n.output(h, lambda z: sum(float(a) for a in z))),
]


def overwrite(u):
    u += 1
    return 2*u


def loses_its_slope(z): return anp.sum(anp.where(z > 0, np.array([z[0]**2, z[1], z[2], z[3]]), z))


def everything(net):
    "All that a graph says of itself."
    return (list(net.nodes.values()), [(p.name, p.slots, p.offset) for p in net.parameters.values()], net.size,
            net.output_node, net.loss_rule)


@pytest.mark.parametrize('kind, text, build', BUILD, ids=[text[:40] for _, text, _ in BUILD])
def test_building(kind, text, build):
    "The mistake is told, and the graph is as it was before."
    net, x, h = start()
    net.output(h, SquaredError())
    before = everything(net)
    with pytest.raises(kind, match=text) as told: build(net, x, h)
    assert told.type is kind
    assert everything(net) == before


def test_where_autograd_has_no_number_to_follow():
    "A function that is not defined where it is tried out is believed; what is said then is said of its value."
    net, x, h = start()
    net.output(net.node('a', lambda u: anp.arccosh(u), h), SquaredError())
    X, Y = np.zeros((5, 2, 3)), np.zeros((5, 4))
    with np.errstate(invalid='ignore'), pytest.raises(ValueError, match="node 'a': its value is not finite"):
        net.gradient(net.init(), X, Y)
    theta = net.init()
    net.view(theta)['h.b'][:] = np.cosh([1., 2., 3., 4.])
    assert np.isclose(net.loss(theta, X, Y), .5*30, rtol=1e-14)


def problem(loss=None):
    net, _, h = start()
    net.output(h, loss or CrossEntropy())
    return net, net.init(), np.ones((5, 2, 3)), np.arange(5) % 4


def changed(**new):
    def change(net, theta, X, Y): return [new.get(k, v) for k, v in zip(('net', 'theta', 'X', 'Y'), (net, theta, X, Y))]
    return change


DATA = [
    (ValueError, r'theta has shape \(3,\), expected \(30,\)', changed(theta=np.ones(3))),
    (ValueError, 'theta has 30 entries that are not finite', changed(theta=np.full(30, np.nan))),
    (ValueError, r"input 'x': got data of shape \(5, 3\), expected \(N, 2, 3\)", changed(X=np.ones((5, 3)))),
    (ValueError, "input 'x': 2 samples are not finite, the first is number 3",
     changed(X=np.concatenate([np.ones((3, 2, 3)), np.full((2, 2, 3), np.inf)]))),
    (TypeError, 'theta is complex', changed(theta=np.ones(30)*1j)),
    (TypeError, 'theta is a masked array', changed(theta=np.ma.ones(30))),
    (TypeError, "input 'x': got data of type complex128", changed(X=np.ones((5, 2, 3))*1j)),
    (TypeError, "input 'x': got a masked array", changed(X=np.ma.ones((5, 2, 3)))),
    (ValueError, "input 'x': got lists of different lengths", changed(X=[[1., 2.], [3.]])),
    (ValueError, r"X has the keys \['3', 'x'\]", changed(X={'x': np.ones((5, 2, 3)), 3: 1})),
    (TypeError, 'Y: got a masked array', changed(Y=np.ma.zeros(5, int))),
    (TypeError, 'Y: got data of type complex128', changed(Y=np.zeros(5)*1j)),
    (ValueError, 'Y: 1 samples are not finite, the first is number 2', changed(Y=np.array([0, 1, np.nan, 1, 0]))),
    (ValueError, 'Y is the number 3', changed(Y=3)),
    (TypeError, "input 'x': got data of type", changed(X=np.array([['a']]))),
    (ValueError, r"X has the keys \['y'\]", changed(X={'y': np.ones((5, 2, 3))})),
    (ValueError, 'X has no samples', changed(X=np.ones((0, 2, 3)), Y=np.zeros(0, int))),
    (ValueError, 'Y has 4 samples but X has 5', changed(Y=np.zeros(4, int))),
    (ValueError, 'label 4 of sample 2 is out of range.*0 to 3', changed(Y=np.array([0, 1, 4, 0, 0]))),
    (ValueError, 'label -1', changed(Y=np.array([0, 1, -1, 0, 0]))),
    (ValueError, 'whole-number labels.*shape', changed(Y=np.ones((5, 4)))),
    (ValueError, 'whole-number labels, got Y of type float64', changed(Y=np.full(5, .5))),
    (ValueError, 'needs labels; give Y', changed(Y=None)),
]


@pytest.mark.parametrize('kind, text, change', DATA, ids=[text[:40] for _, text, _ in DATA])
def test_data(kind, text, change):
    "Every function that takes the data says the same."
    net, theta, X, Y = change(*problem())
    v = np.ones(30)
    for call in (net.loss, net.gradient, lambda *a: hessian(net, *a), lambda *a: decompose(net, *a),
                 lambda *a: attribute(net, *a, v), lambda *a: hessian_vector(net, *a, v),
                 lambda *a: input_hessian(net, *a)):
        with pytest.raises(kind, match=text): call(theta, X, Y)


@pytest.mark.parametrize('text, loss, Y', [
    (r'loss: λ gives a value of shape \(4,\).*one number for each sample', lambda z, y: (z - y)**2, np.ones((5, 4))),
    ('loss: the function ignores the prediction z', lambda z, y: anp.sum(y**2), np.ones((5, 4))),
    (r'loss\(z, y\); give Y', lambda z, y: anp.sum((z - y)**2), None),
    (r'loss\(z\) and would ignore Y', lambda z: anp.sum(z**2), np.zeros(5)),
    ('SquaredError needs targets', SquaredError(), None),
    (r'SquaredError: got targets of shape \(5, 3\)', SquaredError(), np.ones((5, 3))),
    ('Y: 5 samples are not finite', SquaredError(), np.full((5, 4), np.nan)),
    ('Y: 5 samples are not finite', lambda z, y: anp.sum((z - y)**2), np.full((5, 4), np.nan)),
])
def test_losses(text, loss, Y):
    net, theta, X, _ = problem(loss)
    with pytest.raises(ValueError, match=text): hessian(net, theta, X, Y)


def test_asking_for_what_is_not_there():
    net, theta, X, Y = problem()
    H, D = hessian(net, theta, X, Y), decompose(net, theta, X, Y)
    with pytest.raises(KeyError, match='no block'): H['h', 'z']
    with pytest.raises(KeyError, match='two names'): H['h']
    with pytest.raises(KeyError, match='no term'): D['h', 'mixed']
    with pytest.raises(KeyError, match='no node'): input_hessian(net, theta, X, Y)['h', 'z']
    with pytest.raises(ValueError, match='only a whole Hessian certifies'): D['h', 'gauss-newton'].certify()
    with pytest.raises(ValueError, match='no output yet'): hessian(start()[0], theta, X, Y)
    with pytest.raises(ValueError, match="reduction='all'"): hessian(net, theta, X, Y, reduction='all')
    for v in (np.ones(3), np.full(30, np.inf)):
        with pytest.raises(ValueError, match='the direction v'): attribute(net, theta, X, Y, v)


def test_what_numpy_users_pass_works():
    "Lists, other number types, views and labels as floats are what their values say."
    net, theta, X, Y = problem()
    H = hessian(net, theta, X, Y).dense()
    for data in ((theta.tolist(), X.tolist(), Y.tolist()), (theta, X.astype(np.float32), Y.astype(float)),
                 (theta, X.astype(int), Y.astype(np.uint8)), (np.repeat(theta, 2)[::2], {'x': X[::-1][::-1]}, Y)):
        assert np.array_equal(hessian(net, *data).dense(), H)


def test_what_is_not_finite_is_said():
    "An overflow in the network, and a function of which only autograd's derivative overflows."
    net = Graph()
    net.output(net.node('e', lambda u: anp.exp(u), net.node('h', Dense(2), net.input('x', 3))), SquaredError())
    X, Y = np.full((4, 3), 1e3), np.zeros((4, 2))
    with pytest.raises(ValueError, match="node 'e': its value is not finite at 4 of 4 samples"):
        hessian(net, np.ones(net.size), X, Y)
    net = Graph()
    net.output(net.node('t', lambda u: anp.tanh(u), net.node('h', Dense(2), net.input('x', 3))), SquaredError())
    with pytest.raises(ValueError, match="node 't': autograd's derivative is not finite"):
        hessian(net, np.ones(net.size), X, Y)
