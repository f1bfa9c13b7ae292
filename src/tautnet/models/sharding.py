"""Gradients and the optimizer's state shared out among ranks."""

from __future__ import annotations

from torch.distributed.fsdp import FSDPModule, fully_shard

from tautnet.models.base import AbstractModel


def share_out_(model: AbstractModel) -> None:
    """Have Lightning's ``ModelParallelStrategy`` keep on each rank only a part of the gradients and optimizer's state.

    The net is one unit, its weights are whole from the forward pass to the end of the backward pass: penalties and
    layers that compare all of a weight see all of it.
    """

    def configure_model() -> None:  # Lightning asks for it; on the class it would warn all who average weights
        if not isinstance(model.net, FSDPModule):
            assert model.device_mesh is not None
            fully_shard(model.net, mesh=model.device_mesh["data_parallel"], reshard_after_forward=False)
            model.parametrised.clear()  # until the net is called a rank has parts of what their weights are made of

    vars(model)["configure_model"] = configure_model
