"""A model's text side. A prompt, a chat or ids go in, prompt ids come out, or BadPrompt; a TextStream turns what the
model answers into text. Knows nothing of weights, jobs or batches, and imports no torch: `transformers` is imported
when a model is loaded, not before, and then only its tokenizer and chat template.

Special tokens are added once. A prompt gets those the tokenizer adds (tokenizer.json's post-processor), but no second
<s> where it begins with one already. A chat gets those its template writes and nothing else, as everywhere in the
field: a template is written with the special tokens the model was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from worker.text.files import ModelFilesInvalid, ModelFilesMissing, fingerprint, locate, read_json
from worker.text.generation import end_ids, generation_defaults, vocab_size
from worker.text.stops import stop_strings
from worker.text.stream import TextStream
from worker.text.token_bytes import TokenBytes

Message = dict[str, Any]


class BadPrompt(ValueError):
    """A job's input that this model can't take: what, expected against got, what to do. `field` is the job's field."""

    def __init__(self, message: str, *, code: str, field: str) -> None:
        super().__init__(message)
        self.code = code
        self.field = field


class TextModel:
    """Tokenizer, chat template and generation defaults of one model. Made by `from_pretrained`; methods keep no state.

    vocab_size        ids the model knows: 0 to vocab_size - 1 (config.json)
    tokenizer_length  tokens the tokenizer knows; often fewer, as vocabularies are padded
    eos_ids           ids that end an output: of generation_config.json, else config.json, else the tokenizer, else none
    defaults          what a job gets that says nothing else
    fingerprint       32 hex digits; differ where weights, configuration, tokenizer or template do
    """

    def __init__(self, directory: Path, tokenizer: Any, config: dict[str, Any], generation: dict[str, Any]) -> None:
        """`tokenizer`: a `transformers.PreTrainedTokenizerFast`; for the rest see `from_pretrained`."""
        self._tokenizer = tokenizer
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._backend.no_truncation()  # a tokenizer.json may carry the truncation of its training
        self._backend.no_padding()
        self._bytes = TokenBytes(self._backend)
        self.vocab_size = vocab_size(config)
        self.tokenizer_length: int = self._backend.get_vocab_size(with_added_tokens=True)
        self.eos_ids = end_ids(generation, config, tokenizer.eos_token_id)
        self.defaults = generation_defaults(generation)
        template = json.dumps([tokenizer.chat_template, tokenizer.special_tokens_map], sort_keys=True, default=str)
        self.fingerprint = fingerprint(directory, template)

    @classmethod
    def from_pretrained(cls, path: str) -> TextModel:
        """Load from a local directory in Hugging Face format, or a hub id.

        Raises ModelFilesMissing or ModelFilesInvalid, in one line: no such directory, no config.json or tokenizer.json,
        or one that can't be read.
        """
        directory = locate(path)
        config = read_json(directory / "config.json")
        has_generation = (directory / "generation_config.json").exists()
        generation = read_json(directory / "generation_config.json") if has_generation else {}
        return cls(directory, _load_tokenizer(directory), config, generation)

    def encode_prompt(self, prompt: str) -> list[int]:
        """The ids of a plain prompt, special tokens included, the first <s> once. Raises BadPrompt for an empty one."""
        if not prompt:
            raise BadPrompt("prompt is empty; expected some text", code="empty_prompt", field="prompt")
        ids = self._encode(prompt, "prompt", add_special_tokens=True)
        bos = self._tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            plain = self._encode(prompt, "prompt", add_special_tokens=False)
            if plain[:1] == [bos] and len(plain) < len(ids):
                ids = ids[1:]
        return self._known(ids, "prompt")

    def encode_messages(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a chat up to where the assistant answers, by the model's template.

        Raises BadPrompt (field "messages") for a chat that is no list of messages with roles, a model without a
        template, whatever the template refuses, and a role that the template passes over in silence.
        """
        _check_messages(messages)
        if not self._tokenizer.chat_template:
            raise BadPrompt(
                "this model has no chat template; send `prompt` with the text as the model expects it",
                code="no_chat_template",
                field="messages",
            )
        text = self._render(messages)
        self._check_roles(messages, text)
        return self._known(self._encode(text, "messages", add_special_tokens=False), "messages")

    def check_ids(self, ids: Sequence[int]) -> list[int]:
        """`ids` as a list; raises BadPrompt where it is empty or one lies outside the model's vocabulary."""
        if not ids:
            raise BadPrompt("prompt_token_ids is empty; expected ids", code="empty_prompt", field="prompt_token_ids")
        return self._known(list(ids), "prompt_token_ids")

    def stream(self, prompt_ids: Sequence[int], stop: Sequence[str] = (), min_tokens: int = 0) -> TextStream:
        """The stream for one output of `prompt_ids`, ending at the first of the strings `stop` to complete.

        A stop string that a token before the min_tokens-th completes is ignored. Raises BadPrompt for an empty one.
        """
        if not all(stop):
            raise BadPrompt("a stop string is empty; expected at least one character", code="bad_stop", field="stop")
        return TextStream(self._bytes, prompt_ids, stop_strings(tuple(stop)) if stop else None, min_tokens)

    def token_runs(self, words: Sequence[str]) -> list[list[int]]:
        """For each of `words` the ids it is written with, alone and behind a space: each run once.

        Raises BadPrompt (field "bad_words") for one that makes no tokens, or none that the model knows.
        """
        runs: dict[tuple[int, ...], None] = {}
        for word in words:
            for text in dict.fromkeys((word, f" {word.lstrip()}")):
                ids = self._encode(text, "bad_words", add_special_tokens=False)
                runs[tuple(self._known(ids, "bad_words"))] = None
        return [list(run) for run in runs]

    def _encode(self, text: str, field: str, *, add_special_tokens: bool) -> list[int]:
        try:
            return self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError:  # how the tokenizer says that half a surrogate pair, as JSON can carry it, is no text
            raise BadPrompt(
                f"{field} holds half of a surrogate pair, which is no character; expected Unicode text",
                code="not_text",
                field=field,
            ) from None

    def _known(self, ids: list[int], field: str) -> list[int]:
        if not ids:
            raise BadPrompt(f"{field} makes no tokens; expected at least one", code="empty_prompt", field=field)
        if min(ids) < 0 or max(ids) >= self.vocab_size:
            position, bad = next((n, i) for n, i in enumerate(ids) if not 0 <= i < self.vocab_size)
            raise BadPrompt(
                f"{field}: id {bad} at position {position} is outside the model's vocabulary; expected 0 to "
                f"{self.vocab_size - 1}",
                code="token_outside_vocabulary",
                field=field,
            )
        return ids

    def _render(self, messages: Sequence[Message]) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # a template is a program: it can raise whatever a program can
            raise BadPrompt(
                f"the model's chat template refuses these messages: {error}", code="template_refused", field="messages"
            ) from None
        return text

    def _check_roles(self, messages: Sequence[Message], text: str) -> None:
        """Many templates pass over a role they don't know in silence. The sign: what it says changes nothing."""
        for role in dict.fromkeys(message["role"] for message in messages):
            muted = [{**message, "content": ""} if message["role"] == role else message for message in messages]
            if not any(_says(before) and not _says(after) for before, after in zip(messages, muted, strict=True)):
                continue
            try:
                has_role = self._render(muted) != text
            except BadPrompt:  # it reads what the role says, to refuse it where it says nothing
                has_role = True
            if not has_role:
                raise BadPrompt(
                    f"the model's chat template has no role {role!r}: what it says would be lost; use a role it has",
                    code="unknown_role",
                    field="messages",
                )


def _says(message: Message) -> bool:
    content = message.get("content")
    return bool(content.strip() if isinstance(content, str) else content)


def _check_messages(messages: Sequence[Message]) -> None:
    """Only what every template takes for granted; the rest is the template's to judge."""
    if not messages:
        raise BadPrompt("messages is empty; expected at least one message", code="empty_prompt", field="messages")
    for position, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or not role:
            raise BadPrompt(
                f"messages: the one at position {position} has no role; expected an object with role and content",
                code="bad_message",
                field="messages",
            )


def _load_tokenizer(directory: Path) -> Any:
    path = directory / "tokenizer.json"
    if not path.exists():
        raise ModelFilesMissing(
            f"{directory} lacks tokenizer.json; transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...) "
            "writes it from older tokenizer files"
        )
    # A second for the import, and no torch; AutoTokenizer loads torch, 4 s, and rebuilds some tokenizers otherwise than
    # their tokenizer.json says.
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(str(directory))
    except Exception as error:  # `tokenizers` raises plain Exceptions, transformers whatever it trips over
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ModelFilesInvalid(f"{directory}: the tokenizer can't be loaded: {reason}") from None
