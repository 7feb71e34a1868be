"""One table of small networks and their data, which the tests of all rooms share."""
import numpy as np

from hessian_nb.graph import Graph
from hessian_nb.plan import Plan
from hessian_nb.rules import (Add, Conv, CrossEntropy, Dense, Flatten, MaxPool, Multiply, ReLU, Concat, Softplus, Tanh,
                              Transpose)


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


def kinked():
    "Biases at zero put every blank position on the channel's kink."
    net = Graph()
    a = net.node('a', ReLU(), net.node('h', Conv(2, kernel=2), net.input('x', (1, 4, 4))))
    net.output(net.node('z', Dense(3), a), CrossEntropy())
    theta, X, Y = data_for(net, 5, 3)
    net.view(theta)['h.b'][:] = 0
    X[:, :, :2, :2] = 0
    return net, theta, X, Y


def recurrent(layer, uses, outputs, loss):
    "One layer with as many outputs as inputs, used several times with a tanh behind each, between two dense ones."
    net = Graph()
    h = net.node('a', Tanh(), net.node('first', Dense(layer.units), net.input('x', 5)))
    for i in range(uses): h = net.node(f't{i}', Tanh(), net.node(f'r{i}', layer, h, theta='r0' if i else None))
    net.output(net.node('z', Dense(outputs), h), loss)
    return net


def data_for(net, N, classes, seed=0):
    rng = np.random.default_rng(seed)
    return net.init(seed), rng.standard_normal((N, *net.nodes['x'].shape)), rng.integers(0, classes, N)


def close(a, b, tolerance=1e-13): return np.linalg.norm(a - b) <= tolerance*np.linalg.norm(b)


def forced(net, carried=(), chunk=10**6):
    "A plan in which these nodes are carried, and the others pushed."
    names = [name for name, v in net.nodes.items() if v.theta]
    return Plan([n for n in names if n not in carried], [n for n in names if n in carried], 0, 0, chunk)
