"""No bound of any kind is violated by any of 2,000 random networks: architectures.py draws and attacks them."""

import math

import pytest
import torch
from architectures import hunt

# A float32 Jacobian is a product of rounded layers; the bound speaks of the layers themselves.
MARGINS = {torch.float64: 1e-9, torch.float32: 1e-4}
CHUNK = 50

pytestmark = pytest.mark.usefixtures("float64_on_one_thread")


@pytest.mark.parametrize("chunk", range(40))
def test_no_bound_is_violated(chunk):
    dtype = torch.float32 if chunk % 4 == 0 else torch.float64
    finite = 0
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        report, observed, net = hunt(seed, dtype, num_steps=5)
        for name in ("log_product", "log_folded", "log_lmi"):
            bound = getattr(report, name)
            assert bound == math.inf or observed <= math.exp(bound) * (1 + MARGINS[dtype]), f"{name} of {net}"
        finite += report.total < math.inf
    assert finite >= 0.7 * CHUNK  # GroupNorm, Unitize have no constant for p = 1 and inf
