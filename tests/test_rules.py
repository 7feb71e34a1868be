"""The rules besides the affine ones: their digits against decimal arithmetic, their pieces against brute force, and
wrong rules, which `check_rule` must find."""
import math
import subprocess
import sys
from decimal import Decimal, localcontext
from functools import cache
from itertools import product

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from hessian_nb.graph import Graph
from hessian_nb.hessian import hessian
from hessian_nb.node import THETA, Local, Rule
from hessian_nb.rules import (GELU, Abs, Add, AvgPool, Concat, Conv, CrossEntropy, Dense, Diagonal, Flatten, HardTanh,
                              Hinge, LayerNorm, LeakyReLU, Loss, MatMul, Maximum, MaxPool, Multiply, Piecewise, ReLU,
                              Sigmoid, Softmax, Softplus, SquaredError, Tanh, Transpose, check_rule)


# Digits: values, slopes and bends in decimal arithmetic, from the definitions.

DIGITS = 800     # e^722 is the largest number that the series of Φ meets


def exp(x): return x.exp()


@cache
def normal_cdf(x):
    "Φ(x) = ½ + φ(x) Σ x^(2k+1)/(2k+1)!!"
    term = total = x
    for k in range(1, 6000):
        term = term*x*x/(2*k + 1)
        total += term
        if abs(term) < Decimal(10)**-DIGITS: break
    return Decimal('.5') + normal_density(x)*total


@cache
def pi():
    "Machin: π = 16 arctan(1/5) − 4 arctan(1/239)."
    def arctan_of_inverse(n): return sum(Decimal((-1)**k)/((2*k + 1)*Decimal(n)**(2*k + 1)) for k in range(620))
    return 16*arctan_of_inverse(5) - 4*arctan_of_inverse(239)


def normal_density(x): return exp(-x*x/2)/(2*pi()).sqrt()


def tanh(x):
    e = exp(2*x)
    return (e - 1)/(e + 1), 4*e/(e + 1)**2, -8*e*(e - 1)/(e + 1)**3


def sigmoid(x):
    e = exp(x)
    return e/(1 + e), e/(1 + e)**2, e*(1 - e)/(1 + e)**3


def softplus(x): return (1 + exp(x)).ln(), *sigmoid(x)[:2]
def gelu(x): return x*normal_cdf(x), normal_cdf(x) + x*normal_density(x), (2 - x*x)*normal_density(x)


def gelu_tanh(x):
    c, k = (2/pi()).sqrt(), Decimal(.044715)
    s, ds, dds = sigmoid(2*c*(x + k*x**3))
    du, ddu = 2*c*(1 + 3*k*x*x), 12*c*k*x
    return x*s, s + x*ds*du, 2*ds*du + x*(dds*du*du + ds*ddu)


RULES = [(Tanh(), tanh), (Sigmoid(), sigmoid), (Softplus(), softplus), (GELU(), gelu), (GELU('tanh'), gelu_tanh)]
NAMES = ['tanh', 'sigmoid', 'softplus', 'gelu', 'gelu-tanh']
POINTS = [1e-9, .3, 1., 3., 9., 20., 36., 40., 355., 700.]


def at_point(rule, x, delta=None):
    x = np.reshape(x, (-1, 1)).astype(float)
    return Local('v', rule, [x], value=rule.value([x], None), delta=delta, parents=('x',))


def ours(rule, x):
    at = at_point(rule, x)
    return at.value, rule.slopes(at)[0], rule.bend(at, 0, 0)


@pytest.mark.parametrize('rule, exact', RULES, ids=NAMES)
def test_digits(rule, exact):
    "Relative errors of value, slope and bend: round-off times the condition of e^(x²/2) or e^u at the most."
    points = [s*x for x in POINTS for s in (1, -1) if abs(x) < 38 or not isinstance(rule, GELU)]
    found = ours(rule, points)
    with localcontext() as context:
        context.prec = DIGITS
        for i, x in enumerate(points):
            for name, part, true in zip(('value', 'slope', 'bend'), found, exact(Decimal(x))):
                if abs(true) < Decimal('1e-307'): assert abs(part[i, 0]) < 1e-306, (x, name)
                else: assert abs(Decimal(float(part[i, 0]))/true - 1) < Decimal(2e-13), (x, name, part[i, 0])


@pytest.mark.parametrize('rule, exact', RULES, ids=NAMES)
@pytest.mark.parametrize('x', [356., 1e4, 1e103, 1.5e154, 1e300])
def test_far_out_all_is_finite_and_autograd_agrees(rule, exact, x):
    "The certificate differentiates the value; nothing may overflow there, nor in the closed forms."
    points = np.array([[x], [-x]])
    with np.errstate(over='raise', invalid='raise'):
        value, slope, bend = ours(rule, points)
        first = autograd.elementwise_grad(lambda u: rule.value([u], None))
        second = autograd.elementwise_grad(first)
        assert np.allclose(first(points), slope, rtol=1e-12)
        assert np.allclose(second(points), bend, rtol=1e-12, atol=1e-300)
    top = 0 if isinstance(rule, Tanh | Sigmoid) else 1
    assert np.isfinite(value).all() and np.allclose(slope, [[top], [0]], atol=1e-100) and np.abs(bend).max() < 1e-100


@pytest.mark.parametrize('rule, exact', RULES, ids=NAMES)
def test_autograd_of_the_value_in_the_middle(rule, exact):
    "The primitives' pullbacks are written with each other, and can be wrong apart from the closed forms."
    points = np.linspace(-4, 4, 17)[:, None]
    first = autograd.elementwise_grad(lambda u: rule.value([u], None))
    third = autograd.elementwise_grad(autograd.elementwise_grad(first))
    h = 1e-5
    assert np.allclose(first(points), ours(rule, points)[1], rtol=1e-13, atol=1e-15)
    measured = (ours(rule, points + h)[2] - ours(rule, points - h)[2])/(2*h)
    assert np.allclose(third(points), measured, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('w', [-20., -36., -40., -300.])
def test_log_of_a_softplus(w):
    "ℓ = log softplus(w): with s = softplus, ℓ′ = σ/s and ℓ″ = σσ̄/s − (σ/s)², nearly 1 and −½eʷ."
    net = Graph()
    a = net.node('a', Softplus(), net.node('w', Dense(1, bias=False), net.input('x', 1)))
    net.output(a, lambda z: anp.sum(anp.log(z)))
    with localcontext() as context:
        context.prec = 400
        s, slope, bend = softplus(Decimal(w))
        true = slope/s, bend/s - (slope/s)**2
    theta = np.array([w])
    assert np.isclose(net.gradient(theta, np.ones((1, 1)))[0], float(true[0]), rtol=1e-12, atol=0)
    H = hessian(net, theta, np.ones((1, 1))).dense()[0, 0]
    assert abs(H - float(true[1])) < 4e-16         # a difference of two numbers near 1


def test_a_saturated_unit_before_a_large_weight():
    "ℓ = c·tanh(w), c = 1e17, w = 20: 1 − f² is zero, and with it the whole matrix."
    net = Graph()
    net.output(net.node('a', Tanh(), net.node('w', Dense(1, bias=False), net.input('x', 1))), lambda z: 1e17*anp.sum(z))
    with localcontext() as context:
        context.prec = 60
        true = 1e17*float(tanh(Decimal(20))[2])
    assert np.isclose(hessian(net, np.array([20.]), np.ones((1, 1))).dense()[0, 0], true, rtol=1e-14) and abs(true) > 1


@pytest.mark.parametrize('rule, exact', RULES, ids=NAMES)
def test_certificate_far_out(rule, exact):
    "Pre-activations of some 1e4 beside ordinary ones: autograd's own tanh gave NaN."
    net = Graph()
    h = net.node('h', Dense(4), net.input('x', 2))
    net.output(net.node('z', Dense(2), net.node('a', rule, h)), SquaredError())
    theta = net.init(0)
    net.view(theta)['h.W'][:2] *= 1e4
    X, Y = np.random.default_rng(0).standard_normal((2, 5, 2))
    assert hessian(net, theta, X, Y).certify(quiet=True) < 1e-12


def cross_entropy(z, y):
    "Value, gradient and curvature in decimal arithmetic."
    powers = [exp(Decimal(float(u)) - Decimal(float(max(z)))) for u in z]
    p = [e/sum(powers) for e in powers]
    value = -p[y].ln()
    gradient = [q - (i == y) for i, q in enumerate(p)]
    curvature = [[q*((i == j) - r) for j, r in enumerate(p)] for i, q in enumerate(p)]
    return tuple(np.array(part, float) for part in (value, gradient, curvature))


@pytest.mark.parametrize('offset', [0., 1e8, 1e12, 1e15, -1e15])
@pytest.mark.parametrize('sure', [0., 1., 20., 40., 300.])
@pytest.mark.parametrize('y', [0, 2])
def test_cross_entropy_digits(offset, sure, y):
    z = offset + np.array([sure, -.25, 1.125, .5])
    x = [z[:, None], np.array([y])]
    at = Local('ℒ', CrossEntropy(), x, value=CrossEntropy().value(x, None), delta=np.ones((1, 1)), parents=('z',))
    with localcontext() as context:
        context.prec = 300
        true = cross_entropy(z, y)
    found = at.value[0], at.rule.pull(at, 0, np.ones((1, 1, 1, 1)))[0, :, 0, 0], at.rule.seed(at, 0, 0)[..., 0]
    for part, expected in zip(found, true): np.testing.assert_allclose(part, expected, rtol=3e-15, atol=0)
    slope = autograd.grad(lambda u: CrossEntropy().value([u, np.array([y])], None)[0])(z[:, None])[:, 0]
    np.testing.assert_allclose(slope, true[1], rtol=1e-14, atol=1e-16)


def test_softmax_digits():
    "A sure row: relative to each entry, D and T lose nothing."
    z = np.array([30., -.25, 1.125])
    with localcontext() as context:
        context.prec = 120
        powers = [exp(Decimal(float(u))) for u in z]
        p = [e/sum(powers) for e in powers]
        D = [[q*((i == j) - r) for j, r in enumerate(p)] for i, q in enumerate(p)]
        delta = [Decimal(1), Decimal(2), Decimal(-1)]
        mean = sum(a*b for a, b in zip(p, delta))
        bent = [sum(D[k][j]*delta[k] for k in range(3)) for j in range(3)]
        T = [[D[i][j]*(delta[i] - mean) - p[i]*bent[j] for j in range(3)] for i in range(3)]
    at, eye = at_point(Softmax(), z, np.array([[1.], [2.], [-1.]])), np.eye(3)[None, ..., None]
    np.testing.assert_allclose(at.rule.pull(at, 0, eye)[0, ..., 0], np.array(D, float), rtol=1e-14)
    np.testing.assert_allclose(at.rule.curve(at, 0, 0, eye)[0, ..., 0], np.array(T, float), rtol=1e-13)


def test_rules_import_little():
    "autograd.scipy takes longer to import than all the rest."
    code = 'import sys, hessian_nb.rules; print(*[m for m in sys.modules if m.startswith("autograd.scipy")])'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert not done.stdout.strip()


# Pieces: at points on and off the kinks.

def bent(u): return 0*u
def wave(u): return anp.sin(u)
def no_autograd(u): return np.frompyfunc(math.sinh, 1, 1)(u).astype(float)     # a ufunc that it does not know


class Steps(Hinge):
    "Three cuts, slopes up and down."
    cuts = -1., 0., 2.
    pieces = (0., 1.), (-1., 0.), (2., 0.), (.5, 3.)


PIECEWISE = [(ReLU(), [(6,)]), (LeakyReLU(.2), [(6,)]), (Abs(), [(6,)]), (HardTanh(), [(6,)]), (Steps(), [(6,)]),
             (Maximum(), [(6,)]*3), (MaxPool(2), [(2, 4, 4)]), (MaxPool(3, stride=1), [(2, 6)]),
             (MaxPool((2, 1), stride=(1, 2)), [(1, 3, 5)]),
             (Piecewise(lambda u: u, bent, wave), [(6,)]),
             (Piecewise(lambda u, v: u - v, lambda u, v: u*v, lambda u, v: v**2), [(6,)]*2)]
IDS = [f'{rule!r}-{i}' for i, (rule, _) in enumerate(PIECEWISE)]


def quarters(rng, *shape):
    "Numbers of which many are equal, or lie on a cut."
    return rng.integers(-6, 7, shape)/2.


@pytest.mark.parametrize('rule, shapes', PIECEWISE, ids=IDS)
def test_pieces(rule, shapes):
    "The chosen and every tied piece attain the value; off the kinks one piece beats all others, by its switches."
    rng = np.random.default_rng(0)
    kinks = 0
    for draw in (quarters, lambda rng, *shape: 2*rng.standard_normal(shape)):
        x = [draw(rng, *shape, 80) for shape in shapes]
        value, choice = np.asarray(rule.value(x, None)), rule.choice(x)
        assert np.allclose(rule.at_piece(x, None, choice), value, rtol=1e-15)
        tied = rule.tied(x, value)
        assert tied.dtype == bool and tied.shape[1:] == value.shape and np.take_along_axis(tied, choice[None], 0).all()
        beats = {}
        for q in range(len(tied)):
            held = rule.at_piece(x, None, np.where(tied[q], q, choice))
            assert np.allclose(held, value, rtol=1e-15)
            rivals = [rule.switches(x, q, r) for r in range(len(tied)) if r != q]
            beats[q] = np.all([switch > 0 for switch in rivals], 0)
            loses = np.any([switch < 0 for switch in rivals], 0)
            alone = tied.sum(0) == 1
            assert np.array_equal(beats[q], alone & (choice == q)) and not (loses & tied[q]).any()
        kinks += (tied.sum(0) > 1).sum()
    assert kinks > 20


@pytest.mark.parametrize('rule, shapes', PIECEWISE, ids=IDS)
def test_a_held_piece_stays_smooth(rule, shapes):
    "A held piece is smooth where it does not hold too: slopes are those of the piece that the point holds."
    rng = np.random.default_rng(1)
    x = [rng.standard_normal((*shape, 3)) for shape in shapes]
    for _ in range(4):
        piece = rng.integers(len(rule.tied(x, rule.value(x, None))), size=np.shape(rule.choice(x)))
        value = rule.at_piece(x, None, piece)
        delta = np.ones((value[..., 0].size, 3))
        at = Local('v', rule, x, value=value, delta=delta, parents=('x',)*len(x), piece=piece)
        for s in range(len(x)):
            V = rng.standard_normal((1, at.size(s), 1, 3))
            h = 1e-6
            def at_end(sign): return [a + sign*h*V.reshape(a.shape) if i == s else a for i, a in enumerate(x)]
            ends = [rule.at_piece(at_end(sign), None, piece) for sign in (1, -1)]
            assert np.allclose(rule.tangent(at, s, V).reshape(value.shape), (ends[0] - ends[1])/(2*h), atol=1e-7)


EVERY_RULE = [*PIECEWISE, (Tanh(), [(4,)]), (Multiply(), [(4,)]*2), (Add(), [(4,)]*2), (Flatten(), [(2, 3)]),
              (Transpose(2, 0, 1), [(2, 3, 2)]), (Concat(1), [(2, 2), (2, 3)]), (MatMul(), [(2, 3), (3, 2)]),
              (Softmax(), [(2, 3)]), (LayerNorm(), [(2, 3)]), (AvgPool(2), [(2, 4, 4)]),
              (Conv(2, 2, stride=2), [(2, 5, 4)]), (Conv(2, 2, dilation=2, padding=1), [(1, 4)]), (Dense(3), [(4,)])]


def reached(rule, x, theta, s, near):
    "Entries of the value (d) that change when an entry of parent s (d_s) changes a little: bool (d_s, d), one sample."
    value, out = rule.value(x, theta).ravel(), []
    for e in range(x[s].size):
        moved = [[a.copy() for a in x] for _ in range(2)]
        for m, step in zip(moved, (near, -near)): m[s].reshape(-1)[e] += step
        out.append(np.any([rule.value(m, theta).ravel() != value for m in moved], 0))
    return np.array(out)


@pytest.mark.parametrize('rule, shapes', EVERY_RULE, ids=[f'{rule!r}-{i}' for i, (rule, _) in enumerate(EVERY_RULE)])
def test_what_is_seen(rule, shapes):
    "An entry that can move what is looked at is seen; of the rules with pieces, no other entry is."
    rng = np.random.default_rng(2)
    slots = {slot: rng.standard_normal(shape) for slot, shape in rule.parameters(shapes).items()} or None
    exactly = any(rule is other for other, _ in PIECEWISE)
    some = 0
    for draw, _ in product((quarters, lambda rng, *shape: rng.standard_normal(shape)), range(6)):
        x = [draw(rng, *shape, 1) for shape in shapes]
        at = Local('v', rule, x, slots, value=np.asarray(rule.value(x, slots)), parents=('x',)*len(x))
        seen = rng.random(at.value.shape) < .4
        for s in range(len(x)):
            can = (reached(rule, x, slots, s, 1e-6) & seen.ravel()).any(1)
            told = rule.sees(at, s, seen)
            assert told.shape == x[s].shape and told.dtype == bool and not (can & ~told.ravel()).any()
            if exactly: assert np.array_equal(can, told.ravel())
            some += can.sum()
    assert some > 10


# A kink of one's own.

def net_with(rule, parents=1):
    net = Graph()
    net.node('p', rule, *[net.input(f'x{i}', (3,)) for i in range(parents)])
    return net


@pytest.mark.parametrize('kind, text, functions', [
    (ValueError, 'above mixes entries or samples', (lambda u: u, bent, lambda u: anp.exp(u)/anp.sum(anp.exp(u)))),
    (ValueError, 'below mixes entries', (lambda u: u, lambda u: u[::-1]*u, bent)),
    (ValueError, 'above mixes entries', (lambda u: u, bent, lambda u: u - anp.mean(u, axis=-1, keepdims=True))),
    (ValueError, 'switch mixes entries', (lambda u: u - anp.max(u), bent, bent)),
    (TypeError, 'switch gives truth values', (lambda u: u > 1, bent, lambda u: u - 1)),
    (TypeError, 'above gives values of type complex', (lambda u: u, bent, lambda u: 1j*u)),
    (TypeError, 'below fails on 1 arrays', (lambda u: u, lambda u, v: u*v, bent)),
    (ValueError, 'gives an array of shape', (lambda u: u, bent, lambda u: anp.concatenate([u, u]))),
    (TypeError, 'autograd cannot differentiate above', (lambda u: u, bent, lambda u: no_autograd(u))),
    (ValueError, 'finite differences', (lambda u: u, bent, lambda u: np.where(u > 0, u, 0.))),
    (ValueError, 'a jump of 1;', (lambda u: u - 1, bent, lambda u: u)),
    (ValueError, 'do not meet', (lambda u: u*u, bent, lambda u: 1 + u)),
    (ValueError, 'do not meet', (lambda u: u*u - 30, lambda u: u, lambda u: u*0 + anp.sqrt(30)))])
def test_a_piecewise_that_is_none_is_refused(kind, text, functions):
    with pytest.raises(kind, match=f"node 'p': .*{text}"): net_with(Piecewise(*functions))


@pytest.mark.parametrize('text, functions', [
    ('ignore parent number 1', (lambda u, v: u, lambda u, v: 0*u, lambda u, v: u)),
    ('do not meet', (lambda u, v: u, lambda u, v: 0*u, lambda u, v: v)),                     # they do at (0, 0)
    ('do not meet', (lambda u, v: u*u + v*v - 4, lambda u, v: u*v, lambda u, v: u*v + u - 2))])  # they do at (2, 0)
def test_a_piecewise_of_two_parents_that_jumps_is_refused(text, functions):
    with pytest.raises(ValueError, match=f"node 'p': .*{text}"): net_with(Piecewise(*functions), 2)


@pytest.mark.parametrize('functions', [
    (lambda u: u, bent, wave), (lambda u: u - 5, lambda u: u, lambda u: 0*u + 5), (lambda u: u**3, bent, lambda u: u),
    (lambda u: u, lambda u: 0., lambda u: anp.sqrt(u)**3), (lambda u: anp.exp(u), bent, wave),       # never zero
    (lambda u: anp.abs(u) - 1, lambda u: u, lambda u: u**3), (lambda u: u*u - 2, bent, lambda u: (u*u - 2)*u),
    (lambda u: u - np.array([[0.], [1.], [2.]]), lambda u: u, lambda u: np.array([[0.], [1.], [2.]]) + 0*u)])
def test_a_piecewise_that_is_one_is_taken(functions):
    net_with(Piecewise(*functions))


def test_a_piece_may_fail_where_the_other_one_holds():
    "√u below zero is NaN, in the value that is differentiated by the certificate as well."
    net = Graph()
    h = net.node('h', Dense(4), net.input('x', 2))
    a = net.node('a', Piecewise(lambda u: u, bent, lambda u: anp.sqrt(u)**3), h)
    net.output(net.node('z', Dense(2), a), SquaredError())
    X, Y = np.random.default_rng(0).standard_normal((2, 6, 2))
    with np.errstate(all='raise'): assert hessian(net, net.init(1), X, Y).certify(quiet=True) < 1e-12


def test_hinges_meet():
    class Broken(Hinge): pieces = (0., 1.), (1., 0.)
    with pytest.raises(ValueError, match="node 'p': .*do not meet at the cut 0, but jump by 1"): net_with(Broken())
    with pytest.raises(ValueError, match='expected a finite number'): LeakyReLU(np.inf)


# check_rule: wrong rules.

class Parabola(Rule):
    "f = a x² + b x, with two numbers for each entry."
    traced = False
    def infer(self, shapes): return shapes[0]
    def parameters(self, shapes): return {'a': shapes[0], 'b': shapes[0]}
    def value(self, x, theta): return theta['a'][..., None]*x[0]**2 + theta['b'][..., None]*x[0]

    def numbers(self, at): return at.x[0].reshape(-1, 1, at.n), *(at.theta[s].reshape(-1, 1, 1) for s in 'ab')

    def pull(self, at, slot, A, total=False):
        x, a, b = self.numbers(at)
        if slot != THETA: return A*(2*a*x + b)
        out = np.concatenate([A*x*x, A*x], 1)
        return out.sum(-1, keepdims=True) if total else out

    def tangent(self, at, slot, V):
        x, a, b = self.numbers(at)
        if slot != THETA: return V*(2*a*x + b)
        V_a, V_b = np.split(V, 2, axis=1)
        return V_a*x*x + V_b*x

    def pairs(self, slots): return [(0, 0), (0, THETA)]

    def curve(self, at, s, t, V, total=False):
        x, a, b = self.numbers(at)
        delta = at.delta[:, None]
        if s == t: return 2*delta*a*V
        if s != THETA:
            V_a, V_b = np.split(V, 2, axis=1)
            return delta*(2*x*V_a + V_b)
        out = np.concatenate([2*delta*x*V, delta*V], 1)
        return out.sum(-1, keepdims=True) if total else out


class DoubledSeed(Parabola):
    def seed(self, at, s, t): return 2*super().seed(at, s, t)


class DoubledThetaSeed(Parabola):
    def seed(self, at, s, t): return (1 + (s == THETA))*super().seed(at, s, t)


class CurveOfAnotherShape(Parabola):
    def curve(self, at, s, t, V, total=False): return super().curve(at, s, t, V, total or s == THETA != t)


class IgnoresTotal(Parabola):
    def pull(self, at, slot, A, total=False): return super().pull(at, slot, A)


class CurveIgnoresTotal(Parabola):
    def curve(self, at, s, t, V, total=False): return super().curve(at, s, t, V)


class WrongTangent(Parabola):
    def tangent(self, at, slot, V): return super().tangent(at, slot, V)*(1 if slot != THETA else 2)


class NotSummedOverTheFirst(Parabola):
    "Right for one vector at a time only."
    def pull(self, at, slot, A, total=False): return super().pull(at, slot, A[:1] + 0*A, total)


class LeavesAPairOut(Parabola):
    def pairs(self, slots): return [(0, 0)]


class Fails(Parabola):
    def curve(self, at, s, t, V, total=False): return V.reshape(7)


class DiagonalOnlyInName(Parabola):
    diagonal_seed = True


class KeepsDiagonalOnlyInName(Parabola):
    keeps_diagonal = True


class LinearInTheta(Parabola):
    affine = True


class Mixing(Rule):
    "Each channel minus the mean of all, squared."
    apart = True
    def infer(self, shapes): return shapes[0]
    def value(self, x, theta): return (x[0] - anp.mean(x[0], axis=0, keepdims=True))**2


class MixingSlowly(Mixing):
    "Squares and mixes: diagonal in nothing, apart in nothing."
    def value(self, x, theta): return x[0]*x[0][::-1]


class UntracedByName(Rule):
    traced = False
    def infer(self, shapes): return shapes[0]
    def value(self, x, theta): return anp.sin(x[0])


class OverTheSamples(Rule):
    def infer(self, shapes): return shapes[0]
    def value(self, x, theta): return x[0] - anp.mean(x[0], axis=-1, keepdims=True)


class LastAxisAsEntries(Rule):
    "Softmax along axis −1, which is the samples."
    def infer(self, shapes): return shapes[0]
    def value(self, x, theta): return anp.exp(x[0])/anp.sum(anp.exp(x[0]), axis=-1, keepdims=True)


class AnotherShape(Rule):
    def infer(self, shapes): return shapes[0]
    def value(self, x, theta): return x[0][:2]**2


class NotTraceable(Rule):
    def infer(self, shapes): return shapes[0]
    def value(self, x, theta): return no_autograd(x[0])


class PartlyConstant(Diagonal):
    "The maps are right; but numpy's where is a constant to autograd, without a word, and it is the oracle."
    def value(self, x, theta): return x[0] + np.where(x[0] > -9, x[0]**2, 0.)
    def slopes(self, at): return [1 + 2*at.x[0]]
    def bend(self, at, s, t): return np.full(at.value.shape, 2.)


class LossOverTheSamples(Loss):
    traced = True
    def value(self, x, theta): return anp.sum(x[0]**2, axis=0) - anp.mean(x[0]**2)


class WrongPiece(ReLU):
    def at_piece(self, x, theta, piece): return super().at_piece(x, theta, 1 - piece)


class WrongSwitch(ReLU):
    def switches(self, x, q, r): return -super().switches(x, q, r)


class WrongTied(ReLU):
    def tied(self, x, value): return super().tied(x, value)[::-1]


class WrongLoss(SquaredError):
    def curve(self, at, s, t, V, total=False): return super().curve(at, s, t, V)/2


class SuperfluousBend(Diagonal):
    def value(self, x, theta): return 3*x[0]
    def slopes(self, at): return [np.full(at.value.shape, 3.)]
    def bend(self, at, s, t): return np.ones(at.value.shape)


WRONG = [
    (DoubledSeed(), (4,), r'seed\(0, 0\) is off by 1.0e\+00'), (DoubledThetaSeed(), (4,), r'seed\(θ, 0\) is off'),
    (CurveOfAnotherShape(), (4,), r'curve\(θ, 0\) gives an array of shape \(2, 8, 3, 1\), expected \(2, 8, 3, 3\)'),
    (IgnoresTotal(), (4,), r'pull\(θ, total=True\) gives an array of shape'),
    (CurveIgnoresTotal(), (4,), r'curve\(θ, 0, total=True\) gives an array of shape'),
    (WrongTangent(), (4,), r'tangent\(θ\) is off'), (NotSummedOverTheFirst(), (4,), r'pull\(0\) is off'),
    (LeavesAPairOut(), (4,), r'pairs leaves out \(0, θ\)'), (Fails(), (4,), r'curve\(0, 0\) fails with ValueError'),
    (DiagonalOnlyInName(), (4,), 'diagonal_seed = True'), (KeepsDiagonalOnlyInName(), (4,), 'keeps_diagonal = True'),
    (LinearInTheta(), (4,), 'affine = True says'), (Mixing(), (3, 2), 'apart = True promises'),
    (MixingSlowly(), (3,), 'apart = True promises'),
    (UntracedByName(), (4,), 'traced = False promises'),
    (OverTheSamples(), (4,), 'the last axis runs over the samples'),
    (LastAxisAsEntries(), (4,), 'the last axis runs over the samples'), (AnotherShape(), (4,), 'but infer says'),
    (PartlyConstant(), (4,), 'finite differences'), (LossOverTheSamples(), (4,), 'the last axis runs over the samples'),
    (WrongPiece(), (4,), r'at_piece\(choice\) is off'), (WrongSwitch(), (4,), 'switches'), (WrongTied(), (4,), 'tied'),
    (WrongLoss(), (4,), r'curve\(0, 0\) is off'), (SuperfluousBend(), (4,), r'curve\(0, 0\) is off')]


@pytest.mark.parametrize('rule, shape, text', WRONG, ids=[type(rule).__name__ for rule, _, _ in WRONG])
def test_wrong_rules_are_told(rule, shape, text):
    with pytest.raises(ValueError, match=text): check_rule(rule, shape)


class Power(Rule):
    "a³x², which bends in its parameter too; its value is all that it states."
    def infer(self, shapes): return shapes[0]
    def parameters(self, shapes): return {'a': shapes[0]}
    def value(self, x, theta): return theta['a'][..., None]**3*x[0]**2


def test_curvature_in_the_parameter():
    errors = check_rule(Power(), (3,))
    assert 'seed(θ, θ)' in errors and 'curve(θ, θ, total=True)' in errors and max(errors.values()) < 1e-12


def test_what_autograd_cannot_follow_is_told():
    with pytest.raises(TypeError, match='write it with autograd.numpy'): check_rule(NotTraceable(), (4,))


def test_the_right_one_passes():
    errors = check_rule(Parabola(), (4,))
    assert {'pull(θ, total=True)', 'curve(θ, 0, total=True)', 'seed(θ, 0)', 'tangent(θ)', 'jacobian(0)',
            'pull_diagonal(θ)', 'Hessian, pushed', 'Hessian, carried', 'Hessian, planned'} <= {*errors}
    assert max(errors.values()) < 1e-12 and 'all 19 checks' in repr(errors) and '<table>' in errors._repr_html_()


def alone(at): return at.parents == ('x0',)      # no network around it


class WrongWhenCarried(Parabola):
    "Right by itself, and wrong in a network: as if its mistake hung on something that the maps' check does not try."
    def tangent(self, at, slot, V): return super().tangent(at, slot, V)*(1 if alone(at) else 2)


class WrongWhenPushed(Parabola):
    def seed(self, at, s, t): return super().seed(at, s, t)*(1 if alone(at) else 2)


@pytest.mark.parametrize('rule, way', [(WrongWhenCarried(), 'carried'), (WrongWhenPushed(), 'pushed')])
def test_each_way_of_the_engine_is_tried(rule, way):
    with pytest.raises(ValueError, match=f'Hessian, {way} is off'): check_rule(rule, (4,))


def test_functions_losses_and_several_parents():
    assert max(check_rule(lambda u, v: anp.sin(u)*anp.sum(v), (3,), (2,)).values()) < 1e-12
    assert max(check_rule(CrossEntropy(), (4,)).values()) < 1e-12
    assert max(check_rule(SquaredError(2.), (2, 3)).values()) < 1e-12
    assert max(check_rule(Multiply(), 3, 3, n=2, rng=7).values()) < 1e-12
    assert max(check_rule(Tanh(), ()).values()) < 1e-12
    with pytest.raises(ValueError, match='two samples or more'): check_rule(Tanh(), (3,), n=1)
