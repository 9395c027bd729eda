"""Makes a model that vLLM serves and whose answers are known, from nothing but the standard library.

    python -m tests.integration.tiny_model FOLDER

Its tokens are the bytes of UTF-8.  Its only layer adds nothing to what goes through it, and its embedding
and its head are tables, so that greedy decoding goes on with the alphabet: behind a small letter comes the
next one (behind "z" comes "a"), behind everything else "a".  It never ends by itself: ``max_tokens`` does.

The formats are those of transformers (``config.json``), tokenizers (``tokenizer.json``) and safetensors
(a length of eight bytes, a JSON header, the numbers).
"""

from __future__ import annotations

import json
import struct
import sys
from array import array
from pathlib import Path

__all__ = ["CONTEXT", "expected", "make_tiny_model"]

CONTEXT = 8192
"""Tokens that it takes."""
_HIDDEN = 256
_HEAD = 64
"""Numbers per attention head: one of the few sizes that vLLM's attention on the CPU knows."""
_INNER = 128
_SPECIAL = ("<s>", "</s>", "<pad>", "<|end|>")
_VOCABULARY = 264
"""Bytes and special tokens, made a multiple of eight."""

_CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def expected(count: int, behind: str = "\n") -> str:
    """What it answers with so many tokens to a prompt that ends so; a chat's ends with a new line."""
    text, last = "", ord(behind)
    for _ in range(count):
        last = _next(last)
        text += chr(last)
    return text


def make_tiny_model(folder: Path) -> None:
    """Write it into that folder (two megabytes)."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = {word: 256 + number for number, word in enumerate(_SPECIAL)}
    ends = {"bos_token_id": ids["<s>"], "eos_token_id": ids["</s>"], "pad_token_id": ids["<pad>"]}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "hidden_size": _HIDDEN,
        "intermediate_size": _INNER,
        "num_hidden_layers": 1,
        "num_attention_heads": _HIDDEN // _HEAD,
        "num_key_value_heads": 1,
        "head_dim": _HEAD,
        "vocab_size": _VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        **ends,
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "clean_up_tokenization_spaces": False,
        "chat_template": _CHAT,
    }
    files = {
        "config.json": config,
        "generation_config.json": ends,
        "tokenizer.json": _tokenizer(ids),
        "tokenizer_config.json": tokenizer_config,
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value, indent=1))
    _write_tensors(folder / "model.safetensors", _weights())


def _next(token: int) -> int:
    return token + 1 if ord("a") <= token < ord("z") else ord("a")


def _tokenizer(ids: dict[str, int]) -> dict[str, object]:
    added = [
        {
            "id": number,
            "content": word,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for word, number in ids.items()
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": _byte_letters(),
            "merges": [],
        },
    }


def _byte_letters() -> dict[str, int]:
    """The visible letter that stands for each byte in a byte level vocabulary, as GPT-2 chose them: itself
    where it is visible in Latin-1, else the next one from U+0100 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    letters, spare = {}, 0x100
    for byte in range(256):
        if byte in visible:
            letters[chr(byte)] = byte
        else:
            letters[chr(spare)] = byte
            spare += 1
    return letters


def _weights() -> dict[str, tuple[tuple[int, ...], array[float]]]:
    embedding = _zeros(_VOCABULARY, _HIDDEN)
    head = _zeros(_VOCABULARY, _HIDDEN)
    for token in range(256):
        embedding[1][token * _HIDDEN + token] = 1.0
        head[1][_next(token) * _HIDDEN + token] = 1.0
    ones = (_HIDDEN,), array("f", [1.0]) * _HIDDEN
    layer = {
        "input_layernorm": ones,
        "post_attention_layernorm": ones,
        "self_attn.q_proj": _zeros(_HIDDEN, _HIDDEN),
        "self_attn.k_proj": _zeros(_HEAD, _HIDDEN),
        "self_attn.v_proj": _zeros(_HEAD, _HIDDEN),
        "self_attn.o_proj": _zeros(_HIDDEN, _HIDDEN),
        "mlp.gate_proj": _zeros(_INNER, _HIDDEN),
        "mlp.up_proj": _zeros(_INNER, _HIDDEN),
        "mlp.down_proj": _zeros(_HIDDEN, _INNER),
    }
    return {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": ones,
        "lm_head.weight": head,
        **{f"model.layers.0.{name}.weight": each for name, each in layer.items()},
    }


def _zeros(*shape: int) -> tuple[tuple[int, ...], array[float]]:
    count = 1
    for length in shape:
        count *= length
    return shape, array("f", bytes(4 * count))


def _write_tensors(path: Path, tensors: dict[str, tuple[tuple[int, ...], array[float]]]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (shape, numbers) in tensors.items():
        # The format is little-endian, whatever the machine is.
        piece = struct.pack(f"<{len(numbers)}f", *numbers)
        header[name] = {
            "dtype": "F32",
            "shape": list(shape),
            "data_offsets": [len(data), len(data) + len(piece)],
        }
        data += piece
    told = json.dumps(header).encode()
    told += b" " * (-len(told) % 8)
    path.write_bytes(struct.pack("<Q", len(told)) + told + data)


if __name__ == "__main__":
    make_tiny_model(Path(sys.argv[1]))
