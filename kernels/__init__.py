"""The engine's operations, one a file; a table of them per backend. Knows nothing of sequences, jobs or Redis.

table.py            Backend, Ops, ops_for: which implementation runs, chosen once at start
errors.py           what it raises
cpu/                C kernels for CPUs, compiled once a machine
gpu/                Triton kernels for GPUs, imported only where they run
linear.py           Linear: owns its weight; packing (later adapters, sharding) lives there alone
plain_linear.py     the product with a weight in the model's dtype
narrow_linear.py    and of fewer bits: which operation multiplies it
write_spans.py      staged changes of the rows' state, all in one operation
prepare_batch.py    rows to the flat batch: ids, positions, slots, lengths
quantised_linear.py products with weights of 8 or 4 bits; GPTQ's and AWQ's layouts
fp8_linear.py       products of FP8 with FP8, a scale a row and an output
rms_norm.py         RMSNorm, with the residual add
gather_rms_norm.py  some rows and their norm: the embedding's of a step's tokens, and those whose logits are wanted
norm_rope_write.py  q/k norm (optional), rotary embedding, K/V write into the pages
paged_attention.py  attention of decode rows and of prefill chunks over pages
silu_mul.py         SiLU(gate) * up
gelu_mul.py         GELU(gate) * up
kv_scales.py        factors of K and V that are stored in a smaller dtype
sampling_inputs.py  what a step's draws are sampled by, gathered from their seats; stop ids barred before min_tokens
append_tokens.py    drawn tokens behind their rows' others; whether their logits are finite
adjust_logits.py    bias, allowed tokens, penalties
token_logprobs.py   log-probabilities of some tokens
likeliest.py        the likeliest tokens of each row
sample.py           logits to token ids: temperature, min-p, top-k, top-p, counter noise
"""
