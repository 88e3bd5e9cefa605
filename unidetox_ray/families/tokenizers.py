"""Small tokenizers with the four real tokenizers' rules, trained on given texts.

    family   algorithm                      special tokens                            before a text
    gpt2     byte-level BPE                 <|endoftext|> = BOS = EOS, no pad         nothing
    opt      byte-level BPE                 <s> 0 <pad> 1 </s> 2 <unk> 3, BOS = </s>  </s>
    falcon   byte-level BPE, single digits  <|endoftext|> = EOS, no BOS, no pad       nothing
    llama    BPE over words with U+2581,    <unk> 0 <s> 1 </s> 2, no pad              <s>
             bytes for unknown characters

Training is deterministic. All four turn any UTF-8 text into ids and back exactly (LLaMA's, like the real one, reads
U+2581 itself as a blank).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from unidetox_ray.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from unidetox_ray.families.base import Family

END_OF_TEXT = "<|endoftext|>"
_BLANK = "\u2581"
_BYTES = 256


def train_tokenizer(family: Family, texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """The family's tokenizer over `texts`; `vocab_size` counts special tokens and the 256 bytes in."""
    if family.train_tokenizer is None:
        raise ModelError(f"family {family.name!r}: has no tokenizer recipe; load the model's own tokenizer")
    if vocab_size < _BYTES + 8:
        raise ModelError(
            f"vocab_size = {vocab_size} is too small; {_BYTES} bytes and the special tokens need {_BYTES + 8}"
        )
    return family.train_tokenizer(texts, vocab_size)


def gpt2(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    tokenizer = _byte_level(texts, vocab_size, [END_OF_TEXT])
    return _wrap(tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, unk_token=END_OF_TEXT)


def falcon(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    tokenizer = _byte_level(texts, vocab_size, [END_OF_TEXT], pre_tokenizers.Digits(individual_digits=True))
    return _wrap(tokenizer, eos_token=END_OF_TEXT)


def opt(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    tokenizer = _byte_level(texts, vocab_size, ["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = _prefix("</s>", 2)
    return _wrap(tokenizer, bos_token="</s>", eos_token="</s>", unk_token="</s>", pad_token="<pad>")


def llama(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_BLANK), normalizers.Replace(" ", _BLANK)]
    )
    # Words apart while training only, as sentencepiece does: the merges then never cross a blank or a line end.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(f"{_BLANK}?[^{_BLANK}\n]+|{_BLANK}+|\n+"), "isolated"
    )
    bytes_ = [f"<0x{value:02X}>" for value in range(_BYTES)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False
    )
    # A line end is no letter of the alphabet: like in LLaMA-2 it becomes the byte <0x0A>.
    tokenizer.train_from_iterator((line for text in texts for line in text.split("\n")), trainer)
    # The bytes had to be asked for as special tokens to get their ids; rebuilt here as plain entries.
    trained: dict[str, Any] = _model_state(tokenizer)
    merges: Any = [
        tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in trained["merges"]
    ]
    final = Tokenizer(
        models.BPE(
            vocab=trained["vocab"], merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True
        )
    )
    final.normalizer = tokenizer.normalizer
    final.decoder = decoders.Sequence(
        [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    final.add_special_tokens(["<unk>", "<s>", "</s>"])
    final.post_processor = _prefix("<s>", 1)
    return _wrap(final, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def word_pieces(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """BERT's tokenizer: lower case, word pieces, [CLS] text [SEP]; unlike the others it forgets case and spacing."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer = normalizers.BertNormalizer(lowercase=True)
    words = pre_tokenizers.BertPreTokenizer()
    # The trainer numbers pieces inside words as it meets them in a hash table, in another order in each process, and
    # breaks ties by number. Numbered beforehand, they and what is learnt from them are the same everywhere.
    inside = {
        f"##{letter}"
        for text in texts
        for word, _ in words.pre_tokenize_str(normalizer.normalize_str(text))
        for letter in word[1:]
    }
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer, learner.pre_tokenizer = normalizer, words
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*special, *sorted(inside)], show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    # A tokenizer of its own: in the one that learnt, those pieces are special and would be found in raw text.
    tokenizer = Tokenizer(models.WordPiece(learner.get_vocab(with_added_tokens=False), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, words
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.decoder = decoders.WordPiece()
    return _wrap(
        tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def _byte_level(texts: list[str], vocab_size: int, special: list[str], first: Any = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, by_bytes]) if first is not None else by_bytes
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _prefix(token: str, token_id: int) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, token_id)]
    )


def _model_state(tokenizer: Tokenizer) -> dict[str, Any]:
    import json

    state: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return state


def _wrap(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)
