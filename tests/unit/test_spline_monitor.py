"""SplineMonitor: the share of a layer's inputs outside its grid."""

import pytest
import pytorch_lightning as pl
import torch

from tautnet.activations import LinearSpline
from tautnet.callbacks import SplineMonitor
from tautnet.config import build
from tautnet.models import Classifier


@pytest.mark.parametrize(("grid_range", "words"), [(1.0, None), (0.1, "of the inputs"), (1e-9, "all inputs")])
def test_share_outside_is_logged_and_named_once(settings, tmp_path, caplog, grid_range, words):
    composed = settings(
        "norm=none", "model.net.widths=[4,4]", f"activation.grid_range={grid_range}", "activation.learn_scale=true"
    )
    data = build(composed["data"], "data")
    model = Classifier(composed | {"input_shape": [1, 8, 8], "num_outputs": 10}).eval()
    splines = {path: module for path, module in model.net.named_modules() if isinstance(module, LinearSpline)}
    with torch.no_grad():
        for spline in splines.values():
            spline.log_scale.add_(0.2)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, callbacks=[SplineMonitor()], enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    logged = [trainer.validate(model, data, verbose=False)[0] for _ in range(2)][1]

    seen = {path: [] for path in splines}
    hooks = [
        spline.register_forward_pre_hook(lambda module, inputs, path=path: seen[path].append(inputs[0].flatten()))
        for path, spline in splines.items()
    ]
    with torch.no_grad():
        for x, _ in data.val_dataloader():
            model.net(x)
    for hook in hooks:
        hook.remove()
    warned = [record.getMessage() for record in caplog.records if record.name == "tautnet.callbacks.spline_monitor"]
    much = 0
    for path, parts in seen.items():
        share = (torch.cat(parts).abs() > grid_range / torch.tensor(0.2).exp()).double().mean().item()
        assert logged[f"spline/outside/{path}"] == pytest.approx(share, abs=1e-4)
        assert sum(message.startswith(f"{path}: ") for message in warned) == (share > 0.5)
        much += share > 0.5
    assert len(seen) == 2
    assert (much > 0) == (words is not None)
    assert words is None or any(words in message for message in warned)
