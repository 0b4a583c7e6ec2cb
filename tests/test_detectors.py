# SPDX-License-Identifier: Apache-2.0
"""The detectors against the recorded answers of real MMPose: keys, shapes, parameters, outputs, flip test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mmpose_reference import FILES, Reference, blank

from port_deploy.errors import InputError
from port_deploy.nn.detectors import DETECTORS, DetectorSpec, choose_skeleton
from port_deploy.nn.detectors.family import FAMILY, member
from port_deploy.skeleton import Skeleton

HEATMAP_ATOL, SIMCC_ATOL = 1e-4, 2e-3  # the recorded networks' own noise over threads and layouts: 3e-5 and 3e-4

MILLIONS = {  # the paper's Table II; RTMPose's own table
    "hrnet_w32": 28.5,
    "hrnet_w48": 63.6,
    "hrnetv2_w18": 9.6,
    "mobilenetv2": 9.6,
    "resnet50": 34.0,
    "rtmpose_t": 3.34,
    "rtmpose_s": 5.47,
    "rtmpose_m": 13.59,
    "rtmpose_l": 27.66,
}


@pytest.fixture(scope="module")
def reference(shared_data):
    return Reference(shared_data)


def usual(name):
    """Input size and skeleton that a detector's checkpoints usually have."""
    hand = FILES.get(name, "").startswith("hand")
    return ((256, 256), "hand21") if hand else ((256, 192), "coco17")


def parameters(detector):
    return sum(p.numel() for p in detector.parameters())


@pytest.mark.parametrize("name", DETECTORS)
def test_parameters_are_those_of_the_published_tables(name):
    digits = 1 if MILLIONS[name] in (28.5, 63.6, 9.6, 34.0) else 2
    with torch.device("meta"):
        assert round(parameters(blank(name, *usual(name))) / 1e6, digits) == MILLIONS[name]


@pytest.mark.parametrize("name", FILES)
def test_keys_and_shapes_are_mmposes_in_their_order(name, reference):
    facts = reference.json(FILES[name])
    with torch.device("meta"):
        detector = blank(name, *usual(name))
    state = detector.state_dict()
    assert [[k, list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in state.items()] == facts["state_dict"]
    assert parameters(detector) == facts["parameters"]["total"]
    assert list(detector.spec.mean) == facts["preprocessing"]["mean"]
    assert list(detector.spec.std) == facts["preprocessing"]["std"]


def watched(detector, taps):
    """Outputs of the layers that were recorded, filled by the next forward pass, and the hooks to take away."""
    seen, hooks = {}, []

    def keep(key):
        def hook(_module, _inputs, output):
            seen[key] = list(output) if isinstance(output, (list, tuple)) else [output.clone()]

        return hook

    for key, module in detector.named_modules():
        if key in taps:
            hooks.append(module.register_forward_hook(keep(key)))
    return seen, hooks


def check(reference, name, size, skeleton):
    """Recorded inner layers first, so that a failure names the first one that differs; then outputs and flip test."""
    file = f"{FILES[name]}_{size[0]}x{size[1]}_golden"
    golden = reference.arrays(file)
    taps = next(g["taps"] for g in reference.json(FILES[name])["goldens"] if g["file"] == f"{file}.npz")
    detector = reference.detector(name, size, skeleton)
    atol = SIMCC_ATOL if detector.spec.target == "simcc" else HEATMAP_ATOL
    x = reference.input(*size)
    seen, hooks = watched(detector, taps)
    with torch.no_grad():
        outputs = detector.network(x)
        for hook in hooks:
            hook.remove()
        detector.flip_test = True
        averaged = detector.network(x)
    assert len(seen) >= 5
    for key, values in seen.items():
        for output, tap in zip(values, taps[key], strict=True):
            assert list(output.shape) == tap["shape"], key
            got = [output.mean(), output.std(unbiased=False), output.abs().max(), *output.flatten()[:4]]
            wanted = [tap["mean"], tap["std"], tap["absmax"], *tap["first"]]
            tolerance = 1e-4 * max(1.0, tap["absmax"])
            np.testing.assert_allclose([float(v) for v in got], wanted, atol=tolerance, rtol=0, err_msg=key)
    assert [tuple(o.shape[1:]) for o in outputs] == list(detector.spec.output_shapes)
    for output, average, key in zip(outputs, averaged, detector.spec.output_names, strict=True):
        np.testing.assert_allclose(output, golden[key], atol=atol, rtol=0)
        if key == "heatmaps":
            np.testing.assert_allclose(average[:, :, ::4, ::4], golden["flip_avg_sub4"], atol=atol, rtol=0)
        else:
            np.testing.assert_allclose(average, golden[f"flip_avg_{key}"], atol=atol, rtol=0)
        assert np.abs(average.numpy() - golden[key]).max() > 100 * atol  # the flip test does something


@pytest.mark.parametrize("name", FILES)
def test_every_layer_answers_as_mmposes(name, reference):
    check(reference, name, *usual(name))


def test_human36m_answers_as_mmposes(reference):
    check(reference, "hrnet_w32", (256, 256), "h36m17")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "skeleton"),
    [("hrnet_w32", (384, 288), "coco17"), ("hrnet_w48", (256, 256), "h36m17")],
)
def test_the_other_sizes_answer_as_mmposes(name, size, skeleton, reference):
    check(reference, name, size, skeleton)


def test_normalisation_is_in_the_graph_and_layouts_agree():
    detector = blank("mobilenetv2", (64, 64))
    crops = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    mean, std = np.array(detector.spec.mean), np.array(detector.spec.std)
    expected = ((crops - mean) / std).transpose(0, 3, 1, 2)
    as_bytes = torch.from_numpy(crops)
    as_floats = as_bytes.permute(0, 3, 1, 2).to(torch.float32)
    np.testing.assert_allclose(detector.normalise(as_bytes), expected, atol=1e-5)
    with torch.no_grad():
        (a,), (b,), (c,) = detector(as_bytes), detector(as_floats), detector.network(detector.normalise(as_bytes))
    assert torch.equal(a, b)
    assert torch.equal(a, c)
    assert detector(as_bytes[:0])[0].shape == (0, 21, 16, 16)


@pytest.mark.parametrize(
    "image",
    [
        torch.zeros((1, 3, 64, 64), dtype=torch.uint8),
        torch.zeros((1, 64, 64, 3)),
        torch.zeros((1, 3, 64, 96)),
        torch.zeros((3, 64, 64)),
        torch.zeros((1, 3, 64, 64), dtype=torch.float64),
    ],
)
def test_other_crops_are_refused_in_one_line(image):
    shape = r"\[B, 64, 64, 3\] or float32 \[B, 3, 64, 64\], both in 0..255, got "
    with pytest.raises(InputError, match=shape):
        blank("mobilenetv2", (64, 64))(image)


def test_floats_up_to_one_are_refused_but_dark_crops_are_not():
    detector = blank("mobilenetv2", (64, 64))
    with pytest.raises(InputError, match="multiply by 255"):
        detector(torch.rand((1, 3, 64, 64)))
    detector(torch.ones((1, 3, 64, 64)))


def test_to_crop_scales_msra_by_the_width_and_udp_by_one_less():
    def to_crop(target):
        return DetectorSpec("hrnet_w32", Skeleton.load("coco17"), (256, 192), target).to_crop()

    np.testing.assert_allclose(to_crop("msra"), [[4, 0, 0], [0, 4, 0]])
    np.testing.assert_allclose(to_crop("udp"), [[192 / 47, 0, 0], [0, 256 / 63, 0]])
    np.testing.assert_allclose(to_crop("simcc"), [[1, 0, 0], [0, 1, 0]])


def test_unusable_specifications_are_refused():
    coco = Skeleton.load("coco17")
    for size in ((250, 192), (0, 0), (256, 4096)):
        with pytest.raises(InputError, match="multiples of 32"):
            DetectorSpec("hrnet_w32", coco, size)
    with pytest.raises(InputError, match="unknown target 'dark': use msra, udp, simcc"):
        DetectorSpec("hrnet_w32", coco, (256, 192), "dark")
    with pytest.raises(InputError, match="unknown detector 'vitpose': use one of hrnet_w32, "):
        member("vitpose")
    assert member("HRNet-w32") == ("hrnet_w32", FAMILY["hrnet_w32"])


def test_the_skeleton_follows_from_the_channels():
    names = [choose_skeleton(n, None).name for n in (21, 17, 16)]
    assert names == ["hand21", "coco17", "mpii16"]
    assert choose_skeleton(17, "h36m17").name == "h36m17"
    with pytest.raises(InputError, match="got 'hand21' with 21: choose another skeleton"):
        choose_skeleton(17, "hand21")
    with pytest.raises(InputError, match="got 133: name a skeleton with 133 joints"):
        choose_skeleton(133, None)


def test_the_readme_has_the_family():
    text = (Path(__file__).resolve().parents[1] / "README.md").read_text("utf-8")
    section = text.split("\n## Detectors\n")[1].split("\n## ")[0]
    for name, entry in FAMILY.items():
        if entry.simcc:
            assert f"`{name}`" in section or f"`_{name[-1]}`" in section
            continue
        (row,) = [line for line in section.splitlines() if line.startswith(f"| `{name}` |")]
        height, width = usual(name)[0]
        assert f"| {MILLIONS[name]} | {height} × {width} | " in row
        assert all(f"`{source}`" in row for source in entry.sources)
    assert "`rtmpose-s_8xb256-420e_coco-256x192`" in section
