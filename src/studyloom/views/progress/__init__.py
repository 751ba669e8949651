"""The progress of a whole job: the search, the judging of its best trials, the final trainings.

`job` reads all stages as one `Progress`, `estimate` says how long the rest takes, `costs` what was
spent, and `events` what has happened, as lines of JSON.
"""
