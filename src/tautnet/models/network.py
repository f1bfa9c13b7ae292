"""The bare network of a model's settings."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tautnet.backbones.layers import LayerFactory
from tautnet.config import ConfigError, build, key_of
from tautnet.models.activation_at import place_activations_
from tautnet.models.weights_at import normalize_weights_at_
from tautnet.normalizers import no_weight_norm


def build_net(config: dict[str, Any]) -> nn.Module:
    """The bare network of a model's config, tried on one sample of zeros.

    Raises:
        ConfigError: a setting that a layer refuses.
    """
    layers = LayerFactory(
        activation=build(config["activation"], "activation"),
        output_norm=build(config["norm"]["output"], "norm.output"),
        weight_norm=no_weight_norm,  # put on below, where layers have paths
    )
    input_shape = tuple(config["input_shape"])
    net: nn.Module = build(
        config["model"]["net"], "model.net", layers=layers, input_shape=input_shape, num_outputs=config["num_outputs"]
    )
    place_activations_(net, config)
    normalize_weights_at_(net, config["norm"])
    try:  # a layer that does not fit its input is a matter of the settings too
        with torch.no_grad():
            net.eval()(torch.zeros(1, *input_shape))
    except (ValueError, RuntimeError) as error:
        output_norm = key_of(error, config["norm"], "output")
        key = key_of(error, config, "activation") or (f"norm.{output_norm}" if output_norm else "model.net: ")
        raise ConfigError(f"{key}{error}") from error
    return net.train()
