"""Configurations that people, programs and agents propose while a search runs.

A proposer needs neither the study's config nor its code nor its data: the database holds what a
proposal is checked against. Nothing here reads a value of the test set.
"""
