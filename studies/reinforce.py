"""REINFORCE (Williams, 1992) on gymnasium's CartPole, which rewards each step of an upright pole.

It is the objective of the study `cartpole`, and imports nothing of studyloom.
"""

from collections.abc import Callable
from statistics import fmean

import gymnasium
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

LONGEST = 200  # steps of an episode; 195 in the mean over 100 episodes is the usual mark
RUNNING = 100  # episodes whose mean is the running reward


def train(config: DictConfig, report: Callable[[float, int], None]) -> float:
    """Trains a policy, and reports the running reward after each update.

    Args:
        config: of the trial, with `params` (hidden, lr, gamma, episodes, updates) and a `seed`.
        report: called with the running reward and the number of the update, from 1.

    Returns:
        The mean reward of the last 100 episodes.
    """
    params = config.params
    policy = nn.Sequential(nn.Linear(4, params.hidden), nn.Tanh(), nn.Linear(params.hidden, 2))
    optimizer = torch.optim.Adam(policy.parameters(), lr=params.lr)
    poles = gymnasium.make_vec(
        "CartPole-v1",
        params.episodes,
        vectorization_mode="vector_entry_point",
        max_episode_steps=LONGEST,
    )
    rewards: list[float] = []
    for update in range(params.updates):
        observations, actions, alive = play(policy, poles, seed=config.seed + update)
        returns = discounted(alive, params.gamma)
        mean = (returns * alive).sum() / alive.sum()
        spread = (((returns - mean) ** 2 * alive).sum() / alive.sum()).sqrt().clamp(min=1e-6)
        log_probabilities = policy(observations).log_softmax(-1)
        log_probability = log_probabilities.gather(-1, actions[..., None]).squeeze(-1)
        loss = -(log_probability * alive * (returns - mean) / spread).sum() / alive.sum()
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
    """Plays an episode with each pole.

    Args:
        policy: maps observations (poles, 4) to the logits of two actions, (poles, 2).
        poles: the environments.
        seed: of their first states.

    Returns:
        Observations (steps, poles, 4); actions (steps, poles); and 1 where the pole was still up,
        else 0, (steps, poles).
    """
    observations, actions, up = [], [], []
    observation, _ = poles.reset(seed=seed)
    alive = torch.ones(len(observation), dtype=torch.bool)
    while alive.any():
        observations.append(torch.from_numpy(observation))
        actions.append(torch.multinomial(policy(observations[-1]).softmax(1), 1).squeeze(1))
        up.append(alive)
        observation, _, fallen, late, _ = poles.step(actions[-1].numpy())
        alive = alive & ~torch.from_numpy(fallen | late)
    return torch.stack(observations), torch.stack(actions), torch.stack(up).float()


def discounted(alive: Tensor, gamma: float) -> Tensor:
    """Sums the rewards from each step on, each discounted by how many steps away it is.

    Args:
        alive: the reward of each step, (steps, poles).
        gamma: the factor for each step of distance.

    Returns:
        The sums, (steps, poles).
    """
    returns = torch.zeros_like(alive)
    following = torch.zeros(alive.shape[1])
    for step in reversed(range(len(alive))):
        following = alive[step] * (1 + gamma * following)
        returns[step] = following
    return returns
