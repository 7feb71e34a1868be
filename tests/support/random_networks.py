"""Random networks, built through the public interface.

A hypothesis strategy draws a `Description`: a few small numbers, which shrink well. `build` makes the network, its
parameters and its data from it, always the same ones. A step that has nothing to act on is left out.
"""
import math
from typing import NamedTuple

import autograd.numpy as anp
import jax
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hessian_nb.graph import Graph
from hessian_nb.rules import (
    GELU, Abs, Add, AvgPool, Concat, Conv, CrossEntropy, Dense, Flatten, HardTanh, LayerNorm, LeakyReLU, MatMul,
    Maximum, MaxPool, Multiply, Piecewise, ReLU, Sigmoid, Sine, Softmax, Softplus, Square, SquaredError, Tanh,
    Transpose)

PARAMETERS = 36   # at most so many before the output's: the oracle goes backward once for each
LARGEST = 30      # entries of one node's value
WIDEST = 10       # entries of the loose ends that are joined
INPUTS = [(3,), (2, 3), (3, 2), (1, 4, 4), (2, 2), (5,), (2, 5), (2, 3, 3)]


class Description(NamedTuple):
    inputs: tuple    # numbers into INPUTS
    steps: tuple     # (kind, picks, option) each: which nodes it acts on, counted from the newest, and in which way
    head: int        # how the output is made of the last node
    loss: str
    N: int
    seed: int        # of θ, X and Y


class Problem(NamedTuple):
    net: Graph
    theta: np.ndarray
    X: object
    Y: object


class Builder:
    "A network under construction."
    def __init__(self, description):
        self.net = Graph()
        for i, number in enumerate(description.inputs): self.net.input(f'x{i}', INPUTS[number])

    def shape(self, v): return self.net.nodes[v].shape

    def size(self, v): return math.prod(self.shape(v))

    def loose(self):
        "The nodes that nothing uses yet, the newest first."
        used = {s for node in self.net.nodes.values() for s in node.parents}
        return [v for v in reversed(self.net.nodes) if v not in used]

    def fitting(self, fits=lambda shape: True):
        "The names of the nodes whose shape fits: those that nothing uses yet, then the others, the newest first."
        loose = self.loose()
        return [v for v in [*loose, *[v for v in reversed(self.net.nodes) if v not in loose]] if fits(self.shape(v))]

    def pick(self, i, fits=lambda shape: True):
        names = self.fitting(fits)
        if not names: raise Impossible
        return names[i % len(names)]

    def same(self, picks):
        "Nodes of the same shape, as many as there are picks; one may come again."
        first = self.pick(picks[0])
        return first, *[self.pick(i, lambda shape: shape == self.shape(first)) for i in picks[1:]]

    def afford(self, n):
        "So many new parameters."
        if sum(p.size for p in self.net.parameters.values()) + n > PARAMETERS: raise Impossible

    def afford_value(self, *shape):
        if math.prod(shape) > LARGEST: raise Impossible

    def having(self, fits):
        "The names of the parameters of which fits(slots) is true, the newest first."
        return [q for q, p in reversed(self.net.parameters.items()) if fits(p.slots)]

    def shared(self, i, fits):
        names = self.having(fits)
        if not names: raise Impossible
        return names[i % len(names)]

    def plain(self, *shape):
        "A new parameter without a node of its own."
        self.afford(math.prod(shape))
        return self.net.parameter(f'k{len(self.net.parameters)}', shape)

    def add(self, kind, rule, *parents, **options):
        self.net.node(f'{kind}{len(self.net.nodes)}', rule, *parents, **options)


class Impossible(Exception): "A step has nothing to act on, or would grow the network too far."


# The steps: each takes the builder, three picks and an option.

def unary(kind, *rules):
    return lambda b, picks, option: b.add(kind, rules[option % len(rules)](), b.pick(picks[0]))

def several(kind, rule, least=2):
    return lambda b, picks, option: b.add(kind, rule(), *b.same(picks[:least + option % (4 - least)]))

def dense(b, picks, option):
    v, units, bias = b.pick(picks[0]), 1 + option % 4, option < 6
    b.afford(units*(b.size(v) + bias))
    b.add('dense', Dense(units, bias=bias), v)

def is_matrix(shape): return shape is not None and len(shape) == 2

def dense_shared(b, picks, option):
    "A Dense with the parameter of another node: of a Dense, or a plain matrix."
    def matrix(slots): return slots.get('W', slots.get(''))
    if not b.having(lambda slots: is_matrix(matrix(slots))): dense(b, picks, option)
    q = b.shared(picks[0], lambda slots: is_matrix(matrix(slots)))
    slots = b.net.parameters[q].slots
    v = b.pick(picks[1], lambda shape: math.prod(shape) == matrix(slots)[1])
    b.add('tied', Dense(matrix(slots)[0], bias='b' in slots), v, theta=q)

def dense_plain(b, picks, option):
    "A Dense with a plain matrix for its parameter, which other nodes may then share."
    v, units = b.pick(picks[0]), 1 + option % 3
    b.add('plain', Dense(units, bias=False), v, theta=b.plain(units, b.size(v)))

def fits_window(size, dilation=1, padding=0):
    return lambda s: len(s) in (2, 3) and min(s[1:]) + 2*padding > dilation*(size - 1)

def conv(b, picks, option):
    channels, k, bias = 1 + option % 2, 1 + picks[1] % 3, option != 3
    stride, padding, dilation = 1 + picks[2] % 2, option//2 % 2, 1 + option//4 % 2
    v = b.pick(picks[0], fits_window(k, dilation, padding))
    inputs, *lengths = b.shape(v)
    kernel = (k, k if option % 3 else 1)[:len(lengths)]
    b.afford(channels*(inputs*math.prod(kernel) + bias))
    b.afford_value(channels, *[m + 2*padding for m in lengths])
    b.add('conv', Conv(channels, kernel=kernel, stride=stride, padding=padding, dilation=dilation, bias=bias), v)

def conv_shared(b, picks, option):
    "A Conv with another Conv's parameter, at another stride."
    def is_kernel(slots): return len(slots.get('W') or ()) > 2
    if not b.having(is_kernel): conv(b, picks, option)
    q = b.shared(picks[0], is_kernel)
    slots = b.net.parameters[q].slots
    units, channels, *kernel = slots['W']
    v = b.pick(picks[1], lambda s: len(s) == 1 + len(kernel) and s[0] == channels and min(s[1:]) + 2 >= max(kernel))
    b.afford_value(units, *[m + 2 for m in b.shape(v)[1:]])
    b.add('tied', Conv(units, tuple(kernel), stride=1 + option % 2, padding=1, bias='b' in slots), v, theta=q)

def pool(kind, rule):
    def step(b, picks, option):
        stride = None if option % 2 else 1
        b.add(kind, rule(2, stride) if stride else rule(2), b.pick(picks[0], fits_window(2)))
    return step

def concat(b, picks, option):
    first = b.pick(picks[0])
    axis = option % len(b.shape(first))
    def beside(s): return len(s), s[:axis], s[axis + 1:]
    parents = [first, *[b.pick(i, lambda s: beside(s) == beside(b.shape(first))) for i in picks[1:2 + option % 2]]]
    b.afford_value(sum(b.size(v) for v in parents))
    b.add('concat', Concat(axis), *parents)

def matmul(b, picks, option):
    fit = [(v, w) for v in b.fitting(is_matrix) for w in b.fitting(is_matrix) if b.shape(v)[1] == b.shape(w)[0]]
    if not fit: raise Impossible
    left, right = fit[picks[0] % len(fit)]
    b.afford_value(b.shape(left)[0], b.shape(right)[1])
    b.add('matmul', MatMul(), left, right)

def layer_norm(b, picks, option):
    v = b.pick(picks[0], lambda s: s[-1] > 1)
    known = b.having(lambda slots: slots.get('scale') == b.shape(v)[-1:])
    if known: return b.add('norm', LayerNorm(), v, theta=known[option % len(known)])
    b.afford(2*b.shape(v)[-1])
    b.add('norm', LayerNorm(epsilon=0.1), v)


# Custom functions. They are called with autograd's arrays by the library and with jax's by one of the oracles.

def module(u): return jax.numpy if isinstance(u, jax.Array) else anp

def flat(theta):
    "All entries of a parameter, whose slots may be several."
    slots = theta.values() if isinstance(theta, dict) else [theta]
    return sum([list(slot.reshape(-1)) for slot in slots], [])

def outer(u, v): return u.reshape(-1)[:2, None]*v.reshape(-1)[:3]
def running(u): return module(u).sin(module(u).cumsum(u.reshape(-1)[:6]))
def normalised(u): return u/(1 + module(u).sum(u*u))
def coupled(u, v): return module(u).tanh(u.reshape(-1)[:4])*module(v).sum(module(v).cos(v))
def all_at_once(u, v):
    return u.reshape(len(u), -1)[:, :4]*module(v).sum(v.reshape(len(v), -1)**2, axis=1, keepdims=True)/4
def all_at_once_outer(u):
    rows = module(u).tanh(u.reshape(len(u), -1)[:, :3])
    return rows[:, :, None]*rows[:, None, :2]
def modulated(u, theta):
    w = flat(theta)
    return module(u).sin(u*w[0] + sum(c*c for c in w)/4)
def shifted(u, v, theta): return u.reshape(-1)[:3]*module(v).sum(v)*flat(theta)[-1] + sum(flat(theta))**3/8
def weighed(u, theta): return u.reshape(-1)[:3]*flat(theta)[0]*sum(flat(theta))
def all_modulated(u, theta): return module(u).tanh(u*sum(flat(theta)))*flat(theta)[0]**2

FUNCTIONS = [(outer, False), (running, False), (normalised, False), (coupled, False),
             (all_at_once, True), (all_at_once_outer, True)]
WITH_THETA = [(modulated, False), (shifted, False), (all_modulated, True)]

def parents_of(function, has_theta): return function.__code__.co_argcount - has_theta

def custom(b, picks, option):
    function, batched = FUNCTIONS[option % len(FUNCTIONS)]
    parents = [b.pick(i) for i in picks[:parents_of(function, False)]]
    b.add(function.__name__, function, *parents, batched=batched)

def with_theta(functions):
    "A function with a parameter: mostly that of another node, of whatever kind."
    def step(b, picks, option):
        function, batched = functions[option % len(functions)]
        def small(): return [q for q, p in reversed(b.net.parameters.items()) if p.size <= 20]
        if not small(): dense(b, picks, 0)
        theta = small()[picks[2] % len(small())] if small() and option < 6 else b.plain(2, 1 + picks[2] % 2)
        parents = [b.pick(i) for i in picks[:parents_of(function, True)]]
        b.add(function.__name__, function, *parents, theta=theta, batched=batched)
    return step

def above_cut(u): return u*u*u/3 + (u - 0.1)*(2 - u)     # meets u³/3 at 0.1

def outer_product(b, picks, option): b.add('outer', outer, b.pick(picks[0]), b.pick(picks[1]))

SHARING = {'dense_shared': dense_shared, 'dense_plain': dense_plain, 'conv_shared': conv_shared}
POLYNOMIAL = SHARING | {
    'dense': dense, 'conv': conv, 'multiply': several('multiply', Multiply), 'square': unary('square', Square),
    'add': several('add', Add), 'concat': concat, 'matmul': matmul,
    'outer': outer_product, 'weighed': with_theta([(weighed, False)]),
    'flatten': unary('flatten', Flatten)}
CURVED = {
    'tanh': unary('tanh', Tanh), 'sigmoid': unary('sigmoid', Sigmoid), 'softplus': unary('softplus', Softplus),
    'gelu': unary('gelu', GELU, lambda: GELU(approximate='tanh')), 'sine': unary('sine', Sine),
    'softmax': unary('softmax', Softmax), 'layer_norm': layer_norm, 'transpose': unary('transpose', Transpose),
    'custom': custom, 'custom_theta': with_theta(WITH_THETA)}
KINKED = {
    'relu': unary('relu', ReLU), 'leaky_relu': unary('leaky', LeakyReLU, lambda: LeakyReLU(slope=0.2)),
    'abs': unary('abs', Abs), 'hard_tanh': unary('hard', HardTanh), 'maximum': several('maximum', Maximum),
    'piecewise': unary('piecewise', lambda: Piecewise(lambda u: u - 0.1, lambda u: u*u*u/3, above_cut)),
    'max_pool': pool('max', MaxPool), 'avg_pool': pool('avg', AvgPool)}
STEPS = POLYNOMIAL | CURVED | KINKED


# The losses, by name: what makes one, and what kind of Y it wants.

def ripple(z): return module(z).sum(module(z).sin(z)*z) + module(z).prod(z)/4
def robust(z, y): return module(z).sum(module(z).sqrt(1 + (z - y)**2))

LOSSES = {'half': (lambda: SquaredError(0.5), 'target'), 'cross_entropy': (CrossEntropy, 'label'),
          'squared': (lambda: SquaredError(1.), 'target'), 'robust': (lambda: robust, 'target'),
          'ripple': (lambda: ripple, None), 'weighted': (lambda: SquaredError(2.5), 'target')}

def finish(b, description):
    "The output: the last node, all loose ends joined, or a Dense of either."
    last = joined(b) if description.head % 2 else next(reversed(b.net.nodes))
    if description.head < 3 or b.net.nodes[last].rule is None or not b.net.parameters or b.size(last) > 6:
        last = b.net.node('z', Dense(2 + description.head % 2), last).name
    b.net.output(last, loss=LOSSES[description.loss][0]())
    return b.net

def joined(b):
    "The loose ends as one vector, as many as fit."
    ends, ways = [], []
    for v in b.loose():
        if sum(map(b.size, ends)) + b.size(v) <= WIDEST: ends.append(v)
    for v in ends: ways.append(v if len(b.shape(v)) == 1 else b.net.node(f'flat_{v}', Flatten(), v).name)
    return b.net.node('joined', Concat(), *ways).name if len(ways) > 1 else next(reversed(b.net.nodes))

def structure(description):
    "The network alone."
    b = Builder(description)
    for kind, picks, option in description.steps:
        try: STEPS[kind](b, picks, option)
        except Impossible: pass
    return finish(b, description)

def targets(shape, N, wants, rng, numbers):
    if wants is None: return None
    return rng.integers(math.prod(shape), size=N) if wants == 'label' else numbers(N, *shape)

def build(description, integers=False):
    "The network with parameters and data: continuous, so that no kink is met but by design, or small integers."
    net = structure(description)
    rng, N, wants = np.random.default_rng(description.seed), description.N, LOSSES[description.loss][1]
    def numbers(*shape): return rng.integers(-2, 3, shape).astype(float) if integers else rng.normal(size=shape)
    theta = numbers(sum(q.size for q in net.parameters.values()))*(1 if integers else 0.6)
    X = {v: numbers(N, *node.shape) for v, node in net.nodes.items() if node.rule is None}
    Y = targets(net.nodes[net.output_node].shape, N, wants, rng, numbers)
    return Problem(net, theta, X if len(X) > 1 else X['x0'], Y)

def descriptions(kinds, losses, fewest, longest, samples):
    picks = st.tuples(*[st.integers(0, 3)]*3)
    steps = st.lists(st.tuples(st.sampled_from(kinds), picks, st.integers(0, 7)), min_size=fewest, max_size=longest)
    inputs = st.lists(st.integers(0, len(INPUTS) - 1), min_size=1, max_size=3)
    return st.builds(Description, inputs.map(tuple), steps.map(tuple), st.integers(0, 3), st.sampled_from(losses),
                     st.integers(1, samples), st.integers(0, 2**16))

def networks():
    kinds = [*STEPS, *SHARING, *SHARING, 'dense', 'multiply', 'custom', 'custom', 'custom_theta']
    return descriptions(kinds, list(LOSSES), 2, 9, 7)

def polynomial_networks():
    return descriptions([*POLYNOMIAL, *SHARING, 'multiply', 'matmul'], ['half', 'squared', 'weighted'], 1, 7, 3)

def live(net):
    "The nodes that reach the output, in order."
    found = {net.output_node}
    for v in reversed(net.nodes): found.update(net.nodes[v].parents if v in found else ())
    return [v for v in net.nodes if v in found]

def skeleton(net):
    "The kinds of the live nodes, their parents, and who shares. Networks that differ in it are different."
    order = {v: i for i, v in enumerate(live(net))}
    first = {net.nodes[v].theta: i for v, i in reversed(order.items())}
    nodes = [net.nodes[v] for v in order]
    return tuple((type(u.rule).__name__, *[order[s] for s in u.parents], first[u.theta]) for u in nodes)

def on_different(n, strategy, check, **options):
    "What check(net, theta, X, Y) returns on n networks with different skeletons; hypothesis repeats itself a lot."
    results = {}
    @settings(max_examples=4*n, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def one(description):
        problem = build(description, **options)
        if len(results) < n and skeleton(problem.net) not in results:
            results[skeleton(problem.net)] = check(*problem)
    one()
    assert len(results) == n, len(results)
    return [*results.values()]
