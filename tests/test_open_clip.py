"""Networks of open_clip: they compute what open_clip computes, and are read as strictly as
others."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from core import refused, sql
from wording import NETWORK, TEXT, by_open_clip, make_model

from datasette_image_similarity import ImageCollection, trust
from datasette_image_similarity.encoders import (
    EncoderSpec,
    available_models,
    load_encoder,
    restore_encoder,
)
from datasette_image_similarity.errors import EncoderError, TextError


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_both_towers_give_what_open_clip_gives(precision: str, tiny_model: Path) -> None:
    from PIL import Image

    torch = pytest.importorskip("torch")
    encoder = load_encoder(
        "open_clip", weights=tiny_model, fit="crop", device="cpu", precision=precision
    )
    pixels = np.random.default_rng(0).integers(0, 255, (9, 32, 32, 3), dtype=np.uint8)
    model, preprocess, tokenizer = by_open_clip(tiny_model)
    with torch.inference_mode():
        seen = torch.stack([preprocess(Image.fromarray(one)) for one in pixels])
        pictures = model.encode_image(seen).numpy()
        words = model.encode_text(tokenizer([TEXT, "a cat"])).numpy()
    rounding = {"float32": 1e-4, "bfloat16": 0.15}[precision]
    np.testing.assert_allclose(encoder.encode(pixels), pictures, atol=rounding)
    found = encoder.encode_text([TEXT, "a cat"])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, words, atol=1e-5)
    assert encoder.encode_text([]).shape == (0, 24)


@pytest.mark.parametrize(
    "vision",
    [
        {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
        {
            "image_size": 32,
            "timm_model_name": "resnet10t",
            "timm_model_pretrained": True,
            "timm_pool": "avg",
            "timm_proj": "linear",
        },
    ],
    ids=["modified-resnet", "timm"],
)
def test_other_towers_for_pictures_work_and_fetch_nothing(
    vision: dict, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    network = {**NETWORK, "vision_cfg": vision, "custom_text": "timm_pool" in vision}
    made = {**network, "vision_cfg": {**vision, "timm_model_pretrained": False}}
    folder = make_model(tmp_path / "other", network=made)
    model, _, _ = by_open_clip(folder)
    config = folder / "open_clip_config.json"
    config.write_text(json.dumps({"model_cfg": network}))
    encoder = load_encoder("open_clip", weights=folder, device="cpu", precision="float32")
    pixels = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    mean, std = (np.array(v, np.float32) for v in (encoder.spec.mean, encoder.spec.std))
    seen = ((pixels / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
    with torch.inference_mode():
        wanted = model.encode_image(torch.from_numpy(seen)).numpy()
    rounding = 1e-4 * np.abs(wanted).max()
    np.testing.assert_allclose(encoder.encode(pixels), wanted, atol=rounding)
    lower = load_encoder("open_clip", weights=folder, device="cpu", precision="bfloat16")
    assert np.isfinite(lower.encode(pixels)).all()


def test_networks_with_a_text_tower_of_their_own_work_too(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "other", network={**NETWORK, "custom_text": True})
    torch = pytest.importorskip("torch")
    model, _, tokenizer = by_open_clip(folder)
    with torch.inference_mode():
        wanted = model.encode_text(tokenizer([TEXT])).numpy()
    found = load_encoder("open_clip", weights=folder).encode_text([TEXT])
    np.testing.assert_allclose(found, wanted, atol=1e-5)


# Weights and configurations


@pytest.fixture
def own_model(tmp_path: Path, tiny_model: Path) -> Path:
    """A copy of the model, to damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def test_a_stranger_cannot_name_weights(worded: Path, tiny_model: Path) -> None:
    """Nothing is loaded that this user has not vouched for."""
    trust._write({"roots": {}, "weights": {}, "published": {}})
    said = refused("search", worded, "--text", TEXT)
    assert "say where that lies" in said
    planted = json.loads(
        sql(worded, "select encoder from _image_similarity_collections")[0][0]
    )
    for model in (str(tiny_model), f"open_clip:{tiny_model}", "open_clip:../tiny"):
        with pytest.raises(EncoderError, match="model is not valid"):
            EncoderSpec.from_json(json.dumps({**planted, "model": model}))
    planted["weights"] = str(tiny_model)
    with pytest.raises(EncoderError, match="weights is not valid"):
        EncoderSpec.from_json(json.dumps(planted))


def test_other_weights_are_refused(worded: Path, own_model: Path) -> None:
    with ImageCollection(worded) as photos:
        spec = EncoderSpec.from_json(photos._open()[0].encoder)
    file = own_model / "open_clip_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(EncoderError, match="SHA-256 should be"):
        restore_encoder(spec, weights_file=own_model)


def test_another_configuration_is_refused(worded: Path, own_model: Path) -> None:
    with ImageCollection(worded) as photos:
        spec = EncoderSpec.from_json(photos._open()[0].encoder)
    assert restore_encoder(spec, weights_file=own_model).spec == spec
    config = own_model / "open_clip_config.json"
    config.write_text(config.read_text().replace("0.45", "0.46"))
    with pytest.raises(EncoderError, match="not the configuration"):
        restore_encoder(spec, weights_file=own_model)
    config.unlink()
    with pytest.raises(EncoderError, match=r"open_clip_config\.json cannot be read"):
        restore_encoder(spec, weights_file=own_model)


def changed(text: dict | None = None, vision: dict | None = None, **more: object) -> dict:
    return {
        **NETWORK,
        "text_cfg": {**NETWORK["text_cfg"], **(text or {})},
        "vision_cfg": {**NETWORK["vision_cfg"], **(vision or {})},
        **more,
    }


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (changed({"hf_tokenizer_name": "google/siglip"}), "could bring code along"),
        (changed({"hf_model_name": "roberta-base"}), "transformers"),
        (changed({"tokenizer_kwargs": {"bpe_path": "/etc/passwd"}}), "tokenizer has opt"),
        (changed({"output_tokens": True}), "tokens besides vectors"),
        (changed({"vocab_size": 1000}), "another tokenizer"),
        (changed({"width": "wide"}), "cannot build open_clip"),
        (changed({"unheard": 1}), "cannot build open_clip"),
        (changed({"layers": 3}), "missing in the file"),
        (changed(vision={"timm_model_name": "hf-hub:evil/model"}), "not a name of timm's"),
        (changed(vision={"image_size": [32, 64]}), "squares"),
        (changed(multimodal_cfg={}), "CoCa"),
        (changed(embed_dim=32), "does not fit"),
        ([], "not complete"),
        (None, "not complete"),
    ],
)
def test_what_cannot_be_used_is_said(network: object, said: str, own_model: Path) -> None:
    config = own_model / "open_clip_config.json"
    config.write_text(json.dumps({"model_cfg": network}))
    with pytest.raises(EncoderError, match=said):
        load_encoder("open_clip", weights=own_model)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_cfg": {}, "preprocess_cfg": 3}'])
def test_a_damaged_configuration_is_said(text: str, own_model: Path) -> None:
    (own_model / "open_clip_config.json").write_text(text)
    with pytest.raises(EncoderError):
        load_encoder("open_clip", weights=own_model)


def test_names_of_models(tiny_model: Path) -> None:
    for model, weights, said in (
        ("open_clip:ViT-B-33/openai", None, "Did you mean"),
        ("open_clip:ViT-B-32", None, "Published are openai"),
        ("open_clip:ViT-B-32/none", None, "no weights called 'none'"),
        ("open_clip:ViT-B-32/openai", "laion400m_e32", "leave one out"),
        ("open_clip", None, "needs --weights FOLDER"),
        ("open_clip:ViT-B-16-SigLIP/webli", None, "its tokenizer"),
        ("open_clip:ViT-B-32", tiny_model / "open_clip_model.safetensors", "does not fit"),
    ):
        with pytest.raises(EncoderError, match=said):
            load_encoder(model, weights=weights)
    found = {model.name: model for model in available_models()}
    assert "laion2b_s34b_b79k" in found["open_clip:ViT-B-32"].weights
    assert "open_clip:ViT-B-16-SigLIP" not in found


# Published weights, with the hub's cache as the library writes it


@pytest.fixture
def cached(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The weights of open_clip:ViT-B-32/laion2b_s34b_b79k, had the hub been asked; the
    architecture is the tiny one."""
    open_clip = pytest.importorskip("open_clip")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(
        "huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "hub")
    )
    monkeypatch.setattr(
        open_clip, "get_model_config", lambda name: json.loads(json.dumps(NETWORK))
    )
    repo = tmp_path / "hub" / "models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    file = snapshot / "open_clip_model.safetensors"
    shutil.copy(tiny_model / file.name, file)
    return file


PUBLISHED = "open_clip:ViT-B-32/laion2b_s34b_b79k"


def test_published_weights_must_stay_what_they_were(cached: Path) -> None:
    encoder = load_encoder(PUBLISHED, device="cpu")
    assert encoder.spec.model == "open_clip:ViT-B-32"
    assert encoder.spec.weights == "laion2b_s34b_b79k"
    assert encoder.spec.mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)
    assert restore_encoder(encoder.spec, download=False).spec == encoder.spec
    data = bytearray(cached.read_bytes())
    data[-1] ^= 1
    cached.write_bytes(data)
    with pytest.raises(EncoderError, match="SHA-256 should be"):
        load_encoder(PUBLISHED, device="cpu")


def test_nothing_is_fetched_for_visitors(
    cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = load_encoder(PUBLISHED, device="cpu").spec
    cached.unlink()

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("it was asked for")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(EncoderError, match="not on this machine yet"):
        restore_encoder(spec, download=False)


def test_a_failed_download_is_said(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    cached.unlink()

    def fail(*_: object, **__: object) -> None:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(EncoderError, match="could not be reached"):
        load_encoder(PUBLISHED, device="cpu")


def test_long_and_odd_words_do_no_harm(tiny_model: Path) -> None:
    encoder = load_encoder("open_clip", weights=tiny_model, device="cpu")
    odd = ["\x00", "‮", "🦊", "<start_of_text>", "&lt;b&gt;", "e\u0301", "\ud800"]
    for text in odd:
        with contextlib.suppress(TextError):
            assert np.isfinite(encoder.encode_text([text])).all()
