"""MT-Bench: 80 questions of two turns, whose answers another model rates (arXiv 2306.05685).

Questions are read (`questions`), the subject answers them (`answers`), a judge behind an endpoint is asked to rate each
answer (`judge`, with `prompts`), every rating is kept (`judgments`), and `task` makes scores of them.
"""

from gora.evaluation.mtbench.task import MTBench

__all__ = ["MTBench"]
