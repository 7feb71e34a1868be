"""JAX, as its own documentation recommends: forward over reverse, compiled, double precision.

`hessian` is jax.hessian under jit. `columns` is the version that does not hold p tangents of the whole batch at once:
`linearize` once, then `lax.map` over the unit vectors with the batch size that is fastest here, tried before timing.
"""
import jax
import jax.numpy as jnp
import numpy as np

from .backends import jax_backend
from .tuning import tuned
from .workloads import TOP

jax.config.update('jax_enable_x64', True)


def functions(problem):
    "outputs(θ, X) and loss(θ, X, Y), and the arrays that they take."
    F = jax_backend()
    def outputs(theta, X): return problem.forward(problem.named(theta), X, F)
    def loss(theta, X, Y): return F.cross_entropy(outputs(theta, X), Y)
    return outputs, loss, tuple(map(jnp.asarray, (problem.theta, problem.X, problem.Y)))


def compiled(f, args):
    "Compiled ahead of time, so that no run and no peak of memory holds the compiler's."
    ready = jax.jit(f).lower(*args).compile()
    return lambda *more: np.asarray(ready(*(more or args)))


def hessian(problem):
    _, loss, args = functions(problem)
    return compiled(jax.hessian(loss), args)


def columns(problem):
    _, loss, args = functions(problem)

    def make(batch):
        def matrix(theta, X, Y):
            _, product = jax.linearize(lambda t: jax.grad(loss)(t, X, Y), theta)
            return jax.lax.map(product, jnp.eye(problem.p), batch_size=batch)
        return compiled(matrix, args)
    return tuned(make, problem.p, jax.errors.JaxRuntimeError)


def root(z):
    "B with ∂²loss/∂z² = BᵀB for the cross-entropy: √p_i (e_i − p)."
    probabilities = jax.nn.softmax(z)
    return jnp.sqrt(probabilities)[:, None]*(jnp.eye(len(z)) - probabilities)


def gram(problem):
    "Every sample's Jacobian by vmap(jacrev), and one matrix product."
    outputs, _, args = functions(problem)

    def rows(theta, x):
        def one(t): return outputs(t, x[None])[0]
        return root(one(theta)) @ jax.jacrev(one)(theta)

    def matrix(theta, X, Y):
        R = jax.vmap(rows, (None, 0))(theta, X).reshape(-1, problem.p)
        return R.T @ R/problem.N
    return compiled(matrix, args)


def gauss_newton_product(problem):
    "(θ, X, v) -> Gv: a tangent, the loss's own curvature, a pullback."
    outputs, _, args = functions(problem)

    def prepare(theta, X):
        z, tangent = jax.linearize(lambda t: outputs(t, X), theta)
        back = jax.linear_transpose(tangent, theta)
        B = jax.vmap(root)(z)
        return lambda v: back(jnp.einsum('nik,nij,nj->nk', B, B, tangent(v))/problem.N)[0]
    return prepare, args


def gauss_newton_columns(problem):
    prepare, args = gauss_newton_product(problem)

    def make(batch):
        def matrix(theta, X, Y):
            return jax.lax.map(prepare(theta, X), jnp.eye(problem.p), batch_size=batch)
        return compiled(matrix, args)
    return tuned(make, problem.p, jax.errors.JaxRuntimeError)


def top(problem):
    "scipy's Lanczos on the compiled product."
    from scipy.sparse.linalg import LinearOperator, eigsh
    prepare, (theta, X, _) = gauss_newton_product(problem)
    product = compiled(lambda theta, X, v: prepare(theta, X)(v), (theta, X, theta))
    operator = LinearOperator((problem.p,)*2, matvec=lambda v: product(theta, X, v.reshape(-1)), dtype=float)
    return lambda: np.vstack(eigsh(operator, TOP, which='LA'))[:, ::-1]


def hessian_vector(problem):
    _, loss, args = functions(problem)
    def product(theta, X, Y, v): return jax.jvp(lambda t: jax.grad(loss)(t, X, Y), (theta,), (v,))[1]
    return compiled(product, (*args, jnp.asarray(problem.v)))


def prepared_product(problem):
    "`linearize` keeps the forward pass; only the linear map runs."
    _, loss, (theta, X, Y) = functions(problem)
    _, product = jax.linearize(jax.jit(lambda t: jax.grad(loss)(t, X, Y)), theta)
    return compiled(product, (jnp.asarray(problem.v),))


CONTESTANTS = {
    'hessian': {'jax.hessian': hessian, 'jax columns': columns},
    'gauss-newton': {'jax Jacobians': gram, 'jax columns': gauss_newton_columns},
    'eigenvalues': {'jax product + eigsh': top},
    'product': {'jax': hessian_vector, 'jax linearize': prepared_product},
    'attribution': {'jax Hessian-vector product': hessian_vector},
}
