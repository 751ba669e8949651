"""A Hydra application with a config group."""

import hydra


@hydra.main(version_base=None, config_path="conf", config_name="hydrated")
def main(cfg):
    for epoch in range(1, 4):
        loss = cfg.optimizer.lr + cfg.model.width / 1000 + 1 / epoch
        print(f"epoch={epoch} val/loss={loss:.5f}")


if __name__ == "__main__":
    main()
