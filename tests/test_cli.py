"""`hessian_nb report` as a user runs it: in a process of its own: good and bad files, full disks, closed streams."""
import io
import os
import re
import signal
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

import hessian_nb
from hessian_nb.cli import _load, main

ROOT = Path(hessian_nb.__file__).resolve().parent.parent
Y = np.arange(90) % 3
FEATURES = np.random.default_rng(0).standard_normal((90, 5)) + Y[:, None]
OLD = '<!DOCTYPE html>the report of last week'


# Stands for the mathematics where only files, streams and signals are tested: a page of 200 kB and a summary.
SHORT = """
import os, shutil, signal, sys
from hessian_nb import cli, page, report
report.compute = lambda *arguments: None
page.page = lambda found: '<!DOCTYPE html>' + 200_000*'x' + '</html>\\n'
page.summary = lambda found: 'max|H − Σ terms|'
"""


def start(folder, *arguments, code=None, **options):
    "A process of the command in a folder; `code` is Python that runs before it."
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'PYTHONIOENCODING': 'utf-8'} | options.pop('environment', {})
    command = ['-m', 'hessian_nb.cli'] if code is None else ['-c', f'{code}\nsys.exit(cli.main(sys.argv[1:]))']
    options = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE} | options
    return subprocess.Popen([sys.executable, *command, *arguments], cwd=folder, env=environment, **options)


def run(folder, *arguments, **options):
    "The exit code, and what it wrote to the two streams."
    process = start(folder, *(a if isinstance(a, bytes) else str(a) for a in arguments), **options)
    out, err = process.communicate(timeout=300)
    return process.returncode, *(None if stream is None else stream.decode() for stream in (out, err))


def saved(path, **arrays):
    np.savez(path, **arrays)
    return path.name


@pytest.fixture
def mine(tmp_path):
    "A folder with good samples in mine.npz."
    saved(tmp_path/'mine.npz', X=FEATURES, Y=Y)
    return tmp_path


QUICK = 'report', '--data', 'mine.npz', '--steps', '1'


def says_one_line(err, text):
    "The last line is the message; nothing before it but progress bars."
    lines = err.splitlines()
    assert lines[-1].startswith('hessian_nb') and text in lines[-1], err
    assert 'Traceback' not in err and 'Exception ignored' not in err
    assert all(re.match(r'(\r|training|terms|the |$)', line) for line in lines[:-1]), err


# --- the main job

@pytest.fixture(scope='module')
def done(tmp_path_factory):
    "A short run on the digits: its folder and what it wrote."
    folder = tmp_path_factory.mktemp('digits')
    code, out, err = run(folder, 'report', '--steps', 150)
    assert code == 0, err
    return folder, out, err


def test_terminal_shows_progress_and_a_table(done):
    folder, out, err = done
    assert 'training: 100%' in err and 'terms: 100%' in err
    lines = out.splitlines()
    assert re.search(r'exactness +max\|H − Σ terms\|/max\|H\| \d(\.\d)?·10⁻¹[⁵⁶⁷]', out)
    assert lines[-1].startswith('written: hessian-report.html') and 'Traceback' not in err
    rows = [line.split()[:2] for line in lines[lines.index('') + 1:]]
    assert ['z', 'gauss-newton'] in rows and ['u', 'pure'] in rows and ['c', 'input-parameter'] in rows
    assert max(map(len, lines)) <= 80
    text = (folder/'hessian-report.html').read_text(encoding='utf-8')
    assert text.startswith('<!DOCTYPE html>') and text.endswith('</html>\n') and len(text) < 2e6
    assert os.listdir(folder) == ['hessian-report.html']


def test_terminal_without_greek(mine):
    "A terminal that knows ASCII only gets question marks, and the page is as ever."
    code, out, _ = run(mine, *QUICK, environment={'PYTHONIOENCODING': 'ascii'})
    assert code == 0 and 'max|H ? ? terms|' in out
    assert '‖H‖' in (mine/'hessian-report.html').read_text(encoding='utf-8')


def test_version_and_help(tmp_path):
    assert run(tmp_path, '--version')[:2] == (0, f'hessian_nb {hessian_nb.__version__}\n')
    bare, wanted = run(tmp_path), run(tmp_path, 'report', '--help')
    assert bare[0] == wanted[0] == 0
    assert 'report' in bare[1] and all(o in wanted[1] for o in ('--data', '--out', '--steps', '--seed'))


def test_same_seed_same_numbers(mine):
    def numbers(seed):
        out = run(mine, 'report', '--data', 'mine.npz', '--steps', 50, '--seed', seed)[1]
        return [line for line in out.splitlines() if not line.startswith('exactness')]   # that one is round-off
    first, again, other = numbers(0), numbers(0), numbers(1)
    assert len(first) > 10 and first == again != other


# --- a reader's own samples

rng = np.random.default_rng(0)
OWN = {
    'few features': (rng.standard_normal((90, 5)) + Y[:, None], (5,)),
    'one feature': (rng.standard_normal((90, 1)) + Y[:, None], (1,)),
    'many features': (rng.standard_normal((90, 200)) + Y[:, None], (24,)),
    'grey images': (rng.integers(0, 255, (90, 12, 9)).astype(np.uint8), (1, 12, 9)),
    'colour images': (rng.standard_normal((90, 3, 20, 31)), (3, 20, 31)),
    'wide images': (rng.standard_normal((90, 1, 4, 70)), (1, 4, 70)),
    'tiny images': (rng.standard_normal((90, 1, 3, 3)), (9,)),
    'many channels': (rng.standard_normal((90, 16, 4, 4)), (24,)),
    'volumes': (rng.standard_normal((90, 1, 3, 4, 5)), (24,)),
    'constant': (np.ones((90, 4)), (4,)),
    'constant images': (np.ones((90, 1, 6, 6)), (1, 6, 6)),
    'many constant features': (np.ones((90, 200)), (24,)),
    'large numbers': (1e149*rng.standard_normal((90, 5)), (5,)),
    'small numbers': (1e-148*rng.standard_normal((90, 5)), (5,))}


@pytest.mark.parametrize('kind', OWN)
def test_own_samples(kind, tmp_path):
    X, becomes = OWN[kind]
    data, out = tmp_path/'mine <b> & yours.npz', tmp_path/'p.html'
    np.savez(data, X=X, Y=7*Y)
    assert _load(data, 0).X.shape[1:] == becomes
    assert main(['report', '--data', str(data), '--out', str(out), '--steps', '20']) == 0
    text = out.read_text(encoding='utf-8')
    seen = re.sub(r'\s+', ' ', re.sub('<.*?>', '', text.split('</style>')[1]))
    assert 'mine &lt;b&gt; &amp; yours.npz: X (90, ' in seen and 'labels 0, 7 and 14' in seen
    assert not re.search(r'\b(nan|inf)\b', seen) and len(text) < 2e6


def test_own_samples_by_process(mine):
    code, out, _ = run(mine, 'report', '--data', 'mine.npz', '--out', 'mine.html', '--steps', 100)
    assert code == 0 and 'mine.npz: 72 training and 18 test samples' in out
    assert 'nodes b and c share' in (mine/'mine.html').read_text(encoding='utf-8').lower()


@pytest.mark.parametrize('name', [b'caf\xe9.npz', b'two\nlines \x1b[31m.npz'])
def test_names_that_are_no_text(mine, name):
    "A file's name may be any bytes: the page and the terminal show � for those that are no text."
    os.rename(mine/'mine.npz', os.path.join(os.fsencode(mine), name))
    (mine/'hessian-report.html').write_text(OLD)
    code, out, err = run(mine, 'report', '--data', name, '--steps', 1)
    assert code == 0 and 'Traceback' not in err
    shown = ''.join(c if c.isprintable() else '�' for c in name.decode(errors='replace'))
    assert f'data          {shown}: 72 training' in out and '\x1b' not in out
    text = (mine/'hessian-report.html').read_bytes()
    assert text.endswith(b'</html>\n') and f'<dd>{shown}: X (90, 5)'.encode() in text


# --- what a user gets wrong: one line, exit code 2, nothing written

BAD = {
    'absent': (lambda d: ['--data', 'absent.npz'], 'absent.npz is no file'),
    'folder': (lambda d: ['--data', d], 'is no file'),
    'long name of data': (lambda d: ['--data', 300*'d'], 'ddd: File name too long'),
    'text': (lambda d: ['--data', (d/'t.npz').write_text('hello') and 't.npz'], 't.npz is damaged or no .npz file'),
    'names': (lambda d: ['--data', saved(d/'n.npz', images=Y, labels=Y)], 'expected the two arrays X and Y'),
    'lengths': (lambda d: ['--data', saved(d/'l.npz', X=np.ones((9, 2)), Y=Y)], '9 samples in X but 90 labels in Y'),
    'not finite': (lambda d: ['--data', saved(d/'f.npz', X=np.full((90, 2), np.nan), Y=Y)],
                   'NaN or infinity in 180 of its 180 entries'),
    'fractions': (lambda d: ['--data', saved(d/'r.npz', X=np.ones((90, 2)), Y=Y + .5)], 'expected labels 0, 1, 2'),
    'objects': (lambda d: ['--data', saved(d/'o.npz', X=np.array([{}]*90), Y=Y)], 'o.npz'),
    'few': (lambda d: ['--data', saved(d/'w.npz', X=np.ones((9, 2)), Y=Y[:9])], 'give at least 10'),
    'one class': (lambda d: ['--data', saved(d/'c.npz', X=np.ones((90, 2)), Y=0*Y)], 'give at least two classes'),
    'classes': (lambda d: ['--data', saved(d/'k.npz', X=np.ones((200, 2)), Y=np.arange(200))], 'give at most 100'),
    'huge': (lambda d: ['--data', saved(d/'h.npz', X=np.full((90, 1), 1e308), Y=Y)], 'scale it first'),
    'overflow': (lambda d: ['--data', saved(d/'v.npz', X=1e155*FEATURES, Y=Y)], 'v.npz: X has numbers up to'),
    'underflow': (lambda d: ['--data', saved(d/'u.npz', X=1e-165*FEATURES, Y=Y)], 'u.npz: X varies by only'),
    'float labels': (lambda d: ['--data', saved(d/'a.npz', X=FEATURES, Y=1e19*Y)],
                     'label 2e+19, too large for a class'),
    'unsigned labels': (lambda d: ['--data', saved(d/'b.npz', X=FEATURES, Y=(2**63 - 2 + Y).astype(np.uint64))],
                        f'label {2**63}, too large for a class'),
    'no folder': (lambda d: ['--out', 'nowhere/p.html'], 'there is no folder nowhere'),
    'out is folder': (lambda d: ['--out', '.'], 'is a folder'),
    'long name': (lambda d: ['--out', 300*'n'], 'nnn: File name too long'),
    'file as folder': (lambda d: ['--out', f"{saved(d/'x.npz', Y=Y)}/p.html"], 'x.npz/p.html: Not a directory'),
    'steps': (lambda d: ['--steps', '0'], "'0' is no whole number from 1 on"),
    'many steps': (lambda d: ['--steps', 20*'9'], "'99999999999999999999' is no whole number from 1 on"),
    'digits': (lambda d: ['--steps', 5000*'9'], 'is no whole number from 1 on'),
    'seed': (lambda d: ['--seed', '-1'], "'-1' is no whole number from 0 on"),
    'option': (lambda d: ['--brush', 'wide\nor\x1b[0m'], 'unrecognized arguments: --brush wide or�[0m')}


@pytest.mark.parametrize('fault', BAD)
def test_one_line_says_what_is_wrong(fault, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments, expected = BAD[fault]
    code = main(['report', '--steps', '1', *map(str, arguments(tmp_path))])
    out, err = capsys.readouterr()
    assert code == 2 and out == '' and err.count('\n') == 1 and err.endswith('\n'), err
    assert err.startswith('hessian_nb') and expected in err and len(err) < 500
    assert not list(tmp_path.glob('*.html')) and not list(tmp_path.glob('.*'))


def test_one_line_by_process(tmp_path):
    for arguments in ('report --data absent.npz', 'report --out no/p.html', 'paint', 'report --out'):
        code, out, err = run(tmp_path, *arguments.split())
        assert code == 2 and out == ''
        assert len(err.splitlines()) == 1, err


def test_steps_up_to_what_a_range_can_count(monkeypatch):
    from hessian_nb import cli
    seen = []
    monkeypatch.setattr(cli, '_make_report', lambda args: seen.append((args.steps, args.seed)) or 0)
    for steps, code in ((2**63 - 1, 0), (2**63, 2)):
        assert main(['report', '--steps', str(steps), '--seed', str(2**63 - 1)]) == code
    assert seen == [(2**63 - 1, 2**63 - 1)]


# --- files that are broken, or more than they seem

def patched(raw, *changes):
    "Bytes of a zip file with fields changed in every header: (offset in local header, offset in directory, bytes)."
    raw = bytearray(raw)
    for signature, which in ((b'PK\3\4', 0), (b'PK\1\2', 1)):
        at = raw.find(signature)
        while at >= 0:
            for change in changes:
                value = change[2]
                if change[which] is not None: raw[at + change[which]:at + change[which] + len(value)] = value
            at = raw.find(signature, at + 4)
    return bytes(raw)


def whole():
    file = io.BytesIO()
    np.savez(file, X=FEATURES, Y=Y)
    return file.getvalue()


def late_directory():
    "A directory that is said to be larger than what stands before it, so that the file starts before its beginning."
    raw = bytearray(whole())
    end = raw.rfind(b'PK\5\6')
    raw[end + 16:end + 20] = struct.pack('<I', 2**31)
    return bytes(raw)


@pytest.mark.parametrize('content', [
    patched(whole(), (6, 8, b'\1')),                                   # encrypted
    patched(whole(), (8, 10, b'\x63')),                                # an unknown way of compression
    patched(whole(), (None, 42, struct.pack('<I', 2**31))),            # an array that begins beyond the file
    late_directory(),
    whole().replace(FEATURES.tobytes()[:8], b'\0'*8),                  # a wrong checksum
    whole().replace(b"{'descr'", b"{{descr'"),                         # a header that is no Python
    whole()[:-30], whole()[200:], b'PK\5\6' + bytes(18)])
def test_damaged_files(content, tmp_path):
    "Whatever is wrong inside, the line names the file, and is no bare [Errno …]."
    (tmp_path/'mine.npz').write_bytes(content)
    code, out, err = run(tmp_path, *QUICK)
    assert code == 2 and out == ''
    says_one_line(err, '--data mine.npz')
    assert not re.search(r'--data \[Errno', err)


def bomb(path, shape, stored=b''):
    "An .npz file that promises an X of this shape."
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
        with file.open('X.npy', 'w') as member:
            np.lib.format.write_array_header_1_0(member, {'shape': shape, 'descr': '|u1', 'fortran_order': False})
            for _ in range(8): member.write(stored)
        with file.open('Y.npy', 'w') as member: np.lib.format.write_array(member, Y)


def test_a_file_that_promises_more_than_the_memory(tmp_path):
    bomb(tmp_path/'mine.npz', (90, 10**9, 1000))
    before = time.monotonic()
    code, _, err = run(tmp_path, *QUICK)
    assert code == 2 and time.monotonic() - before < 60
    says_one_line(err, 'mine.npz cannot be used: X with Y')


def test_too_little_memory_for_the_rest(mine, monkeypatch, capsys):
    from hessian_nb import report
    monkeypatch.chdir(mine)
    def exhausted(*_): raise MemoryError('a matrix of 9 GB')
    monkeypatch.setattr(report, 'compute', exhausted)
    assert main([*QUICK]) == 2 and capsys.readouterr().err == 'hessian_nb: not enough memory: a matrix of 9 GB\n'
    def empty(*_): raise MemoryError
    monkeypatch.setattr(report, 'prepare', empty)
    assert main([*QUICK]) == 2
    assert capsys.readouterr().err == 'hessian_nb: --data mine.npz: there is not enough memory\n'


# --- the place of the page

LINKS = {
    'the same name': lambda d: ('mine.npz', 'mine.npz'),
    'another way to it': lambda d: ('mine.npz', f'../{d.name}/mine.npz'),
    'a link to it': lambda d: ('mine.npz', os.symlink('mine.npz', d/'p.html') or 'p.html'),
    'data by a link': lambda d: (os.symlink('mine.npz', d/'link.npz') or 'link.npz', 'mine.npz'),
    'a second name': lambda d: ('mine.npz', os.link(d/'mine.npz', d/'p.html') or 'p.html')}


@pytest.mark.parametrize('way', LINKS)
def test_the_page_does_not_replace_the_samples(way, mine):
    before = (mine/'mine.npz').read_bytes()
    data, out = LINKS[way](mine)
    names = sorted(os.listdir(mine))
    code, said, err = run(mine, 'report', '--data', data, '--out', out, '--steps', 1)
    assert code == 2 and said == ''
    says_one_line(err, f'--out {out} is ')
    assert (mine/'mine.npz').read_bytes() == before and sorted(os.listdir(mine)) == names


def test_no_link_is_followed(mine):
    (mine/'thesis.txt').write_text('a year of work')
    os.symlink('thesis.txt', mine/'hessian-report.html')
    os.symlink('nowhere', mine/'dangling.html')
    for out, target in (('hessian-report.html', 'thesis.txt'), ('dangling.html', 'nowhere')):
        code, _, err = run(mine, *QUICK, '--out', out)
        assert code == 2
        says_one_line(err, f'--out {out} is a link to {target}: name the file itself')
    assert (mine/'thesis.txt').read_text() == 'a year of work' and not (mine/'nowhere').exists()


def test_the_page_replaces_an_older_one_with_its_permissions(mine):
    (mine/'hessian-report.html').write_text(OLD)
    (mine/'hessian-report.html').chmod(0o640)
    assert run(mine, *QUICK, code=SHORT)[0] == 0
    found = mine/'hessian-report.html'
    assert found.read_bytes().endswith(b'</html>\n') and found.stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(mine)) == ['hessian-report.html', 'mine.npz']


def limited(bytes_):
    "Let the process write no file larger than this: what a full disk is to it."
    import resource
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, bytes_))


@pytest.mark.parametrize('old', [True, False])
def test_disk_full_while_writing(mine, old):
    "The older page survives, byte by byte, and nothing else is left."
    if old: (mine/'hessian-report.html').write_text(OLD)
    before = sorted(os.listdir(mine))
    code, out, err = run(mine, *QUICK, code=SHORT, preexec_fn=limited(100_000))
    assert code == 2 and out == ''
    says_one_line(err, '--out hessian-report.html: File too large')
    assert sorted(os.listdir(mine)) == before
    assert not old or (mine/'hessian-report.html').read_text() == OLD


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='there is no /dev/full here')
def test_disk_full(mine):
    code, _, err = run(mine, *QUICK, '--out', '/dev/full', code=SHORT)
    assert code == 2
    assert err.splitlines()[-1].startswith('hessian_nb: --out /dev/full: No space')
    assert Path('/dev/full').is_char_device()


def test_a_pipe_gets_the_page(mine):
    code, out, _ = run(mine, *QUICK, '--out', '/dev/stdout', code=SHORT)
    assert code == 0 and '<!DOCTYPE html>' in out and '</html>\n' in out and Path('/dev/stdout').exists()


# --- Ctrl-C

def test_interrupted(monkeypatch, tmp_path, capsys):
    from hessian_nb import report
    def interrupt(*_): raise KeyboardInterrupt
    monkeypatch.setattr(report, 'compute', interrupt)
    assert main(['report', '--out', str(tmp_path/'p.html')]) == 2
    assert capsys.readouterr().err.strip() == 'hessian_nb: interrupted, nothing written'


def is_written(folder): return (folder/'hessian-report.html').read_bytes().endswith(b'</html>\n')


CTRL_C = 'lambda *arguments, **options: os.kill(os.getpid(), signal.SIGINT)'


@pytest.mark.parametrize('moment', ['shutil.copymode', 'os.fsync', 'os.replace'])
def test_interrupted_while_writing(mine, moment):
    "A real signal when the new page is empty, when it is written, and when it should take its place."
    (mine/'hessian-report.html').write_text(OLD)
    code, out, err = run(mine, *QUICK, code=f'{SHORT}\n{moment} = {CTRL_C}')
    assert code == 2 and out == ''
    says_one_line(err, 'hessian_nb: interrupted, nothing written')
    assert (mine/'hessian-report.html').read_text() == OLD
    assert sorted(os.listdir(mine)) == ['hessian-report.html', 'mine.npz']


def test_interrupted_while_printing(mine):
    "Then it is not said that nothing was written."
    first = f'calls = []\ncli.print = lambda *a, **o: print(*a, **o) if calls else calls.append(1) or ({CTRL_C})()'
    code, _, err = run(mine, *QUICK, code=f'{SHORT}\n{first}')
    assert code == 2 and is_written(mine)
    says_one_line(err, 'hessian_nb: interrupted, but hessian-report.html is written')


@pytest.mark.parametrize('seconds', [1, 3])
def test_interrupted_at_any_time(mine, seconds):
    "A real Ctrl-C, wherever it strikes: the old page or the new one, whole, and a clear end."
    (mine/'hessian-report.html').write_text(OLD)
    process = start(mine, 'report', '--data', 'mine.npz', '--steps', '100')
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    text = (mine/'hessian-report.html').read_text(encoding='utf-8')
    assert text == OLD or text.endswith('</html>\n')
    assert sorted(os.listdir(mine)) == ['hessian-report.html', 'mine.npz']


# --- streams and settings of the process

@pytest.mark.skipif(not Path('/dev/full').exists(), reason='there is no /dev/full here')
def test_full_standard_output(mine):
    with open('/dev/full', 'wb') as full: code, _, err = run(mine, *QUICK, code=SHORT, stdout=full)
    assert code == 2 and is_written(mine)
    says_one_line(err, 'hessian-report.html is written, but the summary cannot be printed: No space left on device')
    for asked in ('--version', 'report --help', ''):
        with open('/dev/full', 'wb') as full: code, _, err = run(mine, *asked.split(), stdout=full)
        assert (code, err) == (2, 'hessian_nb: standard output: No space left on device\n')


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='there is no /dev/full here')
def test_full_standard_error(mine):
    with open('/dev/full', 'wb') as full: code, out, _ = run(mine, *QUICK, '--steps', 20, stderr=full)   # in earnest
    assert code == 0 and is_written(mine) and 'written: hessian-report.html' in out
    with open('/dev/full', 'wb') as full: code, out, _ = run(mine, 'report', '--out', '.', stderr=full)
    assert code == 2 and out == ''


@pytest.mark.parametrize('closed', [(1,), (2,), (1, 2)])
def test_closed_streams(mine, closed):
    "Python has no stream then; the page is written all the same."
    code, out, err = run(mine, *QUICK, preexec_fn=lambda: [os.close(n) for n in closed])
    assert code == 0 and is_written(mine) and 'Traceback' not in err
    assert ('written' in out) == (1 not in closed) and ('training' in err) == (2 not in closed)


def test_nobody_reads(mine):
    "The reader of the pipe has gone before there is anything to read."
    reading, writing = os.pipe()
    os.close(reading)
    code, _, err = run(mine, *QUICK, code=SHORT, stdout=writing)
    assert code == 2 and is_written(mine)
    says_one_line(err, 'is written, but the summary cannot be printed: Broken pipe')
    (mine/'hessian-report.html').unlink()
    code = run(mine, *QUICK, code=SHORT, stdout=writing, stderr=writing)[0]
    os.close(writing)
    assert code == 2 and is_written(mine)


def test_unknown_backend_of_matplotlib(mine):
    code, out, err = run(mine, *QUICK, environment={'MPLBACKEND': 'nonsense'})
    assert code == 2 and out == '' and len(err.splitlines()) == 1
    says_one_line(err, "MPLBACKEND='nonsense' is no backend of matplotlib: unset it")
    assert run(mine, *QUICK, code=SHORT, environment={'MPLBACKEND': 'svg'})[0] == 0
