"""What an answer must be, found with plain autograd.numpy: no compiler, no rules, none of the contestants' code.

A matrix is held against products with random directions, which differ if any entry does; eigenpairs against Gv = λv
and against scipy's Lanczos on the oracle's own products.
"""
import autograd.numpy as anp
import numpy as np
from autograd import grad, make_ggnvp
from scipy.sparse.linalg import LinearOperator, eigsh

from .backends import numpy_backend

TOLERANCE = 1e-8    # of the largest entry
DIRECTIONS = 3


def functions(problem):
    "outputs(θ) and loss(outputs)."
    F = numpy_backend()
    def outputs(theta): return problem.forward(problem.named(theta), problem.X, F)
    def loss(z): return F.cross_entropy(z, problem.Y)
    return outputs, loss


def hessian_product(problem, v):
    "Reverse over reverse."
    outputs, loss = functions(problem)
    return grad(lambda t: anp.dot(grad(lambda u: loss(outputs(u)))(t), v))(problem.theta)


def gauss_newton_product(problem, v):
    outputs, loss = functions(problem)
    return make_ggnvp(outputs, loss)(problem.theta)(v)


def reference(problem) -> dict:
    "What answers are compared with."
    if problem.quantity == 'eigenvalues': return top(problem)
    product = gauss_newton_product if problem.quantity == 'gauss-newton' else hessian_product
    if problem.quantity in ('product', 'attribution'): V = problem.v[:, None]
    else: V = np.random.default_rng(3).standard_normal((problem.p, DIRECTIONS))
    return {'V': V, 'products': np.stack([product(problem, v) for v in V.T], 1)}


def top(problem):
    from .workloads import TOP
    G = LinearOperator((problem.p,)*2, lambda v: gauss_newton_product(problem, v.reshape(-1)), dtype=float)
    return {'values': eigsh(G, TOP, which='LA', return_eigenvectors=False)[::-1]}


def difference(mine, other): return float(np.abs(mine - other).max()/np.abs(other).max())


def error(problem, reference, answer) -> float:
    "Relative error of an answer: a matrix, a product, vᵀHv, or eigenvalues above their eigenvectors."
    if problem.quantity == 'eigenvalues': return eigen_error(problem, reference['values'], answer)
    V, right = reference['V'], reference['products']
    if answer.ndim == 2: return difference(answer @ V, right)
    return difference(answer, right[:, 0] if answer.ndim else V[:, 0] @ right[:, 0])


def eigen_error(problem, right, answer):
    values, vectors = answer[0], answer[1:]
    images = np.stack([gauss_newton_product(problem, v) for v in vectors.T], 1)
    unit = difference(np.linalg.norm(vectors, axis=0), np.ones(len(values)))
    return max(difference(values, right), difference(images, vectors*values), unit)
