"""Scaling by the largest singular value in native code: the same as torch, bits included whatever the threads."""

import pytest
import torch
from test_kernels import needs_compiler
from torch._subclasses import FakeTensorMode
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

from tautnet.kernels import spectral
from tautnet.normalizers.power_iteration import TopSingularVectors

pytestmark = needs_compiler
SHAPES = [(1, 1), (3, 65), (64, 576), (130, 7), (9, 300)]


def case(shape, dtype=torch.float64):
    matrix = torch.randn(shape, dtype=dtype)
    u, v, probe = (torch.randn(size, dtype=dtype) for size in (*shape, shape[1]))
    return matrix, normalize(u, dim=0), normalize(v, dim=0), probe


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_of_power_iteration_for_each_new_matrix(shape):
    matrix, u, v, probe = case(shape)
    seen, expected_u, expected_v = torch.full_like(u, torch.nan), u, v
    for _ in range(3):
        expected_u = normalize(matrix @ expected_v, dim=0)
        expected_v = normalize(matrix.T @ expected_u, dim=0)
    found = spectral.follow_(matrix, probe, seen, u, v, 3)
    for actual, expected in zip((u, v, *found, seen), (expected_u, expected_v) * 2 + (matrix @ probe,), strict=True):
        torch.testing.assert_close(actual, expected)
    again = spectral.follow_(matrix, probe, seen, u, v, 3)
    assert torch.equal(again[0], found[0])
    assert torch.equal(again[1], found[1])


@pytest.mark.parametrize("matrix", [torch.zeros(3, 5), torch.full((3, 5), torch.inf), torch.full((3, 5), torch.nan)])
def test_vectors_that_a_matrix_takes_to_nothing_stay(matrix):
    _, u, v, probe = case((3, 5))
    before = u.clone(), v.clone()
    spectral.follow_(matrix.double(), probe, torch.full_like(u, torch.nan), u, v, 2)
    assert torch.equal(u, before[0])
    assert torch.equal(v, before[1])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eps", [1e-12, 1e12])
@pytest.mark.parametrize("constant", [True, False])
def test_the_division_and_its_derivative(shape, eps, constant):
    matrix, u, v, _ = case(shape)
    grad = torch.randn_like(matrix)
    plain = matrix.clone().requires_grad_()
    value = u @ plain @ v
    size = value.detach().abs() if constant else value.abs()
    expected = plain / (size if size > eps else 1)
    (expected_grad,) = torch.autograd.grad(expected, plain, grad)
    quotient, found = spectral.divide(matrix, u, v, eps)
    assert found == pytest.approx(value.item(), rel=1e-12)
    torch.testing.assert_close(quotient, expected)
    torch.testing.assert_close(spectral.divide_backward(grad, quotient, u, v, found, eps, constant), expected_grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_threads_change_no_bit(dtype, monkeypatch):
    matrix, u, v, probe = case((130, 2100), dtype)
    results = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(spectral.native, "num_threads", lambda _, threads=threads: threads)
        own_u, own_v = u.clone(), v.clone()
        seen = torch.full_like(u, torch.nan)
        units = spectral.follow_(matrix, probe, seen, own_u, own_v, 2)
        quotient, value = spectral.divide(matrix, *units, 1e-12)
        back = spectral.divide_backward(matrix + 1, quotient, *units, value, 1e-12, constant=False)
        results.append((own_u, own_v, seen, *units, quotient, back))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_float32_is_as_near_to_the_truth_as_torch():
    matrix, u, v, _ = case((64, 4608))
    _, found = spectral.divide(matrix.float(), u.float(), v.float(), 1e-12)
    assert found == pytest.approx((u @ matrix @ v).item(), abs=1e-6 * matrix.norm().item())


@pytest.mark.parametrize("buffers", [torch.bfloat16, torch.float64])
def test_buffers_of_another_type_are_followed_in_torch(buffers):
    matrix = torch.randn(1, 4, 6, dtype=torch.float32)
    vectors = TopSingularVectors(matrix).to(buffers)
    before = vectors.u_GO.clone()
    u, v = vectors(matrix + 1, 1)
    assert u.dtype == v.dtype == torch.float32
    assert not torch.equal(vectors.u_GO, before)
    assert vectors.u_GO.dtype == buffers


def test_what_has_no_values_in_memory_goes_another_way():
    matrix = torch.randn(3, 4)
    assert spectral.serves(matrix)
    assert not spectral.serves(matrix, matrix.T)
    assert not spectral.serves(matrix, matrix.double())
    assert not spectral.serves(matrix[:0])
    with FakeTensorMode():
        assert not spectral.serves(torch.randn(3, 4))
    with FlopCounterMode(display=False):
        assert not spectral.serves(matrix)


def test_an_iteration_counts_as_a_change_of_the_vectors():
    matrix, u, v, probe = case((3, 4))
    versions = u._version, v._version
    spectral.follow_(matrix, probe, torch.full_like(u, torch.nan), u, v, 1)
    assert u._version > versions[0]
    assert v._version > versions[1]
