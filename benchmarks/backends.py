"""The few operations that the networks are made of, as each framework writes them best, samples first.

`JAX` and `TORCH` are the peers' fast paths; `NUMPY` is plain autograd.numpy, the slow and simple one of the oracle.
"""
from functools import cache
from types import SimpleNamespace


@cache
def jax_backend():
    import jax
    import jax.numpy as jnp

    def conv(x, W, b, stride=1, padding=0):
        z = jax.lax.conv_general_dilated(x, W, (stride,)*2, [(padding,)*2]*2)
        return z + b[:, None, None]

    def layer_norm(x, scale, shift):
        return jax.nn.standardize(x, axis=-1, epsilon=1e-5)*scale + shift

    def cross_entropy(z, y):
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], 1))

    return SimpleNamespace(
        dense=lambda x, W, b: x @ W.T + b, conv=conv, layer_norm=layer_norm, cross_entropy=cross_entropy,
        flatten=lambda x: x.reshape(len(x), -1), transpose=lambda x: jnp.swapaxes(x, 1, 2), matmul=jnp.matmul,
        tanh=jnp.tanh, sin=jnp.sin, sigmoid=jax.nn.sigmoid, softmax=jax.nn.softmax,
        gelu=lambda x: jax.nn.gelu(x, approximate=False))


@cache
def torch_backend():
    import torch
    from torch.nn import functional as F

    def layer_norm(x, scale, shift):
        "Written out, since under vmap the second derivative of F.layer_norm in scale and x is wrong (torch 2.13.0)."
        centred = x - x.mean(-1, keepdim=True)
        return centred*torch.rsqrt((centred*centred).mean(-1, keepdim=True) + 1e-5)*scale + shift

    return SimpleNamespace(
        dense=F.linear, conv=lambda x, W, b, stride=1, padding=0: F.conv2d(x, W, b, stride, padding),
        layer_norm=layer_norm,
        cross_entropy=F.cross_entropy, flatten=lambda x: x.flatten(1), transpose=lambda x: x.transpose(1, 2),
        matmul=torch.matmul, tanh=torch.tanh, sin=torch.sin, sigmoid=torch.sigmoid, gelu=F.gelu,
        softmax=lambda x: torch.softmax(x, -1))


@cache
def numpy_backend():
    import autograd.numpy as np
    from autograd.scipy.special import erf

    def conv(x, W, b, stride=1, padding=0):
        x = np.pad(x, [(0, 0)]*2 + [(padding, padding)]*2, 'constant')
        rows, columns = ((n - k)//stride + 1 for n, k in zip(x.shape[2:], W.shape[2:]))
        z = b[:, None, None]
        for i in range(W.shape[2]):
            for j in range(W.shape[3]):
                seen = x[:, :, i:i + stride*(rows - 1) + 1:stride, j:j + stride*(columns - 1) + 1:stride]
                z = z + np.einsum('ncxy,oc->noxy', seen, W[:, :, i, j])
        return z

    def layer_norm(x, scale, shift):
        centred = x - np.mean(x, -1, keepdims=True)
        return centred/np.sqrt(np.mean(centred**2, -1, keepdims=True) + 1e-5)*scale + shift

    def softmax(x):
        powers = np.exp(x - np.max(x, -1, keepdims=True))
        return powers/np.sum(powers, -1, keepdims=True)

    def cross_entropy(z, y):
        z = z - np.max(z, -1, keepdims=True)
        return np.mean(np.log(np.sum(np.exp(z), -1)) - z[np.arange(len(y)), y])

    return SimpleNamespace(
        dense=lambda x, W, b: np.dot(x, W.T) + b, conv=conv, layer_norm=layer_norm, cross_entropy=cross_entropy,
        flatten=lambda x: np.reshape(x, (len(x), -1)), transpose=lambda x: np.swapaxes(x, 1, 2), matmul=np.matmul,
        tanh=np.tanh, sin=np.sin, sigmoid=lambda x: .5*(1 + np.tanh(.5*x)), softmax=softmax,
        gelu=lambda x: .5*x*(1 + erf(x/np.sqrt(2))))
