"""Networks built from a LayerFactory: Sequential, Residual and leaf layers only."""

from tautnet.backbones.blocks import Residual
from tautnet.backbones.convnet import convnet
from tautnet.backbones.layers import LayerFactory
from tautnet.backbones.mlp import mlp
from tautnet.backbones.resnet import cifar_resnet

__all__ = ["LayerFactory", "Residual", "cifar_resnet", "convnet", "mlp"]
