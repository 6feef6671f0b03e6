from concurrent.futures import ThreadPoolExecutor

import numcodecs.blosc
import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from croplem_hf.data.codec import checksum, decode, encode

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 13), st.integers(1, 20), st.integers(1, 20))
TYPES = st.sampled_from(["uint8", "uint16", "int16", "float32", "float64", "bool"])
RNG = np.random.default_rng(0)
S2 = RNG.integers(200, 4000, (1, 13, 32, 32)).astype(np.uint16)


@given(st.data())
def test_every_array_comes_back_bit_by_bit(data):
    array = data.draw(arrays(data.draw(TYPES), data.draw(SHAPES)))
    packed, codec = encode(array)
    back = decode(packed, codec, array.dtype.name, array.shape)
    assert back.tobytes() == array.tobytes() and back.dtype == array.dtype and back.shape == array.shape
    assert back.flags.writeable
    assert encode(array) == (packed, codec)


def test_a_view_is_packed_as_its_values():
    turned = np.rot90(S2, axes=(2, 3))
    packed, codec = encode(turned)
    assert np.array_equal(decode(packed, codec, "uint16", turned.shape), turned)


def test_it_halves_what_has_structure():
    smooth = np.cumsum(RNG.integers(-3, 4, (1, 13, 64, 64)), axis=-1).astype(np.uint16)
    assert len(encode(smooth)[0]) < 0.7 * smooth.nbytes


@pytest.mark.parametrize("change", [
    lambda d: d[:-1], lambda d: d[:10], lambda d: b"", lambda d: d + b"x",
    lambda d: d[:4] + b"\xff\xff\xff\x7f" + d[8:],
    lambda d: d[:12] + b"\xff\xff\xff\x7f" + d[16:],
])  # fmt: skip
def test_bytes_of_another_size_are_refused_before_anything_is_made(change):
    packed, codec = encode(S2)
    with pytest.raises(ValueError, match="bytes"):
        decode(change(packed), codec, "uint16", S2.shape)


def test_other_codecs_and_shapes_are_refused():
    packed, _ = encode(S2)
    with pytest.raises(ValueError, match="unknown codec 'zip'"):
        decode(packed, "zip", "uint16", S2.shape)
    with pytest.raises(ValueError, match="bytes"):
        decode(packed, "blosc", "uint16", (1, 13, 32, 31))
    with pytest.raises(ValueError, match="bytes"):
        decode(b"abc", "raw", "uint8", (2,))


def test_threads_leave_the_setting_of_blosc_as_it_was(monkeypatch):
    monkeypatch.setattr(numcodecs.blosc, "use_threads", None)
    array = np.arange(2**16, dtype=np.uint16)
    with ThreadPoolExecutor(8) as pool:
        packed = list(pool.map(lambda _: encode(array), range(64)))
        assert all((decode(data, codec, "uint16", (2**16,)) == array).all() for data, codec in packed)
    assert numcodecs.blosc.use_threads is None


def test_the_checksum_sees_a_flipped_bit():
    packed, _ = encode(S2)
    for place in RNG.integers(0, len(packed), 20).tolist():
        flipped = bytearray(packed)
        flipped[place] ^= 1
        assert checksum(bytes(flipped)) != checksum(packed)
