"""Programs on other nodes, from Python: docs/howto/programs-from-python.md.

`run` and `Popen` (here) are `subprocess.run` and `subprocess.Popen` with a node; `qnetpy.processes.aio` has `run_process` and
`open_process` as Trio has them; `qnetpy.processes.executor` has `NodeExecutor`, a `concurrent.futures.Executor` whose workers are on nodes.
"""

from qnetpy.processes.popen import DEVNULL, PIPE, STDOUT, Popen, run

__all__ = ["DEVNULL", "PIPE", "STDOUT", "Popen", "run"]
