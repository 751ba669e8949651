"""Predictions of a winner for pictures, sounds, arrays and lines of numbers.

winner.yaml builds the network, winner.pt holds its weights, and winner.json how what a file holds
becomes an input, as the data source of the study said it: `network`. `files` reads what files hold,
`inputs` makes inputs of it, and `predict` answers.
"""
