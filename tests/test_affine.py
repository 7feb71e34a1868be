"""The layers that are linear in their parameter: windows against SciPy's correlation, every map by `check_rule`."""
import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import correlate

from hessian_nb.affine import Affine, Conv, Dense, gather, scatter, windows
from hessian_nb.graph import Graph
from hessian_nb.hessian import hessian
from hessian_nb.rules import CrossEntropy, SquaredError, Tanh, check_rule

axes = st.integers(1, 2)


@st.composite
def geometries(draw):
    "A convolution that fits into an input, and the input's shape."
    k = draw(axes)
    def numbers(low, high): return tuple(draw(st.integers(low, high)) for _ in range(k))
    kernel, stride, padding, dilation = numbers(1, 3), numbers(1, 3), numbers(0, 2), numbers(1, 2)
    extent = tuple(d*(n - 1) + 1 + draw(st.integers(0, 3)) for n, d in zip(kernel, dilation))
    conv = Conv(draw(st.integers(1, 3)), kernel, stride, padding, dilation, bias=draw(st.booleans()))
    return conv, (draw(st.integers(1, 2)), *extent)


def by_scipy(conv, x, W, b):
    "SciPy's correlation with the kernel blown up by the dilation, at every stride-th position."
    blown = np.zeros((*W.shape[:2], *[d*(k - 1) + 1 for k, d in zip(W.shape[2:], conv.dilation)]))
    blown[(..., *[slice(None, None, d) for d in conv.dilation])] = W
    x = np.pad(x, [(0, 0), *[(q, q) for q in conv.padding]])
    every = tuple(slice(None, None, s) for s in conv.stride)
    def channel(kernel): return sum(correlate(c, w, 'valid', 'direct') for c, w in zip(x, kernel))[every]
    return np.stack([channel(kernel) + bias for kernel, bias in zip(blown, b)])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(geometries())
def test_convolution(case):
    conv, shape = case
    rng = np.random.default_rng(0)
    slots = {slot: rng.standard_normal(s) for slot, s in conv.parameters([shape]).items()}
    x = rng.standard_normal((*shape, 2))
    z = conv.value([x], slots)
    assert z.shape == (*conv.infer([shape]), 2)
    b = slots.get('b', np.zeros(conv.channels))
    for i in range(2):
        true = by_scipy(conv, x[..., i], slots['W'], b)
        np.testing.assert_allclose(z[..., i], true, rtol=1e-12, atol=1e-12)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(geometries())
def test_scatter_is_the_transpose_of_gather(case):
    conv, shape = case
    extent = tuple(e + 2*q for e, q in zip(shape[1:], conv.padding))
    taps, out = windows(extent, conv.kernel, conv.stride, conv.dilation)
    rng = np.random.default_rng(0)
    x, A = rng.standard_normal((2, 2, *extent, 3)), rng.standard_normal((2, 2, len(taps), *out, 3))
    assert gather(x, taps).shape == A.shape and scatter(A, taps, extent).shape == x.shape
    assert np.isclose((gather(x, taps)*A).sum(), (x*scatter(A, taps, extent)).sum(), rtol=1e-12, atol=1e-12)


def test_autograd_goes_through_windows_twice():
    taps, _ = windows((5,), (3,), (1,), (1,))
    def f(x): return anp.sum(gather(x[None, None, :, None], taps)**3)
    x = np.arange(1., 6)
    assert np.allclose(autograd.grad(f)(x), 3*x**2*[1, 2, 3, 2, 1])
    assert np.allclose(autograd.hessian(f)(x), np.diag(6*x*[1, 2, 3, 2, 1]))


class Tokens(Affine):
    "One dense layer for every token of (tokens, features)."
    def __init__(self, units, bias=True): self.units, self.bias = units, bias
    def rows(self): return self.units
    def fan_in(self, shape): return (shape[1],)
    def infer(self, shapes): return (self.units, shapes[0][0])
    def features(self, shape, V):
        return anp.reshape(anp.swapaxes(anp.reshape(V, (len(V), *shape, -1)), 1, 2), (len(V), shape[1], -1))
    def fold(self, shape, A, t): return A.reshape(len(A), *shape[::-1], t).swapaxes(1, 2).reshape(len(A), -1, t)


@pytest.mark.parametrize('rule, shape', [
    (Dense(3), (4,)), (Dense(3, bias=False), (2, 3)), (Dense(1), ()), (Conv(2, 2, stride=2), (2, 3, 4)),
    (Conv(3, (1, 2), dilation=(1, 2), bias=False), (2, 2, 4)), (Conv(4, 3, padding=1), (4, 4)), (Tokens(3), (2, 4)),
    (Tokens(2, bias=False), (3, 2))], ids=str)
def test_every_map(rule, shape):
    assert max(check_rule(rule, shape).values()) < 1e-12


class WrongFold(Tokens):
    def fold(self, shape, A, t): return A.reshape(len(A), -1, t)


class WrongRows(Conv):
    def tangent_by_rows(self, at, V, rows): return super().tangent_by_rows(at, V[::-1], rows)


class WrongCouple(Dense):
    def couple_by_rows(self, at, V, rows): return 2*super().couple_by_rows(at, V, rows)


class WrongCondense(Conv):
    def condense(self, at, G): return super().condense(at, G)[::-1]


class NotX(Dense):
    "Reads its input in another order, and leaves rank_one as it was."
    def features(self, shape, V): return V[:, ::-1]
    def fold(self, shape, A, t): return A[:, ::-1]


@pytest.mark.parametrize('rule, text', [
    (WrongFold(2), r'pull\(0\)'), (WrongRows(2, 2), 'tangent_by_rows'), (WrongCouple(2), 'couple_by_rows'),
    (WrongCondense(2, 2), 'condense')], ids=lambda u: type(u).__name__)
def test_wrong_layers_are_told(rule, text):
    with pytest.raises(ValueError, match=text): check_rule(rule, (2, 3))


def test_rank_one_must_be_true():
    net = Graph()
    with pytest.raises(TypeError, match="node 'z': .*rank_one = False"): net.node('z', NotX(2), net.input('x', 3))


def test_a_dense_layer_is_a_convolution_with_one_position():
    "The whole Hessian, by quite different ways through the engine."
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((5, 2, 3, 3)), rng.integers(4, size=5)
    Hs = []
    for make in (lambda: Conv(6, 3), lambda: Dense(6)):
        net = Graph()
        h = net.node('h', make(), net.input('x', (2, 3, 3)))
        net.output(net.node('z', Dense(4), net.node('a', Tanh(), h)), CrossEntropy())
        Hs.append(hessian(net, net.init(0), X, Y).dense())
    assert np.abs(Hs[0]).max() > .01
    np.testing.assert_allclose(*Hs, rtol=1e-11, atol=1e-14)


def test_maps_leave_their_arguments_alone():
    "Blocks are shared: a map that writes into what it is given spoils another one."
    net = Graph()
    net.output(net.node('z', Conv(2, 2), net.input('x', (1, 3, 3))), SquaredError())
    theta = net.init(0)
    at = net.linearize(theta, net.data(np.ones((4, 1, 3, 3)), np.ones((4, 8)), loss=True))[1]
    at.delta = np.ones((8, 4))
    A, V, P = np.ones((2, 8, 1, 4)), np.ones((2, 9, 1, 4)), np.ones((2, 10, 1, 1))
    for block in (A, V, P, at.delta, at.x[0], at.flat): block.flags.writeable = False
    for slot in at.slots:
        at.rule.pull(at, slot, A)
        at.rule.tangent(at, slot, V if slot == 0 else P)
    at.rule.pull(at, 'θ', A, total=True)
    at.rule.curve(at, 0, 'θ', P)
    at.rule.curve(at, 'θ', 0, V, total=True)


@pytest.mark.parametrize('text, make', [
    ('got units=0', lambda: Dense(0)), ('got units=True', lambda: Dense(True)),
    ('got channels=2.5', lambda: Conv(2.5, 3)),
    ('got stride=0', lambda: Conv(2, 3, stride=0).infer([(1, 8)])),
    ('of which the input has 1', lambda: Conv(2, (3, 3)).infer([(1, 8)])),
    ('does not fit', lambda: Conv(2, 5).infer([(1, 4, 4)])),
    ('expected .channels, length.', lambda: Conv(2, 3).infer([(9,)])),
    ('takes one parent, got 2', lambda: Dense(2).infer([(3,), (3,)]))])
def test_sizes_are_checked(text, make):
    with pytest.raises(ValueError, match=text): make()
