"""`hessian_nb report` as a user runs it: in a process of its own, on the digits, on a reader's files, on bad files."""
import base64
import io
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

import hessian_nb
from hessian_nb.data import digits
from hessian_nb.hessian import hessian, input_hessian
from hessian_nb.report import Findings, build, compute, number, page, prepare, summary

ROOT = Path(hessian_nb.__file__).resolve().parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
rng = np.random.default_rng(0)


def run(folder, *arguments, **environment):
    "The command, in a folder."
    env = os.environ | {'PYTHONPATH': str(ROOT), 'PYTHONIOENCODING': 'utf-8'} | environment
    return subprocess.run([sys.executable, '-m', 'hessian_nb.cli', *map(str, arguments)], cwd=folder, env=env,
                          capture_output=True, text=True, encoding='utf-8', timeout=300)


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    "A short run on the digits: its folder, its process, its page."
    folder = tmp_path_factory.mktemp('digits')
    process = run(folder, 'report', '--steps', 150)
    assert process.returncode == 0, process.stderr
    return folder, process, (folder/'hessian-report.html').read_text(encoding='utf-8')


@cache
def findings() -> Findings: return compute(prepare(*digits(), 'the digits'), steps=60, most=60)


# --- the page

class Page(HTMLParser):
    "Collects tags with their attributes, and the visible text."
    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ('meta', 'img', 'br', 'path', 'rect'): self.open.append(tag)

    def handle_startendtag(self, tag, attributes): self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f'</{tag}> closes something else'

    def handle_data(self, data):
        if 'style' not in self.open: self.texts.append(data)

    @property
    def text(self): return re.sub(r'\s+', ' ', ' '.join(self.texts))


def test_page_is_whole(done):
    "Every tag closed, every picture with a text and with pixels, every section there."
    seen = Page(done[2])
    assert seen.open == [] and ('html', {'lang': 'en'}) in seen.tags
    titles = re.findall('<h2>(.*?)</h2>', done[2])
    assert titles == ['The network', 'The Hessian', 'Its terms', 'The spectrum', 'Two directions', 'How to read this']
    pictures = [attributes for tag, attributes in seen.tags if tag == 'img']
    assert len(pictures) >= 12 and all(len(p['alt']) > 15 for p in pictures)
    for p in pictures:
        pixels = imread(io.BytesIO(base64.b64decode(p['src'].removeprefix('data:image/png;base64,'))))
        assert pixels.shape[:2] == (2*int(p['height']), 2*int(p['width'])) and pixels[..., :3].std() > .01
    assert seen.text.count('Conv(4') == 3 and 'nan' not in seen.text.split()


def test_page_asks_for_nothing_from_outside(done):
    text = done[2]
    assert len(text) < 2e6
    assert set(re.findall(r'\w+://[^"<]*', text)) == {'http://www.w3.org/2000/svg'}
    for tag, attributes in Page(text).tags:
        assert tag not in ('script', 'link', 'iframe', 'object', 'embed', 'base', 'form')
        for name in ('src', 'href', 'srcset', 'action', 'poster', 'data', 'xlink:href'):
            assert attributes.get(name, 'data:image/png').startswith('data:image/png'), (tag, name)
    assert '@import' not in text and set(re.findall(r'url\([^)]*\)', text)) == {'url(#tip)'}


def test_page_says_what_was_found():
    "The numbers of the text are those of the Hessian, found again without the report."
    f = findings()
    X, Y = f.samples.X[:60], f.samples.Y[:60]
    H = hessian(f.net, f.theta, X, Y).dense()
    K = input_hessian(f.net, f.theta, X, Y)
    values, text = np.linalg.eigvalsh(H), Page(page(f)).text
    below = int((values < -1e-12*abs(values).max()).sum())
    assert f'Of its {len(H)} eigenvalues {below} are negative' in text and f'{below} of {len(H)}' in text
    assert f'smallest eigenvalue of the Hessian is {number(values[0])}' in text and number(values[-1]) in text
    right = (f.net.predict(f.theta, f.samples.X_test).argmax(1) == f.samples.Y_test).mean()
    assert f'{number(100*right)} % of the held-out samples right' in text
    # A dense output's Hessian is the logits' Hessian times the products of the inputs: a witness of the last block.
    inner = np.concatenate([f.net.forward(f.theta, X)['g'].reshape(60, -1), np.ones((60, 1))], 1)
    block = np.einsum('nij,na,nb->iajb', K['z', 'z'], inner, inner)/60
    where = f.H.places['z.W']
    assert np.allclose(block[:, :-1, :, :-1].reshape(160, 160), H[where, where], atol=1e-14)


def test_the_split_is_exact_and_certified():
    f = findings()
    assert 0 < f.error() < 1e-14 and 0 < f.certificate < 1e-12
    assert sum(key[1] == 'gauss-newton' for key in f.terms) == 1
    assert abs(f.down.total() - f.values[0]) < 1e-12 and abs(f.up.total() - f.values[-1]) < 1e-12
    assert f.signs(f.gauss_newton)[0] == 0 < f.signs(f.values)[0]


def test_network_has_what_the_report_is_about():
    net = build((1, 8, 8), 10)
    assert [v.name for v in net.nodes.values() if v.theta == 'b'] == ['b', 'c']
    assert net.nodes['s'].parents == ('c', 'a') and 300 <= net.size <= 800
    assert type(net.nodes['h'].rule).__name__ == 'Conv'


def test_same_seed_same_numbers(tmp_path):
    np.savez(tmp_path/'mine.npz', X=OWN['few features'], Y=Y)
    def numbers(seed):
        said = run(tmp_path, 'report', '--data', 'mine.npz', '--steps', 150, '--seed', seed).stdout
        return [line for line in said.splitlines() if not line.startswith('exactness')]   # that one is round-off
    first, again, other = numbers(0), numbers(0), numbers(1)
    assert len(first) > 10 and first == again != other


# --- the terminal

def test_terminal_shows_progress_and_a_table(done):
    folder, process, text = done
    assert 'training: 100%' in process.stderr and 'terms: 100%' in process.stderr
    lines = process.stdout.splitlines()
    assert re.search(r'exactness +max\|H − Σ terms\|/max\|H\| \d(\.\d)?·10⁻¹[⁵⁶⁷]', process.stdout)
    assert lines[-1].startswith('written: hessian-report.html') and 'Traceback' not in process.stderr
    rows = [line.split()[:2] for line in lines[lines.index('') + 1:]]
    assert ['z', 'gauss-newton'] in rows and ['u', 'pure'] in rows and ['c', 'input-parameter'] in rows
    assert max(map(len, lines)) <= 80


def test_terminal_without_greek(tmp_path):
    "A terminal that knows ASCII only gets question marks, and the page is as ever."
    np.savez(tmp_path/'mine.npz', X=OWN['few features'], Y=Y)
    process = run(tmp_path, 'report', '--data', 'mine.npz', '--steps', 1, PYTHONIOENCODING='ascii')
    assert process.returncode == 0 and 'max|H ? ? terms|' in process.stdout
    assert '‖H‖' in (tmp_path/'hessian-report.html').read_text(encoding='utf-8')


def test_version_and_help(tmp_path):
    assert run(tmp_path, '--version').stdout == f'hessian_nb {hessian_nb.__version__}\n'
    bare, wanted = run(tmp_path), run(tmp_path, 'report', '--help')
    assert bare.returncode == wanted.returncode == 0
    assert 'report' in bare.stdout and all(o in wanted.stdout for o in ('--data', '--out', '--steps', '--seed'))


# --- a reader's own samples

Y = np.arange(90) % 3
OWN = {
    'few features': rng.standard_normal((90, 5)) + Y[:, None],
    'one feature': rng.standard_normal((90, 1)) + Y[:, None],
    'many features': rng.standard_normal((90, 200)) + Y[:, None],
    'grey images': rng.integers(0, 255, (90, 12, 9)).astype(np.uint8),
    'colour images': rng.standard_normal((90, 3, 20, 31)),
    'wide images': rng.standard_normal((90, 1, 4, 70)),
    'tiny images': rng.standard_normal((90, 1, 3, 3)),
    'many channels': rng.standard_normal((90, 16, 4, 4)),
    'volumes': rng.standard_normal((90, 1, 3, 4, 5)),
    'constant': np.ones((90, 4)),
    'constant images': np.ones((90, 1, 6, 6))}


@pytest.mark.parametrize('kind', OWN)
def test_own_samples(kind, tmp_path):
    from hessian_nb.cli import main
    np.savez(tmp_path/'mine <b> & yours.npz', X=OWN[kind], Y=7*Y)
    data, out = tmp_path/'mine <b> & yours.npz', tmp_path/'p.html'
    assert main(['report', '--data', str(data), '--out', str(out), '--steps', '20']) == 0
    text = out.read_text(encoding='utf-8')
    seen = Page(text)
    assert 'mine <b> & yours.npz: X (90, ' in seen.text and 'labels 0, 7 and 14' in seen.text
    assert not re.search(r'\b(nan|inf)\b', seen.text) and len(text) < 2e6


def test_what_becomes_of_own_samples(tmp_path):
    from hessian_nb.cli import load
    def becomes(X):
        np.savez(tmp_path/'mine.npz', X=X, Y=Y)
        return load(tmp_path/'mine.npz', seed=0).X.shape[1:]
    shapes = {kind: becomes(X) for kind, X in OWN.items()}
    assert shapes == {
        'few features': (5,), 'one feature': (1,), 'many features': (24,), 'grey images': (1, 12, 9),
        'colour images': (3, 20, 31), 'wide images': (1, 4, 70), 'tiny images': (9,), 'many channels': (24,),
        'volumes': (24,), 'constant': (4,), 'constant images': (1, 6, 6)}


def test_own_samples_by_process(tmp_path):
    np.savez(tmp_path/'mine.npz', X=OWN['few features'], Y=Y)
    process = run(tmp_path, 'report', '--data', 'mine.npz', '--out', 'mine.html', '--steps', 300)
    assert process.returncode == 0 and 'mine.npz: 72 learnt, 18 held out' in process.stdout
    assert 'nodes b and c share' in (tmp_path/'mine.html').read_text(encoding='utf-8').lower()


def test_what_is_held_out_does_not_reach_the_training():
    "Neither the shift, nor the scale, nor the components know the samples held out."
    X = rng.standard_normal((50, 40))
    before = prepare(X, Y[:50])
    order = np.random.default_rng(0).permutation(50)
    X[order[:10]] *= 1000
    after = prepare(X, Y[:50])
    assert (before.X == after.X).all() and not np.allclose(before.X_test, after.X_test)
    assert not np.allclose(before.X, prepare(X, Y[:50], seed=1).X)


def test_large_data_keep_small_networks():
    for shape in [(3, 32, 32), (1, 28, 28), (8, 500, 40), (1, 4, 4), (24,)]:
        net = build(shape, 10)
        assert net.size < 900 and np.prod(net.nodes['s'].shape) <= 256, shape


# --- what a user gets wrong: one line, exit code 2, nothing written

def saved(path, **arrays):
    np.savez(path, **arrays)
    return path.name


BAD = {
    'absent': (lambda d: ['--data', 'absent.npz'], 'absent.npz is no file'),
    'folder': (lambda d: ['--data', d], 'is no file'),
    'text': (lambda d: ['--data', (d/'t.npz').write_text('hello') and 't.npz'], 't.npz is damaged or no .npz file'),
    'names': (lambda d: ['--data', saved(d/'n.npz', images=Y, labels=Y)], 'expected the two arrays X and Y'),
    'lengths': (lambda d: ['--data', saved(d/'l.npz', X=np.ones((9, 2)), Y=Y)], '9 samples in X but 90 labels in Y'),
    'not finite': (lambda d: ['--data', saved(d/'f.npz', X=np.full((90, 2), np.nan), Y=Y)], '180 values that are not'),
    'fractions': (lambda d: ['--data', saved(d/'r.npz', X=np.ones((90, 2)), Y=Y + .5)], 'expected labels 0, 1, 2'),
    'objects': (lambda d: ['--data', saved(d/'o.npz', X=np.array([{}]*90), Y=Y)], 'o.npz'),
    'few': (lambda d: ['--data', saved(d/'w.npz', X=np.ones((9, 2)), Y=Y[:9])], 'give at least 10'),
    'one class': (lambda d: ['--data', saved(d/'c.npz', X=np.ones((90, 2)), Y=0*Y)], 'give at least two classes'),
    'classes': (lambda d: ['--data', saved(d/'k.npz', X=np.ones((200, 2)), Y=np.arange(200))], 'give at most 100'),
    'huge': (lambda d: ['--data', saved(d/'h.npz', X=np.full((90, 1), 1e308), Y=Y)], 'scale it first'),
    'no folder': (lambda d: ['--out', 'nowhere/p.html'], 'there is no folder nowhere'),
    'out is folder': (lambda d: ['--out', '.'], 'is a folder'),
    'steps': (lambda d: ['--steps', '0'], "'0' is no whole number from 1 on"),
    'seed': (lambda d: ['--seed', '-1'], "'-1' is no whole number from 0 on"),
    'option': (lambda d: ['--brush', 'wide'], 'unrecognized arguments')}


@pytest.mark.parametrize('fault', BAD)
def test_one_line_says_what_is_wrong(fault, tmp_path, monkeypatch, capsys):
    from hessian_nb.cli import main
    monkeypatch.chdir(tmp_path)
    arguments, expected = BAD[fault]
    try: code = main(['report', '--steps', '1', *map(str, arguments(tmp_path))])
    except SystemExit as stop: code = stop.code
    out, err = capsys.readouterr()
    assert code == 2 and out == '' and err.count('\n') == 1 and err.endswith('\n'), err
    assert err.startswith('hessian_nb') and expected in err
    assert not list(tmp_path.glob('*.html'))


def test_one_line_by_process(tmp_path):
    for arguments in ('report --data absent.npz', 'report --out no/p.html', 'paint', 'report --out'):
        process = run(tmp_path, *arguments.split())
        assert process.returncode == 2 and process.stdout == ''
        assert len(process.stderr.splitlines()) == 1, process.stderr


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='there is no /dev/full here')
def test_disk_full(tmp_path):
    np.savez(tmp_path/'mine.npz', X=OWN['few features'], Y=Y)
    process = run(tmp_path, 'report', '--data', 'mine.npz', '--steps', 1, '--out', '/dev/full')
    assert process.returncode == 2
    assert process.stderr.splitlines()[-1].startswith('hessian_nb: --out /dev/full: No space')


def test_interrupted(monkeypatch, tmp_path, capsys):
    from hessian_nb import cli, report
    def interrupt(*_): raise KeyboardInterrupt
    monkeypatch.setattr(report, 'compute', interrupt)
    assert cli.main(['report', '--out', str(tmp_path/'p.html')]) == 2
    assert capsys.readouterr().err.strip() == 'hessian_nb: interrupted, nothing written'


# --- in a browser

FLAGS = """headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking
disable-component-update disable-sync virtual-time-budget=5000 dump-dom"""
PROBE = """const page = frame.contentDocument, pictures = [...page.images]
document.title = [frame.clientWidth, page.documentElement.scrollWidth, pictures.length,
  pictures.filter(i => i.naturalWidth > 0).length, page.querySelector("figure > svg").clientWidth,
  frame.contentWindow.performance.getEntriesByType("resource").filter(r => !/^data:/.test(r.name)).length].join()"""


@pytest.mark.skipif(CHROMIUM is None, reason='no chromium to open the page with')
@pytest.mark.parametrize('width', [1280, 400])
def test_in_a_browser(done, width, tmp_path):
    "Without a network: all pictures are shown, and nothing is wider than the page, be it a telephone's."
    frame = f'<iframe id=frame style="border:0" width={width} height=900 srcdoc="{escape(done[2])}"></iframe>'
    around = tmp_path/'around.html'
    probe = f'<script>onload = () => {{ {PROBE} }}</script>'
    around.write_text(f'<meta charset=utf-8><title></title>{frame}{probe}', encoding='utf-8')
    flags = [f'--{flag}' for flag in FLAGS.split()] + ['--host-resolver-rules=MAP * ~NOTFOUND']
    shown = subprocess.run([CHROMIUM, *flags, f'--user-data-dir={tmp_path/"profile"}', '--window-size=1400,1000',
                            around.as_uri()], capture_output=True, text=True, encoding='utf-8', timeout=120)
    title = re.search('<title>(.+?)</title>', shown.stdout)
    assert title, shown.stderr
    inner, wide, pictures, loaded, graph, fetched = map(int, title[1].split(','))
    assert inner == width and wide <= width and 250 < graph < width
    assert pictures == loaded >= 12 and fetched == 0


def test_summary_names_every_term():
    f, said = findings(), summary(findings())
    assert all(re.search(rf'^{node} +{kind} ', said, re.M) for node, kind in f.terms)
