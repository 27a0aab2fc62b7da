# SPDX-License-Identifier: Apache-2.0
"""``fundad dissolve``: the image that is dissolved is the one that a model would see."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from cohorts import photograph
from commands import call
from small_dia import fit_on
from small_tasks import batches

from fundad_fast.bundle import Bundle, save_bundle
from fundad_fast.data import InputSpec, prepare
from fundad_fast.diffusion import make_denoiser
from fundad_fast.synthetic import strip

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:the network does not know shifts apart")


@pytest.fixture
def drawn(monkeypatch):
    """What was drawn: before and after."""
    seen = []
    draw = strip.draw_strip

    def note(before, after, titles, **given):
        seen.append((before, after, list(titles)))
        return draw(before, after, titles, **given)

    monkeypatch.setattr(strip, "draw_strip", note)
    return seen


def ddpm(folder, channels):
    net = make_denoiser(channels, resolution=16, width=8, multipliers=(1, 2), blocks=1)
    scheduler = diffusers.DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2")
    diffusers.DDPMPipeline(net.unet, scheduler).save_pretrained(folder)
    return folder


def model(folder, spec):
    method = fit_on(batches(6))
    save_bundle(
        Bundle(
            method=method,
            preset="quick",
            input_spec=spec.model_dump(mode="json"),
            thresholds={"image": None, "pixel": None},
            colour_scale={},
            trained_on={},
            normal=None,
        ),
        folder,
    )
    return folder


def test_a_picture_of_any_kind_is_brought_to_what_the_model_takes(tmp_path, drawn):
    image = tmp_path / "colour16.png"
    pixels = photograph(1).astype(np.uint16) * 257
    cv2.imwrite(str(image), pixels[..., ::-1])
    grey = ddpm(tmp_path / "grey", 1)
    call("dissolve", image, "--weights", grey, "-o", tmp_path / "a.png", "--t", 7, "--t", 300)
    before, after, titles = drawn[-1]
    spec = InputSpec(image_size=224, channels="grey", fov="none", mixed_inputs="convert")
    torch.testing.assert_close(before[0], prepare(pixels, spec).image)
    assert after.shape == (3, 1, 224, 224)
    assert titles == ["resized alone", "t = 7", "t = 300"]
    small = nnf.interpolate(before, (16, 16), mode="bilinear")
    torch.testing.assert_close(after[:1], nnf.interpolate(small, (224, 224), mode="bilinear"))
    flat = tmp_path / "grey.png"
    cv2.imwrite(str(flat), photograph(2)[..., 0])
    colours = ddpm(tmp_path / "colours", 3)
    call("dissolve", flat, "--weights", colours, "-o", tmp_path / "b.png", "--size", 40)
    before = drawn[-1][0]
    assert before.shape == (1, 3, 40, 40)
    assert torch.equal(before[:, 0], before[:, 2])
    assert len(drawn[-1][1]) == 9


def test_of_a_fundus_model_black_lies_outside_of_the_field_of_view(tmp_path, drawn):
    image = tmp_path / "fundus.png"
    pixels = photograph(1)
    pixels[:3] = 5  # a dark rim is not quite black
    cv2.imwrite(str(image), pixels[..., ::-1])
    spec = InputSpec(image_size=32, channels="grey", fov="auto")
    call("dissolve", image, "-m", model(tmp_path / "model", spec), "-o", tmp_path / "a.png")
    before = drawn[-1][0]
    seen = prepare(pixels, spec.model_copy(update={"mixed_inputs": "convert"}))
    assert 0 < seen.mask.sum() < seen.mask.numel()
    assert (before[0, :, ~seen.mask] == 0).all()
    torch.testing.assert_close(before[0][:, seen.mask], seen.image[:, seen.mask])
    blank = tmp_path / "blank.png"
    cv2.imwrite(str(blank), np.full((64, 64, 3), 200, np.uint8))
    said = call("dissolve", blank, "-m", tmp_path / "model", "-o", tmp_path / "b.png", code=2)
    assert "no_fov" in said
    assert not (tmp_path / "b.png").exists()


def test_a_model_of_other_channels_is_refused(tmp_path):
    image = tmp_path / "a.png"
    cv2.imwrite(str(image), photograph(1))
    odd = ddpm(tmp_path / "odd", 2)
    said = call("dissolve", image, "--weights", odd, "-o", tmp_path / "b.png", code=2)
    assert "of 2 channels; want 1 or 3" in said


def test_a_time_step_that_the_model_does_not_have_is_refused(tmp_path):
    image = tmp_path / "a.png"
    cv2.imwrite(str(image), photograph(1))
    net = make_denoiser(1, resolution=16, width=8, multipliers=(1, 2), blocks=1)
    scheduler = diffusers.DDPMScheduler(300)
    diffusers.DDPMPipeline(net.unet, scheduler).save_pretrained(tmp_path / "short")
    given = ["dissolve", image, "--weights", tmp_path / "short", "-o", tmp_path / "b.png"]
    assert "--t 300: the diffusion model has 0 to 299" in call(*given, "--t", 300, code=2)
    assert not (tmp_path / "b.png").exists()
    call(*given, "--t", 299)
