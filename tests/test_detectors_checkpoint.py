# SPDX-License-Identifier: Apache-2.0
"""Reading checkpoints: every format of MMPose's, hostile and damaged ones, and the message where one does not fit."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from mmpose_reference import TINY, Reference, blank

from port_deploy.errors import InputError, ModelFileError
from port_deploy.nn.detectors import DETECTORS, load_detector, read_checkpoint
from port_deploy.nn.detectors.family import FAMILY

FORMATS = (
    "0x_published_legacy",
    "0x_published_zip",
    "mmengine_published",
    "mmengine_published_numpy1",
    "mmengine_train",
)


@pytest.fixture
def tiny(monkeypatch):
    """A small MobileNetV2 in the family."""
    monkeypatch.setitem(FAMILY, "tiny", TINY)
    return blank("tiny", (64, 64))


def save(path, state, **content):
    torch.save({"meta": {}, "state_dict": OrderedDict(state), **content}, path)
    return path


@pytest.mark.parametrize("file", FORMATS)
def test_every_format_of_mmpose_is_read_and_answers_as_it_did(file, tiny, shared_data):
    reference = Reference(shared_data)
    detector = load_detector("tiny", reference.folder / f"ckpt_{file}.pth", input_size=(64, 64))
    with torch.no_grad():
        (heatmaps,) = detector.network(reference.input(64, 64))
    np.testing.assert_allclose(heatmaps, reference.arrays("ckpt_tiny_golden")["heatmaps"], atol=1e-5)
    assert detector.spec.skeleton.name == "hand21"
    assert not detector.training


def as_0x(key):
    """The key that MMPose 0.x gave a tensor of HRNetv2."""
    for new, old in (
        ("conv_layers.0", "final_layer.0"),
        ("conv_layers.1", "final_layer.1"),
        ("final_layer", "final_layer.3"),
    ):
        if key.startswith(f"head.{new}."):
            return key.replace(f"head.{new}.", f"keypoint_head.{old}.")
    return key


def test_the_renames_are_those_of_mmpose_0x(shared_data):
    reference = Reference(shared_data)
    renamed = reference.json("keys_0x")["models"]["hand_hrnetv2_w18"]["renamed"]
    assert {as_0x(new): new for new in renamed.values()} == renamed


@pytest.mark.parametrize("wrapped", ["", "module."])
def test_keys_of_mmpose_0x_are_renamed(wrapped, tmp_path):
    detector = blank("hrnetv2_w18")
    state = detector.state_dict()
    extra = {"data_preprocessor.mean": torch.zeros(3, 1, 1), "ema_backbone_conv1_weight": torch.zeros(1)}
    old = {as_0x(k): v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    path = save(tmp_path / "old.pth", {wrapped + k: v for k, v in (old | extra).items()})
    loaded = load_detector("hrnetv2_w18", path).state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in state.items())


class Bomb:
    """Makes a folder when it is unpickled by a reader that executes what it reads."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["meta", "state_dict", "instead"])
def test_a_hostile_pickle_is_not_executed(zipped, place, tiny, tmp_path):
    fuse = tmp_path / "fuse"
    content = {"meta": {}, "state_dict": OrderedDict(tiny.state_dict())}
    if place == "instead":
        content = Bomb(fuse)
    else:
        content[place]["bomb"] = Bomb(fuse)
    path = tmp_path / "hostile.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    if place == "instead":
        with pytest.raises(ModelFileError, match=r"hostile.pth is not a checkpoint that can be read"):
            load_detector("tiny", path)
    else:  # what surrounds it is a checkpoint, and is read
        load_detector("tiny", path)
    assert not fuse.exists()
    torch.load(path, weights_only=False)
    assert fuse.exists()  # the bomb works


def test_a_bare_pickle_is_not_executed(tmp_path):
    fuse = tmp_path / "fuse"
    path = tmp_path / "bare.pth"
    path.write_bytes(pickle.dumps({"state_dict": Bomb(fuse)}))
    with pytest.raises(ModelFileError):
        read_checkpoint(path)
    assert not fuse.exists()


class Foreign:
    """Stands for a class of MMEngine."""

    def __init__(self):
        self.values = [torch.zeros(2), "text"]


def test_foreign_objects_beside_the_weights_do_no_harm(tiny, tmp_path):
    path = save(tmp_path / "train.pth", tiny.state_dict(), message_hub={"history": Foreign(), "step": getattr})
    loaded = load_detector("tiny", path).state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in tiny.state_dict().items())


def test_a_bare_state_dict_is_read_and_half_precision_is_widened(tiny, tmp_path):
    path = tmp_path / "bare.pth"
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in tiny.state_dict().items()}, path)
    loaded = load_detector("tiny", path).state_dict()
    assert all(v.dtype in (torch.float32, torch.int64) for v in loaded.values())
    torch.testing.assert_close(loaded, {k: v.half().to(v.dtype) for k, v in tiny.state_dict().items()})


CHANGES = {
    "missing": (
        lambda s: s.pop("backbone.conv2.bn.bias"),
        "tiny: key 'backbone.conv2.bn.bias' is missing; checkpoints",
    ),
    "unused": (lambda s: s.update({"head.extra.weight": torch.zeros(3)}), "tiny: key 'head.extra.weight' is unused;"),
    "shape": (
        lambda s: s.update({"backbone.conv1.bn.weight": torch.zeros(9)}),
        r"key 'backbone.conv1.bn.weight' has shape \[9\], expected \[8\];",
    ),
    "two": (
        lambda s: (s.pop("backbone.conv2.bn.bias"), s.pop("head.final_layer.weight")),
        r"is missing and 1 more keys do not fit; .*tiny_onehand10k_64x64",
    ),
    "nan": (
        lambda s: s.update({"backbone.conv1.bn.weight": torch.full((8,), torch.nan)}),
        "expected finite numbers under 'backbone.conv1.bn.weight': the file is damaged",
    ),
    "sparse": (
        lambda s: s.update({"backbone.conv1.bn.weight": torch.ones(8).to_sparse()}),
        "expected finite numbers under 'backbone.conv1.bn.weight'",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_incomplete_checkpoint_is_refused_by_key(change, tiny, tmp_path):
    state = dict(tiny.state_dict())
    alter, message = CHANGES[change]
    alter(state)
    with pytest.raises(ModelFileError, match=message) as caught:
        load_detector("tiny", save(tmp_path / "odd.pth", state))
    assert "\n" not in str(caught.value)


def test_the_counter_of_batches_may_be_absent(tiny, tmp_path):
    state = {k: v for k, v in tiny.state_dict().items() if not k.endswith("num_batches_tracked")}
    load_detector("tiny", save(tmp_path / "old.pth", state))


@pytest.mark.parametrize("name", DETECTORS)
def test_a_checkpoint_of_another_detector_is_recognised(name, tmp_path):
    path = tmp_path / "other.pth"
    state = {k: nothing(v) for k, v in meta_state(name).items()}
    torch.save({"state_dict": state}, path)
    asked = "resnet50" if name != "resnet50" else "hrnet_w32"
    with pytest.raises(ModelFileError, match=f"not a checkpoint of {asked}: .*; it is one of {name}: load it as "):
        load_detector(asked, path)


def nothing(tensor):
    """Zeros of the same shape that take no room."""
    return torch.zeros((1,) * tensor.ndim).expand(tensor.shape)


def meta_state(name):
    with torch.device("meta"):
        return blank(name).state_dict()


def test_the_nearest_detector_is_named_where_none_fits(tmp_path):
    state = {k: nothing(v) for k, v in meta_state("hrnet_w48").items()}
    del state["backbone.bn1.bias"]
    torch.save({"state_dict": state}, tmp_path / "w48.pth")
    with pytest.raises(ModelFileError, match="the nearest detector is 'hrnet_w48', which fits 100% of the keys; check"):
        load_detector("hrnet_w32", tmp_path / "w48.pth")


def test_a_backbone_without_a_head_is_refused(tmp_path):
    state = {k: nothing(v) for k, v in meta_state("resnet50").items() if k.startswith("backbone.")}
    torch.save({"state_dict": state}, tmp_path / "imagenet.pth")
    with pytest.raises(ModelFileError, match=r"key 'head.final_layer.bias' is missing; .*td-hm_res50_8xb32-210e"):
        load_detector("resnet50", tmp_path / "imagenet.pth")


def test_a_simcc_head_of_numbers_is_refused(tmp_path):
    state = {k: nothing(v) for k, v in meta_state("rtmpose_t").items()} | {"head.cls_x.weight": torch.tensor(1.0)}
    torch.save({"state_dict": state}, tmp_path / "odd.pth")
    with pytest.raises(ModelFileError, match=r"key 'head.cls_x.weight' has shape \[\], expected \[512, 256\]"):
        load_detector("rtmpose_t", tmp_path / "odd.pth")


def test_the_input_size_of_simcc_follows_from_the_weights(tmp_path):
    path = save(tmp_path / "hand.pth", blank("rtmpose_t").state_dict())
    assert load_detector("rtmpose_t", path).spec.input_size == (256, 256)
    with pytest.raises(InputError, match=r"expected input_size \(256, 256\), which .*hand.pth was trained for, got"):
        load_detector("rtmpose_t", path, input_size=(256, 192))


CONFIGS = {
    "codec = dict(type='MSRAHeatmap', input_size=(288, 384), heatmap_size=(72, 96))": ((384, 288), "msra"),
    "codec = dict(\n    type='UDPHeatmap', input_size=(192, 256), sigma=2)": ((256, 192), "udp"),
    "codec = dict(\n    input_size=(\n        128,\n        256,\n    ), type='UDPHeatmap')": ((256, 128), "udp"),
    "image_size=[128, 256], heatmap_size=[32, 64], use_udp=True": ((256, 128), "udp"),
    "data_cfg = {'image_size': [256, 256], 'use_udp': False}": ((256, 256), "msra"),
    "input_size=(256, 192) input_size=(192, 256)": ((256, 256), "msra"),
    "": ((256, 256), "msra"),
}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("key", ["cfg", "config"])
def test_size_and_target_follow_from_the_configuration_in_the_file(config, key, tiny, tmp_path):
    path = save(tmp_path / "c.pth", tiny.state_dict(), meta={key: config})
    spec = load_detector("tiny", path).spec
    assert (spec.input_size, spec.target) == CONFIGS[config]
    spec = load_detector("tiny", path, input_size=(64, 96), target="udp").spec
    assert (spec.input_size, spec.target) == ((64, 96), "udp")
    with pytest.raises(InputError, match="expected target msra or udp for tiny, got 'simcc'"):
        load_detector("tiny", path, target="simcc")


def write_torchscript(path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)


def write_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")


BROKEN = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("<html>not found</html>"),
    "zip": write_zip,
    "torchscript": write_torchscript,
    "list": lambda path: torch.save([1, 2], path),
    "no tensors": lambda path: torch.save({"state_dict": {"a": 1}}, path),
    "no state": lambda path: torch.save({"state_dict": [1]}, path),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_checkpoint_is_refused_in_one_line(kind, tmp_path):
    path = tmp_path / "broken.pth"
    BROKEN[kind](path)
    with pytest.raises(ModelFileError, match=r"broken.pth is not a checkpoint that can be read: give the") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_cut_checkpoint_is_refused(zipped, tiny, tmp_path):
    path = tmp_path / "cut.pth"
    torch.save({"state_dict": dict(tiny.state_dict())}, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    for part in (0.01, 0.3, 0.9, 0.999):
        path.write_bytes(data[: int(len(data) * part)])
        with pytest.raises(ModelFileError, match="not a checkpoint that can be read"):
            read_checkpoint(path)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no checkpoint .*absent.pth: give the .pth file"):
        load_detector("resnet50", tmp_path / "absent.pth")
