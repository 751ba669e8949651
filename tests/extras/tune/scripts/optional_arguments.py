import argparse


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("--augment", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--random-seed", type=int, default=4)
    return parser.parse_args()
