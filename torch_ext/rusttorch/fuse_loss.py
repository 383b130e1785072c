"""The loss of transformers' language models without their logits: a part of fuse_(model).

Of 32,000 words the logits and their gradient take more memory than the rest of a training step. So while a model in
training is called with labels, the linear layer to the logits, its head, makes none: linear_cross_entropy reads what
the head was given. `logits` of such a call is None. A causal model's forward is then called without its labels; that of
a masked one or of an encoder and decoder, which calls CrossEntropyLoss itself, with ours in the place of it.

A model is recognised by the names that its class's forward reads. That its logits are what its head gives is seen on a
twin without data of the part that has the head.
"""

import copy
import functools
import inspect
import sys
import threading

import torch
from torch import nn

from . import _C
from .fusion import has_hooks, is_put, put, with_global

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
SEQ2SEQ_READS = {
    *("BaseModelOutput", "CrossEntropyLoss", "Seq2SeqLMOutput", "ValueError", "_shift_right", "attentions", "cache"),
    *("config", "cross_attentions", "decoder", "decoder_attentions", "decoder_hidden_states", "decoder_start_token_id"),
    *("device", "encoder", "encoder_attentions", "encoder_hidden_states", "encoder_last_hidden_state", "hidden_states"),
    *("isinstance", "last_hidden_state", "len", "lm_head", "max_target_positions", "model", "model_dim"),
    *("pad_token_id", "proj_out", "reshape", "return_dict", "scale_decoder_outputs", "shape", "shift_tokens_right"),
    *("size", "to", "use_cache", "view", "vocab_size"),
}
SEQ2SEQ_MUST = {"CrossEntropyLoss", "Seq2SeqLMOutput"}


class _Now(threading.local):
    """Of a thread: the heads that are not to make logits, the innermost model's last, and what they were given."""

    def __init__(self):
        self.given = {}


_now = _Now()


def _head(head, input):
    """The forward of a linear layer to logits: none of them, while its model computes its loss."""
    if head not in _now.given:
        return type(head).forward(head, input)
    _now.given[head] = input
    return input.new_empty((0, *input.shape[1:-1], head.out_features))  # which views make (0, words)


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


def _without_logits(module, head, forward, args, kwargs):
    """The output of a forward in which the head made no logits, and what the head was given; None: it made them."""
    _now.given[head] = None
    try:
        output = forward(module, *args, **kwargs)
    finally:
        hidden = _now.given.pop(head)
    if hidden is not None:
        output = type(output)(**output | {"logits": None})
    return output, hidden


def _cross_entropy(head, hidden, logits, target, reduction="mean", ignore_index=IGNORED, softcap=None):
    """Of what the head was given; or, where it is in a part that has been compiled and made its logits, of those."""
    rows, target = (logits if hidden is None else hidden).flatten(0, -2), target.flatten()
    if len(target) != len(rows):  # in stock's words
        raise ValueError(f"Expected input batch_size ({len(rows)}) to match target batch_size ({len(target)}).")
    target = target.to(rows.device)
    if hidden is None:
        return nn.functional.cross_entropy(rows.float(), target, ignore_index=ignore_index, reduction=reduction)
    return _C.functions.linear_cross_entropy(
        rows, head.weight, target, head.bias, reduction, ignore_index, softcap=softcap
    )


def _next_tokens(labels):
    return nn.functional.pad(labels, (0, 1), value=IGNORED)[..., 1:]


def _is_causal(loss_function):
    """Whether it is transformers' loss of causal language models, with the defaults that we know."""
    return loss_function is sys.modules["transformers.loss.loss_utils"].ForCausalLMLoss


def _causal_lm(module, *args, **kwargs):
    head, labels = module.get_output_embeddings(), kwargs.get("labels")
    if not _is_causal(module.loss_function) or not _takes_loss(module, head, labels, kwargs):
        return type(module).forward(module, *args, **kwargs)
    output, hidden = _without_logits(module, head, type(module).forward, args, kwargs | {"labels": None})
    count = kwargs.get("num_items_in_batch")  # what the sum is divided by; None: the labels that are not ignored
    reduction = "mean" if count is None else "sum"
    loss = _cross_entropy(head, hidden, output.logits, _next_tokens(labels), reduction, softcap=_softcap(module))
    if count is not None:
        loss = loss / (count.to(loss.device) if isinstance(count, torch.Tensor) else count)
    return type(output)(loss=loss, **output)


class _CrossEntropyLoss:
    """torch.nn's, as these forwards call it, of the model whose forward runs."""

    def __init__(self, ignore_index=IGNORED):
        self.ignore_index = ignore_index

    def __call__(self, logits, target):
        head, hidden = next(reversed(_now.given.items()))
        return _cross_entropy(head, hidden, logits, target, ignore_index=self.ignore_index)


@functools.cache
def _with_our_loss(forward):
    return with_global(forward, "CrossEntropyLoss", _CrossEntropyLoss)


def _own_loss(module, *args, **kwargs):
    """Of a model whose forward calls CrossEntropyLoss."""
    head = module.get_output_embeddings()
    if not _takes_loss(module, head, kwargs.get("labels"), kwargs):
        return type(module).forward(module, *args, **kwargs)
    return _without_logits(module, head, _with_our_loss(type(module).forward), args, kwargs)[0]


def _loss_of(module, reads):
    """Our forward of a language model, by what its class's reads, or None."""
    reads = reads - {getattr(module, "base_model_prefix", None)}
    if CAUSAL_MUST <= reads <= CAUSAL_READS and _is_causal(module.loss_function):
        return _causal_lm
    is_known = MASKED_MUST <= reads <= MASKED_READS or SEQ2SEQ_MUST <= reads <= SEQ2SEQ_READS
    return _own_loss if is_known else None


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
