"""A checkpoint's own tokenizer, as the model server needs it: special tokens are kept on decode and read in text on encode."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import AutoTokenizer


class CheckpointTokenizer:
    """Tokenizer of the checkpoint in `folder`. end_token: text of its end-of-turn token. special: as of Engine."""

    def __init__(self, folder: str) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self.end_token: str = self._tokenizer.eos_token or ""
        self.chat_template: str | None = self._tokenizer.chat_template
        named = self._tokenizer.special_tokens_map.items()
        self.special = tuple((name, str(text)) for name, text in named if not isinstance(text, list))
        begin = self._tokenizer.bos_token
        # Having a bos_token is not enough: where it opens each turn (SmolLM2's is <|im_start|>) one more would be wrong.
        if begin and self._tokenizer("a").input_ids[:1] == [self._tokenizer.bos_token_id]:
            self.special += (("begin_of_text", begin),)

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
