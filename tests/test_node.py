"""One node: the three maps that autograd finds, what a rule may say, and what is tried out before it is believed.

The oracle differentiates the plain function of one sample by autograd's `jacobian` and `hessian`: it shares no line
with the maps, which work on many samples and vectors at once."""
import autograd.numpy as anp
import numpy as np
import pytest
from autograd import hessian, jacobian

from hessian_nb.node import (THETA, Custom, Local, Rule, Trial, as_rule, block_diagonal, identity, is_ours,
                             local_jacobian, per_sample, shape_text, written_out)
from hessian_nb.rules import Dense, Tanh


def curved(u, v, t): return anp.sin(u)*anp.sum(v**2)*t[0] + anp.outer(u, v)[:, 0]*t[1]**2 + anp.exp(t[2])*u


def curved_batched(u, v, t):
    return anp.sin(u)*anp.sum(v**2, 1, keepdims=True)*t[0] + u*v[:, :1]*t[1]**2 + anp.exp(t[2])*u


def of_many(u, v, t): return anp.dot(t.reshape(2, 5), u[:5])*anp.prod(v) + anp.sum(t**2)


CASES = [(curved, curved, False, 3), (curved_batched, curved, True, 3), (of_many, of_many, False, 10)]
SIZES = 5, 2      # of the two parents


def at_point(function, batched, p, n=4):
    "A node of two parents with a parameter, and the arguments of each sample."
    rng = np.random.default_rng(p + n)
    x = [rng.standard_normal((d, n)) for d in SIZES]
    t = rng.standard_normal(p)
    value = Custom(function, batched).value(x, t)
    delta = rng.standard_normal(value.shape)
    return Local('f', Custom(function, batched), x, t, t, lambda flat: flat, value, delta, ('u', 'v'))


def sample(at, i): return [a[:, i] for a in at.x] + [at.flat]


def each_sample(at, derivative): return np.stack([derivative(*sample(at, i), i) for i in range(at.n)], -1)


def true_jacobian(at, plain, slot):
    "(d_v, d_slot, n)"
    return each_sample(at, lambda u, v, t, i: jacobian(plain, (0, 1, 2)[slot])(u, v, t))


def true_curvature(at, plain, s, t):
    "(d_s, d_t, n): a block of the Hessian of δ·f in all arguments of a sample."
    cuts = np.cumsum([0, *SIZES, at.flat.size])
    def joined(z, i): return anp.dot(at.delta[:, i], plain(*[z[a:b] for a, b in zip(cuts, cuts[1:])]))
    whole = each_sample(at, lambda u, v, t, i: hessian(joined)(np.concatenate([u, v, t]), i))
    return whole[cuts[s]:cuts[s+1], cuts[t]:cuts[t+1]]


def close(found, true): return np.shape(found) == np.shape(true) and np.allclose(found, true, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize('function, plain, batched, p', CASES, ids=['single', 'batched', 'many parameters'])
@pytest.mark.parametrize('a, b', [(1, 1), (2, 1), (1, 3), (3, 4)])
def test_pull_and_tangent(function, plain, batched, p, a, b):
    "For few vectors and for many, which go different ways; to each parent and to the parameter, summed or not."
    rng = np.random.default_rng(0)
    for slot in (0, 1, THETA):
        at = at_point(function, batched, p)
        D = true_jacobian(at, plain, 2 if slot == THETA else slot)
        A = rng.standard_normal((a, at.d, b, at.n))
        pulled = np.einsum('adbn,dsn->asbn', A, D)
        assert close(at.rule.pull(at, slot, A), pulled), slot
        assert close(at.rule.pull(at, slot, A, total=True), pulled.sum(-1, keepdims=True)), slot
        V = rng.standard_normal((a, at.size(slot), b, 1 if slot == THETA else at.n))
        moved = np.einsum('dsn,asbn->adbn', D, np.broadcast_to(V, (*V.shape[:3], at.n)))
        assert close(at.rule.tangent(at, slot, V), moved), slot
        assert close(at.rule.jacobian(at, slot), D), slot
        assert close(local_jacobian(at, slot), np.moveaxis(D, -1, 0)), slot


@pytest.mark.parametrize('function, plain, batched, p', CASES, ids=['single', 'batched', 'many parameters'])
def test_curve_and_seed(function, plain, batched, p):
    rng = np.random.default_rng(1)
    number = {0: 0, 1: 1, THETA: 2}
    at = at_point(function, batched, p)
    for s in number:
        for t in number:
            T = true_curvature(at, plain, number[s], number[t])
            V = rng.standard_normal((2, at.size(t), 1 if t == THETA else 3, 1 if t == THETA else at.n))
            bent = np.einsum('stn,atbn->asbn', T, np.broadcast_to(V, (*V.shape[:3], at.n)))
            assert close(at.rule.curve(at, s, t, V), bent), (s, t)
            if s == THETA: assert close(at.rule.curve(at, s, t, V, total=True), bent.sum(-1, keepdims=True)), (s, t)
            assert close(at.rule.seed(at, s, t), T.sum(-1, keepdims=True) if s == t == THETA else T), (s, t)


def test_ways_for_a_parameter():
    "Rows sample by sample where the parameter is large, columns where it is small: each is taken once in this file."
    few, many = at_point(curved, False, 3), at_point(of_many, False, 10)
    assert not few.rule.less_apiece(few, few.d) and many.rule.less_apiece(many, many.d)


def test_a_value_is_traced_once():
    "However many vectors are pulled, and however often."
    calls = []
    def counted(u):
        calls.append(1)
        return anp.sin(u)
    x = np.ones((4, 2))
    at = Local('c', Custom(counted, batched=True), [x], value=np.sin(x), delta=np.ones((4, 2)), parents=('u',))
    for a in (1, 3, 9): at.rule.pull(at, 0, np.ones((a, 4, 1, 2)))
    assert len(calls) == 1
    at.rule.curve(at, 0, 0, np.ones((1, 4, 1, 2)))
    made = len(calls)
    at.rule.curve(at, 0, 0, np.ones((5, 4, 1, 2)))
    assert len(calls) == made


class TwoSided(Rule):
    "u³ below its switch at 0, sin(θu) above, with derivatives by autograd."
    def infer(self, shapes): return shapes[0]
    def parameters(self, shapes): return {'w': (1,)}
    def value(self, x, theta): return self.at_piece(x, theta, self.choice(x))
    def choice(self, x): return (np.asarray(x[0]) > 0)*1
    def at_piece(self, x, theta, piece): return anp.where(piece == 1, anp.sin(theta['w']*x[0]), x[0]**3)


def test_a_held_piece_is_differentiated():
    "Not the piece that holds at the point: for the value's maps, and for each sample alone as a parameter needs it."
    x = np.array([[-1., 2., .5]])
    piece = np.array([[1, 0, 1]])
    def unpack(flat): return {'w': flat}
    flat = np.array([.7])
    rule = TwoSided()
    at = Local('p', rule, [x], unpack(flat), flat, unpack, rule.at_piece([x], unpack(flat), piece), np.ones((1, 3)),
               ('u',), piece)
    slopes = np.where(piece == 1, .7*np.cos(.7*x), 3*x**2)
    bends = np.where(piece == 1, -.49*np.sin(.7*x), 6*x)
    crossed = np.where(piece == 1, np.cos(.7*x) - .7*x*np.sin(.7*x), 0)
    assert np.allclose(rule.pull(at, 0, np.ones((1, 1, 1, 3)))[0, :, 0], slopes, rtol=1e-14)
    assert np.allclose(rule.seed(at, 0, 0)[0], bends, rtol=1e-14)
    assert np.allclose(rule.curve(at, THETA, 0, np.ones((1, 1, 1, 3)))[0, :, 0], crossed, rtol=1e-14)
    assert np.array_equal(rule.held(at), piece)
    free = Local('p', rule, [x], unpack(flat), flat, unpack, rule.value([x], unpack(flat)), np.ones((1, 3)), ('u',))
    assert np.array_equal(rule.held(free), [[0, 1, 1]])


def test_small_arrays():
    rng = np.random.default_rng(2)
    B, e = rng.standard_normal((3, 2, 4)), rng.standard_normal((3, 4))
    assert written_out(B) is B
    assert np.array_equal(np.moveaxis(written_out(e), -1, 0), [np.diag(column) for column in e.T])
    blocks = block_diagonal(rng.standard_normal((2, 3, 5)))
    assert blocks.shape == (6, 2, 5) and not blocks[:3, 1].any() and not blocks[3:, 0].any() and blocks[:3, 0].all()
    A, D = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((3, 6, 5))
    assert close(per_sample(A, D), np.einsum('adbn,dsn->asbn', A, D))
    assert close(per_sample(A, D, total=True), np.einsum('adbn,dsn->asb', A, D)[..., None])
    assert np.array_equal(identity(3)[0, :, :, 0], np.eye(3))
    assert (shape_text((4, 8)), shape_text(())) == ('4×8', 'number')


def test_slots():
    x = np.ones((2, 3))
    assert Local('a', Tanh(), [x], value=x, parents=('x',)).slots == [0]
    assert Local('ℒ', None, [x, np.ones(3)], value=x, parents=('x',)).slots == [0]        # targets are no argument
    assert Local('a', None, [x, x], flat=np.ones(1), value=x, parents=('x', 'x')).slots == [0, 1, THETA]


# What is tried out.

def tried(rule, *shapes, theta=None, batched=False):
    rng = np.random.default_rng(0)
    x = [rng.uniform(.1, .9, (*s, 2)) for s in shapes]
    names = [f'number {i}' for i in range(len(shapes))]
    if theta is None: return Trial(as_rule(rule, batched), x, names).shape()
    return Trial(as_rule(rule, batched), x, [*names, 'the parameter'], np.ones(theta), lambda flat: flat).shape()


class Made(Rule):
    "A rule whose value is given."
    def __init__(self, value): self.of = value
    def infer(self, shapes): return shapes[0]
    def value(self, x, theta): return self.of(x, theta)


def lost(u): return anp.where(u > .5, np.array([u[0]**2, u[1]]), u)


def overwrite(u):
    u[...] = 1.
    return 2*u


def write_parameter(u, t):
    t[0] = 3.
    return t*u[0]


REFUSED = [
    (NotImplementedError, 'Rule has no value', lambda: tried(Rule(), (3,))),
    (ValueError, r'Made\(\): the value of a sample changes.*axes before it',
     lambda: tried(Made(lambda x, t: x[0] - anp.mean(x[0], -1, keepdims=True)), (3,))),
    (ValueError, r'Made\(\) gives a value of shape \(3,\) for 2 samples',
     lambda: tried(Made(lambda x, t: anp.mean(x[0], -1)), (3,))),
    (ValueError, r'Made\(\) gives a value of shape \(\)', lambda: tried(Made(lambda x, t: anp.sum(x[0])), (3,))),
    (ValueError, r'Made\(\) ignores number 1', lambda: tried(Made(lambda x, t: x[0]), (3,), (3,))),
    (ValueError, r'Made\(\) ignores the parameter', lambda: tried(Made(lambda x, t: x[0]), (3,), theta=2)),
    (TypeError, r'Made\(\) gives numbers of type complex128', lambda: tried(Made(lambda x, t: 1j*x[0]), (3,))),
    (TypeError, r'Made\(\) fails on samples of shapes \[\(3,\)\].*read-only.*without writing',
     lambda: tried(Made(lambda x, t: overwrite(x[0])), (3,))),
    (TypeError, r'Made\(\) fails on samples.*write it with autograd.numpy',
     lambda: tried(Made(lambda x, t: np.exp(np.asarray(x[0], float))), (3,))),
    (ValueError, r"autograd's slope of Made\(\) in number 0 is .* finite differences give",
     lambda: tried(Made(lambda x, t: lost(x[0])), (2,))),
    (ValueError, "autograd's slope of the function in number 0", lambda: tried(lost, (2,))),
    (ValueError, "autograd's slope of the function in the parameter",
     lambda: tried(lambda u, t: u[0] + lost(t), (2,), theta=2)),
    (TypeError, 'the function fails.*read-only', lambda: tried(overwrite, (2,))),
    (TypeError, 'the function fails.*read-only', lambda: tried(overwrite, (2,), batched=True)),
    (TypeError, 'the function fails.*read-only', lambda: tried(write_parameter, (2,), theta=2)),
    (ValueError, 'the function ignores number 0', lambda: tried(lambda u, v: v, (2,), (2,))),
    (ValueError, 'batched=True, but 2 samples gave a value of shape',
     lambda: tried(lambda u: anp.mean(u, 0), (3,), batched=True)),
    (ValueError, 'batched=True.*must not mix', lambda: tried(lambda u: u*anp.sum(u), (3,), batched=True)),
    (TypeError, 'got the class Tanh.*Tanh\\(\\)', lambda: as_rule(Tanh)),
    (TypeError, 'got str', lambda: as_rule('Tanh')),
    (TypeError, r'batched= is for functions; Tanh\(\) needs none', lambda: as_rule(Tanh(), batched=True)),
    (NotImplementedError, 'Rule has no infer', lambda: Rule().infer([(2,)])),
    (NotImplementedError, 'Rule has no pieces', lambda: Rule().switches([], 0, 1)),
]


@pytest.mark.parametrize('kind, text, call', REFUSED, ids=[text[:40] for _, text, _ in REFUSED])
def test_refused(kind, text, call):
    with pytest.raises(kind, match=text) as told: call()
    assert told.type is kind


def test_what_is_right_is_believed():
    assert tried(Made(lambda x, t: anp.sin(x[0])*t[0]), (2, 3), theta=1) == (2, 3)
    assert tried(lambda u, v: anp.outer(u, v), (2,), (3,)) == (2, 3)
    assert tried(lambda u: anp.sum(u, axis=1), (3,), batched=True) == ()
    assert tried(lambda u: anp.arccosh(u), (3,)) == (3,)        # not defined where it is tried
    def silent(u): return anp.where(u > .5, u, u)
    closed = Made(lambda x, t: lost(x[0]))
    closed.traced = False                                      # a rule with closed forms needs no slope of autograd's
    assert tried(silent, (2,)) == tried(closed, (2,)) == (2,)


def test_only_our_own_rules_are_taken_at_their_word():
    assert is_ours(Tanh()) and is_ours(Dense(2))
    assert not is_ours(Made(None)) and not is_ours(Custom(anp.sin))


def test_a_class_that_only_looks_like_a_rule_is_a_mistake():
    class Duck:
        def pull(self): return None
    with pytest.raises(TypeError, match='got Duck; a node takes a rule'): as_rule(Duck())


@pytest.mark.parametrize('loss, without, with_targets', [
    (lambda z: z, True, False), (lambda z, y: z, False, True), (lambda z, y=None: z, True, True),
    (lambda *args: args[0], True, True), (lambda z, *, scale=2.: z, True, False)])
def test_targets_of_a_function(loss, without, with_targets):
    "Given to a loss that takes them, and refused where they would be ignored or are missing."
    for Y, good in ((None, without), (np.arange(6.).reshape(3, 2), with_targets)):
        if not good:
            with pytest.raises(ValueError, match='would ignore Y' if without else 'give Y'): Custom(loss).target(Y, (2,
                                                                                                                     ))
            continue
        found = Custom(loss).target(Y, (2,))
        assert found is None if Y is None else np.array_equal(found, Y.T) and not np.shares_memory(found, Y)


def test_a_loss_of_three():
    with pytest.raises(TypeError, match='needs 3 arguments'): Custom(lambda z, y, w: z).target(None, ())


def test_only_the_derivative_overflows():
    one = np.ones((1, 1))
    at = Local('t', Custom(lambda u: anp.tanh(u)), [800*one], value=one, delta=one, parents=('u',))
    with np.errstate(all='ignore'), pytest.raises(ValueError, match="node 't': autograd's derivative is not finite"):
        at.rule.curve(at, 0, 0, np.ones((1, 1, 1, 1)))
