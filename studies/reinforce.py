"""REINFORCE (Williams, 1992) on gymnasium's CartPole: a pole is kept upright for at most 200 steps, a reward for each.

An objective of the study `cartpole`; nothing of studyloom is in it.
"""

from collections.abc import Callable
from statistics import fmean

import gymnasium
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

LONGEST = 200  # steps of an episode; 195 in the mean over 100 episodes is the usual mark
RUNNING = 100  # episodes that the running reward is the mean of


def train(config: DictConfig, report: Callable[[float, int], None]) -> float:
    """Trains a policy and gives the mean reward of its last 100 episodes; reports it after each update."""
    chosen = config.params
    policy = nn.Sequential(nn.Linear(4, chosen.hidden), nn.Tanh(), nn.Linear(chosen.hidden, 2))
    optimizer = torch.optim.Adam(policy.parameters(), lr=chosen.lr)
    poles = gymnasium.make_vec(
        "CartPole-v1",
        chosen.episodes,
        vectorization_mode="vector_entry_point",
        max_episode_steps=LONGEST,
    )
    rewards: list[float] = []
    for update in range(chosen.updates):
        seen, actions, alive = play(policy, poles, seed=config.seed + update)
        returns = discounted(alive, chosen.gamma)
        mean = (returns * alive).sum() / alive.sum()
        spread = (((returns - mean) ** 2 * alive).sum() / alive.sum()).sqrt().clamp(min=1e-6)
        chances = policy(seen).log_softmax(-1).gather(-1, actions[..., None]).squeeze(-1)
        loss = -(chances * alive * (returns - mean) / spread).sum() / alive.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rewards += alive.sum(0).tolist()
        report(fmean(rewards[-RUNNING:]), update + 1)
    return fmean(rewards[-RUNNING:])


@torch.no_grad()
def play(
    policy: nn.Module, poles: gymnasium.vector.VectorEnv, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """An episode of each pole: observations (steps, poles, 4), actions, and whether the pole was up, (steps, poles)."""
    seen, actions, up = [], [], []
    observation, _ = poles.reset(seed=seed)
    alive = torch.ones(len(observation), dtype=torch.bool)
    while alive.any():
        seen.append(torch.from_numpy(observation))
        actions.append(torch.multinomial(policy(seen[-1]).softmax(1), 1).squeeze(1))
        up.append(alive)
        observation, _, fallen, late, _ = poles.step(actions[-1].numpy())
        alive = alive & ~torch.from_numpy(fallen | late)
    return torch.stack(seen), torch.stack(actions), torch.stack(up).float()


def discounted(alive: Tensor, gamma: float) -> Tensor:
    """The reward from each step on, (steps, poles); later ones count less."""
    returns = torch.zeros_like(alive)
    following = torch.zeros(alive.shape[1])
    for step in reversed(range(len(alive))):
        following = alive[step] * (1 + gamma * following)
        returns[step] = following
    return returns
