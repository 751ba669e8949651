"""The execution of a study: from its config to its answer, in the processes of one command.

`command` starts and ends the processes, `plans` opens what is to be done in the database, and
`answer` has it worked on, shows the progress, and prints the answer; `compression` makes it small.
"""

__all__ = ["answer", "command", "compression", "heartbeat", "outputs", "plans", "streams"]
