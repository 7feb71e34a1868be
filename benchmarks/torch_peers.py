"""PyTorch and what is built on it, each as its own documentation recommends, double precision.

torch.func: `hessian` and columns by `vmap` over forward-over-reverse products, through `functional_call`.
BackPACK: SqrtGGNExact, whose factor V gives the dense G = VVᵀ; its backpropagation wants a torch.nn.Sequential.
curvlinops: the operator applied to blocks of the identity, and scipy's eigsh on it.
nngeometry: PMatDense of the exact FIM (the Gauss–Newton matrix of the cross-entropy) and of the Hessian.
PyHessian offers power iterations for the Hessian's own eigenvalues, which is none of the table's questions.
Where a peer leaves the batch of columns to the user, the fastest one is taken (tuning.py).
"""
from math import prod

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, jvp, vmap

from .backends import torch_backend
from .tuning import tuned
from .workloads import TOP

torch.set_default_dtype(torch.float64)


class Network(nn.Module):
    "The plain function as a module with named parameters, in the order of θ."
    def __init__(self, problem):
        super().__init__()
        self.forward_of = problem.forward
        self.names = {name.replace('.', '_'): name for name in problem.slices()}
        for name, part in problem.named(torch.tensor(problem.theta)).items():
            self.register_parameter(name.replace('.', '_'), nn.Parameter(part.clone()))

    def forward(self, x):
        return self.forward_of({n: getattr(self, key) for key, n in self.names.items()}, x, torch_backend())


def sequential(problem):
    "The same network of PyTorch's own layers, for peers that read those."
    kind, *shape = problem.layers
    if kind == 'mlp':
        sizes, = shape
        parts = [part for a, b in zip(sizes, sizes[1:]) for part in (nn.Linear(a, b), nn.Tanh())][:-1]
    else:
        (channels, *extent), convolutions = shape
        parts = []
        for out, stride in convolutions:
            parts += [nn.Conv2d(channels, out, 3, stride, padding=1), nn.Tanh()]
            channels, extent = out, [(e - 1)//stride + 1 for e in extent]
        parts += [nn.Flatten(), nn.Linear(channels*prod(extent), 10)]
    model = nn.Sequential(*parts)
    nn.utils.vector_to_parameters(torch.tensor(problem.theta), model.parameters())
    return model


def is_sequential(problem): return bool(problem.layers)


def data(problem): return torch.tensor(problem.X), torch.tensor(problem.Y)


def functions(problem):
    "outputs(θ) and loss(θ) of one flat θ through functional_call, and θ."
    model, (X, Y) = Network(problem), data(problem)
    cuts = {name.replace('.', '_'): place for name, place in problem.slices().items()}
    def outputs(theta, x=X):
        return functional_call(model, {n: theta[where].reshape(shape) for n, (where, shape) in cuts.items()}, (x,))
    def loss(theta): return nn.functional.cross_entropy(outputs(theta), Y)
    return outputs, loss, torch.tensor(problem.theta)


def by_columns(product, p):
    "make(batch) of the matrix whose columns the product gives, by vmap."
    def make(batch):
        whole = vmap(product, chunk_size=batch)
        return lambda: whole(torch.eye(p)).detach().numpy()
    return tuned(make, p, RuntimeError)


def hessian(problem):
    _, loss, theta = functions(problem)
    whole = torch.func.hessian(loss)
    return lambda: whole(theta).detach().numpy()


def columns(problem):
    _, loss, theta = functions(problem)
    return by_columns(lambda v: jvp(grad(loss), (theta,), (v,))[1], problem.p)


def hessian_vector(problem):
    _, loss, theta = functions(problem)
    v = torch.tensor(problem.v)
    return lambda: jvp(grad(loss), (theta,), (v,))[1].detach().numpy()


def twice_backward(problem):
    "Reverse over reverse, torch.autograd's older way and often the quicker one for a single product."
    _, loss, theta = functions(problem)
    v = torch.tensor(problem.v)
    def run():
        t = theta.clone().requires_grad_()
        slope, = torch.autograd.grad(loss(t), t, create_graph=True)
        return torch.autograd.grad(slope, t, v)[0].numpy()
    return run


def root(z):
    "B with ∂²loss/∂z² = BᵀB for the cross-entropy: √p_i (e_i − p)."
    probabilities = torch.softmax(z, -1)
    return probabilities.sqrt()[..., None]*(torch.eye(z.shape[-1]) - probabilities[..., None, :])


def gram(problem):
    "Every sample's Jacobian by vmap(jacrev), and one matrix product."
    outputs, _, theta = functions(problem)
    X, _ = data(problem)
    def one(t, x): return outputs(t, x[None])[0]
    jacobians = vmap(jacrev(one), (None, 0))
    def run():
        R = (root(outputs(theta)) @ jacobians(theta, X)).reshape(-1, problem.p)
        return (R.T @ R/problem.N).detach().numpy()
    return run


def backpack_gauss_newton(problem):
    from backpack import backpack, extend
    from backpack.extensions import SqrtGGNExact
    model, criterion, (X, Y) = extend(sequential(problem)), extend(nn.CrossEntropyLoss()), data(problem)
    def run():
        model.zero_grad()
        with backpack(SqrtGGNExact()): criterion(model(X), Y).backward()
        V = torch.cat([t.sqrt_ggn_exact.flatten(0, 1).flatten(1) for t in model.parameters()], 1)
        return (V.T @ V).detach().numpy()
    return run


def curvlinops_operator(problem, kind):
    import curvlinops
    model = sequential(problem) if is_sequential(problem) else Network(problem)
    return getattr(curvlinops, kind)(model, nn.CrossEntropyLoss(), list(model.parameters()), [data(problem)],
                                     check_deterministic=False)


def curvlinops_matrix(kind):
    def make_contestant(problem):
        operator, p = curvlinops_operator(problem, kind), problem.p
        def make(batch):
            return lambda: torch.cat([operator @ part for part in torch.eye(p).split(batch, 1)], 1).detach().numpy()
        return tuned(make, problem.p, RuntimeError)
    return make_contestant


def curvlinops_product(problem):
    operator, v = curvlinops_operator(problem, 'HessianLinearOperator'), torch.tensor(problem.v)
    return lambda: (operator @ v).detach().numpy()


def curvlinops_top(problem):
    from scipy.sparse.linalg import eigsh
    operator = curvlinops_operator(problem, 'GGNLinearOperator').to_scipy()
    return lambda: np.vstack(eigsh(operator, TOP, which='LA'))[:, ::-1]


def loader(problem, batch): return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data(problem)), batch)


def nngeometry_fisher(problem):
    from nngeometry.metrics import FIM
    from nngeometry.object import PMatDense
    model = sequential(problem)
    def make(batch):
        examples = loader(problem, batch)
        def run():
            G = FIM(model, examples, PMatDense, variant='classif_logits', device='cpu').to_torch()
            return G.detach().numpy()
        return run
    return tuned(make, problem.N, RuntimeError)


def nngeometry_hessian(problem):
    from nngeometry.hessian import Hessian
    from nngeometry.object import PMatDense
    model, examples = sequential(problem), loader(problem, problem.N)
    def run():
        return Hessian(model, examples, PMatDense, function=nn.functional.cross_entropy).to_torch().numpy()
    return run


for reads_layers in (backpack_gauss_newton, nngeometry_fisher, nngeometry_hessian): reads_layers.fits = is_sequential

CONTESTANTS = {
    'hessian': {'torch.func.hessian': hessian, 'torch.func columns': columns,
                'curvlinops': curvlinops_matrix('HessianLinearOperator'), 'nngeometry': nngeometry_hessian},
    'gauss-newton': {'torch.func Jacobians': gram, 'BackPACK': backpack_gauss_newton,
                     'curvlinops': curvlinops_matrix('GGNLinearOperator'), 'nngeometry': nngeometry_fisher},
    'eigenvalues': {'curvlinops + eigsh': curvlinops_top},
    'product': {'torch.func': hessian_vector, 'torch.autograd': twice_backward, 'curvlinops': curvlinops_product},
    'attribution': {},
}
