"""Polynomial networks with integer parameters and data: the Hessian and every term, equal to the last bit."""
import numpy as np
from support import exact
from support.random_networks import on_different, polynomial_networks
from hypothesis import assume

from hessian_nb.hessian import decompose, hessian

LARGEST = 2**50   # whole numbers and halves that stay below are exact in double precision


def equal(found, true): return (np.asarray(found).astype(object) == true).all()

def check(net, theta, X, Y):
    assume(exact.magnitude(net, theta, X, Y) < LARGEST)
    H, true = exact.hessian(net, theta, X, Y), exact.terms(net, theta, X, Y)
    terms = decompose(net, theta, X, Y, reduction='sum')
    assert equal(sum(true.values()), H)
    assert equal(hessian(net, theta, X, Y, reduction='sum').dense(), H)
    for key in {*true, *terms}: assert equal(terms[key] if key in terms else 0., true.get(key, 0*H)), key

def test_equality():
    "The Hessian and each of its terms; what vanishes is zero, and a term that is left out vanishes."
    on_different(100, polynomial_networks(), check, integers=True)
