"""The loss of transformers' language models without their logits: a part of fuse_(model).

Of 32,000 words the logits and their gradient take more memory than the rest of a training step. So while a model in
training is called with labels, its forward is called without them, and the linear layer to the logits, its head, makes
none: linear_cross_entropy reads what the head was given. `logits` of such a call is None.

A model is recognised by the names that its class's forward reads: those of a causal or of a masked language model. That
its logits are what its head gives is seen on a twin without data of the part that has the head.
"""

import copy
import inspect
import sys
import threading

import torch
from torch import nn

from . import _C
from .fusion import has_hooks, is_put, put

IGNORED = -100
# Names that a forward may read, beside its base model's, and those that it must.
CAUSAL_READS = {
    *("CausalLMOutputWithPast", "CausalLMOutputWithCrossAttentions", "attentions", "cache", "cls", "config"),
    *("cross_attentions", "final_logit_softcapping", "hidden_states", "last_hidden_state", "lm_head", "loss_function"),
    *("past_key_values", "slice_logits_to_keep", "tanh", "torch", "vocab_size"),
}
CAUSAL_MUST = {"loss_function", "last_hidden_state"}
MASKED_READS = {
    *("CrossEntropyLoss", "MaskedLMOutput", "attentions", "cls", "config", "device", "hidden_states", "lm_head", "to"),
    *("view", "vocab_size"),
}
MASKED_MUST = {"CrossEntropyLoss", "MaskedLMOutput"}


class _Now(threading.local):
    """Of a thread: the heads that are not to make logits, and what they were given instead."""

    def __init__(self):
        self.given = {}


_now = _Now()


def _head(head, input):
    """The forward of a linear layer to logits: none of them, while its model computes its loss."""
    if head not in _now.given:
        return type(head).forward(head, input)
    _now.given[head] = input
    return input.new_empty((*input.shape[:-1], 0))


def _takes_loss(module, head, labels, kwargs):
    """Whether a call of a language model is one for its loss, with nothing that a loss of ours does not know."""
    if labels is None or not module.training or not torch.is_grad_enabled() or not _is_head(head):
        return False
    if labels.dtype != torch.int64:
        return False
    if kwargs.get("return_dict") is False or not module.config.return_dict:
        return False
    keep = kwargs.get("logits_to_keep", 0)
    if not isinstance(keep, int) or keep != 0:
        return False
    known = {"num_items_in_batch", "return_dict", "output_attentions", "output_hidden_states"}
    return kwargs.keys() <= known | inspect.signature(type(module).forward).parameters.keys()


def _softcap(module):
    reads = inspect.unwrap(type(module).forward).__code__.co_names
    return module.config.final_logit_softcapping if "final_logit_softcapping" in reads else None


def _is_head(head):
    return is_put(vars(head).get("forward")) and not has_hooks(head)


def _language_model(module, target_of, count, args, kwargs):
    """count: what the summed loss is divided by; None: the labels that are not ignored."""
    head, labels = module.get_output_embeddings(), kwargs.get("labels")
    if not _takes_loss(module, head, labels, kwargs):
        return type(module).forward(module, *args, **kwargs)
    _now.given[head] = None
    try:
        output = type(module).forward(module, *args, **kwargs | {"labels": None})
    finally:
        hidden = _now.given.pop(head)
    target, reduction = target_of(labels).flatten(), "mean" if count is None else "sum"
    rows = (output.logits if hidden is None else hidden).shape[:-1].numel()
    if target.numel() != rows:  # in stock's words
        raise ValueError(f"Expected input batch_size ({rows}) to match target batch_size ({target.numel()}).")
    if hidden is None:  # the head is in a part that has been compiled, and has made its logits
        logits = output.logits.flatten(0, -2).float()
        loss = nn.functional.cross_entropy(logits, target.to(logits.device), ignore_index=IGNORED, reduction=reduction)
    else:
        loss = _C.functions.linear_cross_entropy(
            hidden.flatten(0, -2),
            head.weight,
            target.to(hidden.device),
            head.bias,
            reduction,
            IGNORED,
            softcap=_softcap(module),
        )
        output["logits"] = None
    if count is not None:
        loss = loss / (count.to(loss.device) if isinstance(count, torch.Tensor) else count)
    return type(output)(loss=loss, **output)


def _next_tokens(labels):
    return nn.functional.pad(labels, (0, 1), value=IGNORED)[..., 1:]


def _is_causal(loss_function):
    """Whether it is transformers' loss of causal language models, with the defaults that we know."""
    return loss_function is sys.modules["transformers.loss.loss_utils"].ForCausalLMLoss


def _causal_lm(module, *args, **kwargs):
    if not _is_causal(module.loss_function):
        return type(module).forward(module, *args, **kwargs)
    return _language_model(module, _next_tokens, kwargs.get("num_items_in_batch"), args, kwargs)


def _masked_lm(module, *args, **kwargs):
    return _language_model(module, lambda labels: labels, None, args, kwargs)


def _loss_of(module, reads):
    """Our forward of a language model, by what its class's reads, or None."""
    reads = reads - {getattr(module, "base_model_prefix", None)}
    if CAUSAL_MUST <= reads <= CAUSAL_READS and _is_causal(module.loss_function):
        return _causal_lm
    return _masked_lm if MASKED_MUST <= reads <= MASKED_READS else None


def _gives_logits(module, head):
    """Whether the part of the model that has the head returns what the head does, which is seen on a twin."""
    path = next(name for name, part in module.named_modules() if part is head)
    name, _, rest = path.partition(".")
    if not rest:
        return True
    part, given = getattr(module, name), []
    sizes = {id(t): torch.empty_like(t, device="meta") for t in (*part.parameters(), *part.buffers())}
    try:
        twin = copy.deepcopy(part, sizes)
        for each in twin.modules():  # which are others' to see
            each._forward_hooks.clear(), each._forward_pre_hooks.clear()
        twin.get_submodule(rest).register_forward_hook(lambda _head, _inputs, output: given.append(output))
        output = twin(torch.empty(1, 2, module.config.hidden_size, dtype=head.weight.dtype, device="meta"))
    except Exception:  # whatever else it may need
        return False
    return len(given) == 1 and output is given[0]


def fuse(module, reads):
    """Our forward of a language model, and what that is; or why there is none; or nothing."""
    head = getattr(module, "get_output_embeddings", lambda: None)()
    if head is None or "labels" not in inspect.signature(type(module).forward).parameters:
        return None, None
    forward = _loss_of(module, reads)
    if forward is None:
        return None, "its loss is not that of a language model that is known"
    if type(head) is not nn.Linear or has_hooks(head) or "forward" in vars(head):
        return None, "its head is not a linear layer alone"
    if not _gives_logits(module, head):
        return None, "what its head gives is not yet its logits"
    if "forward" in vars(module):
        return None, "has a forward of its own"
    put(head, _head)
    return forward, "linear_cross_entropy"
