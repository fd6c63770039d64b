"""The demo model's tokenizer: one token for a word the tasks are phrased in, a letter or a digit for everything else.

In go the phrases of `tasks`; out comes a byte-level tokenizer in the Hugging Face format with a chat template. A piece
of text (a word with the space before it, one digit, one sign) is one token if the vocabulary has it whole, else its
bytes: there are no merges in between. So any string can be encoded and comes back unchanged, a number is always its
digits, and a word to spell is its letters; behind a quotation mark even a word of the vocabulary is.
"""

from __future__ import annotations

from string import Formatter

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ops.demo.tasks import TASKS, variants
from ops.demo.words import DAYS, LETTERS, MONTHS, number_in_words

PAD, BOS, END, SYSTEM, USER, ASSISTANT = SPECIAL_TOKENS = (
    "<|pad|>",
    "<|bos|>",
    "<|end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
)

# A space opens the piece it stands before, so that "17 18" is three tokens and a digit's own token says whether it
# begins a number. The quotation mark comes first: it keeps a quoted word from matching a word of the vocabulary.
_PIECES = r"""\x22\p{L}+| ?\p{L}+|-\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}\x22-]"""

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
    {%- if message.role not in ('system', 'user', 'assistant') -%}
        {{- raise_exception("unknown role '" ~ message.role ~ "': expected system, user or assistant") -}}
    {%- endif -%}
    {%- if message.role == 'system' and not loop.first -%}
        {{- raise_exception('a system message must be the first message') -}}
    {%- endif -%}
    {{- '<|' ~ message.role ~ '|>' ~ message.content | trim ~ '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>' -}}
{%- endif -%}"""


def _splitter() -> pre_tokenizers.PreTokenizer:
    """Return what cuts text into pieces and writes each byte as the printable character that stands for it."""
    pieces = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    return pre_tokenizers.Sequence([pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _spoken() -> list[str]:
    """Return texts that hold every piece worth a token of its own, each as it will stand in a prompt or an answer."""
    texts: list[str] = []
    for task in TASKS.values():
        for phrase in task.phrases:
            for way in variants(phrase):
                texts.extend(literal for literal, *_ in Formatter().parse(way))
    numbers = [number_in_words(number) for number in range(1000)]
    names = DAYS + MONTHS + list(LETTERS) + [str(digit) for digit in range(10)]
    working = ["ones", ", tens", ", sum"]  # how a sum is worked out
    return texts + numbers + names + working + [f" {text}" for text in numbers + names]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer from the tasks' phrases alone; the same phrases give the same ids."""
    splitter = _splitter()
    pieces = {piece for text in _spoken() for piece, _ in splitter.pre_tokenize_str(text)}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [*SPECIAL_TOKENS, *alphabet, *sorted(pieces - set(alphabet))]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    # A plain prompt gets its first token here; a chat's comes from the template, which is encoded without this.
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, vocabulary[BOS])]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
        padding_side="left",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
