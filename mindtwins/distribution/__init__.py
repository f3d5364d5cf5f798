"""Several processes as one job: finding them, keeping them together, ending them together.

Nothing here imports MindSpore, because all of it has to happen before MindSpore is imported: on a
CPU it reads its cluster from the environment. What needs MindSpore is `training.distributed`.
"""
