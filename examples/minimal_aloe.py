"""ALOE in one file: improve a policy by off-policy evaluation of action chunks (arXiv 2602.12691).

    python examples/minimal_aloe.py --task peg-insert-side-v3 --seed 0

Read it from top to bottom; nothing of the `aloe` package is used. Scripted demonstrations are cloned by flow matching.
Then, round after round: the policy plays while a scripted human watches and takes over; critics learn by chunked
temporal differences what the *current* policy's chunks are worth; and every chunk ever played is cloned anew, weighted
by how much better it is than what the policy would have done.

What departs from the paper:
- The policy sees the simulator's full state (39 numbers), not pictures. No robot has that; it makes this run in minutes.
- The policy is an MLP and so are the critics; no language, no pretrained vision, no transformer.
- Rewards are divided by C, the mean length of a demonstration, so that returns lie in about [-2, 0]; targets are clamped
  to that range. The discount is 0.99 a chunk, not a step.
- Where a chunk runs past the end of its fragment the critic sees the tail of a chunk sampled from the policy. With
  padding it would know that the end is near, and the policy's own chunks, never padded, would all be unlike the data.
- beta = std of A over the buffer, eps = 3, and weights are divided by their mean in the batch (not disclosed there).
- The weight of windows whose fragment failed is multiplied by `failed_share` = 0. The advantage compares actions within
  one state: where all is lost already, no action is worse than another, and the policy would clone its own failures.

Axes: B batch (or N rows of the buffer), T steps of a fragment, H steps of a chunk, S state, A action, K critics,
M sampled chunks, F fan-in, W width. A trailing group of these letters in a name is its shape.
Flow time: t = 1 is noise, t = 0 is the action.
"""

import argparse
import copy
import time
import warnings
from dataclasses import dataclass, field

import metaworld.env_dict
import numpy as np
import torch
from metaworld.policies import ENV_POLICY_MAP
from torch import nn

H, A, S = 8, 4, 39
M, K = 8, 4
EXECUTE = 4  # actions of a chunk that are played before the policy is asked again
REPEAT = 4  # simulator steps (of 12.5 ms) for which an action is held
MAX_STEPS = 60  # of REPEAT simulator steps; then it is a failure
DISCOUNT = 0.99 ** (1 / H)  # gamma, for each step


# ---- The world, its scripted expert, and the human who takes over ----------------------------------------------------


class World:
    def __init__(self, task):
        self.sim = metaworld.env_dict.ALL_V3_ENVIRONMENTS[task]()
        self.sim._freeze_rand_vec, self.sim.seeded_rand_vec = False, True  # new positions at every reset, from the seed
        self.sim._partially_observable = False  # the state names the goal
        vars(self.sim).pop("sawyer_observation_space", None)  # cached with the goal clipped to zero
        self.sim._set_task_called, self.sim.max_path_length = True, 10**9  # the time-out is ours
        self.expert = ENV_POLICY_MAP[task]()

    def reset(self, seed):
        self.sim.seed(seed)
        self.state_S, self.progress = self.sim.reset()[0], 0.0

    def step(self, action_A):
        """Plays one action; True at success."""
        for _ in range(REPEAT):
            self.state_S, _, _, _, info = self.sim.step(np.clip(action_A, -1, 1))
            if info["success"]:
                break
        self.progress = info["unscaled_reward"]
        return bool(info["success"])

    def expert_action(self, rng, noise=0.1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Meta-World warns of its own experts' gains
            action_A = np.clip(self.expert.get_action(self.state_S), -1, 1)
        return np.clip(action_A + noise * rng.standard_normal(A), -1, 1)


@dataclass
class Fragment:
    """Consecutive steps by one actor. All ends are ends: success, the human's cut, or a time-out (a failure)."""

    source: str
    state_TS: list = field(default_factory=list)
    action_TA: list = field(default_factory=list)
    success: bool = False

    def play(self, world, action_A):
        self.state_TS.append(world.state_S)
        self.action_TA.append(np.clip(action_A, -1, 1))
        self.success = world.step(action_A)


def play_expert(world, source, rng):
    fragment = Fragment(source)
    while not fragment.success and len(fragment.action_TA) < MAX_STEPS:
        fragment.play(world, world.expert_action(rng))
    return fragment


def play_policy(world, policy, noise, human=False):
    """One episode of the policy. A human cuts it where it stands still for a quarter of the time, or is late."""
    fragment, best, since = Fragment("policy"), 0.0, 0
    while not fragment.success and (steps := len(fragment.action_TA)) < MAX_STEPS:
        if world.progress > best + 0.1:
            best, since = world.progress, steps
        if human and (steps - since > MAX_STEPS // 4 or steps > 0.75 * MAX_STEPS):
            break
        if steps % EXECUTE == 0:
            state_BS = torch.tensor(world.state_S, dtype=torch.float32)[None]
            chunk_HA = policy.sample(state_BS, 1, noise)[0, 0].numpy()
        fragment.play(world, chunk_HA[steps % EXECUTE])
    return fragment


# ---- The buffer: a window of H actions at every step, never across fragments -----------------------------------------


def chunk_windows(fragments, scale):
    """Row i starts at step i of the buffer."""
    parts, first_row = [], 0
    for fragment in fragments:
        T = len(fragment.action_TA)
        step_TH = np.arange(T)[:, None] + np.arange(H)
        reward_T = np.full(T, -1 / scale)  # -1 a step
        reward_T[-1] = 0 if fragment.success else -1  # success 0, failure -C, all divided by C
        is_pad_TH, inside_TH = step_TH >= T, np.minimum(step_TH, T - 1)
        parts.append(
            {
                "state_BS": np.array(fragment.state_TS, np.float32),
                "action_BHA": np.array(fragment.action_TA, np.float32)[inside_TH],
                "is_pad_BH": is_pad_TH,
                "reward_BH": np.where(is_pad_TH, 0, reward_T[inside_TH]).astype(np.float32),
                "terminated_B": step_TH[:, -1] >= T - 1,  # the fragment ends within the window: nothing follows
                "next_B": first_row + np.minimum(np.arange(T) + H, T - 1),  # row of s_{t+H}
                "failed_B": np.full(T, not fragment.success),
                "human_B": np.full(T, fragment.source != "policy"),
            }
        )
        first_row += T
    return {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in parts[0]}


# ---- Actor and critics -----------------------------------------------------------------------------------------------


class Policy(nn.Module):
    """v_theta(x_t, t, s): the velocity that leads from noise to action."""

    def __init__(self, mean_S, std_S, width=256):
        super().__init__()
        self.mean_S, self.std_S = mean_S, std_S
        sizes = [S + H * A + 16, width, width, width]
        layers = [layer for i, o in zip(sizes, sizes[1:], strict=False) for layer in (nn.Linear(i, o), nn.SiLU())]
        self.net = nn.Sequential(*layers, nn.Linear(width, H * A))

    def forward(self, state_BS, x_BHA, t_B):
        angle = t_B[:, None] * 2.0 ** torch.arange(-1, 7) * np.pi
        seen = [normalise(state_BS, self.mean_S, self.std_S), x_BHA.flatten(1), angle.sin(), angle.cos()]
        return self.net(torch.cat(seen, -1)).unflatten(-1, (H, A))

    @torch.no_grad()
    def sample(self, state_BS, samples, noise, steps=8):
        """M chunks for each state: integrate dx/dt = v_theta from t = 1 to t = 0."""
        state, dt = state_BS.repeat_interleave(samples, 0), 1 / steps
        x_BHA = torch.randn(len(state), H, A, generator=noise)
        for i in range(steps):
            x_BHA = x_BHA - dt * self(state, x_BHA, torch.full((len(state),), 1 - i * dt))
        return x_BHA.clamp(-1, 1).unflatten(0, (len(state_BS), samples))


class Critics(nn.Module):
    """Q_1..Q_K(s, a_{t:t+H}): K separate MLPs, computed at once."""

    def __init__(self, mean_S, std_S, width=128):
        super().__init__()
        self.mean_S, self.std_S = mean_S, std_S
        sizes = [S + H * A, width, width, 1]
        pairs = list(zip(sizes, sizes[1:], strict=False))
        self.weight = nn.ParameterList([torch.randn(K, i, o) * (2 / i) ** 0.5 for i, o in pairs])
        self.bias = nn.ParameterList([torch.zeros(K, 1, o) for _, o in pairs])

    def forward(self, state_BS, chunk_BHA):
        x_BF = torch.cat([normalise(state_BS, self.mean_S, self.std_S), chunk_BHA.flatten(1)], -1)
        x_KBW = x_BF.expand(K, -1, -1)
        for layer, (weight_KFW, bias_K1W) in enumerate(zip(self.weight, self.bias, strict=True)):
            x_KBW = torch.baddbmm(bias_K1W, nn.functional.gelu(x_KBW) if layer else x_KBW, weight_KFW)
        return x_KBW[..., 0].T

    def pessimistic(self, state_BS, chunks_BMHA):
        """Q_pess = min_i Q_i of M chunks for each state: (B, M)."""
        samples = chunks_BMHA.shape[1]
        q_BK = self(state_BS.repeat_interleave(samples, 0), chunks_BMHA.flatten(0, 1))
        return q_BK.amin(-1).unflatten(0, (-1, samples))


def normalise(state_BS, mean_S, std_S):
    return ((state_BS - mean_S) / std_S).clamp(-5, 5)


def descend(optimizer, loss, step, steps, peak):
    """One step of AdamW with a short warm-up and half a cosine."""
    for group in optimizer.param_groups:
        group["lr"] = peak * min(1, (step + 1) / 50) * (0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * step / steps)))
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()


# ---- Policy evaluation: what is a chunk worth under the current policy? ----------------------------------------------


def fit_critics(critics, target, optimizer, data, samples_NMHA, lowest, steps, noise, batch=256, m=2):
    for step in range(steps):
        rows = torch.randint(len(data["next_B"]), (batch,), generator=noise)
        part = {name: column[rows] for name, column in data.items()}
        # Tail fill: past the end of the fragment, the policy's own actions.
        fill_BHA = samples_NMHA[rows, torch.randint(M, (batch,), generator=noise)]
        chunk_BHA = torch.where(part["is_pad_BH"][..., None], fill_BHA, part["action_BHA"])
        with torch.no_grad():
            # y = sum_{k<H} gamma^k r_{t+k} + gamma^H (1 - d) E_{a' ~ pi} min_i Qbar_i(s_{t+H}, a')
            next_BS, next_BmHA = data["state_BS"][part["next_B"]], samples_NMHA[part["next_B"], :m]
            value_B = target.pessimistic(next_BS, next_BmHA).mean(-1)
            return_B = (part["reward_BH"] * DISCOUNT ** torch.arange(H)).sum(-1)
            y_B = (return_B + DISCOUNT**H * ~part["terminated_B"] * value_B).clamp(lowest, 0)
        # L = mean over i and batch of (Q_i(s, a) - y)^2, the same y for every critic.
        loss = ((critics(part["state_BS"], chunk_BHA) - y_B[:, None]) ** 2).mean()
        descend(optimizer, loss, step, steps, 1e-3)
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), critics.parameters(), strict=True):
                slow.lerp_(fast, 0.01)


@torch.no_grad()
def advantages(critics, data, samples_NMHA):
    """A = Q_pess(s, a) - mean_M Q_pess(s, a'_M), for every row."""
    chunk_NHA = torch.where(data["is_pad_BH"][..., None], samples_NMHA[:, 0], data["action_BHA"])
    q_N = critics.pessimistic(data["state_BS"], chunk_NHA[:, None])[:, 0]
    return q_N - critics.pessimistic(data["state_BS"], samples_NMHA).mean(-1)


# ---- Policy improvement: weighted flow matching ----------------------------------------------------------------------


def fit_policy(policy, optimizer, data, weight_N, steps, peak, noise, batch=256):
    allowed = weight_N.nonzero()[:, 0]
    for step in range(steps):
        rows = allowed[torch.randint(len(allowed), (batch,), generator=noise)]
        action_BHA, valid_BH = data["action_BHA"][rows], ~data["is_pad_BH"][rows]
        noise_BHA, t_B = torch.randn(action_BHA.shape, generator=noise), torch.rand(batch, generator=noise)
        t = t_B[:, None, None]
        velocity_BHA = policy(data["state_BS"][rows], t * noise_BHA + (1 - t) * action_BHA, t_B)
        # L = sum over valid entries of w * (v_theta - (noise - a))^2 / their number
        residual_BH = ((velocity_BHA - (noise_BHA - action_BHA)) ** 2).mean(-1)
        weight_B = weight_N[rows] / weight_N[rows].mean()
        descend(optimizer, (weight_B[:, None] * valid_BH * residual_BH).sum() / valid_BH.sum(), step, steps, peak)


# ---- The circle ------------------------------------------------------------------------------------------------------


def main(args):
    torch.set_num_threads(1)
    noise, rng, world = torch.Generator().manual_seed(args.seed), np.random.default_rng(args.seed), World(args.task)
    demos, collected, evaluated, bc_steps, critic_steps, steps = (
        (3, 3, 3, 60, 30, 30) if args.quick else (args.demos, 20, 50, 1500, 800, 600)
    )
    fragments = []
    for episode in range(demos):
        world.reset(seed_of(args.seed, 0, episode))
        fragments.append(play_expert(world, "demo", rng))
    scale = np.mean([len(fragment.action_TA) for fragment in fragments if fragment.success])  # C
    data = chunk_windows(fragments, scale)
    mean_S, std_S = data["state_BS"].mean(0), data["state_BS"].std(0).clamp(min=0.02)
    torch.manual_seed(args.seed)  # for the first weights alone
    policy, critics = Policy(mean_S, std_S), Critics(mean_S, std_S)
    target = copy.deepcopy(critics).requires_grad_(False)
    actor_optimizer = torch.optim.AdamW(policy.parameters(), weight_decay=1e-4, fused=True)
    critic_optimizer = torch.optim.AdamW(critics.parameters(), betas=(0.9, 0.95), weight_decay=1e-4, fused=True)
    fit_policy(policy, actor_optimizer, data, (~data["failed_B"]).float(), bc_steps, 1e-3, noise)

    print("| round | episodes | takeovers | A of human | A of policy | success | steps to success | minutes |")
    print("|---|---|---|---|---|---|---|---|")
    episodes, takeovers, told = demos, 0, "- | -"
    for index in range(args.rounds + 1):
        if index:
            for episode in range(collected):  # the policy plays; the human takes over from where it was cut
                world.reset(seed_of(args.seed, index, episode))
                fragments.append(play_policy(world, policy, noise, human=True))
                if not fragments[-1].success:
                    fragments.append(play_expert(world, "human", rng))
                    takeovers += 1
            episodes += collected
            data = chunk_windows(fragments, scale)
            samples_NMHA = policy.sample(data["state_BS"], M, noise)  # the actor is frozen meanwhile: sampled once
            lowest = -max(len(fragment.action_TA) for fragment in fragments) / scale - 1
            fit_critics(critics, target, critic_optimizer, data, samples_NMHA, lowest, critic_steps, noise)
            advantage_N = advantages(critics, data, samples_NMHA)
            # w = exp(clip(A / beta, -eps, eps))
            weight_N = (advantage_N / advantage_N.std()).clamp(-3, 3).exp()
            weight_N = torch.where(data["failed_B"], args.failed_share * weight_N, weight_N)
            fit_policy(policy, actor_optimizer, data, weight_N, steps, 5e-4, noise)
            human_B = data["human_B"]
            told = f"{advantage_N[human_B].mean():+.3f} | {advantage_N[~human_B].mean():+.3f}"
        success = []
        for episode in range(evaluated):  # the same positions for every version
            world.reset(seed_of(args.seed, 999, episode))
            fragment = play_policy(world, policy, noise)
            success.append(len(fragment.action_TA) if fragment.success else np.nan)
        rate, length = np.isfinite(success).mean(), np.nanmean(success) if np.isfinite(success).any() else np.nan
        print(f"| {index} | {episodes} | {takeovers} | {told} | {rate:.2f} | {length:.1f} | {time.process_time() / 60:.1f} |", flush=True)


def seed_of(seed, purpose, episode):
    return int(np.random.SeedSequence([seed, purpose, episode]).generate_state(1)[0] >> 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="peg-insert-side-v3", choices=sorted(ENV_POLICY_MAP))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--demos", type=int, default=10)
    parser.add_argument("--failed-share", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few seconds of everything, for tests: learns nothing")
    main(parser.parse_args())
