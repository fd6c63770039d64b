"""Triton kernels for GPUs. Imported only where they run: a CPU worker's start has no use for `import triton`.

ops.py               the table of these kernels, or why they can't be had here
architectures.py     which GPU it is, and the launch parameters of each kernel on it
interpreter.py       Triton's interpreter, made exact: how they are checked without a GPU
attend.py            one walk over keys, which both attentions share
attend_causal.py     prefill's own, for the fast order
decode_attention.py  decode rows, split over their keys; workspace
prefill_attention.py chunks of prompts with what is cached before them
sample.py cut.py     logits to token ids; the least likely that min-p, top-k and top-p leave
norm_rope_write.py rms_norm.py silu_mul.py gelu_mul.py gather_rms_norm.py prepare_batch.py adjust_logits.py
fixed_linear.py      products in the fixed order; add_parts.py the parts of those that were split
token_logprobs.py plain_linear.py quantised_linear.py fp8_linear.py write_spans.py sampling_inputs.py append_tokens.py
"""
