"""Networks built from a LayerFactory: Sequential, Residual and leaf layers only."""

from tautnet.backbones.blocks import Residual
from tautnet.backbones.convnet import convnet
from tautnet.backbones.dncnn import dncnn
from tautnet.backbones.elu11 import elu11
from tautnet.backbones.layers import LayerFactory
from tautnet.backbones.mlp import mlp
from tautnet.backbones.nin import nin
from tautnet.backbones.preact_resnet import preact_resnet
from tautnet.backbones.resnet import cifar_resnet
from tautnet.backbones.resnet9 import resnet9
from tautnet.backbones.resnet_imagenet import imagenet_resnet
from tautnet.backbones.unshuffle_convnet import unshuffle_convnet
from tautnet.backbones.wide_resnet import wide_resnet

__all__ = [
    "LayerFactory",
    "Residual",
    "cifar_resnet",
    "convnet",
    "dncnn",
    "elu11",
    "imagenet_resnet",
    "mlp",
    "nin",
    "preact_resnet",
    "resnet9",
    "unshuffle_convnet",
    "wide_resnet",
]
