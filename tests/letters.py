"""A tokenizer of single letters, for processors that are built without files."""

from __future__ import annotations

from collections.abc import Mapping

import tiles
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

BASE = {"<pad>": tiles.PAD, "<bos>": tiles.BOS, "<eos>": 2}


def tokenizer(
    special: Mapping[str, int], named: Mapping[str, str] | None = None
) -> PreTrainedTokenizerFast:
    """Special tokens below `tiles.WORD`, then one token for every byte.

    Args:
        special: Ids of the special tokens beside `BASE`.
        named: Those the tokenizer has names for, as attributes.
    """
    known = BASE | dict(special)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = known | {letter: tiles.WORD + at for at, letter in enumerate(letters)}
    unused = {f"<{at}>": at for at in range(tiles.WORD) if at not in known.values()}
    made = Tokenizer(BPE(vocab=vocabulary | unused, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(word, special=True) for word in known])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        extra_special_tokens=dict(named or {}),
    )
