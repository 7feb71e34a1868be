"""Each network twice: as a Graph, and as a plain function of its named parameters that any framework can run.

`forward(t, x, F)` maps the parameters t['h.W'], … and a batch x to the outputs; F holds the framework's operations
(backends.py). The two share nothing but the names and the order of the parameters in θ.
"""
import autograd.numpy as anp

from hessian_nb.graph import Graph
from hessian_nb.rules import GELU, Add, Conv, CrossEntropy, Dense, LayerNorm, MatMul, Softmax, Tanh, Transpose


def mlp(sizes):
    "Dense layers with tanh between them."
    net, last = Graph(), len(sizes) - 2
    h = net.input('x', sizes[0])
    for i, units in enumerate(sizes[1:]):
        h = net.node(f'z{i}', Dense(units), h)
        if i < last: h = net.node(f'a{i}', Tanh(), h)
    net.output(h, loss=CrossEntropy())

    def forward(t, x, F):
        for i in range(last): x = F.tanh(F.dense(x, t[f'z{i}.W'], t[f'z{i}.b']))
        return F.dense(x, t[f'z{last}.W'], t[f'z{last}.b'])
    return net, forward


def cnn(shape, layers, classes=10):
    "Convolutions 3×3, given as (channels, stride), with padding 1 and tanh, and a dense layer."
    net = Graph()
    h = net.input('x', shape)
    for i, (channels, stride) in enumerate(layers):
        h = net.node(f'c{i}', Conv(channels, 3, stride=stride, padding=1), h)
        h = net.node(f'a{i}', Tanh(), h)
    net.output(net.node('z', Dense(classes), h), loss=CrossEntropy())

    def forward(t, x, F):
        for i, (_, stride) in enumerate(layers): x = F.tanh(F.conv(x, t[f'c{i}.W'], t[f'c{i}.b'], stride, padding=1))
        return F.dense(F.flatten(x), t['z.W'], t['z.b'])
    return net, forward


def shared(size, width, uses, skip, classes=10):
    "One W and b at every step: h ← tanh(W h + b), or with a skip h ← h + tanh(W h + b)."
    net = Graph()
    h = net.node('h0', Tanh(), net.node('z0', Dense(width), net.input('x', size)))
    for i in range(uses):
        z = net.node('r' if i == 0 else f'r{i}', Dense(width), h, theta=None if i == 0 else 'r')
        a = net.node(f'a{i}', Tanh(), z)
        h = net.node(f'h{i + 1}', Add(), h, a) if skip else a
    net.output(net.node('z', Dense(classes), h), loss=CrossEntropy())

    def forward(t, x, F):
        x = F.tanh(F.dense(x, t['z0.W'], t['z0.b']))
        for _ in range(uses): x = F.tanh(F.dense(x, t['r.W'], t['r.b'])) + (x if skip else 0)
        return F.dense(x, t['z.W'], t['z.b'])
    return net, forward


def custom(size, width, inner, batched, classes=10):
    "Dense layers with two functions of the user's own between them, one of which has a parameter."
    net = Graph()
    swish = net.node('s', lambda u: u/(1 + anp.exp(-u)), net.node('h', Dense(width), net.input('x', size)),
                     batched=batched)
    mix = net.node('m', lambda u, k: anp.sin(anp.dot(u, k)), swish, theta=net.parameter('k', (width, inner)),
                   batched=batched)
    net.output(net.node('z', Dense(classes), mix), loss=CrossEntropy())

    def forward(t, x, F):
        x = F.dense(x, t['h.W'], t['h.b'])
        x = F.sin(F.matmul(x*F.sigmoid(x), t['k']))
        return F.dense(x, t['z.W'], t['z.b'])
    return net, forward


def attention(tokens, width, hidden, blocks, classes=10):
    """Transformer blocks with one head, on (tokens, width). A linear map of every token is a convolution of kernel 1
    on the transposed array; the head's 1/√width is left to the weights."""
    net = Graph()
    x = net.input('x', (tokens, width))
    def turn(name, u): return net.node(name, Transpose(), u)
    def linear(name, units, u): return net.node(name, Conv(units, kernel=1), u)

    def block(i, x):
        n = turn(f'nt{i}', net.node(f'n{i}', LayerNorm(), x))
        q, k, v = (linear(f'{name}{i}', width, n) for name in 'qkv')
        scores = net.node(f'p{i}', Softmax(), net.node(f's{i}', MatMul(), turn(f'qt{i}', q), k))
        seen = net.node(f'u{i}', MatMul(), scores, turn(f'vt{i}', v))
        x = net.node(f'x{i}', Add(), x, turn(f'ot{i}', linear(f'o{i}', width, turn(f'ut{i}', seen))))
        m = turn(f'mt{i}', net.node(f'm{i}', LayerNorm(), x))
        f = linear(f'g{i}', width, net.node(f'a{i}', GELU(), linear(f'f{i}', hidden, m)))
        return net.node(f'y{i}', Add(), x, turn(f'gt{i}', f))
    for i in range(blocks): x = block(i, x)
    net.output(net.node('z', Dense(classes), x), loss=CrossEntropy())

    def forward(t, x, F):
        def linear(name, u): return F.dense(u, t[f'{name}.W'][:, :, 0], t[f'{name}.b'])
        def norm(name, u): return F.layer_norm(u, t[f'{name}.scale'], t[f'{name}.shift'])
        for i in range(blocks):
            n = norm(f'n{i}', x)
            q, k, v = (linear(f'{name}{i}', n) for name in 'qkv')
            x = x + linear(f'o{i}', F.matmul(F.softmax(F.matmul(q, F.transpose(k))), v))
            x = x + linear(f'g{i}', F.gelu(linear(f'f{i}', norm(f'm{i}', x))))
        return F.dense(F.flatten(x), t['z.W'], t['z.b'])
    return net, forward
