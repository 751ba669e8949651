"""Methods of search, replayed in minutes on surrogates, recorded learning curves and tables.

A replay runs the real definition, space, sampler, pruner, worker loop and ledger in simulated time;
nothing is trained. `tables` and `surrogates` hold the tasks, `recording` makes our own curves,
`simulator` replays, `peers` runs other optimizers, `methods` names what is compared, and
`comparison` prints the regret after 54, 108, 216 and 432 epochs (2 to 16 trainings of 27 epochs),
and how much lower it is than that of `--against`: seeds are paired, intervals are 95% by a
bootstrap over tasks and seeds.

Tasks, by the name that `--on` takes:

- lcbench: surrogates of data sets of LCBench, from its epoch 3 to 52: 8 to test, on which no choice
  is based, and 12 to tune.
- joined: conditional tasks, in which a choice opens one of two of these data sets, each with its
  own hyperparameters.
- noisy, exploding: the same data sets, where the luck of a seed is large, or trainings with a high
  learning rate end at an enormous loss.
- curves: our recorded curves.
- hpobench: tables of trainings of one epoch, with 100 trials.

Methods: `default` is what conf/ says; `tpe`, `random`, `gp` and `cmaes` name the sampler, with
ASHA. Peers: `optuna` is `create_study()` without arguments, `optuna-hyperband` multivariate TPE
with Hyperband, `optuna-gp` and `optuna-gp-halving` its Gaussian process with Hyperband and with
successive halving, `smac` SMAC3's multi-fidelity facade, which takes 5 to 40 s a search, is
installed into build/peers and proposes in its own process.
"""
