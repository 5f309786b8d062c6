"""ALOE in one file: improve a policy by off-policy evaluation of action chunks (arXiv 2602.12691).

    python examples/minimal_aloe.py --seed 0

Scripted demonstrations are cloned by flow matching. Then, round after round: the policy plays while a scripted human
watches and takes over; critics learn by chunked temporal differences what the *current* policy's chunks are worth; and
every chunk ever played is cloned anew, weighted by how much better it is than what the policy would have done.

What departs from the paper, or fills in what it does not disclose:
- The policy sees the simulator's full state (39 numbers), which no robot has, instead of pictures, and is an MLP, as the
  critics are: no language, no pretrained vision, no transformer. That makes it a matter of minutes.
- Rewards are divided by C, the mean length of a successful demonstration, so that returns lie in about [-2, 0], and
  targets are clamped to what is possible. The discount is 0.99 for each chunk, not for each step.
- Past the end of its fragment, a chunk is shown to the critic with the tail of one of the policy's own. Padding would
  tell that the end is near, and the policy's chunks, which have none, would all be unlike the data.
- beta is the standard deviation of A over the buffer, eps = 3; weights are divided by their mean over the batch.
- Windows of failed fragments count by `failed_share`, 0 by default. A compares actions within one state: where all is
  lost, none is worse than another, and the policy would go on cloning its own failures. 1 is the paper.

Axes: N rows of the buffer, B of a batch; T steps of a fragment, H of a chunk; S state, A action, M samples, K critics.
Capitals at the end of a name are its shape. Flow time: t = 1 is noise, t = 0 is the action.
"""

import argparse
import time
import warnings

import metaworld.env_dict
import numpy as np
import torch
from metaworld.policies import ENV_POLICY_MAP
from torch import nn

S, A, H, M, K = 39, 4, 8, 8, 4
EXECUTE = 4  # actions of a chunk that are played before the policy is asked again
REPEAT, MAX_STEPS = 4, 60  # a step is 4 simulator steps of 12.5 ms; the time-out, a failure, comes after 60
BATCH, DISCOUNT = 256, 0.99 ** (1 / H)  # DISCOUNT is gamma, for each step


# ---- The world, and who plays in it ----
class World:
    def __init__(self, task, seed):
        self.sim, self.expert = metaworld.env_dict.ALL_V3_ENVIRONMENTS[task](), ENV_POLICY_MAP[task]()
        self.sim._freeze_rand_vec, self.sim.seeded_rand_vec = False, True  # new positions at every reset, by its seed
        self.sim._partially_observable = False  # the goal is part of the state
        vars(self.sim).pop("sawyer_observation_space", None)  # cached with the goal clipped to zero
        self.sim._set_task_called, self.sim.max_path_length = True, 10**9  # the time-out is ours
        self.rng = np.random.default_rng(seed)  # for the human's unsteady hand

    def reset(self, seed):
        self.sim.seed(seed)
        self.state_S, self.progress = self.sim.reset()[0], 0.0

    def step(self, action_A):  # True at success
        for _ in range(REPEAT):
            self.state_S, _, _, _, info = self.sim.step(action_A)
            self.progress = info["unscaled_reward"]  # Meta-World's shaped reward, for the eyes of the human alone
            if info["success"]:
                return True
        return False

    def human(self, state_S, step):  # Meta-World's scripted expert
        return np.clip(self.expert.get_action(state_S), -1, 1) + 0.1 * self.rng.standard_normal(A)


def play(world, act, seed=None, by_human=False, watched=False):
    """One fragment: steps by one actor until success, or failure, which is the time-out or the cut by a human who watches:
    where nothing has moved for a third of the time, or three quarters are over. With a seed, the world is reset first."""
    if seed is not None:
        world.reset(seed)
    state_TS, action_TA, success, best, since = [], [], False, 0.0, 0
    for step in range(MAX_STEPS):
        if world.progress > best + 0.1:
            best, since = world.progress, step
        if success or (watched and (step - since > MAX_STEPS / 3 or step > MAX_STEPS * 3 / 4)):
            break
        state_TS.append(world.state_S.astype(np.float32))
        action_TA.append(np.clip(act(world.state_S, step), -1, 1).astype(np.float32))
        success = world.step(action_TA[-1])
    return {"state_TS": np.array(state_TS), "action_TA": np.array(action_TA), "success": success, "human": by_human}


# ---- The buffer: row i is the window of H actions from its step i on, which never reaches into another fragment ----
def chunk_windows(fragments, scale):
    parts, first = [], 0
    for fragment in fragments:
        T = len(fragment["action_TA"])
        step_TH = np.arange(T)[:, None] + np.arange(H)
        is_pad_TH, inside_TH = step_TH >= T, np.minimum(step_TH, T - 1)
        reward_T = np.full(T, -1 / scale, np.float32)  # -1 a step ...
        reward_T[-1] = 0 if fragment["success"] else -1  # ... 0 at success, -C at failure, all divided by C
        part = {
            "state_NS": fragment["state_TS"],
            "chunk_NHA": fragment["action_TA"][inside_TH],
            "is_pad_NH": is_pad_TH,
            "reward_NH": np.where(is_pad_TH, 0, reward_T[inside_TH]),
            "terminated_N": step_TH[:, -1] >= T - 1,  # d: the fragment ends within the window, nothing follows
            "next_N": first + np.minimum(np.arange(T) + H, T - 1),  # row of s_{t+H}
            "failed_N": np.full(T, not fragment["success"]),
            "human_N": np.full(T, fragment["human"]),
        }
        parts.append(part)
        first += T
    return {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in parts[0]}


# ---- Actor and critics ----
def mlp(inputs, mid, outputs):
    return nn.Sequential(nn.Linear(inputs, mid), nn.SiLU(), nn.Linear(mid, mid), nn.SiLU(), nn.Linear(mid, outputs))


class Policy(nn.Module):  # v_theta(x_t, t, s): the velocity that leads from action to noise
    def __init__(self, look, chance):
        super().__init__()
        self.look, self.chance, self.net = look, chance, mlp(S + H * A + 16, 384, H * A)

    def forward(self, state_BS, x_BHA, t_B):
        angle = t_B[:, None] * 2.0 ** torch.arange(-1, 7) * torch.pi
        return self.net(torch.cat([self.look(state_BS), x_BHA.flatten(1), angle.sin(), angle.cos()], 1)).view_as(x_BHA)

    @torch.no_grad()
    def sample(self, state_BS, samples, steps=8):
        """(B, M, H, A), M chunks for each state: dx/dt = v_theta, from t = 1 to t = 0."""
        state_BS = state_BS.repeat_interleave(samples, 0)
        x_BHA = torch.randn(len(state_BS), H, A, generator=self.chance)
        for i in range(steps):
            x_BHA = x_BHA - self(state_BS, x_BHA, torch.full((len(x_BHA),), 1 - i / steps)) / steps
        return x_BHA.clamp(-1, 1).unflatten(0, (-1, samples))

    def act(self, state_S, step):
        if step % EXECUTE == 0:
            self.chunk_HA = self.sample(torch.tensor(state_S[None]).float(), 1)[0, 0].numpy()
        return self.chunk_HA[step % EXECUTE]


class Critics(nn.Module):  # Q_1..Q_K(s, a_{t:t+E}): of a chunk they see what is executed
    def __init__(self, look):
        super().__init__()
        self.look, self.nets = look, nn.ModuleList(mlp(S + EXECUTE * A, 128, 1) for _ in range(K))

    def forward(self, state_BS, chunk_BHA):
        x = torch.cat([self.look(state_BS), chunk_BHA[:, :EXECUTE].flatten(1)], 1)
        return torch.cat([net(x) for net in self.nets], 1)

    def pessimistic(self, state_BS, chunk_BMHA):
        """(B, M), Q_pess = min_i Q_i of M chunks for each state."""
        q_BK = self(state_BS.repeat_interleave(chunk_BMHA.shape[1], 0), chunk_BMHA.flatten(0, 1))
        return q_BK.amin(1).view(chunk_BMHA.shape[:2])


def descend(optimizer, loss, step, steps, peak):
    """One step of AdamW: at a rate with a short warm-up and half a cosine, with clipped gradients."""
    share = min(1, (step + 1) / 50) * (1.05 + 0.95 * np.cos(np.pi * step / steps)) / 2
    optimizer.param_groups[0]["lr"] = peak * share
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()


# ---- Policy evaluation: what is a chunk worth under the current policy? ----
def fit_critics(critics, target, optimizer, data, samples_NMHA, lowest, steps, chance, m=2):
    for step in range(steps):
        row = torch.randint(len(samples_NMHA), (BATCH,), generator=chance)
        # Tail fill: past the end of the fragment, what the policy might have done.
        fill_BHA = samples_NMHA[row, torch.randint(M, (BATCH,), generator=chance)]
        chunk_BHA = torch.where(data["is_pad_NH"][row, :, None], fill_BHA, data["chunk_NHA"][row])
        with torch.no_grad():
            # y = sum_{k<H} gamma^k r_{t+k} + gamma^H (1 - d) mean_m min_i Qbar_i(s_{t+H}, a'_m),   a' ~ pi
            after = data["next_N"][row]
            value_B = target.pessimistic(data["state_NS"][after], samples_NMHA[after, :m]).mean(1)
            return_B = (data["reward_NH"][row] * DISCOUNT ** torch.arange(H)).sum(1)
            y_B = (return_B + DISCOUNT**H * ~data["terminated_N"][row] * value_B).clamp(lowest, 0)
        # L = mean over i and batch of (Q_i(s, a) - y)^2, the same y for every critic
        descend(optimizer, ((critics(data["state_NS"][row], chunk_BHA) - y_B[:, None]) ** 2).mean(), step, steps, 1e-3)
        for slow, fast in zip(target.parameters(), critics.parameters(), strict=True):
            slow.data.lerp_(fast.data, 0.01)


@torch.no_grad()
def advantages(critics, data, samples_NMHA):
    """A(s, a) = Q_pess(s, a) - mean_M Q_pess(s, a'_M) of every row."""
    chunk_NHA = torch.where(data["is_pad_NH"][..., None], samples_NMHA[:, 0], data["chunk_NHA"])
    q_N = critics.pessimistic(data["state_NS"], chunk_NHA[:, None])[:, 0]
    return q_N - critics.pessimistic(data["state_NS"], samples_NMHA).mean(1)


# ---- Policy improvement: weighted flow matching ----
def fit_policy(policy, optimizer, data, weight_N, steps, peak, chance):
    for step in range(steps):
        row = torch.multinomial((weight_N > 0).float(), BATCH, replacement=True, generator=chance)
        action_BHA, valid_BH, weight_B = data["chunk_NHA"][row], ~data["is_pad_NH"][row], weight_N[row]
        noise_BHA, t_B = torch.randn(action_BHA.shape, generator=chance), torch.rand(BATCH, generator=chance)
        x_BHA = torch.lerp(action_BHA, noise_BHA, t_B[:, None, None])  # x_t = t noise + (1 - t) a
        # L = sum over valid entries of w (v_theta - (noise - a))^2 / their number
        residual_BH = ((policy(data["state_NS"][row], x_BHA, t_B) - (noise_BHA - action_BHA)) ** 2).mean(2)
        loss = ((weight_B / weight_B.mean())[:, None] * valid_BH * residual_BH).sum() / valid_BH.sum()
        descend(optimizer, loss, step, steps, peak)


# ---- The circle ----
def main(args):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)  # Meta-World warns of its own experts' gains
    torch.manual_seed(args.seed)  # for the first weights; all other chance has a generator of its own
    chance, world = torch.Generator().manual_seed(args.seed), World(args.task, args.seed)
    demos, collected, evaluated, steps = (3, 3, 3, 30) if args.quick else (10, 30, 50, 1000)
    seeds = (np.random.SeedSequence(args.seed).generate_state(9999) >> 1).tolist()  # of the world's resets
    fragments = [play(world, world.human, seeds.pop(), by_human=True) for _ in range(demos)]
    assert any(fragment["success"] for fragment in fragments), "MAX_STEPS is too short for the expert in this task"
    scale = np.mean([len(fragment["action_TA"]) for fragment in fragments if fragment["success"]])  # C
    data = chunk_windows(fragments, scale)
    mean_S, std_S = data["state_NS"].mean(0), data["state_NS"].std(0).clamp(min=0.02)
    policy = Policy(lambda state: ((state - mean_S) / std_S).clamp(-5, 5), chance)
    critics, target = Critics(policy.look), Critics(policy.look)
    target.load_state_dict(critics.state_dict())
    policy_optimizer = torch.optim.AdamW(policy.parameters(), weight_decay=1e-4, fused=True)
    critic_optimizer = torch.optim.AdamW(critics.parameters(), betas=(0.9, 0.95), weight_decay=1e-4, fused=True)
    fit_policy(policy, policy_optimizer, data, (~data["failed_N"]).float(), 2 * steps, 1e-3, chance)
    print("| round | episodes | by hand | A human | A policy | success | steps | CPU min |", "|---" * 8 + "|", sep="\n")
    for index in range(args.rounds + 1):
        advantage = "- | -"
        if index > 0:
            for _ in range(collected):
                fragments.append(play(world, policy.act, seeds.pop(), watched=True))
                if not fragments[-1]["success"]:  # the human goes on from the very state where the policy was cut
                    fragments.append(play(world, world.human, by_human=True))
            data = chunk_windows(fragments, scale)
            samples_NMHA = policy.sample(data["state_NS"], M)  # once: the policy is frozen meanwhile
            lowest = -1 - max(len(fragment["action_TA"]) for fragment in fragments) / scale
            fit_critics(critics, target, critic_optimizer, data, samples_NMHA, lowest, steps, chance)
            A_N = advantages(critics, data, samples_NMHA)
            weight_N = (A_N / A_N.std()).clamp(-3, 3).exp()  # w = exp(clip(A / beta, -eps, eps))
            weight_N *= torch.where(data["failed_N"], args.failed_share, 1.0)
            fit_policy(policy, policy_optimizer, data, weight_N, steps, 1e-3, chance)
            advantage = f"{A_N[data['human_N']].mean():+.3f} | {A_N[~data['human_N']].mean():+.3f}"
        played = [play(world, policy.act, seed) for seed in seeds[:evaluated]]  # always the same
        success, length = np.mean([f["success"] for f in played]), np.mean([len(f["action_TA"]) for f in played])
        row = f"{index} | {demos + index * collected} | {sum(f['human'] for f in fragments)} | {advantage}"
        print(f"| {row} | {success:.2f} | {length:.1f} | {time.process_time() / 60:.1f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", default="peg-insert-side-v3", choices=sorted(ENV_POLICY_MAP))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--failed-share", type=float, default=0.0)
    parser.add_argument("--quick", action="store_true", help="a few seconds of everything; nothing is learned")
    main(parser.parse_args())
