"""Networks as files that run elsewhere: without tautnet, or without its training."""

from tautnet.export.files import FORMATS, Written, export, has_splines
from tautnet.export.plain import plain_net
from tautnet.export.probes import DiffersError
from tautnet.export.weights import load_exported

__all__ = ["FORMATS", "DiffersError", "Written", "export", "has_splines", "load_exported", "plain_net"]
