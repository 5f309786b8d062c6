"""What ALOE asks of a policy beyond LeRobot's interface."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from aloe.policies.bundle import PolicyBundle, PolicyPlayer, Tower, check_fits
from aloe.policies.flow import (
    chunk_shape,
    encode_images,
    feature_dim,
    sample_chunks,
    seen_cameras,
    tower_key,
    weights_key,
)


def test_m_samples_are_m_predictions_for_the_same_noise(bundle, observe):
    batch = bundle.preprocessor(observe(rows=3))
    noise = torch.randn(3, 5, 4, 3, generator=torch.Generator().manual_seed(0))
    samples = sample_chunks(bundle.policy, batch, noise)
    for m in range(5):
        single = bundle.policy.predict_action_chunk(batch, noise=noise[:, m])
        torch.testing.assert_close(samples[:, m], single, rtol=1e-5, atol=1e-6)


def test_sampling_encodes_the_pictures_once(bundle, observe):
    batch = bundle.preprocessor(observe(rows=3))
    seen = []
    bundle.policy.vision_tower.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    sample_chunks(bundle.policy, batch, torch.zeros(3, 5, 4, 3))
    assert seen == [6]  # 3 observations of 2 cameras, whatever the number of samples


def test_shapes_are_those_of_the_policy(bundle, observe):
    assert chunk_shape(bundle.policy) == (4, 3)
    features = encode_images(bundle.policy, bundle.preprocessor(observe(rows=3)))
    assert features.shape == (3, 2, feature_dim(bundle.policy))  # cameras in the order of the config


def test_tower_key_is_a_function_of_the_towers_weights_alone(bundle, make):
    key = tower_key(bundle.policy)
    assert key == tower_key(make(seed=0).policy)
    assert key != tower_key(make(seed=1).policy)
    with torch.no_grad():
        bundle.policy.flow_head.enter.bias += 1
    assert key == tower_key(bundle.policy)
    with torch.no_grad():
        bundle.policy.vision_tower.convolutions[0].bias[0] += 1e-6
    assert key != tower_key(bundle.policy)


def test_a_saved_bundle_loads_to_the_same_player(bundle, tmp_path):
    bundle.save_atomically(tmp_path / "policy")
    bundle.save_atomically(tmp_path / "policy")  # over what is there
    assert [p.name for p in tmp_path.iterdir()] == ["policy"]
    rng = np.random.default_rng(0)
    observation = (
        {camera: rng.integers(0, 256, (2, 16, 16, 3), np.uint8) for camera in ("top", "wrist")},
        rng.standard_normal((2, 5)).astype(np.float32),
        ["push the puck to the goal"] * 2,
        rng.standard_normal((2, 4, 3)).astype(np.float32),
    )
    ours, loaded = PolicyPlayer(bundle=bundle), PolicyPlayer(bundle=PolicyBundle.load(tmp_path / "policy"))
    np.testing.assert_array_equal(ours(*observation), loaded(*observation))
    assert loaded.chunk_shape == (4, 3)


def test_loading_refuses_what_is_no_policy_of_ours(bundle, make, tmp_path):
    with pytest.raises(ValueError, match="holds no policy"):
        PolicyBundle.load(tmp_path / "none")
    folder = tmp_path / "policy"
    bundle.save(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"type": "act"}))
    with pytest.raises(ValueError, match=r"type 'act'.*tiny_vla"):
        PolicyBundle.load(folder)
    (folder / "config.json").write_text(json.dumps(config | {"width": 24}))
    with pytest.raises(ValueError, match="do not fit its config"):
        PolicyBundle.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        PolicyBundle.load(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="missing or damaged"):
        PolicyBundle.load(folder)


def changed(folder: Path, file: str, change: Callable[[dict], object]) -> Path:
    """A copy of a policy with one of its JSON files changed."""
    copy = folder.with_name("changed")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    content = json.loads((copy / file).read_text())
    change(content)
    (copy / file).write_text(json.dumps(content))
    return copy


def test_policies_that_training_would_show_something_else_than_play_are_refused(bundle, tmp_path):
    bundle.save(folder := tmp_path / "policy")

    def normalise_pictures(pipeline: dict) -> None:
        for step in pipeline["steps"]:
            if "norm_map" in step["config"]:
                step["config"]["norm_map"]["VISUAL"] = "MEAN_STD"

    normalised = changed(folder, "policy_preprocessor.json", normalise_pictures)
    with pytest.raises(ValueError, match=r"pictures are normalised by its preprocessor \(MEAN_STD\)"):
        PolicyBundle.load(normalised)
    step = {"registry_name": "relative_actions_processor", "config": {"enabled": True}}
    relative = changed(folder, "policy_preprocessor.json", lambda c: c["steps"].append(step))
    with pytest.raises(ValueError, match="relative to the state in which their chunk begins"):
        PolicyBundle.load(relative)
    step["config"]["enabled"] = False
    PolicyBundle.load(changed(folder, "policy_preprocessor.json", lambda c: c["steps"].append(step)))


def test_a_checkpoint_that_is_not_whole_is_refused_with_what_to_do(bundle, tmp_path):
    bundle.save(folder := tmp_path / "policy")
    for path in folder.glob("policy_p*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"has no processors .* copy the policy whole"):
        PolicyBundle.load(folder)
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds LoRA adapters .* merge them"):
        PolicyBundle.load(folder)


def test_a_picture_of_no_named_camera_is_refused(bundle):
    features = bundle.policy.config.input_features
    features["observation.image"] = features.pop("observation.images.top")
    with pytest.raises(ValueError, match=r"sees 'observation\.image', which names no camera"):
        seen_cameras(bundle.policy)


def test_features_of_other_cameras_have_another_key(make):
    def seeing(*cameras: str) -> str:
        bundle = make()
        features = bundle.policy.config.input_features
        pictures = {camera: features.pop(f"observation.images.{camera}") for camera in ("top", "wrist")}
        features.update({f"observation.images.{camera}": pictures[camera] for camera in cameras})
        return Tower(bundle=bundle).key

    assert len({seeing("top", "wrist"), seeing("wrist", "top"), seeing("top"), seeing("wrist")}) == 4
    assert seeing("top") == seeing("top")


def test_weights_without_dimensions_have_a_key():
    counted = torch.nn.BatchNorm2d(3)  # which counts its batches
    before = weights_key(counted)
    counted.num_batches_tracked += 1
    assert weights_key(counted) != before


def test_a_policy_of_another_family_is_named():
    policy = torch.nn.Linear(1, 1)
    policy.name = "act"
    for ask in (chunk_shape, feature_dim, tower_key):
        with pytest.raises(ValueError, match="type 'act'; it knows tiny_vla"):
            ask(policy)


SEEN = {"top": (16, 16), "wrist": (16, 16)}


def test_a_policy_fits_a_robot_with_its_cameras_and_perhaps_more(bundle):
    check_fits(bundle, "the robot", SEEN, 5, 3)
    check_fits(bundle, "the robot", {**SEEN, "side": (480, 640)}, 5, 3)


@pytest.mark.parametrize(
    ("robot", "message"),
    [
        (({"top": (16, 16), "side": (16, 16)}, 5, 3), r"sees camera 'wrist', but the robot has top, side"),
        (({**SEEN, "wrist": (24, 16)}, 5, 3), r"'wrist' of the robot has \(24, 16\) pixels.*made for \(16, 16\)"),
        ((SEEN, 4, 3), "state of the robot has size 4, the policy was made for 5"),
        ((SEEN, 5, 7), "action of the robot has size 7, the policy was made for 3"),
    ],
)
def test_a_policy_does_not_fit_another_robot(bundle, robot, message):
    with pytest.raises(ValueError, match=message):
        check_fits(bundle, "the robot", *robot)


def test_guidance_goes_beyond_the_plain_instruction(bundle, observe):
    # One Euler step of size 1 from noise x: x - v. With guidance 3: v = v_plain + 3 (v_good - v_plain).
    bundle.policy.config.num_flow_steps = 1
    good, plain = (bundle.preprocessor(observe(rows=2, task=task)) for task in ("push. Advantage: positive", "push"))
    noise = torch.randn(2, 1, 4, 3, generator=torch.Generator().manual_seed(0))
    v_good, v_plain = (noise - sample_chunks(bundle.policy, batch, noise) for batch in (good, plain))
    assert (v_good - v_plain).abs().max() > 1e-4
    guided = sample_chunks(bundle.policy, good, noise, plain, 3.0)
    torch.testing.assert_close(guided, noise - (v_plain + 3 * (v_good - v_plain)))


def test_condition_is_part_of_the_instruction_that_the_policy_reads(bundle, observe):
    raw = observe(rows=2, task="push")
    images = {
        name.removeprefix("observation.images."): (255 * pixels).permute(0, 2, 3, 1).to(torch.uint8).numpy()
        for name, pixels in raw.items()
        if name.startswith("observation.images.")
    }
    state, noise = raw["observation.state"].numpy(), np.zeros((2, 4, 3), np.float32)
    with_words = PolicyPlayer(bundle=bundle, condition=", gently")(images, state, ["push"] * 2, noise)
    written_out = PolicyPlayer(bundle=bundle)(images, state, ["push, gently"] * 2, noise)
    np.testing.assert_array_equal(with_words, written_out)
    assert np.abs(with_words - PolicyPlayer(bundle=bundle)(images, state, ["push"] * 2, noise)).max() > 1e-5
