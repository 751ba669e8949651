"""A configurator, as nanoGPT's: constants that --key=value sets."""

learning_rate = 6e-4
n_layer = 6
compile_model = False
seed = 1337
exec(open("configurator.py").read())  # noqa: SIM115

for step in range(0, 30, 10):
    loss = 4 - n_layer / 10 + learning_rate + 1 / (step + 1)
    print(f"step {step}: train loss {loss - 0.5:.4f}, val loss {loss:.4f}")
    print(f"iter {step}: loss {loss:.4f}, time 23.45ms")
