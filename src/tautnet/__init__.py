"""tautnet: neural networks with learned non-linearities and controlled behaviour.

The package itself imports nothing heavy, so that the command line answers at once; import what you need from
``tautnet.activations``, ``tautnet.normalizers``, ``tautnet.lipschitz`` and the other sub-packages.
"""
