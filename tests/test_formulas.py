"""The formulas of chapter 3a on random networks, and the machine that looks for counterexamples.

Every number is held to oracle.py, which evaluates a network without the library's rules and differentiates it by
autograd or jax, or to exact integers.
"""
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from numpy.linalg import norm
from support import oracle
from support.checks import error, known, on_networks, part, smooth
from support.exact import integers, variables, zero

from hessian_nb.formulas import (
    Line, Recipe, build, cancellation, corrected_1, corrected_2, edge_push, falsify, master, mended_1, nudged, pieces,
    printed_1, printed_2, recipes, refutes, seeded, separated, shared, terms, true_hessian, true_input_hessian,
    true_parameter_hessian)
from hessian_nb.graph import Graph
from hessian_nb.rules import Dense, Multiply, Square, SquaredError

pytestmark = [pytest.mark.filterwarnings('ignore:Output seems independent of input'),
              pytest.mark.filterwarnings('ignore:.*exactly on a kink')]


# Random networks: values of any shape, repeated parents, shared parameters, functions with parameters, dead ends.

def of_each_sample(net, theta, X, Y): return [pieces(net, theta, x, y) for x, y in oracle.samples(net, X, Y)]

def mean(claims):
    "The mean of the samples' claims, key by key."
    return {key: np.mean([claim[key] for claim in claims], axis=0) for key in claims[0]}


@on_networks(20)
def test_input_hessian(net, theta, X, Y):
    "The corrected formula (1), its symmetry, and the push with nudges (A9, A11, A18)."
    assume(smooth(net, net.forward(theta, X)))
    true, places = known(oracle.input_hessian(net, theta, X, Y))
    for H, q in zip(true, of_each_sample(net, theta, X, Y)):
        by_recursion, by_push = corrected_1(q), edge_push(nudged(q))
        assert by_recursion.keys() == by_push.keys() == {(v, w) for v in places for w in places}
        for v, w in by_recursion:
            yield error(by_recursion[v, w], H[np.ix_(places[v], places[w])], norm(H))
            yield error(by_push[v, w], H[np.ix_(places[v], places[w])], norm(H))
            yield error(by_recursion[v, w], by_recursion[w, v].T, norm(H))


@on_networks(20)
def test_blocks_by_node(net, theta, X, Y):
    "The corrected formula (2) and the push, as if no parameter were shared (A12, A18)."
    true = known(oracle.untied_hessian(net, theta, X, Y))
    scale = max(map(norm, true.values()))
    samples = of_each_sample(net, theta, X, Y)
    for formula in corrected_2, edge_push:
        found = mean([formula(q) for q in samples])
        assert found.keys() == true.keys()
        for pair in true: yield error(found[pair], true[pair], scale)


@on_networks(20)
def test_hessian(net, theta, X, Y):
    "The master formula, and blocks by node summed over the uses of each parameter (A14)."
    true = known(oracle.hessian(net, theta, X, Y))
    samples = of_each_sample(net, theta, X, Y)
    yield error(np.mean([master(q) for q in samples], axis=0), true)
    yield error(np.mean([shared(q, corrected_2(q)) for q in samples], axis=0), true)


@on_networks(6)
def test_jax(net, theta, X, Y):
    "The master formula by another program: jax.hessian."
    found = np.mean([master(q) for q in of_each_sample(net, theta, X, Y)], axis=0)
    yield error(found, oracle.jax_hessian(net, theta, X, Y))


@on_networks(15)
def test_terms(net, theta, X, Y):
    "Every term of the master formula, and the push of its seeds alone (A17, A18)."
    true = known(oracle.node_terms(net, theta, X, Y))
    scale = max(map(norm, true.values()))
    samples = of_each_sample(net, theta, X, Y)
    keys = {key for q in samples for key in terms(q)}
    assert keys <= {*true}
    by_formula = {key: sum(part(terms(q), key, theta.size) for q in samples)/len(samples) for key in keys}
    by_push = {key: sum(shared(q, edge_push(seeded(q, *key))) for q in samples)/len(samples) for key in keys}
    for key in true:
        yield error(part(by_formula, key, theta.size), true[key], scale)
        yield error(part(by_push, key, theta.size), true[key], scale)


# The machine.

SMALL = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def exact_hessian(recipe):
    "The Hessian of a recipe's network in integers, by carrying Taylor numbers through the oracle's plain values."
    net = build(recipe)
    slots = oracle.tied(net, variables(integers(recipe.theta)))
    z = oracle.forward(net, slots, {'x': integers(recipe.numbers['x'])}, np)[recipe.out]
    half_square = recipe.loss == 'half square'
    loss = sum(z*z if half_square else z, zero(recipe.theta.size))
    return loss.hessian/2 if half_square else loss.hessian


FAST_GROWING = recipes(numbers=(5,), widths=(3,), kinds=('square', 'weight', 'square'))

@pytest.mark.parametrize('networks', [recipes(), FAST_GROWING], ids=['any', 'fast growing'])
def test_the_machine_compares_exact_numbers(networks):
    "Neither its truth nor a formula that is true differs from integer arithmetic in a single bit."
    @SMALL
    @given(networks)
    def check(recipe):
        true = exact_hessian(recipe)
        assert np.max(true, initial=0) < 2**53
        assert np.array_equal(true_hessian(recipe), true)
        assert np.array_equal(master(pieces(build(recipe), recipe.theta, recipe.numbers['x'])), true)
    check()


@SMALL
@given(recipes().filter(lambda recipe: recipe.theta.size))
def test_the_truths_of_a_recipe(recipe):
    "The network that is built from a recipe has the recipe's Hessians, found by the oracle."
    net, X = build(recipe), recipe.numbers['x'][None]
    by_node = oracle.untied_hessian(net, recipe.theta, X, None)
    nudges, places = oracle.input_hessian(net, recipe.theta, X, None)
    true, nudged_true = true_parameter_hessian(recipe), true_input_hessian(recipe)
    assert true.keys() == by_node.keys() and all(np.array_equal(true[pair], by_node[pair]) for pair in true)
    assert all(np.array_equal(block, nudges[0][np.ix_(places[v], places[w])]) for (v, w), block in nudged_true.items())


def test_recipes_are_varied():
    "Widths, repeated parents, sharing, every kind and both losses are drawn, and so is what was asked for."
    seen = set()
    @settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(recipes())
    def look(recipe):
        uses = [line.theta for line in recipe.lines.values() if line.theta]
        seen.update(line.kind for line in recipe.lines.values())
        seen.update({recipe.loss, f'{len(recipe.numbers["x"])} entries', f'{len(recipe.lines)} lines'})
        seen.update(a for array in recipe.numbers.values() for a in array.ravel())
        if len(set(uses)) < len(uses): seen.add('sharing')
        if any(len(set(line.parents)) < len(line.parents) for line in recipe.lines.values()): seen.add('a parent twice')
    look()
    assert seen == {'copy', 'square', 'product', 'weight', 'gain', 'sum', 'half square', 'sharing', 'a parent twice',
                    *[f'{n} entries' for n in (1, 2, 3)], *[f'{n} lines' for n in (1, 2, 3, 4, 5, 6)], 1, 2, 3, 5, -2}


@SMALL
@given(recipes(numbers=(3, 1), widths=(2,), kinds=('weight',), most=2))
def test_recipes_as_asked(recipe):
    assert {line.kind for line in recipe.lines.values()} == {'weight'} and len(recipe.lines) <= 2
    assert {a.shape for a in recipe.numbers.values()} <= {(2,), (2, 2)}
    assert {*np.concatenate([a.ravel() for a in recipe.numbers.values()])} <= {1, 3}


@cache
def found(formula, truth): return falsify(formula, truth)

@pytest.mark.parametrize('formula, truth, smallest', [
    (printed_1, true_input_hessian, 'a = x², ℒ = a at x = 1'),
    (mended_1, true_input_hessian, 'a = x, ℒ = ½a² at x = 1')])
def test_smallest_counterexamples(formula, truth, smallest):
    "Formula (1) as printed, and with row 2 mended (A9, A10)."
    assert repr(found(formula, truth)) == smallest
    assert falsify(formula, truth) == found(formula, truth)   # the same again
    assert refutes(found(formula, truth), formula, truth)


def test_what_the_printed_formula_2_loses():
    "Two weights in a row (A12)."
    weights = {'a': Line('weight', ('x',), 'θa'), 'b': Line('weight', ('a',), 'θb')}
    recipe = Recipe('half square', weights, {'x': np.ones(1), 'θa': np.full((1, 1), 3.), 'θb': np.full((1, 1), 5.)})
    claimed = printed_2(pieces(build(recipe), recipe.theta, np.ones(1)))
    assert claimed['a', 'b'] == 0 and 2*3*5 == true_parameter_hessian(recipe)['a', 'b']
    assert refutes(recipe, printed_2, true_parameter_hessian)
    assert not refutes(recipe, corrected_2, true_parameter_hessian)


def test_one_node():
    "On a single node the printed formula (2) is right, the base cases are not to be read strictly (A13, A19)."
    one_line = recipes(most=1)
    assert falsify(printed_2, true_parameter_hessian, one_line, examples=60) is None
    recipe = Recipe('sum', {'a': Line('gain', ('x',), 'θa')}, {'x': np.array([5.]), 'θa': np.array([3.])})
    q = pieces(build(recipe), recipe.theta, recipe.numbers['x'])
    assert ('a', 'a') in separated(q, strict=True) and ('a', 'a') not in separated(q)
    assert true_parameter_hessian(recipe)['a', 'a'] == 10


def test_nodes_without_a_common_descendant():
    "A node counts as its own descendant unless read strictly (A10, A13)."
    net = Graph()
    for name in 'xy': net.node(name.upper(), Square(), net.input(name, 1))
    net.output(net.node('z', Square(), 'X'), SquaredError())
    q = pieces(net, np.zeros(0), {'x': [1.], 'y': [1.]}, [0.])
    beside = {(v, w) for v in 'xXz' for w in 'yY'}
    beside |= {(w, v) for v, w in beside}
    assert {*separated(q)} == beside
    assert {*separated(q, strict=True)} == beside | {(v, 'z') for v in 'xXz'} | {('z', v) for v in 'xXz'} | {
        (v, 'Y') for v in 'yY'} | {('Y', v) for v in 'yY'}


def test_shapes_that_do_not_fit_refute():
    recipe = Recipe('sum', {'a': Line('weight', ('x',), 'θa')}, {'x': np.ones(2), 'θa': np.ones((1, 2))})
    def fails(q): return {('x', 'x'): q.D['a', 'x'] @ q.D['a', 'x']}
    def too_wide(q): return {('a', 'a'): np.zeros((2, 2))}
    assert refutes(recipe, fails, true_input_hessian) and refutes(recipe, too_wide, true_input_hessian)
    def broken(q): return q.absent
    with pytest.raises(AttributeError, match='absent'): refutes(recipe, broken, true_input_hessian)


def test_how_a_recipe_is_written():
    numbers = {'x': np.array([2., -2.]), 'θa': np.array([[1., 5.]]), 'θc': np.array([3.])}
    lines = {'a': Line('weight', ('x',), 'θa'), 'b': Line('product', ('a', 'x')), 'c': Line('gain', ('b',), 'θc'),
             'd': Line('gain', ('c',), 'θc'), 'e': Line('copy', ('d',)), 'f': Line('square', ('e',))}
    text = 'a = θa·x, b = a·Σx, c = θc²·b, d = θc²·c, e = d, f = e²'
    assert repr(Recipe('half square', lines, numbers)) == f'{text}, ℒ = ½f² at x = [2, -2], θa = [[1, 5]], θc = 3'
    assert repr(Recipe('sum', {'a': Line('copy', ('x',))}, {'x': np.ones(2)})) == 'a = x, ℒ = Σa at x = [1, 1]'


# What stands beside them.

def test_pieces_of_a_parent_in_two_slots_and_of_a_dead_end():
    "Slots of one parent are summed, and what does not reach the loss bends nothing."
    net = Graph()
    u = net.node('u', Dense(2, bias=False), net.input('x', 2))
    g = net.node('g', Multiply(), u, u, u)
    net.node('dead', Square(), g)
    net.output(net.node('z', Dense(1, bias=False), g), SquaredError())
    theta = np.array([1., 0, 0, 1, 2, 3])
    q = pieces(net, theta, [2., 5.], [4.])
    residual = 2*8 + 3*125 - 4
    assert np.array_equal(q.delta['g'], [2*residual, 3*residual]) and not q.delta['dead'].any()
    assert np.array_equal(q.D['g', 'u'], np.diag([3*4, 3*25]))
    assert np.array_equal(q.T['g', 'u', 'u'], np.diag([6*2*2*residual, 6*5*3*residual]))
    assert not any(u == 'dead' for u, _, _ in q.T) and q.Pa['g'] == ['u'] and q.Ch['u'] == ['g']


@pytest.mark.filterwarnings('error')
def test_cancellation():
    assert cancellation([3., -1.]) == 2 and cancellation([1., 2.]) == 1
    assert cancellation([np.diag([3., 0]), np.diag([0, 4.])]) == pytest.approx(7/5)
    assert cancellation([2., -2.]) == np.inf and cancellation([0., 0.]) == 1
