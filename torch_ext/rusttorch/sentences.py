"""What each op does, in a sentence with its formula and shapes: of help(rusttorch.NAME)."""

# Of forms that follow from another op's: {} is its name.
FORMS = {
    "_backward": "The gradient of {}'s input, from that of its output: of its shape.",
    "_": "{}, written into input.",
}
BROADCAST = "input and other broadcast, and promote as in torch."
REDUCED = "Over dim (an int or several), or over all: the result is of input's shape without dim, or with 1s (keepdim)."
ALONG = "Along dim; of input's shape."
SAME = "Of input's shape."
LOSS = 'Its mean or sum, a 0-dim tensor, or of the broadcast shape (reduction "none"). Floating point.'
WINDOWS = "input [..., C, H, W]; kernel_size, stride (kernel_size), padding and dilation for H and W."
ADAPTIVE = "input [..., C, H, W], in output_size windows: from floor(i H / h) to ceil((i + 1) H / h)."
BAGS = (
    "of each bag the sum (mode 0, each times per_sample_weights), mean (1) or largest (2) [D] of the rows of weight "
    "that its indices [N] name. offsets [B] say where each begins, and with include_last_offset [B + 1] where the last "
    "ends; padding_idx is left out."
)
STACKED = (
    "x and h are products of weights with the input [T, B, I] (batch_first: [B, T, I]; packed: [N, I], "
    "batch_sizes) and the state hx [layers, B, H], and biases; params are weight_ih, weight_hh, bias_ih, bias_hh of "
    "each layer and direction, of an LSTM with projections also weight_hr."
)
CELL = "The state after hx [B, H] of the input [B, I]; weights and biases are of [3 H, ...], an RNN's of [H, ...]."
LSTM_CELL = "The state and the cell after hx, which are two of [B, H], and the input [B, I]; weights are [4 H, ...]."
IMAGES = "images [N, C, H, W] of uint8 or float32 on the CPU"
RESIZED = "input [N, C, H, W]: [N, C, *output_size]; scales, where given, say how far apart elements are."

SENTENCES = {
    "add": f"input + alpha * other. {BROADCAST}",
    "sub": f"input - alpha * other. {BROADCAST}",
    "mul": f"input * other. {BROADCAST}",
    "div": f'input / other, exact, or rounded down ("floor") or towards zero ("trunc"). {BROADCAST}',
    "neg": f"-input. {SAME}",
    "abs": f"|input|. {SAME}",
    "exp": f"e to the power of input. {SAME}",
    "log": f"The natural logarithm: NaN below 0, -inf at 0. {SAME}",
    "sqrt": f"The square root: NaN below 0. {SAME}",
    "pow": f"input to the power of a number. {SAME}",
    "maximum": f"The larger of both, NaN where one is. {BROADCAST}",
    "minimum": f"The smaller of both, NaN where one is. {BROADCAST}",
    "clamp": "min(max(input, min), max), for numbers, or for tensors, which broadcast.",
    "addcmul": "input + value * tensor1 * tensor2. All three broadcast.",
    "addcdiv": "input + value * tensor1 / tensor2. All three broadcast.",
    "lerp": "input + weight * (end - input), for a number or a tensor as weight. All broadcast.",
    "fused_multiply_add": "a * b + c, with one rounding where the CPU has that. All three broadcast.",
    "add_scalar": f"input + alpha * other, for a number. {SAME}",
    "mul_scalar": f"input * other, for a number. {SAME}",
    "relu": f"max(input, 0). {SAME}",
    "leaky_relu": f"input, times negative_slope where it is below 0. {SAME}",
    "sigmoid": f"1 / (1 + exp(-input)). {SAME}",
    "tanh": f"The hyperbolic tangent. {SAME}",
    "gelu": 'input * P(X <= input) for a normal X (D. Hendrycks and K. Gimpel, 2016); approximate="tanh" is theirs '
    f"with tanh. {SAME}",
    "elu": f"scale * input, and scale * alpha * (exp(input_scale * input) - 1) where it is below 0. {SAME}",
    "selu": f"elu with the constants that keep mean and variance (G. Klambauer et al., 2017). {SAME}",
    "celu": f"max(input, 0) + min(0, alpha * (exp(input / alpha) - 1)). {SAME}",
    "silu": f"input * sigmoid(input) (swish: P. Ramachandran et al., 2017). {SAME}",
    "mish": f"input * tanh(softplus(input)) (D. Misra, 2019). {SAME}",
    "softplus": f"log(1 + exp(beta * input)) / beta, and input where beta * input > threshold. {SAME}",
    "hardswish": f"input * clamp(input + 3, 0, 6) / 6. {SAME}",
    "hardsigmoid": f"clamp(input + 3, 0, 6) / 6. {SAME}",
    "log_sigmoid": f"log(sigmoid(input)). {SAME}",
    "log_sigmoid_forward": "log_sigmoid, and what its derivative reads.",
    "softsign": f"input / (1 + |input|). {SAME}",
    "squareplus": f"(input + sqrt(input^2 + b)) / 2 (J. Barron, 2021). {SAME}",
    "swiglu": "silu(gate) * up (N. Shazeer, 2020), of gate's shape and up's; of one tensor, whose last dim has gate "
    "in its first half and up in its second (as Phi-3's gate_up_proj), half as long. Views whose rows are "
    "contiguous are taken as they are.",
    "geglu": "gelu(gate) * up (N. Shazeer, 2020), for gelu's approximate, of two tensors or of the halves of one, as "
    "swiglu.",
    "swiglu_backward": "The gradients of swiglu's gate and up, or of both as one tensor.",
    "geglu_backward": "The gradients of geglu's gate and up, or of both as one tensor.",
    "sum": f"The sum, in dtype. {REDUCED}",
    "mean": f"The mean, in dtype. {REDUCED}",
    "prod": "The product, in dtype. Over one dim, or over all.",
    "max": "The largest value, over all; or (values, indices) over dim, of the first where several are equal.",
    "amax": f"The largest value; equal ones share its gradient. {REDUCED}",
    "argmax": "The index of the largest value, of the first of equal ones. Over one dim, or over all (flattened).",
    "min": "The smallest value, over all; or (values, indices) over dim, of the first where several are equal.",
    "amin": f"The smallest value; equal ones share its gradient. {REDUCED}",
    "argmin": "The index of the smallest value, of the first of equal ones. Over one dim, or over all (flattened).",
    "any": f"Whether one is not 0. {REDUCED}",
    "all": f"Whether none is 0. {REDUCED}",
    "var": f"The variance: squares of deviations, summed, over n - correction (1). {REDUCED}",
    "std": f"The square root of var. {REDUCED}",
    "var_mean": f"(var, mean). {REDUCED}",
    "linalg_vector_norm": f"sum(|input|^ord)^(1/ord), in dtype; inf, -inf and 0 are its limits. {REDUCED}",
    "norm": f"linalg_vector_norm by its older name: sum(|input|^p)^(1/p). {REDUCED}",
    "logsumexp": f"log(sum(exp(input))), without overflow. {REDUCED}",
    "cumsum": f"The sum up to each element, in dtype. {ALONG}",
    "cummax": f"(values, indices) of the largest up to each element, of the last where several are equal. {ALONG}",
    "cummin": f"(values, indices) of the smallest up to each element, of the last where several are equal. {ALONG}",
    "clone": f"A copy, in memory_format. {SAME}",
    "softmax": f"exp(input) / sum(exp(input)), in dtype. {ALONG}",
    "log_softmax": f"input - logsumexp(input), in dtype. {ALONG}",
    "_softmax": "softmax, as aten's decomposition calls it.",
    "_softmax_backward_data": "The gradient of softmax's input: output * (grad_output - sum(grad_output * output)).",
    "_log_softmax": "log_softmax, as aten's decomposition calls it.",
    "_log_softmax_backward_data": "The gradient of log_softmax's input: grad_output - exp(output) * sum(grad_output).",
    "mse_loss": f"(input - target)^2. {LOSS}",
    "l1_loss": f"|input - target|. {LOSS}",
    "smooth_l1_loss": f"(input - target)^2 / (2 beta), and |input - target| - beta / 2 from beta on. {LOSS}",
    "huber_loss": f"(input - target)^2 / 2, and delta * (|input - target| - delta / 2) from delta on. {LOSS}",
    "binary_cross_entropy": "-weight * (target * log(input) + (1 - target) * log(1 - input)), logarithms at least "
    f"-100, for input in [0, 1], else RuntimeError. {LOSS}",
    "bce_loss": f"binary_cross_entropy of input held in [epsilon, 1 - epsilon]. {LOSS}",
    "binary_cross_entropy_with_logits": "binary_cross_entropy of sigmoid(input), without overflow; pos_weight weighs "
    f"target. {LOSS}",
    "kl_div": f"target * (log(target) - input), for input and (log_target) target as logarithms. {LOSS}",
    "cross_entropy_loss": "-log_softmax(input)[target], weighted by class, for input [N, C] or [C] and target [N] or "
    "[] of classes (but ignore_index), or of input's shape, probabilities. Its weighted mean, sum, or each row's.",
    "cross_entropy_loss_forward": "cross_entropy_loss, and its slope, which its derivative scales.",
    "linear_cross_entropy": "cross_entropy_loss(input @ linear_weight.T + linear_bias, target), without all logits: "
    "input [N, D], linear_weight [C, D], linear_bias [C], target [N] of classes. Its mean or sum, "
    "of 16 bits in float32; rows that are ignored cost nothing. With z_loss (PaLM: A. Chowdhery et al., 2022) each "
    "row's loss is z_loss * logsumexp(logits)^2 more; with softcap (Gemma 2) the logits are softcap * tanh(logits / "
    "softcap).",
    "linear_cross_entropy_forward": "linear_cross_entropy, and the gradients of its input, weight and bias.",
    "native_layer_norm": "(layer norm, mean, 1 / deviation): (input - mean) / sqrt(var + eps) * weight + bias over the "
    "last dims, normalized_shape, which is weight's and bias' (J. Ba et al., 2016).",
    "rms_norm": "input / sqrt(mean(input^2) + eps) * weight over the last dims, normalized_shape, which is weight's "
    f"(B. Zhang and R. Sennrich, 2019); eps is the dtype's where it is None. With an offset (Gemma's is 1) it is added "
    f"to weight, in float32 where that has 16 bits. {SAME}",
    "add_rms_norm": "(rms_norm of input + residual, the sum), in one pass, as a transformer's layers have both. The "
    "sum is rounded to its dtype before it is normalized.",
    "_fused_add_rms_norm": "add_rms_norm (residual may be None: no sum), and 1 / its root.",
    "add_layer_norm": "(layer_norm of input + residual, the sum), in one pass, of 16 bits with statistics in float32.",
    "_fused_add_layer_norm": "add_layer_norm, the mean and 1 / the deviation.",
    "_fused_rms_norm": "(rms_norm, 1 / its root).",
    "rope": "(q, k) with pairs of each head's elements turned (RoFormer: J. Su et al., 2021): q [B, heads, T, D] and "
    "k [B, kv heads, T, D] in any strides whose last is 1, which the results take; cos and sin [B or 1, T, R] for the "
    "first R <= D elements, as transformers makes them: element i's pair is R / 2 away, and their halves are alike; "
    "interleaved, it is the neighbour, and each angle stands twice (GPT-J). Their dtype is q's, or float32.",
    "rope_": "rope, written into q and k. It has no derivative.",
    "rope_backward": "The gradients of rope's q and k: turned back.",
    "native_batch_norm": "(batch norm, mean, 1 / deviation): (input - mean) / sqrt(var + eps) * weight + bias of each "
    "channel, which is dim 1 of input [N, C, ...], with its own mean and variance in training, which running_mean and "
    "running_var [C] then follow, and else with those (S. Ioffe and C. Szegedy, 2015).",
    "batch_norm_relu": "relu of batch norm (with a maximum of 6 relu6), in its pass: input [N, C, ...], weight, bias, "
    "running_mean, running_var [C] or None, of which the last two are written in training. Of input's shape.",
    "batch_norm_relu_forward": "batch_norm_relu, which writes nothing, and in training mean, 1 / deviation and the "
    "unbiased variance [C].",
    "native_group_norm": "(group norm, mean, 1 / deviation): (input - mean) / sqrt(var + eps) * weight + bias of input "
    "[N, C, ...] with HxW elements of each channel, mean and variance being those of so many groups of neighbouring "
    "channels of an image, weight and bias [C] or None (Y. Wu and K. He, 2018).",
    "mm": "The product of matrices [M, K] and [K, N]: [M, N]. Of 16 bits it is summed in float32.",
    "bmm": "The products of B pairs of matrices, [B, M, K] and [B, K, N]: [B, M, N].",
    "addmm": "beta * input + alpha * mm(mat1, mat2), for input that broadcasts to [M, N]; not read where beta is 0.",
    "baddbmm": "beta * input + alpha * bmm(batch1, batch2), for input that broadcasts to [B, M, N].",
    "mv": "The product of a matrix [M, K] and a vector [K]: [M].",
    "addmv": "beta * input + alpha * mv(mat, vec), for input that broadcasts to [M].",
    "dot": "The sum of input * tensor, of vectors [K]: a number. Of 16 bits it is summed in float32.",
    "linear_act": "activation(linear(input, weight, bias)): input [..., K], weight [N, K], bias [N] or None: [..., N]. "
    'In one pass for "relu", "gelu", "gelu_tanh" and "silu"; two ops for "sigmoid", "tanh", "elu", "selu", "celu", '
    '"mish", "softplus" and "softsign".',
    "linear_act_forward": "linear_act, and the linear layer's own output, which its derivative reads.",
    "linear_glu": "activation(linear(input, gate_weight)) * linear(input, up_weight) (SwiGLU: N. Shazeer, 2020), for "
    "linear_act's activations, in one pass for the same ones: input [..., K], both weights [N, K]: [..., N].",
    "linear_glu_forward": "linear_glu, and both linear layers' outputs, which its derivative reads.",
    "convolution": "Each output the sum of weight's products with a window of input, and bias: input [N, C, ...], "
    "weight [O, C / groups, ...], bias [O] or None: [N, O, ...].",
    "native_dropout": "(dropout, which elements it keeps, as bools).",
    "dropout": f"0 with probability p, else input / (1 - p): the elements that stock keeps with this seed. {SAME}",
    "max_pool2d_with_indices": "(the largest of each window, its index in its plane), the first where several are "
    f"equal. {WINDOWS}",
    "avg_pool2d": f"The mean of each window: its sum over divisor_override, or its size. {WINDOWS}",
    "_adaptive_avg_pool2d": f"The mean of each window. {ADAPTIVE}",
    "adaptive_max_pool2d": "(the largest of each window, its index in its plane), the first where several are equal. "
    f"{ADAPTIVE}",
    "upsample_nearest2d": f"The nearest element. {RESIZED}",
    "_upsample_nearest_exact2d": f"The element nearest to each centre, as Pillow has it. {RESIZED}",
    "upsample_bilinear2d": f"Between the four elements around, by distance. {RESIZED}",
    "upsample_bicubic2d": f"Of the sixteen elements around, by the cubic convolution of slope -0.75. {RESIZED}",
    "_upsample_bilinear2d_aa": f"Of all elements that an output covers, by distance, as Pillow has it. {RESIZED}",
    "_upsample_bicubic2d_aa": "Of all elements that an output's cubic convolution, of slope -0.5, covers, as Pillow "
    f"has it. {RESIZED}",
    "embedding_dense_backward": "The gradient [num_weights, D] of an embedding of which indices [...] were taken: in "
    "each row the sum of grad_output [..., D] over the indices that name it, in their order; the mean where "
    "scale_grad_by_freq. padding_idx's row, and those that no index names, are 0.",
    "_embedding_bag": f"(bags, each index's bag, the bags' sizes, the rows of the largest): {BAGS}",
    "_embedding_bag_forward_only": f"_embedding_bag, where no gradient is asked for: {BAGS}",
    "_embedding_bag_dense_backward": "The gradient [num_weights, D] of embedding_bag's weight from grad [B, D]: in "
    "each row the sum over the indices that name it, in their order, of their bags' gradients, times "
    "per_sample_weights, or over the bags' sizes in mode 1. In mode 2 each element goes to the row of the largest.",
    "_embedding_bag_per_sample_weights_backward": "The gradient [N] of embedding_bag's per_sample_weights: of each "
    "index the product of its row of weight and its bag's grad [B, D], and 0 of padding_idx.",
    "index_add": "self, with alpha * source added to its slices along dim that index [K] names: source is as self, but "
    "K along dim.",
    "scatter_add": "input, with the elements of src added where index, of src's shape or smaller, says along dim.",
    "scaled_dot_product_attention": "softmax(scale query key^T + attn_mask) value, each query [N, H, L, E] against the "
    "keys [N, H, S, E] and values [N, H, S, V]: [N, H, L, V], in memory of L + S. scale is 1 / sqrt(E); attn_mask "
    "[N, H, L, S], or what broadcasts to it, is added, or says where to look; is_causal: query i sees the keys up to "
    "i; enable_gqa: key and value have a divisor of H heads. dropout_p drops the weights that stock drops with this "
    "seed. N may be left out of all three.",
    "_scaled_dot_product_flash_attention_for_cpu": "(scaled_dot_product_attention, the logarithm of each query's sum "
    "of exponentials [N, H, L]): query [N, H, L, E], key and value [N, H, S, E], attn_mask of two or four dims.",
    "attention_forward": "scaled_dot_product_attention with enable_gqa, each query's logarithm of its exponentials' "
    "sum, and the states of the random numbers, where there is dropout: what its derivative reads.",
    "attention_backward": "The gradients of attention_forward's query, key and value.",
    "attention_kept": "Of the states that attention_forward returned: which weights [N, H, L, S] dropout kept.",
    "gru": f"(outputs, last states) of gated recurrent units (K. Cho et al., 2014): r = sigmoid(x_r + h_r), z = "
    f"sigmoid(x_z + h_z), n = tanh(x_n + r h_n), h' = n + z (h - n). {STACKED}",
    "lstm": f"(outputs, last states, last cells) of long short-term memory (S. Hochreiter and J. Schmidhuber, 1997): "
    f"i, f, o = sigmoid(x + h), g = tanh(x_g + h_g), c' = f c + i g, h' = o tanh(c'), or weight_hr @ that; hx has "
    f"states and cells. {STACKED}",
    "rnn_tanh": f"(outputs, last states) of Elman's recurrent layers: h' = tanh(x + h). {STACKED}",
    "rnn_relu": f"(outputs, last states) of Elman's recurrent layers: h' = relu(x + h). {STACKED}",
    "gru_cell": f"A step of gru's. {CELL}",
    "lstm_cell": f"A step of lstm's. {LSTM_CELL}",
    "rnn_tanh_cell": f"A step of rnn_tanh's. {CELL}",
    "rnn_relu_cell": f"A step of rnn_relu's. {CELL}",
    "rnn_layer_forward": "(outputs, last states, an LSTM's last cells, what the derivative reads) of one layer of mode "
    "gru, lstm, rnn_tanh or rnn_relu in one direction: input [T, B, I], or packed [N, I] with its batch_sizes [T], hx "
    "[B, H], of an LSTM cx [B, H], and where hx is projected weight_hr.",
    "sgd_update": "param -= lr * (grad + weight_decay * param), in place.",
    "sgd_momentum_update": "torch.optim.SGD's update of one parameter with momentum, in place.",
    "adam_update": "torch.optim.Adam's update of one parameter, in place, for step counted from 1.",
    "color_images": f"{IMAGES} of 1 or 3 channels, each after its steps [N, K], one after the other, of which factors "
    "[N, K] says how much: rusttorch.data.functional names them.",
    "normalize_images": f"{IMAGES}, (images - mean) / std as float32, with mean and std of each channel; uint8 is "
    "divided by 255 first.",
    "mix_images": f"{IMAGES} of float32, each times kept [N] and the one before it, or of the first the last, times "
    "1 - kept.",
    "warp_images": f"{IMAGES}, of each pixel of output_size what lies where its matrix [N, 3, 3] leads from there. box "
    "[N, 4]: beyond it (left, top, right, bottom) its edge goes on; fill [C]: else this is beyond the image.",
    "crop_images": f"{IMAGES}, each from its corner [N, 2] (top, left) on, then mirrored [N, 2] (upside down, left to "
    "right); fill [C] is beyond the image.",
    "blur_images": f"{IMAGES}, rows filtered by across [N, K] and columns by down [N, L], mirrored about the edge.",
    "sharpen_images": f"{IMAGES}, times factors [N], and a blur by 3 x 3 times 1 - factors; the edge stays.",
    "adamw_update": "torch.optim.AdamW's update of one parameter, in place, for step counted from 1.",
}


def sentence(name):
    """Of an op without its overload, or that of the op whose form it is; empty where there is none."""
    if name in SENTENCES:
        return SENTENCES[name]
    form = next((form for form in FORMS if name.endswith(form) and name.removesuffix(form) in SENTENCES), "")
    return FORMS[form].format(name.removesuffix(form)) if form else ""
