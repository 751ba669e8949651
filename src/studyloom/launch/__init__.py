"""Launchers: how the workers of a study are started, kept alive with the right device, and stopped.

A worker is the same command with `launcher=join`, or a fork of that command; the database is all that workers share.
Whoever started one vouches for it: the leases of its trials are renewed from a process that no step of a training can
hold up.
"""

from studyloom.launch.local import Join as Join
from studyloom.launch.local import Local as Local
from studyloom.launch.nursery import Nursery as Nursery
from studyloom.launch.ray import Ray as Ray
from studyloom.launch.slurm import Slurm as Slurm
from studyloom.launch.task import HALT as HALT
from studyloom.launch.task import WORKER as WORKER
from studyloom.launch.task import Launcher as Launcher
from studyloom.launch.task import LaunchError as LaunchError
from studyloom.launch.task import Task as Task
from studyloom.launch.task import age as age
from studyloom.launch.task import follow_parent as follow_parent
from studyloom.launch.task import own_arguments as own_arguments
from studyloom.launch.task import program as program
