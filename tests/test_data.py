"""Reading data: what comes out, and the one line that says what is wrong."""
import gzip
import hashlib
import io
import os
import re
import struct
import sys
import tarfile
import threading
import tracemalloc
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec

import numpy as np
import pytest

from hessian_nb import data
from hessian_nb.data import cifar10, digits, fashion_mnist, load_npz, mnist, read_cifar, read_idx

downloads = pytest.mark.skipif(find_spec('pooch') is None, reason="pooch is not installed: pip install '.[data]'")
real = pytest.mark.skipif('HESSIAN_NB_DATA' not in os.environ, reason='HESSIAN_NB_DATA is not set')
rng = np.random.default_rng(0)
X, Y = rng.normal(size=(6, 1, 4, 4)), np.arange(6) % 3


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path, request):
    "No test but those on the real data sees the reader's own folders."
    if not request.node.name.startswith('test_real'): monkeypatch.delenv('HESSIAN_NB_DATA', raising=False)
    monkeypatch.setenv('HOME', str(tmp_path/'home'))


def idx(a):
    "An array in the idx format, packed."
    return gzip.compress(struct.pack(f'>{1 + a.ndim}I', 0x800 + a.ndim, *a.shape) + a.tobytes(),
                         mtime=0)    # the same bytes whenever it is made


def says(error, text):
    "Expects an exception whose message is one line that contains the text."
    return pytest.raises(error, match=rf'\A[^\n]*{re.escape(text)}[^\n]*\Z')


# --- the digits

def test_digits():
    X, Y = digits()
    assert X.shape == (1797, 1, 8, 8) and X.dtype == np.float64 and Y.shape == (1797,) and Y.dtype == np.int64
    assert (X*16 == np.round(X*16)).all() and X.min() == 0 and X.max() == 1
    assert X.sum()*16 == 561718 and np.bincount(Y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_are_those_of_scikit_learn():
    theirs = pytest.importorskip('sklearn.datasets').load_digits()
    X, Y = digits()
    assert (X[:, 0]*16 == theirs.images).all() and (Y == theirs.target).all()


# --- the official layouts

@pytest.fixture
def folder(tmp_path):
    "Small data sets in the official layouts."
    r = np.random.default_rng(1)
    for name in ('mnist', 'fashion-mnist'):
        (tmp_path/name).mkdir()
        for part, n in ('train', 5), ('t10k', 3):
            (tmp_path/name/f'{part}-images-idx3-ubyte.gz').write_bytes(idx(r.integers(0, 256, (n, 28, 28), np.uint8)))
            (tmp_path/name/f'{part}-labels-idx1-ubyte.gz').write_bytes(idx(r.integers(0, 10, n, np.uint8)))
    (tmp_path/'cifar-10-batches-bin').mkdir()
    for name in [*data._CIFAR_TRAIN, *data._CIFAR_TEST]: (tmp_path/'cifar-10-batches-bin'/name).write_bytes(batch(r, 2))
    return tmp_path


def batch(r, n): return np.hstack([r.integers(0, 10, (n, 1)), r.integers(0, 256, (n, 3072))]).astype(np.uint8).tobytes()


@pytest.mark.parametrize('load, shape, sizes', [(mnist, (1, 28, 28), (5, 3)), (fashion_mnist, (1, 28, 28), (5, 3)),
                                                (cifar10, (3, 32, 32), (10, 2))])
def test_layouts(folder, monkeypatch, load, shape, sizes):
    for train, size in zip((True, False), sizes):
        X, Y = load(train, folder=folder)
        assert X.shape == (size, *shape) and X.dtype == np.float64 and X.min() >= 0 and .9 < X.max() <= 1
        assert Y.shape == (size,) and Y.dtype == np.int64
        monkeypatch.setenv('HESSIAN_NB_DATA', str(folder))
        assert (load(train, n=2)[0] == X[:2]).all() and (load(train, n=2)[1] == Y[:2]).all()


def test_pixels_keep_their_places(tmp_path):
    a = rng.integers(0, 256, (2, 3, 5), np.uint8)
    (tmp_path/'a.gz').write_bytes(idx(a))
    (tmp_path/'a').write_bytes(gzip.decompress(idx(a)))
    assert (read_idx(tmp_path/'a.gz', 3) == a).all() and (read_idx(tmp_path/'a', 3) == a).all()
    (tmp_path/'b').write_bytes(bytes([7, *range(256)]) + bytes(3073 - 257))   # red ramps along the first rows
    images, labels = read_cifar(tmp_path/'b')
    assert labels.tolist() == [7] and images[0, 0, 1, :3].tolist() == [32, 33, 34] and images[0, 1:].max() == 0


@pytest.mark.parametrize('load', [mnist, fashion_mnist, cifar10])
def test_unpacked_or_packed(folder, load):
    X, Y = load(folder=folder)
    for path in folder.rglob('*'):
        if path.suffix == '.gz': path.with_suffix('').write_bytes(gzip.decompress(path.read_bytes()))
        elif path.suffix == '.bin': path.with_name(path.name + '.gz').write_bytes(gzip.compress(path.read_bytes()))
        else: continue
        path.unlink()
    assert (load(folder=folder)[0] == X).all() and (load(folder=folder)[1] == Y).all()


def test_missing_batches_are_said(folder):
    (folder/'cifar-10-batches-bin'/'data_batch_2.bin').unlink()
    with pytest.warns(UserWarning, match='4 of 5 batches'): assert len(cifar10(folder=folder)[0]) == 8


@pytest.mark.parametrize('content, text', [
    (b'', 'is cut off: 0 bytes'),
    (struct.pack('>2I', 0x803, 1), 'is cut off: 8 bytes, its header alone has 16'),
    (struct.pack('>4I', 0x803, 1, 2, 2) + bytes(3), '3 values where its header promises 4'),
    (struct.pack('>4I', 0x803, 1, 2, 2) + bytes(5), 'holds more than the 4 values that its header promises'),
    (struct.pack('>4I', 0x801, 1, 2, 2) + bytes(4), 'magic number 0x0801, expected 0x0803'),
    (struct.pack('>4I', 0xd03, 1, 2, 2) + bytes(4), 'magic number 0x0d03, expected 0x0803')],
    ids=['empty', 'half a header', 'a value short', 'a value over', 'labels', 'floats'])
def test_bad_idx(tmp_path, content, text):
    (tmp_path/'f').write_bytes(content)
    with says(ValueError, text): read_idx(tmp_path/'f', 3)


@pytest.mark.parametrize('content', [idx(np.zeros((4, 9, 9), np.uint8))[:-9], b'no gzip at all',
                                     b'\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03' + b'\xff'*40],
                         ids=['cut off', 'no gzip', 'no deflate'])
def test_bad_gzip(tmp_path, content):
    (tmp_path/'f.gz').write_bytes(content)
    with says(ValueError, 'f.gz is damaged'): read_idx(tmp_path/'f.gz', 3)


@pytest.mark.parametrize('content, text', [(b'', 'is cut off: 0 bytes'), (bytes(3072), 'is cut off: 3072 bytes'),
                                           (bytes([10]*3073), 'has the label 10, expected 0…9')],
                         ids=['empty', 'cut off', 'eleventh label'])
def test_bad_cifar(tmp_path, content, text):
    (tmp_path/'f').write_bytes(content)
    with says(ValueError, text): read_cifar(tmp_path/'f')


def test_images_without_labels(folder):
    (folder/'mnist'/'train-labels-idx1-ubyte.gz').write_bytes(idx(np.zeros(4, np.uint8)))
    with says(ValueError, '5 images but 4 labels'): mnist(folder=folder)


# --- downloads, from a server on this machine

@pytest.fixture
def server(tmp_path_factory):
    "(folder, its address)"
    root = tmp_path_factory.mktemp('served')
    handler = type('Quiet', (SimpleHTTPRequestHandler,), {'log_message': lambda *args: None})
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(handler, directory=root)) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield root, f'http://127.0.0.1:{http.server_port}/'
        http.shutdown()


def sha256(content): return hashlib.sha256(content).hexdigest()


def test_sources_are_fetched_safely():
    for url, sums in data.SOURCES.values():
        assert url.startswith('https://') and url.endswith('/')
        assert all(re.fullmatch('[0-9a-f]{64}', sum) for sum in sums.values())
    assert sorted(data.SOURCES) == ['cifar-10-batches-bin', 'fashion-mnist', 'mnist']


@downloads
def test_download_once(server, tmp_path, monkeypatch, folder):
    root, url = server
    parts = {p.name: p.read_bytes() for p in (folder/'mnist').iterdir()}
    for name, content in parts.items(): (root/name).write_bytes(content)
    monkeypatch.setitem(data.SOURCES, 'mnist', (url, {name: sha256(content) for name, content in parts.items()}))
    new = tmp_path/'new'
    assert (mnist(folder=new)[0] == mnist(folder=folder)[0]).all()
    assert {p.name for p in (new/'mnist').iterdir()} == {'train-images-idx3-ubyte.gz', 'train-labels-idx1-ubyte.gz'}
    for path in root.iterdir(): path.unlink()
    assert len(mnist(folder=new)[0]) == 5   # from the folder: the server has nothing any more
    mnist_home = tmp_path/'home'/'.cache'/'hessian_nb'/'mnist'
    with says(FileNotFoundError, f'{mnist_home}/train-images-idx3-ubyte.gz is missing'): mnist()


@downloads
def test_download_cifar(server, tmp_path, monkeypatch, folder):
    root, url = server
    with tarfile.open(root/'cifar-10-binary.tar.gz', 'w:gz') as tar:
        tar.add(folder/'cifar-10-batches-bin', 'cifar-10-batches-bin')
        tar.addfile(tarfile.TarInfo('../outside.bin'), io.BytesIO())
    sums = {'cifar-10-binary.tar.gz': sha256((root/'cifar-10-binary.tar.gz').read_bytes())}
    monkeypatch.setitem(data.SOURCES, 'cifar-10-batches-bin', (url, sums))
    for train in (True, False):
        assert (cifar10(train, folder=tmp_path/'new')[0] == cifar10(train, folder=folder)[0]).all()
    found = {p.name for p in (tmp_path/'new').rglob('*') if p.is_file()}
    assert found == {'cifar-10-binary.tar.gz', *data._CIFAR_TRAIN, *data._CIFAR_TEST}


@downloads
def test_wrong_checksum_keeps_nothing(server, tmp_path, monkeypatch):
    root, url = server
    (root/'train-images-idx3-ubyte.gz').write_bytes(b'other')
    monkeypatch.setitem(data.SOURCES, 'mnist', (url, data.SOURCES['mnist'][1]))
    with says(ValueError, 'expected 440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609 but got '
                          + sha256(b'other')):
        mnist(folder=tmp_path)
    assert list((tmp_path/'mnist').iterdir()) == []


@downloads
def test_nowhere_to_be_had(server, tmp_path, monkeypatch):
    monkeypatch.setitem(data.SOURCES, 'mnist', (server[1], data.SOURCES['mnist'][1]))
    advice = 'put the file there yourself, or set HESSIAN_NB_DATA to a folder that has mnist/train-images-idx3-ubyte.gz'
    with says(FileNotFoundError, advice): mnist(folder=tmp_path)
    with says(FileNotFoundError, '404'): mnist(folder=tmp_path)
    (tmp_path/'file').write_bytes(b'')   # where a folder should be
    with says(FileNotFoundError, advice): mnist(folder=tmp_path/'file')
    monkeypatch.setitem(data.SOURCES, 'mnist', ('http://127.0.0.1:9/', data.SOURCES['mnist'][1]))
    with says(FileNotFoundError, advice): mnist(folder=tmp_path)


def test_without_pooch(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pooch', None)
    assert len(mnist(folder=folder)[0]) == 5   # what is there needs no download
    advice = "pip install 'hessian_nb[data]', or put the file there yourself, or set HESSIAN_NB_DATA to a folder"
    with says(FileNotFoundError, advice): mnist(folder=tmp_path/'new')


@pytest.mark.parametrize('n', [0, -1, 2.5, True, '3'])
def test_bad_numbers_of_images(folder, n):
    for load in (mnist, fashion_mnist, cifar10):
        with says(ValueError, f'n is {n!r}'): load(n=n, folder=folder)


# --- files that unpack to more than they should

@pytest.fixture
def modest():
    "Whatever the test does takes less than 8 MB of memory."
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6


def zeros(path, header=b'', size=10**8):
    "A packed file of zeros, a thousandth as large."
    with gzip.open(path, 'wb', compresslevel=1) as file:
        file.write(header)
        for _ in range(size//10**6): file.write(bytes(10**6))
    return path


def test_an_idx_file_unpacks_to_what_it_promises(tmp_path, modest):
    bomb = zeros(tmp_path/'f.gz', struct.pack('>4I', 0x803, 2, 2, 2))
    with says(ValueError, 'holds more than the 8 values'): read_idx(bomb, 3)


@pytest.mark.parametrize('name', ['f', 'f.gz'])
def test_an_idx_file_may_not_promise_too_much(tmp_path, modest, name):
    content = struct.pack('>4I', 0x803, 4000, 1000, 1000)
    (tmp_path/name).write_bytes(gzip.compress(content) if name == 'f.gz' else content)
    with says(ValueError, 'takes 4,000,000,000 bytes, and max_bytes is 2,147,483,648'): read_idx(tmp_path/name, 3)
    with says(ValueError, 'takes 8 bytes, and max_bytes is 7'):
        read_idx(zeros(tmp_path/'g.gz', struct.pack('>4I', 0x803, 2, 2, 2), 0), 3, max_bytes=7)


def test_a_batch_of_cifar_has_ten_thousand_images(tmp_path):
    (tmp_path/'whole').write_bytes(bytes(10_000*3073))
    assert len(read_cifar(tmp_path/'whole')[0]) == 10_000
    tracemalloc.start()
    with says(ValueError, 'more than 30,730,000 bytes'): read_cifar(zeros(tmp_path/'f.gz'))
    assert tracemalloc.get_traced_memory()[1] < 80e6
    tracemalloc.stop()


def test_an_archive_of_cifar_holds_batches(folder, tmp_path, modest):
    where = tmp_path/'new'/'cifar-10-batches-bin'
    where.mkdir(parents=True)
    member = tarfile.TarInfo('cifar-10-batches-bin/data_batch_1.bin')
    member.size = 40_000_000
    (where/'cifar-10-binary.tar.gz').write_bytes(gzip.compress(member.tobuf()))   # what it says of itself is enough
    with says(ValueError, 'data_batch_1.bin has 40,000,000 bytes, more than a batch'): cifar10(folder=tmp_path/'new')
    assert [p.name for p in where.iterdir()] == ['cifar-10-binary.tar.gz']


def packed(folder, X, declared=None):
    "A packed .npz file whose directory declares this size for X, or the true one."
    with zipfile.ZipFile(folder/'mine.npz', 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        with file.open('X.npy', 'w') as member: np.lib.format.write_array(member, X)
        with file.open('Y.npy', 'w') as member: np.lib.format.write_array(member, np.zeros(len(X)))
        true = file.getinfo('X.npy').file_size
    if declared:
        content = (folder/'mine.npz').read_bytes()
        directory = content.index(b'PK\1\2')
        (folder/'mine.npz').write_bytes(content[:directory] + content[directory:].replace(
            struct.pack('<I', true), struct.pack('<I', declared)))
    return folder/'mine.npz'


def test_an_npz_file_may_not_unpack_to_too_much(tmp_path, modest):
    large = packed(tmp_path, np.zeros((3, 2)), declared=4_000_000_000)
    with says(ValueError, 'cannot be used: X with Y takes 4,000,000,152 bytes, and max_bytes is 2,147,483,648'):
        load_npz(large)
    with says(ValueError, 'X with Y takes 328 bytes, and max_bytes is 327'):
        load_npz(packed(tmp_path, np.zeros((3, 2))), max_bytes=327)
    assert load_npz(packed(tmp_path, np.zeros((3, 2))), max_bytes=328)[0].shape == (3, 2)


def test_an_npz_file_cannot_lie_about_its_size(tmp_path):
    liar = packed(tmp_path, np.zeros((1, 4*10**7), np.uint8), declared=1000)
    tracemalloc.start()
    with says(ValueError, 'mine.npz cannot be used'): load_npz(liar, max_bytes=2000)
    assert tracemalloc.get_traced_memory()[1] < 60e6     # the array that was asked for, and not what would fill it
    tracemalloc.stop()


def test_pixels_of_a_byte_grow_to_eight(tmp_path, modest):
    file = saved(tmp_path, X=np.zeros((10, 10**5), np.uint8), Y=np.zeros(10, np.uint8))
    with says(ValueError, 'X as float64 takes 8,000,000 bytes, and max_bytes is 7,999,999'): load_npz(file, 7_999_999)


@pytest.mark.parametrize('shape', [(10**15, 1), (2**62, 4)])
def test_an_array_that_no_memory_holds(tmp_path, shape):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, dict(descr='<f8', fortran_order=False, shape=shape))
    with zipfile.ZipFile(tmp_path/'f.npz', 'w') as file:
        file.writestr('X.npy', header.getvalue())
        file.writestr('Y.npy', header.getvalue())
    with says(ValueError, 'f.npz cannot be used'): load_npz(tmp_path/'f.npz')


# --- a reader's own file

def saved(folder, **arrays):
    np.savez(folder/'mine.npz', **arrays)
    return folder/'mine.npz'


@pytest.mark.parametrize('x, y, shape', [
    (X, Y, (6, 1, 4, 4)),
    (X[:, 0], Y, (6, 1, 4, 4)),
    (X.reshape(6, 16), Y, (6, 16)),
    (rng.normal(size=(6, 3, 4, 4)), Y, (6, 3, 4, 4)),
    ((X*9).astype(np.int8), Y.astype(np.uint8), (6, 1, 4, 4)),
    (X.astype(np.float32), Y.astype(np.float32), (6, 1, 4, 4)),
    (X > 0, Y > 1, (6, 1, 4, 4))])
def test_load_npz(tmp_path, x, y, shape):
    for names in ('XY', 'xy', 'Xy'):
        images, labels = load_npz(str(saved(tmp_path, **dict(zip(names, (x, y))), other=np.zeros(2))))
        assert images.shape == shape and images.dtype == np.float64 and (images == x.reshape(shape)).all()
        assert labels.dtype == np.int64 and (labels == y).all()


NAN, INF = X.copy(), X.copy()
NAN[0, 0, 0, 0], INF[1] = np.nan, np.inf


@pytest.mark.parametrize('arrays, text', [
    (dict(), 'holds nothing; expected the two arrays X and Y'),
    (dict(X=X), 'holds X; expected'),
    (dict(images=X, labels=Y), 'holds images, labels; expected'),
    (dict(X=X, x=X, Y=Y), 'holds X, x, Y; expected'),
    (dict(X=X, Y=np.array([{}]*6)), 'Object arrays cannot be loaded'),
    (dict(X=np.array([[None]]*6), Y=Y), 'Object arrays cannot be loaded'),
    (dict(X=X.astype(str), Y=Y), 'X has the type <U32, expected real numbers'),
    (dict(X=X + 1j, Y=Y), 'X has the type complex128'),
    (dict(X=NAN, Y=Y), 'X holds NaN or infinity in 1 of its 96 entries'),
    (dict(X=INF, Y=Y), 'X holds NaN or infinity in 16 of its 96 entries'),
    (dict(X=X, Y=np.where(Y == 1, np.nan, Y)), 'Y holds NaN or infinity in 2 of its 6 entries'),
    (dict(X=X, Y=Y[:-1]), '6 samples in X but 5 labels in Y'),
    (dict(X=X, Y=Y[:0]), '6 samples in X but 0 labels in Y'),
    (dict(X=X[:0], Y=Y[:0]), 'there are no samples'),
    (dict(X=X[:, :, :0], Y=Y), 'there are no samples'),
    (dict(X=np.float64(3), Y=Y), 'X has the shape ()'),
    (dict(X=X[:, 0, 0, 0], Y=Y), 'X has the shape (6,), expected (N, features)'),
    (dict(X=X, Y=Y[:, None]), 'Y has the shape (6, 1), expected one label for each sample'),
    (dict(X=X, Y=Y - 1), 'Y has the negative label -1'),
    (dict(X=X, Y=Y*.5), 'Y has fractions such as 0.5'),
    (dict(X=X, Y=Y*1e19), 'Y has the label 2e+19, too large'),
    (dict(X=X, Y=np.full(6, 2**63, np.uint64)), 'Y has the label 9223372036854775808, too large'),
    (dict(X=X, Y=Y.astype(str)), 'Y has the type <U21, expected real numbers')])
def test_bad_npz(tmp_path, arrays, text):
    with says(ValueError, text): load_npz(saved(tmp_path, **arrays))


def test_no_npz(tmp_path):
    with says(FileNotFoundError, 'absent.npz is no file'): load_npz(tmp_path/'absent.npz')
    with says(FileNotFoundError, 'is no file'): load_npz(tmp_path)
    np.save(tmp_path/'bare.npy', X)
    whole = saved(tmp_path, X=X, Y=Y).read_bytes()
    for content in (b'', b'text', (tmp_path/'bare.npy').read_bytes(), whole[:-30], whole[200:]):
        (tmp_path/'f.npz').write_bytes(content)
        with says(ValueError, 'f.npz'): load_npz(tmp_path/'f.npz')
    (tmp_path/'f.npz').write_bytes(whole.replace(X.tobytes()[:8], b'\0'*8))
    with says(ValueError, 'f.npz cannot be used: Bad CRC-32'): load_npz(tmp_path/'f.npz')
    directory = whole.index(b'PK\1\2')
    (tmp_path/'f.npz').write_bytes(whole[:directory + 10] + b'\x63' + whole[directory + 11:])   # a method of the future
    with says(ValueError, 'f.npz cannot be used: That compression method is not supported'): load_npz(tmp_path/'f.npz')


# --- the real data sets

@real
@pytest.mark.parametrize('load, shape', [(mnist, (1, 28, 28)), (fashion_mnist, (1, 28, 28)), (cifar10, (3, 32, 32))])
@pytest.mark.filterwarnings('ignore:.* of 5 batches')
def test_real(load, shape):
    for train in (True, False):
        images, labels = load(train, n=2000)
        assert images.shape == (2000, *shape) and images.min() == 0 and images.max() == 1
        assert (np.bincount(labels, minlength=10) > 100).all() and labels.max() == 9


@real
def test_real_mnist_is_mnist():
    assert mnist(n=10)[1].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
