"""The genuine llama.cpp server on a model of half a megabyte that is written on the spot.

The weights are random, so the text is nonsense; everything else is what a user's server does. It
needs `pip install xllamacpp gguf numpy`, which are not among the development dependencies: they
weigh 100 MB, and only a few tests want them.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from fakes.machine import free_port, wait_until

MODEL = "tiny-random"
SLOTS = 4
PACKAGES = ("xllamacpp", "gguf", "numpy")

_WORDS = "the a tide gate river moon stone light water home sea wind sand blue bright slow deep"
_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def missing_packages() -> list[str]:
    """Which of the packages are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def write_model(
    path: Path, *, width: int = 64, layers: int = 2, seed: int = 11, context: int = 8192
) -> None:
    """A llama with random weights and a vocabulary of bytes and a few words."""
    import gguf
    import numpy as np

    chance = np.random.default_rng(seed)
    kind = gguf.TokenType
    vocabulary = [(b"<unk>", 0.0, kind.UNKNOWN), (b"<s>", 0.0, kind.CONTROL)]
    vocabulary += [(b"</s>", 0.0, kind.CONTROL)]
    vocabulary += [(b"<0x%02X>" % byte, 0.0, kind.BYTE) for byte in range(256)]
    printable = [chr(code) for code in range(33, 127)]
    pieces = ["▁", *("▁" + word for word in _WORDS.split()), *printable]
    vocabulary += [(p.encode(), -1.0 - i / 100, kind.NORMAL) for i, p in enumerate(pieces)]

    out = gguf.GGUFWriter(str(path), "llama")
    out.add_context_length(context)
    out.add_embedding_length(width)
    out.add_block_count(layers)
    out.add_feed_forward_length(2 * width)
    out.add_head_count(4)
    out.add_head_count_kv(4)
    out.add_rope_dimension_count(width // 4)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_file_type(gguf.LlamaFileType.ALL_F32)
    out.add_vocab_size(len(vocabulary))
    out.add_tokenizer_model("llama")
    out.add_token_list([token for token, _, _ in vocabulary])
    out.add_token_scores([score for _, score, _ in vocabulary])
    out.add_token_types([type_ for _, _, type_ in vocabulary])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_unk_token_id(0)
    out.add_chat_template(_TEMPLATE)

    def weights(rows: int, columns: int) -> object:
        scale = 0.5 / np.sqrt(columns)
        return (chance.standard_normal((rows, columns)) * scale).astype(np.float32)

    head = chance.standard_normal((len(vocabulary), width)).astype(np.float32)
    head[:259] = 0.0  # only whole words and letters come out, never control tokens or bare bytes
    out.add_tensor("token_embd.weight", weights(len(vocabulary), width))
    out.add_tensor("output_norm.weight", np.ones(width, np.float32))
    out.add_tensor("output.weight", head)
    for layer in range(layers):
        block = f"blk.{layer}."
        for norm in ("attn_norm", "ffn_norm"):
            out.add_tensor(f"{block}{norm}.weight", np.ones(width, np.float32))
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            out.add_tensor(f"{block}{part}.weight", weights(width, width))
        out.add_tensor(f"{block}ffn_gate.weight", weights(2 * width, width))
        out.add_tensor(f"{block}ffn_up.weight", weights(2 * width, width))
        out.add_tensor(f"{block}ffn_down.weight", weights(width, 2 * width))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


@dataclass
class LlamaServer:
    """A llama.cpp server in a process of its own."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.port}"

    def busy_slots(self) -> int:
        """How many answers it is working on."""
        import json

        with urllib.request.urlopen(f"{self.url}/slots", timeout=10) as answer:
            return sum(bool(slot["is_processing"]) for slot in json.load(answer))

    def is_ready(self) -> bool:
        """Whether the model is loaded. Raises AssertionError when the process has ended."""
        assert self.process.poll() is None, "the llama.cpp server did not start"
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=10) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError):
            return False

    def stop(self) -> None:
        """Ends the process."""
        self.process.send_signal(signal.SIGKILL)  # its own shutdown waits for idle connections
        self.process.wait(10)


def start(
    folder: Path, *, context: int = 4096, slots: int = SLOTS, answer: int = -1
) -> LlamaServer:
    """Writes the model into `folder`, starts a server on it and waits until it can answer.

    `context` is a slot's, in tokens, and so is `answer`, the most of an answer that names no bound.
    """
    model = folder / "tiny.gguf"
    write_model(model, context=max(8192, context))
    port = free_port()
    with (folder / "llama.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, __file__, str(model), *map(str, (port, context, slots, answer))],
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )
    server = LlamaServer(port, process)
    wait_until(server.is_ready, 30, "the llama.cpp server is ready")
    return server


def _serve(model: str, port: int, context: int, slots: int, answer: int) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.model_alias = {MODEL}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_ctx = context * slots
    params.n_parallel = slots
    params.n_predict = answer
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.endpoint_slots = True
    params.verbosity = 1
    server = xllamacpp.Server(params)
    parent = os.getppid()
    while os.getppid() == parent:  # no server is left behind when the tests are killed
        time.sleep(1)
    del server


if __name__ == "__main__":
    _serve(sys.argv[1], *map(int, sys.argv[2:]))
