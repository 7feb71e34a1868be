"""What the library must reproduce, found another way.

A network is evaluated plainly, one sample at a time, and differentiated by autograd or jax. Nothing here uses the
library's rules: of a `Graph` only the structure is read (nodes, parents, parameters, hyper-parameters).
`xp` is the array module: autograd.numpy, jax.numpy, or numpy itself on arrays of exact numbers (exact.py).
"""
import itertools
import math
from collections import defaultdict

import autograd
import autograd.numpy as anp
import autograd.scipy.special
import jax
import numpy as np

jax.config.update('jax_enable_x64', True)


# One node, one sample: x holds the parents' values, t the parameter's slots.

def per_axis(value, k): return tuple(value) if isinstance(value, (tuple, list)) else (value,)*k

def taps(x, size, stride, dilation):
    "Each offset inside a window, with the entries of x (C, …) that it meets as the window moves."
    steps = [(n - d*(k - 1) - 1)//s for n, k, s, d in zip(x.shape[1:], size, stride, dilation)]
    for tap in itertools.product(*map(range, size)):
        yield tap, x[(slice(None), *[slice(d*i, d*i + s*m + 1, s) for i, m, s, d in zip(tap, steps, stride, dilation)])]

def pool_taps(r, x):
    k = x.ndim - 1
    return [part for _, part in taps(x, per_axis(r.size, k), per_axis(r.stride, k), (1,)*k)]

def weight(t): return t['W'] if 'W' in t else t['']

def dense(r, x, t, xp):
    z = xp.dot(weight(t), x[0].reshape(-1))
    return z + t['b'] if r.bias else z

def conv(r, x, t, xp):
    k, W = x[0].ndim - 1, weight(t)
    padded = xp.pad(x[0], [(0, 0)] + [(p, p) for p in per_axis(r.padding, k)], 'constant')
    z = sum(xp.tensordot(W[(slice(None), slice(None), *tap)], part, 1)
            for tap, part in taps(padded, per_axis(r.kernel, k), per_axis(r.stride, k), per_axis(r.dilation, k)))
    return z + t['b'].reshape(-1, *(1,)*k) if r.bias else z

def gelu(r, x, t, xp):
    erf = jax.scipy.special.erf if xp is jax.numpy else autograd.scipy.special.erf
    if r.approximate == 'tanh': return x[0]/2*(1 + xp.tanh(math.sqrt(2/math.pi)*(x[0] + 0.044715*x[0]**3)))
    return x[0]/2*(1 + erf(x[0]/math.sqrt(2)))

def layer_norm(r, x, t, xp):
    centred = x[0] - xp.mean(x[0], axis=-1, keepdims=True)
    return centred/xp.sqrt(xp.mean(centred**2, axis=-1, keepdims=True) + r.epsilon)*t['scale'] + t['shift']

def maximum(r, x, t, xp):
    top = x[0]
    for other in x[1:]: top = xp.where(other > top, other, top)
    return top

def softmax(r, x, t, xp):
    powers = xp.exp(x[0] - xp.max(x[0], axis=-1, keepdims=True))
    return powers/xp.sum(powers, axis=-1, keepdims=True)

def custom(r, x, t, xp):
    theta = [t.get('', t)] if t else []
    return r.function(*[u[None] for u in x], *theta)[0] if r.batched else r.function(*x, *theta)

VALUES = {
    'Dense': dense, 'Conv': conv, 'GELU': gelu, 'LayerNorm': layer_norm, 'Maximum': maximum, 'Custom': custom,
    'MaxPool': lambda r, x, t, xp: xp.max(xp.stack(pool_taps(r, x[0])), axis=0),
    'AvgPool': lambda r, x, t, xp: sum(pool_taps(r, x[0]))/len(pool_taps(r, x[0])),
    'Flatten': lambda r, x, t, xp: x[0].reshape(-1),
    'ReLU': lambda r, x, t, xp: xp.where(x[0] > 0, x[0], 0.),
    'LeakyReLU': lambda r, x, t, xp: xp.where(x[0] > 0, x[0], r.slope*x[0]),
    'Abs': lambda r, x, t, xp: xp.where(x[0] > 0, x[0], -x[0]),
    'HardTanh': lambda r, x, t, xp: xp.where(x[0] > 1, 1., xp.where(x[0] < -1, -1., x[0])),
    'Piecewise': lambda r, x, t, xp: xp.where(r.switch(*x) > 0, r.above(*x), r.below(*x)),
    'Tanh': lambda r, x, t, xp: xp.tanh(x[0]),
    'Sigmoid': lambda r, x, t, xp: (1 + xp.tanh(x[0]/2))/2,
    'Softplus': lambda r, x, t, xp: xp.logaddexp(x[0], 0.),
    'Sine': lambda r, x, t, xp: xp.sin(x[0]),
    'Square': lambda r, x, t, xp: x[0]*x[0],
    'Add': lambda r, x, t, xp: sum(x[1:], x[0]),
    'Multiply': lambda r, x, t, xp: math.prod(x[1:], start=x[0]),
    'MatMul': lambda r, x, t, xp: xp.dot(x[0], x[1]),
    'Concat': lambda r, x, t, xp: xp.concatenate(x, axis=r.axis),
    'Transpose': lambda r, x, t, xp: xp.transpose(x[0], r.axes or None),
    'Softmax': softmax}

def value(node, x, t, xp=anp): return VALUES[type(node.rule).__name__](node.rule, x, t, xp)

def loss_value(net, z, y, xp=anp):
    "The loss of one sample whose output is z."
    rule, flat = net.loss_rule, z.reshape(-1)
    if type(rule).__name__ == 'CrossEntropy':
        return xp.log(xp.sum(xp.exp(flat - xp.max(flat)))) + xp.max(flat) - flat[y]
    if type(rule).__name__ == 'SquaredError': return rule.factor*xp.sum((flat - y.reshape(-1))*(flat - y.reshape(-1)))
    return rule.function(z) if y is None else rule.function(z, y)


# The whole network, one sample.

def views(flat, shapes):
    "A flat vector cut into named arrays: {name: shape} -> {name: array}."
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()], dtype=int)
    return {name: flat[end - math.prod(shape):end].reshape(shape) for (name, shape), end in zip(shapes.items(), ends)}

def tied(net, theta):
    "Each node's slots, {node: {slot: array}}, cut from the parameter vector."
    cut = views(theta, {(q, s): shape for q in net.parameters for s, shape in net.parameters[q].slots.items()})
    return {v: {s: cut[node.theta, s] for s in net.parameters[node.theta].slots}
            for v, node in net.nodes.items() if node.theta is not None}

def untied_shapes(net):
    return {(v, s): shape for v, node in net.nodes.items() if node.theta is not None
            for s, shape in net.parameters[node.theta].slots.items()}

def untied(net, theta):
    "Each node's slots, cut from a vector in which every node has parameters of its own."
    cut, slots = views(theta, untied_shapes(net)), defaultdict(dict)
    for (v, s), array in cut.items(): slots[v][s] = array
    return slots

def untie(net, theta):
    "The parameters as one vector with a copy for every node that uses them."
    slots = tied(net, theta)
    return np.concatenate([slots[v][s].reshape(-1) for v, s in untied_shapes(net)])

def users(net): return {q: [v for v, node in net.nodes.items() if node.theta == q] for q in net.parameters}

def samples(net, X, Y):
    "Each sample as ({input: array}, y)."
    inputs = [v for v, node in net.nodes.items() if node.rule is None]
    X = X if isinstance(X, dict) else {inputs[0]: X}
    N = len(X[inputs[0]])
    return [({v: X[v][n] for v in inputs}, None if Y is None else Y[n]) for n in range(N)]

def forward(net, slots, sample, xp=anp, shift=None):
    "Every node's value; shift, if given, is added to the nodes' values: the ε of the input Hessian."
    f = {}
    for v, node in net.nodes.items():
        f[v] = sample[v] if node.rule is None else value(node, [f[s] for s in node.parents], slots.get(v, {}), xp)
        if shift is not None: f[v] = f[v] + shift[v]
    return f

def shapes(net): return {v: node.shape for v, node in net.nodes.items()}

def loss(net, theta, X, Y, xp=anp, cut=tied):
    "The mean loss over the samples."
    slots, batch = cut(net, theta), samples(net, X, Y)
    return sum(loss_value(net, forward(net, slots, x, xp)[net.output_node], y, xp) for x, y in batch)/len(batch)

def ranges(named):
    "{name: its places} in the vector that `views` cuts."
    sizes = {name: (math.prod(shape),) for name, shape in named.items()}
    return views(np.arange(sum(n for n, in sizes.values())), sizes)


# The curvature.

def hessian(net, theta, X, Y, cut=tied):
    return autograd.hessian(lambda t: loss(net, t, X, Y, anp, cut))(theta)

def gradient(net, theta, X, Y):
    return autograd.grad(lambda t: loss(net, t, X, Y))(theta)

def untied_hessian(net, theta, X, Y):
    "Blocks {(v, w): array} by node, as if no parameter were shared."
    H, own = hessian(net, untie(net, theta), X, Y, untied), ranges(untied_shapes(net))
    places = {v: np.concatenate([own[k] for k in own if k[0] == v]) for v, _ in own}
    return {(v, w): H[np.ix_(i, j)] for v, i in places.items() for w, j in places.items()}

def jax_hessian(net, theta, X, Y):
    "By jax, compiled for one sample; the mean over the samples."
    def one(t, x, y): return loss_value(net, forward(net, tied(net, t), x, jax.numpy)[net.output_node], y, jax.numpy)
    one = jax.jit(jax.hessian(one), compiler_options={'xla_backend_optimization_level': 0})
    return np.mean([one(theta, x, y) for x, y in samples(net, X, Y)], axis=0)

def gauss_newton(net, theta, X, Y):
    "J_outᵀ ∇²ℒ J_out, the mean over the samples."
    def one(x, y):
        def output(t): return forward(net, tied(net, t), x)[net.output_node].reshape(-1)
        J, shape = autograd.jacobian(output)(theta), net.nodes[net.output_node].shape
        return J.T @ autograd.hessian(lambda z: loss_value(net, z.reshape(shape), y))(output(theta)) @ J
    return np.mean([one(x, y) for x, y in samples(net, X, Y)], axis=0)

def shifted_loss(net, theta, x, y):
    "One sample's loss as a function of ε, a perturbation of all nodes' values."
    return lambda e: loss_value(net, forward(net, tied(net, theta), x, anp, views(e, shapes(net)))[net.output_node], y)

def unperturbed(net): return np.zeros(sum(math.prod(shape) for shape in shapes(net).values()))

def input_hessian(net, theta, X, Y):
    "H^f as one matrix a sample, (N, D, D), and the places {node: indices} of its blocks."
    H = [autograd.hessian(shifted_loss(net, theta, x, y))(unperturbed(net)) for x, y in samples(net, X, Y)]
    return np.array(H), ranges(shapes(net))

def kind(s, t):
    "The kind of term that two slots of one node make: a parent's name, or None for the parameter."
    if s is None and t is None: return 'parameter'
    return 'input-parameter' if s is None or t is None else 'pure' if s == t else 'mixed'

def node_terms(net, theta, X, Y):
    "The master formula, term by term: {(node, kind): (p, p) array}, the mean over the samples."
    terms, batch = defaultdict(lambda: np.zeros((theta.size, theta.size))), samples(net, X, Y)
    for x, y in batch:
        for key, term in sample_terms(net, theta, x, y).items(): terms[key] += term/len(batch)
    terms[net.output_node, 'gauss-newton'] = gauss_newton(net, theta, X, Y)
    return dict(terms)

def sample_terms(net, theta, x, y):
    "Σ_{s,t} J_sᵀ ⟨δ_u, T_{u;s,t}⟩ J_t of each node u, by kind."
    def values(t): return forward(net, tied(net, t), x)
    def stacked(t): return anp.concatenate([f.reshape(-1) for f in values(t).values()])
    J, places, f, slots = autograd.jacobian(stacked)(theta), ranges(shapes(net)), values(theta), tied(net, theta)
    delta, columns = autograd.grad(shifted_loss(net, theta, x, y))(unperturbed(net)), tied(net, np.arange(theta.size))
    terms = defaultdict(lambda: np.zeros((theta.size, theta.size)))
    for u, node in net.nodes.items():
        if node.rule is None: continue
        own, parent = slots.get(u, {}), dict(enumerate(node.parents))
        total = {i: J[places[s]] for i, s in parent.items()}
        total |= {s: np.eye(theta.size)[columns[u][s].reshape(-1)] for s in own}
        seeds = curvature(node, [f[s] for s in node.parents], own, delta[places[u]])
        for (s, t), seed in seeds.items(): terms[u, kind(parent.get(s), parent.get(t))] += total[s].T @ seed @ total[t]
    return terms

def curvature(node, x, t, delta):
    "⟨δ, T_{s,t}⟩ of a node's own function, {(s, t): block}; s, t are the parents' numbers and the parameter's slots."
    arguments = dict(enumerate(x)) | t
    named = {s: np.shape(argument) for s, argument in arguments.items()}
    def weighted(q):
        cut = views(q, named)
        return anp.sum(delta*value(node, [cut[i] for i in range(len(x))], {s: cut[s] for s in t}).reshape(-1))
    T = autograd.hessian(weighted)(np.concatenate([np.reshape(argument, -1) for argument in arguments.values()]))
    place = ranges(named)
    return {(s, t): T[np.ix_(place[s], place[t])] for s in named for t in named}
