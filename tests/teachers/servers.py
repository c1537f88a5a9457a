"""Real servers on loopback, each with the tiny pretrained model."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def started(
    command: Sequence[str],
    port: int,
    log: Path,
    seconds: float = 120,
    more: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server's address and its process, from its first answer until the block ends.

    `more`: of its environment. What it starts itself ends with it.
    """
    hub = log.parent / "hub"  # `transformers serve` lists its models, and fails where none can be
    hub.mkdir(exist_ok=True)
    own = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(hub), "OMP_NUM_THREADS": "1", **(more or {})}
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command], stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **own},
            start_new_session=True,
        )  # fmt: skip
    try:
        url, end = f"http://127.0.0.1:{port}/v1", time.monotonic() + seconds
        while True:
            try:
                with urllib.request.urlopen(f"{url}/models", timeout=5):
                    break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    pytest.fail(f"the server did not start:\n{log.read_text()[-2000:]}")
                time.sleep(0.2)
        yield url, process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def running(
    command: Sequence[str], port: int, log: Path, seconds: float = 120, **more: Any
) -> Iterator[str]:
    """A server's address, from its first answer until the block ends."""
    with started(command, port, log, seconds, **more) as (url, _):
        yield url


def to_gguf(folder: str, file: Path) -> None:
    """A small Llama with a byte-fallback BPE tokenizer as one file of llama.cpp, in float32."""
    gguf = pytest.importorskip("gguf")
    from safetensors.numpy import load_file

    source = Path(folder)
    config = json.loads((source / "config.json").read_text())
    heads, pairs = config["num_attention_heads"], config["num_key_value_heads"]
    made = gguf.GGUFWriter(file, "llama")
    made.add_context_length(config["max_position_embeddings"])
    made.add_embedding_length(config["hidden_size"])
    made.add_block_count(config["num_hidden_layers"])
    made.add_feed_forward_length(config["intermediate_size"])
    made.add_head_count(heads)
    made.add_head_count_kv(pairs)
    made.add_layer_norm_rms_eps(config["rms_norm_eps"])
    made.add_rope_dimension_count(config["head_dim"])
    made.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    made.add_vocab_size(config["vocab_size"])
    _add_tokens(made, json.loads((source / "tokenizer.json").read_text())["model"], gguf)

    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    for name, value in load_file(source / "model.safetensors").items():
        told = name.replace("model.layers.", "blk.")
        for theirs, ours in names.items():
            told = told.replace(theirs, ours)
        for part, count in (("q_proj", heads), ("k_proj", pairs)):
            if part in name:  # pairs of the rotation side by side
                value = _side_by_side(value, count)
        made.add_tensor(told, value.astype("float32"))
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()


def _side_by_side(weight: Any, heads: int) -> Any:
    rows, columns = weight.shape
    return (
        weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    )


def _add_tokens(made: Any, model: dict[str, Any], gguf: Any) -> None:
    """Ids in order; a merged token's score falls with the rank of its merge."""
    words = sorted(model["vocab"], key=model["vocab"].__getitem__)
    ranks = {"".join(pair): rank for rank, pair in reversed([*enumerate(model["merges"])])}
    kinds = {"<unk>": gguf.TokenType.UNKNOWN, "<s>": gguf.TokenType.CONTROL}
    kinds["</s>"] = gguf.TokenType.CONTROL
    made.add_tokenizer_model("llama")
    made.add_token_list(words)
    made.add_token_scores([-float(ranks.get(word, len(ranks))) for word in words])
    made.add_token_types(
        [
            kinds.get(w, gguf.TokenType.BYTE if w.startswith("<0x") else gguf.TokenType.NORMAL)
            for w in words
        ]
    )
    made.add_unk_token_id(0)
    made.add_bos_token_id(1)
    made.add_eos_token_id(2)
    made.add_add_bos_token(True)
    made.add_add_eos_token(False)
    made.add_add_space_prefix(True)


LLAMA_CPP = """
import sys, time
import xllamacpp
settings = xllamacpp.CommonParams()
settings.model.path, settings.port = sys.argv[1], int(sys.argv[2])
settings.hostnames = ["127.0.0.1"]
settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
settings.n_ctx, settings.n_parallel, settings.n_gpu_layers = 2048, 4, 0
settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(settings)
print(server.listening_address, flush=True)
while True:
    time.sleep(60)
"""


@contextmanager
def llama_cpp(model: Path, log: Path) -> Iterator[str]:
    """llama.cpp's own server, out of the package xllamacpp."""
    pytest.importorskip("xllamacpp")
    port = free_port()
    with running([sys.executable, "-c", LLAMA_CPP, str(model), str(port)], port, log) as url:
        yield url


@contextmanager
def llama_cpp_python(model: Path, log: Path) -> Iterator[str]:
    """The server of llama-cpp-python: its completions echo. Built from source, so elsewhere."""
    python = os.environ.get("KD_LLAMA_CPP_PYTHON", "")
    if not python:
        pytest.skip("KD_LLAMA_CPP_PYTHON names no python with llama-cpp-python[server]")
    port = free_port()
    how = {"model": model, "host": "127.0.0.1", "port": port, "n_ctx": 512, "logits_all": True}
    how |= {"type_k": 0, "type_v": 0}  # float32
    given = [word for k, v in how.items() for word in (f"--{k}", str(v))]
    with running([python, "-m", "llama_cpp.server", *given], port, log) as url:
        yield url


@contextmanager
def transformers_serve(log: Path) -> Iterator[str]:
    """`transformers serve`, which loads the model that a request names."""
    for needed in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(needed)
    port = free_port()
    script = "from transformers.cli.transformers import main; main()"
    how = ["serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with running([sys.executable, "-c", script, *how, "--dtype", "float32"], port, log) as url:
        yield url


VLLM = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
}  # fmt: skip
"""For vLLM on a processor: 1 GiB of keys and values, no cores of its own, no statistics."""


def vllm_python() -> Path:
    """The interpreter beside a vLLM: of `make vllm`, or of the environment that KD_VLLM names."""
    folder = Path(os.environ.get("KD_VLLM") or Path(__file__).parents[2] / ".venv-vllm")
    python = folder / "bin" / "python"
    if not (python.exists() and [*folder.glob("lib/*/site-packages/vllm/__init__.py")]):
        pytest.skip(f"no vLLM in {folder.name}: make vllm, or name an environment in KD_VLLM")
    return python


@contextmanager
def vllm(
    folder: str, log: Path, *more: str, develop: bool = False
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`vllm serve` on a processor, in float32.

    `more`: further words of its command line. `develop`: with the endpoints that take new weights.
    """
    port = free_port()
    command = [
        str(vllm_python().with_name("vllm")), "serve", folder, "--host", "127.0.0.1", "--port",
        str(port), "--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "32",
        "--enforce-eager", "--generation-config", "vllm", *more,
    ]  # fmt: skip
    mode = {"VLLM_SERVER_DEV_MODE": str(int(develop))}
    with started(command, port, log, 240, {**VLLM, **mode}) as found:
        yield found


SGLANG = {"SGLANG_USE_CPU_ENGINE": "1", "SGLANG_RETURN_ORIGINAL_LOGPROB": "1"}
"""For SGLang on a processor; what it draws is told at temperature 1."""


def sglang_python() -> Path:
    """The interpreter beside an SGLang: of `make sglang`, or of the one that KD_SGLANG names."""
    folder = Path(os.environ.get("KD_SGLANG") or Path(__file__).parents[2] / ".venv-sglang")
    python = folder / "bin" / "python"
    if not (python.exists() and [*folder.glob("lib/*/site-packages/sglang/version.py")]):
        pytest.skip(f"no SGLang in {folder.name}: make sglang, or name an environment in KD_SGLANG")
    return python


@contextmanager
def sglang(folder: str, log: Path, *more: str) -> Iterator[str]:
    """SGLang's server on a processor, in float32; `more`: further words of its command line."""
    port = free_port()
    script = Path(__file__).with_name("sglang_cpu.py")
    command = [
        str(sglang_python()), str(script), "--model-path", folder, "--host", "127.0.0.1", "--port",
        str(port), "--device", "cpu", "--attention-backend", "torch_native", "--dtype", "float32",
        "--disable-overlap-schedule", "--grammar-backend", "none", "--max-total-tokens", "4096",
        "--max-running-requests", "8", "--sampling-defaults", "openai", *more,
    ]  # fmt: skip
    with running(command, port, log, 300, more=SGLANG) as url:
        yield url
