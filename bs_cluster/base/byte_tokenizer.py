"""A tokenizer that needs no training and no file: a token is a byte."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

PAD, EOS, BOS, UNK = 0, 1, 2, 3
VOCAB = 320  # four special tokens, 256 bytes, room to the next multiple of 64


def byte_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """One token per byte after four special tokens; adds ``<bos>`` once, never ``<eos>``, and decodes losslessly."""
    specials = {"<pad>": PAD, "<eos>": EOS, "<bos>": BOS, "<unk>": UNK}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = specials | {letter: len(specials) + i for i, letter in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = TemplateProcessing(single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        padding_side="right",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
