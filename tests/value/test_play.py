"""A critic at play."""

import numpy as np
import torch
from lerobot.utils.constants import OBS_STATE

from aloe import stages
from aloe.experience.store import ExperienceStore
from aloe.policies.bundle import PolicyPlayer, Tower, observe
from aloe.policies.flow import feature_dim, language_features
from aloe.rollout.pool import EpisodeRequest, WorldPool
from aloe.stages import DemosConfig, PolicyConfig
from aloe.value.critic import CriticConfig, Observations
from aloe.value.fit import FitConfig
from aloe.value.play import BestOfPlayer
from aloe.worlds.metaworld import MetaWorldConfig

WORLD = MetaWorldConfig(task="reach-v3", observations="state", max_steps=12)


def test_the_chunk_that_the_critics_like_best_is_played(tmp_path):
    with WorldPool(WORLD, 2) as pool:
        store: ExperienceStore = stages.open_store(tmp_path / "store", WORLD)
        stages.demonstrate(store, pool, DemosConfig(episodes=1), seed=0)
        bundle = stages.new_policy(store, PolicyConfig(width=32, depth=1), 4, (0, "policy"))
        state = stages.new_critic(
            stages.observation_shape(Tower(bundle=bundle), 4),
            CriticConfig(critics=2, width=16, heads=2),
            FitConfig(),
            (0, "critic"),
        )
        player = BestOfPlayer(
            bundle=bundle, critic=state.critic, tower=Tower(bundle=bundle), samples=5, aggregation="min"
        )
        seen = store.columns().state[:3]
        noise = np.random.default_rng(0).standard_normal((3, 5, 4, 4)).astype(np.float32)
        chosen = player({}, seen, ["reach"] * 3, noise)

        each = [PolicyPlayer(bundle=bundle)({}, seen, ["reach"] * 3, noise[:, n]) for n in range(5)]
        batch = observe(bundle, {}, seen, ["reach"] * 3)
        observations = Observations(
            features=torch.zeros(3, 0, feature_dim(bundle.policy)),
            state=batch[OBS_STATE],
            language=language_features(bundle.policy, batch),
        )
        mean, std = (torch.as_tensor(bundle.preprocessor.steps[-1].stats["action"][k]) for k in ("mean", "std"))
        q = torch.stack([state.critic(observations, (torch.tensor(c) - mean) / std).amin(-1) for c in each], 1)
        best = q.argmax(1)
        np.testing.assert_allclose(chosen, np.stack(each)[best, range(3)], rtol=1e-5, atol=1e-6)

        episode = next(pool.play([EpisodeRequest(index=0, seed=1)], player, execute=2, policy_version=1))
        assert episode.steps > 0
