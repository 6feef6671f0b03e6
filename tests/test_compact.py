"""One byte a number: how much rounding may change."""

import numpy as np
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from croplem_hf.compact import dequantise, quantise

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)
SHAPES = st.tuples(st.integers(0, 5), st.integers(1, 300))
VECTORS = SHAPES.flatmap(lambda shape: arrays(np.float32, shape, elements=FLOATS))


@given(VECTORS)
def test_rounding_is_bounded_for_any_vector(vectors):
    codes, scales = quantise(vectors)
    assert codes.dtype == np.int8 and codes.shape == vectors.shape and np.abs(codes.astype(int)).max(initial=0) <= 127
    assert scales.dtype == np.float32 and scales.shape == (len(vectors),)
    found = dequantise(codes, scales)
    assert found.dtype == np.float32 and np.isfinite(found).all()
    # Scales below the smallest normal number have few digits of their own.
    normal = scales > 2.0**-120
    error = np.abs(found.astype(np.float64) - vectors).max(axis=1, initial=0)
    assert (error <= scales * (0.5 + 1e-5))[normal].all() and (error <= 2.0**-110)[~normal].all()
    a, b = found[normal].astype(np.float64), vectors[normal].astype(np.float64)
    cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert (cosine >= np.sqrt(1 - vectors.shape[1] / 254**2) - 1e-6).all()


@given(VECTORS)
def test_what_was_rounded_once_stays(vectors):
    codes, scales = quantise(vectors)
    normal = scales > 2.0**-120
    again = quantise(dequantise(codes, scales))
    assert np.array_equal(again[0][normal], codes[normal])
    np.testing.assert_allclose(again[1][normal], scales[normal], rtol=1e-6)


def test_the_largest_number_has_the_largest_code():
    codes, scales = quantise(np.array([[0, 0, 0], [-2, 1, 0.5], [0, 127, -127]], np.float32))
    assert codes.tolist() == [[0, 0, 0], [-127, 64, 32], [0, 127, -127]]
    np.testing.assert_allclose(scales, [0, 2 / 127, 1], rtol=1e-6)
