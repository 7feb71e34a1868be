"""nbs/formulas.csv: every formula of the sources stands in it once, and what a row claims as done exists."""
import ast
import csv
import importlib
import json
import re
from functools import cache, reduce
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
IDS = [f'{letter}{n}' for letter, last in dict(A=19, B=48, C=10, D=16, E=12).items() for n in range(1, last + 1)]
COLUMNS = ['id', 'formula', 'verdict', 'notebook', 'section', 'function', 'test', 'status']

with open(ROOT/'nbs'/'formulas.csv', encoding='utf-8', newline='') as file: ROWS = list(csv.DictReader(file))


@cache
def cells(notebook):
    "[(cell type, text)] of a notebook, by its name."
    path = ROOT/'nbs'/f'{notebook}.ipynb'
    assert path.exists(), f'there is no {path.name}'
    return [(c['cell_type'], ''.join(c['source'])) for c in json.loads(path.read_text(encoding='utf-8'))['cells']]


def blocks(notebook):
    "The notebook as [(cell type, text)], its text cells cut at their headings."
    return [(kind, part) for kind, text in cells(notebook)
            for part in (re.split(r'(?m)^(?=#+ )', text) if kind == 'markdown' else [text]) if part]


def level(block):
    "How many # a text starts with; 0 for anything but a heading."
    return len(re.match('#*', block[1])[0]) if block[0] == 'markdown' else 0


def section(notebook, title):
    "What stands from a heading to the next one of its level."
    found = blocks(notebook)
    starts = [i for i, b in enumerate(found) if level(b) and b[1].splitlines()[0].lstrip('#').strip() == title]
    assert len(starts) == 1, f'{notebook} has {len(starts)} headings "{title}"'
    start = starts[0]
    after = (i for i in range(start + 1, len(found)) if 0 < level(found[i]) <= level(found[start]))
    return found[start:next(after, None)]


def check_section(row):
    text = '\n'.join(text for _, text in section(row['notebook'], row['section']))
    assert re.search(rf'\b{row["id"]}\b', text), f'"{row["section"]}" does not name {row["id"]}'


def check_function(path):
    "module.attribute, the attribute perhaps of a class."
    module, *names = path.split('.')
    assert names, f'{path} is no module.attribute'
    found = reduce(getattr, names, importlib.import_module(f'hessian_nb.{module}'))
    assert callable(found) or isinstance(found, property), f'{path} is no function'


def asserts(source):
    "Whether code, IPython's magics aside, has an assert statement."
    return any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(re.sub(r'(?m)^\s*[%!].*', '', source))))


def check_test(row, test):
    "tests/file.py::name, or nbs/notebook.ipynb for an assert in the row's section."
    path, _, name = test.partition('::')
    if test == f'nbs/{row["notebook"]}.ipynb':
        code = [text for kind, text in section(row['notebook'], row['section']) if kind == 'code']
        assert any(map(asserts, code)), f'"{row["section"]}" asserts nothing'
    else:
        assert re.fullmatch(r'tests/test_\w+\.py', path) and (ROOT/path).exists(), f'there is no test file {path}'
        tree = ast.parse((ROOT/path).read_text(encoding='utf-8'))
        assert name.startswith('test_') and name in [n.name for n in tree.body if isinstance(n, ast.FunctionDef)], \
            f'{path} has no test {name}'


def check(row):
    "What a row that is done claims; functions and tests may be several, separated by spaces."
    check_section(row)
    assert row['function'] and row['test'], 'a function and a test are missing'
    for path in row['function'].split(): check_function(path)
    for test in row['test'].split(): check_test(row, test)


def test_every_formula_once():
    assert list(ROWS[0]) == COLUMNS
    assert [row['id'] for row in ROWS] == IDS


@pytest.mark.parametrize('row', ROWS, ids=[row['id'] for row in ROWS])
def test_row(row):
    assert row['status'] in ('done', 'open') and row['formula'] and row['verdict'] and row['notebook']
    if row['status'] == 'done': check(row)


GOOD = dict(id='A1', notebook='made', section='Nodes', function='data.digits data.Path.exists',
            test='nbs/made.ipynb tests/test_index.py::test_row')
MADE = [('markdown', '# Made\nB7\n## Nodes'), ('markdown', '**A1** says\n### More'), ('code', '%time\nassert 1 == 1'),
        ('markdown', '## Other\nA2, A3'), ('code', 'print("assert")')]


@pytest.mark.parametrize('change, complaint', [
    (dict(notebook='absent'), 'there is no absent.ipynb'),
    (dict(section='Absent'), 'has 0 headings'),
    (dict(id='A2'), 'does not name A2'),
    (dict(id='B7'), 'does not name B7'),
    (dict(function=''), 'are missing'),
    (dict(test=''), 'are missing'),
    (dict(function='data'), 'no module.attribute'),
    (dict(function='absent.f'), "No module named 'hessian_nb.absent'"),
    (dict(function='data.digits data.absent'), "no attribute 'absent'"),
    (dict(function='data.SOURCES'), 'is no function'),
    (dict(test='nbs/data.ipynb'), 'there is no test file'),
    (dict(test='tests/test_absent.py::test_row'), 'there is no test file'),
    (dict(test='tests/test_index.py'), 'has no test '),
    (dict(test='tests/test_index.py::check_test'), 'has no test check_test'),
    (dict(test='tests/test_index.py::test_absent'), 'has no test test_absent'),
    (dict(id='A3', section='Other'), 'asserts nothing')])
def test_false_claims_are_found(monkeypatch, change, complaint):
    real = cells
    monkeypatch.setitem(globals(), 'cells', lambda name: MADE if name == 'made' else real(name))
    check(GOOD)
    with pytest.raises((AssertionError, ImportError, AttributeError), match=re.escape(complaint)): check(GOOD | change)
