"hessian_nb's own entries: what a user calls, with the defaults."
import numpy as np


def matrix(problem):
    from hessian_nb.hessian import hessian
    return lambda: hessian(problem.net, problem.theta, problem.X, problem.Y).dense()


def gauss_newton(problem):
    from hessian_nb.gauss_newton import gauss_newton
    return lambda: gauss_newton(problem.net, problem.theta, problem.X, problem.Y).dense()


def product(problem):
    from hessian_nb.hessian import hessian_vector
    return lambda: hessian_vector(problem.net, problem.theta, problem.X, problem.Y, problem.v)


def prepared_product(problem):
    "The operator, which keeps the forward pass and δ, applied once more."
    from hessian_nb.operators import hessian_operator
    operator = hessian_operator(problem.net, problem.theta, problem.X, problem.Y)
    return lambda: operator @ problem.v


def split(problem):
    "vᵀHv by node and kind; the answer that is checked is the sum."
    from hessian_nb.hessian import attribute
    return lambda: np.array(attribute(problem.net, problem.theta, problem.X, problem.Y, problem.v).total())


def top(problem):
    "Lanczos on the operator: the dense matrix and LAPACK take a hundred times as long already at p = 3k."
    from hessian_nb.operators import gauss_newton_operator, top_eigenpairs

    from .workloads import TOP
    def run():
        G = gauss_newton_operator(problem.net, problem.theta, problem.X, problem.Y)
        return np.vstack(top_eigenpairs(G, TOP))
    return run


CONTESTANTS = {
    'hessian': {'hessian_nb': matrix},
    'gauss-newton': {'hessian_nb': gauss_newton},
    'eigenvalues': {'hessian_nb': top},
    'product': {'hessian_nb': product, 'hessian_nb operator': prepared_product},
    'attribution': {'hessian_nb': split, 'hessian_nb Hessian-vector product': product},
}
