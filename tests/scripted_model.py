"""A model whose answers are fixed, so that a real server says exactly what a test wants, token by token.

Every token of such a model has one successor: its embedding is a unit vector of its own, attention and feed-forward
add nothing to it, and the output matrix maps it to the token that follows. A question is one token, which our chat
template writes last (others write a line end); an answer is a sequence of pieces, each one token: text, or bytes, which
the server puts together where they are part of a character. It ends with the end of the turn, so no piece can be in two
answers.

Written as GGUF, version 3 (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), it is a few megabytes; as a
folder for Transformers it has the same tensors under other names.
"""

import json
import struct
from array import array
from itertools import chain, pairwise

# Cut down to what llama.cpp looks for, to know how the model calls tools and where it thinks.
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ messages[-1].content }}{% endif %}"
)

# What the model of the tests says. The names of the questions are in no other text.
ANSWERS = {
    "ask:text": ["Hello", ", ", "world", "."],
    "ask:emoji": ["\U0001f600".encode(), " smiles"],
    "ask:character-in-pieces": ["你".encode(), "好"],
    "ask:character-whole": ["你好吗", "?"],
    "ask:half-a-character-first": ["é".encode()[:1], "then"],
    "ask:half-a-character": ["€".encode()[:2]],
    "ask:nothing": [],
    "ask:endless": ["one", " two", " three"],
    "ask:thinking": ["<think>", "\nhm", " so", "\n</think>\n\n", "The", " answer"],
    "ask:tool": ["<tool_call>", '\n{"name": "get_weather", "arguments": {"city": "', "Par", "is", '"}}\n</tool_call>'],
    "ask:unknown-tool": ['<tool_call>\n{"name": "nope", "arguments": {"city": "', "Nice", '"}}\n</tool_call>\n'],
    "ask:two-tools": [
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Os',
        'lo"}}\n</tool_call>\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Be',
        'rn"}}\n</tool_call>',
    ],
    "ask:everything": [
        *("<think>\nwell", "\n</think>\n\nLet", " me see."),
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Ro',
        'me"}}\n</tool_call>',
    ],
    "ask:after-a-tool": ["It", " rains", " there"],
}
ENDLESS = ("ask:endless",)

END_OF_TURN, LINE_END = "<|im_end|>", "<0x0A>"
_CONTROL = ["<s>", "</s>", "<|im_start|>", END_OF_TURN]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_KINDS = {"<unk>": 2} | dict.fromkeys(_CONTROL, 3) | dict.fromkeys(_BYTES, 6)
# Text that is a token wherever it stands, and text that only the model writes.
_QUESTION, _PIECE = 4, 1
_HEAD_WIDTH = 64
_FEED_FORWARD = 64


def write(path, answers=ANSWERS, *, endless=ENDLESS, template=TEMPLATE, context=4096):
    """Write the model with these `answers`, by their questions; those of `endless` begin again and again."""
    kinds, follows = _vocabulary(answers, endless)
    path.write_bytes(_gguf(_metadata(kinds, template, context), _tensors(list(kinds), follows)))
    return path


def write_folder(folder, answers=ANSWERS, *, endless=ENDLESS, template=TEMPLATE, context=4096):
    """Write the model into a folder, as Transformers reads it."""
    kinds, follows = _vocabulary(answers, endless)
    files = _configuration(kinds, context) | {"tokenizer.json": _tokenizer(kinds)}
    files["tokenizer_config.json"] = {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TURN, "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False, "chat_template": template,
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "model.safetensors").write_bytes(_safetensors(_tensors(list(kinds), follows)))
    return folder


def _vocabulary(answers, endless):
    """The kind of each token, and which of them follows which."""
    said = {question: [token for piece in answer for token in _tokens(piece)] for question, answer in answers.items()}
    pieces = list(chain.from_iterable(said.values()))
    assert len(pieces) == len(set(pieces)), "a piece is in the answers twice"
    follows = {}
    for question, answer in said.items():
        follows |= pairwise([question, *answer, answer[0] if question in endless else END_OF_TURN])
    return dict.fromkeys(pieces, _PIECE) | dict.fromkeys(answers, _QUESTION) | _KINDS, follows


def _tokens(piece):
    """The tokens of a piece: one for text, one for each byte."""
    return [_BYTES[byte] for byte in piece] if isinstance(piece, bytes) else [piece.replace(" ", "▁")]


def _width(size):
    """The width of the model: room for a unit vector for each token."""
    return -(-size // _HEAD_WIDTH) * _HEAD_WIDTH


def _metadata(kinds, template, context):
    ids = {token: number for number, token in enumerate(kinds)}
    width = _width(len(kinds))
    # Bytes are what is left to the tokenizer where no token fits.
    scores = [-1000.0 if token in _BYTES else 0.0 for token in kinds]
    return {
        "general.architecture": _text("llama"),
        "general.name": _text("scripted"),
        "llama.context_length": _count(context),
        "llama.embedding_length": _count(width),
        "llama.block_count": _count(1),
        "llama.feed_forward_length": _count(_FEED_FORWARD),
        "llama.attention.head_count": _count(width // _HEAD_WIDTH),
        "llama.attention.head_count_kv": _count(width // _HEAD_WIDTH),
        "llama.attention.layer_norm_rms_epsilon": struct.pack("<If", 6, 1e-5),
        "llama.rope.dimension_count": _count(_HEAD_WIDTH),
        "llama.vocab_size": _count(len(kinds)),
        "tokenizer.ggml.model": _text("llama"),
        "tokenizer.ggml.tokens": _list(8, len(kinds), b"".join(map(_string, kinds))),
        "tokenizer.ggml.scores": _list(6, len(scores), array("f", scores).tobytes()),
        "tokenizer.ggml.token_type": _list(5, len(kinds), array("i", kinds.values()).tobytes()),
        "tokenizer.ggml.bos_token_id": _count(ids["<s>"]),
        "tokenizer.ggml.eos_token_id": _count(ids[END_OF_TURN]),
        "tokenizer.ggml.unknown_token_id": _count(ids["<unk>"]),
        "tokenizer.ggml.add_bos_token": _no(),
        "tokenizer.ggml.add_space_prefix": _no(),
        "tokenizer.chat_template": _text(template),
    }


def _tensors(tokens, follows):
    """Width, height and rows of each tensor by its name; a row that is left out is zero, so are the values of one."""
    size, width = len(tokens), _width(len(tokens))
    ones = {0: dict.fromkeys(range(width), 1.0)}
    successors = {}
    for number, token in enumerate(tokens):
        successors.setdefault(tokens.index(follows.get(token, END_OF_TURN)), {})[number] = 2.0
    square = {name: (width, width, {}) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
    block = {
        "attn_norm": (width, 1, ones),
        "ffn_norm": (width, 1, ones),
        "ffn_gate": (width, _FEED_FORWARD, {}),
        "ffn_up": (width, _FEED_FORWARD, {}),
        "ffn_down": (_FEED_FORWARD, width, {}),
    }
    return {
        "token_embd.weight": (width, size, {number: {number: 1.0} for number in range(size)}),
        "output_norm.weight": (width, 1, ones),
        "output.weight": (width, size, successors),
        **{f"blk.0.{name}.weight": shape for name, shape in (square | block).items()},
    }


# GGUF


def _gguf(metadata, tensors):
    alignment = 32
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(_string(key) + value for key, value in metadata.items())
    data = b""
    for name, (width, height, rows) in tensors.items():
        shape = (width,) if height == 1 else (width, height)
        float32 = 0
        head += _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, float32, len(data))
        data += _padded(_floats(width, height, rows), alignment)
    return _padded(head, alignment) + data


def _floats(width, height, rows):
    values = array("f", bytes(4 * width * height))
    for number, row in rows.items():
        for column, value in row.items():
            values[number * width + column] = value
    return values.tobytes()


def _padded(data, alignment):
    return data + bytes(-len(data) % alignment)


def _string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _text(text):
    return struct.pack("<I", 8) + _string(text)


def _count(number):
    return struct.pack("<II", 4, number)


def _no():
    return struct.pack("<I?", 7, False)


def _list(kind, length, data):
    return struct.pack("<IIQ", 9, kind, length) + data


# Transformers

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    **{f"attn_{short}": f"self_attn.{short}_proj" for short in "qkv"},
    "attn_output": "self_attn.o_proj",
    **{f"ffn_{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}


def _configuration(kinds, context):
    width, ids = _width(len(kinds)), list(kinds)
    turn = {"bos_token_id": ids.index("<s>"), "eos_token_id": ids.index(END_OF_TURN)}
    model = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": _FEED_FORWARD,
        "num_hidden_layers": 1,
        "num_attention_heads": width // _HEAD_WIDTH,
        "num_key_value_heads": width // _HEAD_WIDTH,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": context,
        "vocab_size": len(kinds),
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        **turn,
    }
    return {"config.json": model, "generation_config.json": turn}


def _tokenizer(kinds):
    """A vocabulary in which nothing is merged: prompts are bytes and questions."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    ids = {token: number for number, token in enumerate(kinds)}
    whole = [token for token, kind in kinds.items() if kind == _QUESTION or token in _CONTROL]
    space = {"pattern": {"String": "▁"}, "content": " "}
    decoders = [{"type": "Replace", **space}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": ids[token], "content": token, "special": token in _CONTROL, **flags} for token in whole
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": True, "vocab": ids, "merges": []},
    }


def _safetensors(tensors):
    head, data = {}, b""
    for name, (width, height, rows) in tensors.items():
        own = name.removesuffix(".weight").removeprefix("blk.0.")
        values = _floats(width, height, rows)
        head[f"{'model.layers.0.' * name.startswith('blk')}{_NAMES[own]}.weight"] = {
            "dtype": "F32",
            "shape": [width] if height == 1 else [height, width],
            "data_offsets": [len(data), len(data) + len(values)],
        }
        data += values
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + data
