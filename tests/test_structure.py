"""The house: imports without a circle or an arrow up, chapters that show what they export, names that exist."""
import ast
import importlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT/'hessian_nb'
if not (ROOT/'nbs').exists(): pytest.skip('no source checkout here', allow_module_level=True)

# Every room may import from the floors below its own.
FLOORS = [
    {'calculus', 'data', 'draw', 'run', 'node'},
    {'graph', 'affine'},
    {'push', 'rules'},
    {'formulas', 'tangents', 'blocks'},
    {'sums'},
    {'plan', 'kinks'},
    {'point'},
    {'hessian'},
    {'check', 'gauss_newton', 'optimizers'},
    {'operators'},
    {'report', 'spectra'},
    {'page'},
    {'cli'},
]
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
ROOMS = sorted(path.stem for path in PACKAGE.glob('*.py') if not path.stem.startswith('_'))
NOTEBOOKS = sorted((ROOT/'nbs').glob('*.ipynb'))
LONGEST_RUN = 120


def imported(room) -> set:
    "The rooms that a module imports when it is imported; imports inside functions are made when they are needed."
    tree = ast.parse((PACKAGE/f'{room}.py').read_text(encoding='utf-8'))
    return {node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module}


def cells(path):
    "[(is exported, is shown, source)] of the code cells."
    for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
        if cell['cell_type'] != 'code': continue
        source = ''.join(cell['source'])
        exported = bool(re.search(r'(?m)^#\| ?exporti?\b', source))
        yield exported, not exported and not re.search(r'(?m)^#\| ?(hide\b|default_exp)', source), source


def test_every_room_has_its_floor(): assert set(ROOMS) == set(FLOOR)


@pytest.mark.parametrize('room', ROOMS)
def test_no_arrow_leads_up(room):
    up = {other for other in imported(room) if FLOOR[other] >= FLOOR[room]}
    assert not up, f'{room} imports {up}, which are not below it'


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_exported_is_shown(path):
    "No reader meets more than so many exported lines before a cell shows something."
    run = longest = 0
    for exported, shown, source in cells(path):
        if exported: run += sum(bool(line.strip()) for line in source.splitlines())
        elif shown: run = 0
        longest = max(longest, run)
    assert longest <= LONGEST_RUN


def named():
    "Every `hessian_nb.x.y` in a text of the package, the book or the README."
    texts = [*PACKAGE.glob('*.py'), *NOTEBOOKS, ROOT/'README.md']
    for path in texts:
        if path.stem == '_modidx': continue
        for name in re.findall(r'\bhessian_nb\.([a-z_]+\.[A-Za-z_]+)',
                               path.read_text(encoding='utf-8')): yield path.name, name


def test_what_a_text_names_exists():
    missing = set()
    for where, name in named():
        module, attribute = name.split('.')
        if module in ('cli', 'py') or attribute in ('import', 'py'): continue
        try: found = hasattr(importlib.import_module(f'hessian_nb.{module}'), attribute)
        except ImportError: found = False
        if not found: missing.add((where, name))
    assert not missing


# What design of the interface fixes: each has a full docstring in the signature style.
INTERFACE = {'hessian': ['hessian', 'decompose', 'attribute', 'hessian_vector', 'input_hessian', 'curvature'],
             'gauss_newton': ['gauss_newton', 'residual', 'jacobian', 'gauss_newton_step', 'squared_gradients'],
             'operators': ['hessian_operator', 'gauss_newton_operator', 'top_eigenpairs', 'spectral_density', 'trace',
                           'diagonal'],
             'point': ['Point'], 'graph': ['Graph'], 'rules': ['check_rule']}


@pytest.mark.parametrize('room, name', [(room, name) for room, names in INTERFACE.items() for name in names])
def test_public_functions_say_what_they_do(room, name):
    found = getattr(importlib.import_module(f'hessian_nb.{room}'), name)
    assert found.__doc__ and len(found.__doc__) > 20
