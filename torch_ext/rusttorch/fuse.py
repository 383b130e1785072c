"""Layers of a model that stands, in fewer passes: fuse_(model); unfuse_(model) takes that back.

Modules stay where they are, with their classes, parameters and names: what changes is the `forward` of the instance.
"""

from . import fuse_relu, fuse_transformers
from .fusion import is_put


def fuse_(model, *args, loss=True, **kwargs):
    """Has layers of the model run in fewer passes, in place; returns what it found, a list of Fusions.

    Those are a batch norm and the relu behind it, a convolution's relu and the max pool behind it (which change
    places), and in models of transformers RMS norms, BERT's sums and their norm, gated MLPs, GELUs by tanh, rotary
    embeddings, and, unless loss is False, the loss of a language model, which is computed in training without its
    logits: what such a call returns has None there.

    The model's modules, parameters, buffers and state_dict stay as they are, and what it and its parts compute, but for
    rounding and zeros' signs. What was fused before is looked at anew. Later, a forward that does not call the second
    of two such layers after the first raises RuntimeError. (torch.nn.DataParallel and torch.jit.script make other
    modules, and do not know the forwards.)

    With inputs, model(*args, **kwargs) runs once, in eval and without gradients, for modules with batch norms whose
    forward torch.fx cannot trace: of these, what was seen in that run is fused.
    """
    unfuse_(model)
    names = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return [*fuse_transformers.fuse(names, loss), *fuse_relu.fuse(model, names, args, kwargs)]


def unfuse_(model):
    """Takes back what fuse_(model) did."""
    for module in model.modules():
        if is_put(vars(module).get("forward")):
            del module.forward
